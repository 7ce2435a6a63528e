//! What can be wrong with a configuration.

use std::path::PathBuf;

use strongroom_proto::TargetName;

/// What is wrong with the configuration. No message holds the value that is wrong, for it may be a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that should be there cannot be read.
    #[error("read configuration {}", path.display())]
    ReadFile {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not YAML.
    #[error("parse {} as YAML", path.display())]
    ParseFile {
        /// The file.
        path: PathBuf,
        /// Where in the file, and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// A key that is not known.
    #[error("unknown key {key} in {}: {}", path.display(), did_you_mean(nearest.as_deref(), "see `strongroom config show` for the known keys"))]
    UnknownKey {
        /// The key, as a path.
        key: String,
        /// The file.
        path: PathBuf,
        /// The known key that it resembles.
        nearest: Option<String>,
    },
    /// A flag that sets a key that is not known.
    #[error("flag {flag} sets unknown key {key}: {}", did_you_mean(nearest.as_deref(), "see `strongroom config show` for the known keys"))]
    UnknownFlagKey {
        /// The flag.
        flag: String,
        /// The key, as a path.
        key: String,
        /// The known key that it resembles.
        nearest: Option<String>,
    },
    /// A variable that is not known.
    #[error("unknown variable {name}: {}", did_you_mean(nearest.as_deref(), "unset it, or see `strongroom config show` for the known keys"))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The known variable that it resembles.
        nearest: Option<String>,
    },
    /// A value of another type than its key has.
    #[error("{key} from {origin}: expected {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// Where the value came from.
        origin: String,
        /// What the key holds.
        expected: &'static str,
        /// What was there.
        found: &'static str,
    },
    /// A value that its key does not admit.
    #[error("{key} from {origin}: {reason}")]
    InvalidValue {
        /// The key.
        key: String,
        /// Where the value came from.
        origin: String,
        /// Why, and what is admitted.
        reason: String,
    },
    /// A target that cannot work.
    #[error("target {name} from {origin}: {reason}")]
    InvalidTarget {
        /// The target.
        name: TargetName,
        /// Where it is declared.
        origin: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Two targets of one name.
    #[error("target {name} is declared in {} and in {}: remove one", first.display(), second.display())]
    DuplicateTarget {
        /// The target.
        name: TargetName,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A file that holds a secret cannot be read.
    #[error("read the secret that {key} names in {}", path.display())]
    ReadSecret {
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The values are each well formed and yet do not make a configuration.
    #[error("put the configuration together")]
    Assemble {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn did_you_mean(nearest: Option<&str>, otherwise: &str) -> String {
    nearest.map_or_else(|| otherwise.to_owned(), |known| format!("did you mean {known}?"))
}
