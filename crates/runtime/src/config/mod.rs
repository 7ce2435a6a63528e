//! Configuration: a YAML file, overridden by `STRONGROOM_*` variables, overridden by flags.
//!
//! Every value knows where it came from; a key, a variable or a type that is not known is an error that names the
//! nearest known one. No error and no listing ever holds a secret.

mod error;
mod layers;
mod model;
mod physical;
mod schema;
mod secret;
mod target;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strongroom_proto::TargetName;

pub use error::ConfigError;
pub use layers::Origin;
pub use model::{
    ApiConfig, CatalogConfig, Config, CoordinatorConfig, KeysConfig, LogConfig, LogFormat, NatsConfig, OtlpConfig,
    S3Config, ScenarioConfig, VaultConfig, WorkerConfig,
};
pub use physical::{PostgresMethod, WalTransport};
pub use secret::{Secret, SecretUrl, shown_url};
pub use target::TargetConfig;
pub use tree::{HookConfig, HooksConfig};

use layers::Layers;
use schema::Shape;

/// The variable that names the configuration file.
const FILE_VARIABLE: &str = "STRONGROOM_CONFIG";

/// From where to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The file, where one was named by a flag. It must exist.
    pub file: Option<PathBuf>,
    /// What flags set: the key (`nats.url`), its value, and the flag (`--nats-url`).
    pub flags: Vec<(String, String, String)>,
    /// The environment. Only `STRONGROOM_*`, the aliases, `HOME`, `XDG_CONFIG_HOME` and
    /// `XDG_CACHE_HOME` are looked at.
    pub env: BTreeMap<String, String>,
}

impl LoadOptions {
    /// Options with the environment of this process.
    pub fn from_process() -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        Self { env, ..Self::default() }
    }

    /// The same, with the file that a flag named.
    #[must_use]
    pub fn with_file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }

    /// Where the file is, and whether it must exist.
    fn file_to_read(&self) -> Option<(PathBuf, Presence)> {
        let set = |name: &str| self.env.get(name).filter(|v| !v.is_empty());
        if let Some(file) = &self.file {
            return Some((file.clone(), Presence::Required));
        }
        if let Some(file) = set(FILE_VARIABLE) {
            return Some((PathBuf::from(file), Presence::Required));
        }
        let folder = match (set("XDG_CONFIG_HOME"), set("HOME")) {
            (Some(xdg), _) => PathBuf::from(xdg),
            (None, Some(home)) => Path::new(home).join(".config"),
            (None, None) => return None,
        };
        Some((folder.join("strongroom").join("config.yaml"), Presence::Optional))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}

/// The configuration in effect, and the origin of every value that is not a default.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration in effect.
    pub config: Config,
    /// Where each value came from, by its key; a key that is absent has its default.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownValue {
    /// The key, e.g. `nats.url`.
    pub key: String,
    /// The value without secrets.
    pub value: Value,
    /// Where it came from.
    pub origin: String,
}

impl Loaded {
    /// Reads the file, the environment and the flags.
    ///
    /// # Errors
    /// Whatever is not as the model says: an unknown key or variable, a wrong type, a limit passed, a named file that
    /// is missing, a target that cannot work.
    pub fn load(options: LoadOptions) -> Result<Self, ConfigError> {
        let mut layers = Layers::new(schema::LEAVES);
        let mut file = None;
        if let Some((path, presence)) = options.file_to_read()
            && let Some(tree) = read_yaml(&path, presence)?
        {
            layers.add_file(&tree, &path)?;
            file = Some(path);
        }
        layers.add_env(&options.env)?;
        layers.add_flags(&options.flags)?;
        let (tree, origins) = layers.finish();
        let mut config: Config = serde_json::from_value(tree).map_err(|source| ConfigError::Assemble { source })?;
        if !origins.contains_key("cache_dir") {
            config.cache_dir = tree::default_cache_dir(&options.env);
        }
        config.validate(&origins)?;
        for (name, target) in &config.targets {
            let origin = origins.get("targets").map_or_else(String::new, ToString::to_string);
            target.validate_from(name, &origin)?;
        }
        Ok(Self { config, origins, file })
    }

    /// The defaults alone.
    pub fn defaults() -> Self {
        Self {
            config: Config::default(),
            origins: BTreeMap::new(),
            file: None,
        }
    }

    /// Every key with its value and origin, without secrets, in the order of the manual.
    pub fn show(&self) -> Vec<ShownValue> {
        let tree = serde_json::to_value(&self.config).unwrap_or_default();
        let mut shown = Vec::new();
        for leaf in schema::LEAVES {
            let value = lookup(&tree, leaf.path);
            if let Shape::Targets(target_leaves) = leaf.shape {
                for (name, target) in value.as_object().into_iter().flatten() {
                    for part in target_leaves.iter() {
                        let value = lookup(target, part.path);
                        if !is_empty(value) {
                            shown.push(self.shown(&format!("targets.{name}.{}", part.path), "targets", value));
                        }
                    }
                }
            } else {
                shown.push(self.shown(leaf.path, leaf.path, value));
            }
        }
        shown
    }

    fn shown(&self, key: &str, origin_key: &str, value: &Value) -> ShownValue {
        let section = origin_key.split_once('.').map_or(origin_key, |(section, _)| section);
        let origin = self.origins.get(origin_key).or_else(|| self.origins.get(section));
        ShownValue {
            key: key.to_owned(),
            value: value.clone(),
            origin: origin.map_or_else(|| Origin::Default.to_string(), ToString::to_string),
        }
    }
}

fn lookup<'a>(tree: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .try_fold(tree, |at, key| at.get(key))
        .unwrap_or(&Value::Null)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn read_yaml(path: &Path, presence: Presence) -> Result<Option<Value>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && presence == Presence::Optional => {
            return Ok(None);
        }
        Err(source) => {
            return Err(ConfigError::ReadFile {
                path: path.to_owned(),
                source,
            });
        }
    };
    if text.trim().is_empty() {
        return Ok(Some(Value::Null));
    }
    // The parser's own excerpt of the text would carry a secret into the error message.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options)
        .map(Some)
        .map_err(|source| ConfigError::ParseFile {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

/// The targets that the file and the folder declare together.
pub(crate) fn read_targets(
    file: Option<&Path>,
    folder: Option<&Path>,
) -> Result<BTreeMap<TargetName, TargetConfig>, ConfigError> {
    let mut targets = BTreeMap::new();
    let mut declared_in: BTreeMap<TargetName, PathBuf> = BTreeMap::new();
    if let Some(file) = file
        && let Some(Value::Object(mut tree)) = read_yaml(file, Presence::Required)?
        && let Some(section) = tree.remove("targets").filter(|section| !section.is_null())
    {
        layers::check_targets(&section, file)?;
        let read: BTreeMap<TargetName, TargetConfig> =
            serde_json::from_value(section).map_err(|source| ConfigError::Assemble { source })?;
        for (name, target) in read {
            target.validate_from(&name, &Origin::File(file.to_owned()).to_string())?;
            declared_in.insert(name.clone(), file.to_owned());
            targets.insert(name, target);
        }
    }
    for path in folder.map(target_files).transpose()?.unwrap_or_default() {
        let (name, target) = read_target_file(&path)?;
        if let Some(other) = declared_in.insert(name.clone(), path.clone()) {
            return Err(ConfigError::DuplicateTarget {
                name,
                first: other,
                second: path,
            });
        }
        targets.insert(name, target);
    }
    Ok(targets)
}

/// The files of a targets folder, by name; a folder that does not exist has none.
pub(crate) fn target_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::ReadFile {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_target_file(path: &Path) -> Result<(TargetName, TargetConfig), ConfigError> {
    let origin = Origin::File(path.to_owned()).to_string();
    let mut tree = read_yaml(path, Presence::Required)?.unwrap_or_default();
    let name = tree.as_object_mut().and_then(|map| map.remove("name"));
    let Some(Value::String(name)) = name else {
        return Err(ConfigError::WrongType {
            key: "name".to_owned(),
            origin,
            expected: "the target's name",
            found: layers::kind_of(&name.unwrap_or_default()),
        });
    };
    let name: TargetName =
        name.parse().map_err(
            |source: strongroom_proto::ids::ParseIdError| ConfigError::InvalidValue {
                key: "name".to_owned(),
                origin: origin.clone(),
                reason: source.to_string(),
            },
        )?;
    layers::check_target(&tree, "", path)?;
    let target: TargetConfig = serde_json::from_value(tree).map_err(|source| ConfigError::Assemble { source })?;
    target.validate_from(&name, &origin)?;
    Ok((name, target))
}
