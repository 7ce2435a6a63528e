//! What `strongroom wal fetch --from FILE` is told: everything it needs, in one private file, so that a recovery's
//! `restore_command` holds no secret and reads no other configuration.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strongroom_proto::wal::SystemIdentifier;

/// The size of segments where a cluster was not made with another.
pub const DEFAULT_SEGMENT_BYTES: u32 = 16 << 20;
/// How long a store that does not answer is tried again, where nothing else is said.
const RETRY_SECONDS: u64 = 30;
/// How many segments are brought ahead, where nothing else is said.
const PREFETCH_SEGMENTS: u32 = 8;

/// The content of the file, as JSON. Only its owner may be able to read the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchSettings {
    /// The vault: `file:///path`, a path, or `s3://bucket/prefix`.
    pub store: String,
    /// How to reach the bucket; without it the usual variables count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<FetchBucket>,
    /// The identity that opens the vault.
    pub identity_file: PathBuf,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The size of its segments.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u32,
    /// Believe pieces that these keys signed, instead of those that the vault itself names: an `allowed_signers` file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_signers_file: Option<PathBuf>,
    /// A private folder for segments brought ahead, made where it is missing; without it none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_dir: Option<PathBuf>,
    /// How many segments are brought ahead.
    #[serde(default = "default_prefetch_segments")]
    pub prefetch_segments: u32,
    /// How long a store that does not answer is tried again before the command gives up.
    #[serde(default = "default_retry_seconds")]
    pub retry_seconds: u64,
}

const fn default_segment_bytes() -> u32 {
    DEFAULT_SEGMENT_BYTES
}

const fn default_prefetch_segments() -> u32 {
    PREFETCH_SEGMENTS
}

const fn default_retry_seconds() -> u64 {
    RETRY_SECONDS
}

/// How to reach a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchBucket {
    /// The service's URL; Amazon's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The access key's id; without it the usual variables count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Hidden>,
    /// Whether an endpoint without TLS may be used.
    #[serde(default)]
    pub allow_http: bool,
}

/// A text that `Debug` does not show. It is written out where it is serialized.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

impl FetchSettings {
    /// Settings with what has to be said; the rest is as it is by default.
    pub fn new(store: impl Into<String>, identity_file: PathBuf, system_identifier: SystemIdentifier) -> Self {
        Self {
            store: store.into(),
            s3: None,
            identity_file,
            system_identifier,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            allowed_signers_file: None,
            spool_dir: None,
            prefetch_segments: PREFETCH_SEGMENTS,
            retry_seconds: RETRY_SECONDS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_file_and_never_show_the_key() {
        let mut settings = FetchSettings::new("s3://b/p", "/keys/identity.txt".into(), SystemIdentifier(u64::MAX));
        settings.s3 = Some(FetchBucket {
            secret_access_key: Some(Hidden("hush".to_owned())),
            ..FetchBucket::default()
        });
        let text = serde_json::to_string(&settings).unwrap();
        assert!(text.contains("\"18446744073709551615\""), "{text}");
        assert_eq!(serde_json::from_str::<FetchSettings>(&text).unwrap(), settings);
        assert!(!format!("{settings:?}").contains("hush"));
        let least = r#"{"store": "/v", "identity_file": "i", "system_identifier": "7"}"#;
        let least: FetchSettings = serde_json::from_str(least).unwrap();
        assert_eq!(least, FetchSettings::new("/v", "i".into(), SystemIdentifier(7)));
        let unknown = r#"{"store": "/v", "identity_file": "i", "system_identifier": "7", "stroe": 1}"#;
        assert!(serde_json::from_str::<FetchSettings>(unknown).is_err());
    }
}
