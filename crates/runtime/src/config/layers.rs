//! Layering: which of file, environment and flags sets a key, and whether the value has the key's shape.
//!
//! Knows keys and shapes, and nothing about what they mean.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ConfigError;
use super::schema::{ALIASES, Leaf, NULLABLE_SECTIONS, OTHER_VARIABLES, Shape, TARGET_LEAVES};

const PREFIX: &str = "STRONGROOM_";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The values set so far, by key. A later layer overrides an earlier one key by key; lists are replaced whole.
pub(crate) struct Layers {
    leaves: &'static [Leaf],
    set: BTreeMap<String, (Value, Origin)>,
}

impl Layers {
    pub(crate) const fn new(leaves: &'static [Leaf]) -> Self {
        Self {
            leaves,
            set: BTreeMap::new(),
        }
    }

    pub(crate) fn add_file(&mut self, tree: &Value, path: &Path) -> Result<(), ConfigError> {
        let mut found = Vec::new();
        walk(tree, "", "", self.leaves, path, &mut found)?;
        for (key, value) in found {
            self.set.insert(key, (value, Origin::File(path.to_owned())));
        }
        Ok(())
    }

    /// An empty variable counts as not set.
    pub(crate) fn add_env(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (alias, key) in ALIASES {
            if let Some(text) = env.get(*alias).filter(|text| !text.is_empty())
                && let Some(leaf) = self.leaves.iter().find(|leaf| leaf.path == *key)
            {
                self.add_text(leaf, text, Origin::Env((*alias).to_owned()))?;
            }
        }
        for (name, text) in env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let leaf = self.leaves.iter().find(|leaf| variable(leaf).as_deref() == Some(name));
            match leaf {
                Some(leaf) if !text.is_empty() => self.add_text(leaf, text, Origin::Env(name.clone()))?,
                Some(_) => {}
                None if OTHER_VARIABLES.contains(&name.as_str()) => {}
                None if ALIASES.iter().any(|(alias, _)| alias == name) => {}
                None => {
                    let known: Vec<String> = self
                        .leaves
                        .iter()
                        .filter_map(variable)
                        .chain(OTHER_VARIABLES.iter().map(|v| (*v).to_owned()))
                        .chain(ALIASES.iter().map(|(alias, _)| (*alias).to_owned()))
                        .collect();
                    return Err(ConfigError::UnknownVariable {
                        name: name.clone(),
                        nearest: nearest(name, known.iter().map(String::as_str)),
                    });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn add_flags(&mut self, flags: &[(String, String, String)]) -> Result<(), ConfigError> {
        for (key, text, flag) in flags {
            let Some(leaf) = self.leaves.iter().find(|leaf| leaf.path == key) else {
                return Err(ConfigError::UnknownFlagKey {
                    flag: flag.clone(),
                    key: key.clone(),
                    nearest: nearest(key, self.leaves.iter().map(|leaf| leaf.path)),
                });
            };
            self.add_text(leaf, text, Origin::Flag(flag.clone()))?;
        }
        Ok(())
    }

    fn add_text(&mut self, leaf: &Leaf, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = from_text(leaf.shape, text);
        check_shape(leaf.shape, &value, leaf.path, &origin)?;
        self.set.insert(leaf.path.to_owned(), (value, origin));
        Ok(())
    }

    /// The values as one tree, and their origins.
    pub(crate) fn finish(self) -> (Value, BTreeMap<String, Origin>) {
        let mut root = Map::new();
        let mut origins = BTreeMap::new();
        for (key, (value, origin)) in self.set {
            put(&mut root, &key, value);
            origins.insert(key, origin);
        }
        (Value::Object(root), origins)
    }
}

/// Checks the `targets` section of a file by itself.
pub(crate) fn check_targets(section: &Value, path: &Path) -> Result<(), ConfigError> {
    let Some(targets) = section.as_object() else {
        return Err(wrong_type(Shape::Targets(TARGET_LEAVES), section, "targets", path));
    };
    for (name, target) in targets {
        name.parse::<strongroom_proto::TargetName>()
            .map_err(|error| ConfigError::InvalidValue {
                key: "targets".to_owned(),
                origin: Origin::File(path.to_owned()).to_string(),
                reason: error.to_string(),
            })?;
        check_target(target, &format!("targets.{name}."), path)?;
    }
    Ok(())
}

/// Checks one target; `shown_prefix` stands before its keys in errors.
pub(crate) fn check_target(target: &Value, shown_prefix: &str, path: &Path) -> Result<(), ConfigError> {
    if !target.is_object() {
        let key = if shown_prefix.is_empty() {
            "the target"
        } else {
            shown_prefix.trim_end_matches('.')
        };
        return Err(ConfigError::WrongType {
            key: key.to_owned(),
            origin: Origin::File(path.to_owned()).to_string(),
            expected: "the keys of a target",
            found: kind_of(target),
        });
    }
    if target.get("kind").is_none() {
        return Err(ConfigError::InvalidValue {
            key: format!("{shown_prefix}kind"),
            origin: Origin::File(path.to_owned()).to_string(),
            reason: "every target needs a kind: postgres, files or command".to_owned(),
        });
    }
    walk(target, "", shown_prefix, TARGET_LEAVES, path, &mut Vec::new())
}

/// Collects every key that `tree` sets. `at` is the path so far within the leaves.
fn walk(
    tree: &Value,
    at: &str,
    shown_prefix: &str,
    leaves: &'static [Leaf],
    path: &Path,
    found: &mut Vec<(String, Value)>,
) -> Result<(), ConfigError> {
    let map = match tree {
        Value::Object(map) => map,
        Value::Null => {
            let section = at.trim_end_matches('.');
            if NULLABLE_SECTIONS.contains(&section) {
                found.push((section.to_owned(), Value::Null));
            }
            return Ok(());
        }
        other => {
            let section = format!("{shown_prefix}{at}");
            return Err(ConfigError::WrongType {
                key: if section.is_empty() {
                    "the file".to_owned()
                } else {
                    section.trim_end_matches('.').to_owned()
                },
                origin: Origin::File(path.to_owned()).to_string(),
                expected: "keys and values",
                found: kind_of(other),
            });
        }
    };
    for (key, value) in map {
        let full = format!("{at}{key}");
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.path == full) {
            if value.is_null() {
                continue;
            }
            if let Shape::Targets(_) = leaf.shape {
                check_targets(value, path)?;
            } else {
                check_shape(
                    leaf.shape,
                    value,
                    &format!("{shown_prefix}{full}"),
                    &Origin::File(path.to_owned()),
                )?;
            }
            found.push((full, value.clone()));
        } else if leaves.iter().any(|leaf| leaf.path.starts_with(&format!("{full}."))) {
            walk(value, &format!("{full}."), shown_prefix, leaves, path, found)?;
        } else {
            return Err(ConfigError::UnknownKey {
                key: format!("{shown_prefix}{full}"),
                path: path.to_owned(),
                nearest: nearest_key(&full, key, at, leaves).map(|known| format!("{shown_prefix}{known}")),
            });
        }
    }
    Ok(())
}

fn check_shape(shape: Shape, value: &Value, key: &str, origin: &Origin) -> Result<(), ConfigError> {
    let fits = match shape {
        Shape::Text | Shape::Secret | Shape::Url | Shape::Word(_) => value.is_string(),
        Shape::Integer => value.is_u64(),
        Shape::Flag => value.is_boolean(),
        Shape::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
        Shape::Integers => value.as_array().is_some_and(|list| list.iter().all(Value::is_u64)),
        Shape::SecretMap => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
        Shape::Targets(_) => false,
    };
    if !fits {
        return Err(ConfigError::WrongType {
            key: key.to_owned(),
            origin: origin.to_string(),
            expected: shape.expected(),
            found: kind_of(value),
        });
    }
    if let (Shape::Word(words), Some(word)) = (shape, value.as_str())
        && !words.contains(&word)
    {
        return Err(ConfigError::InvalidValue {
            key: key.to_owned(),
            origin: origin.to_string(),
            reason: format!("unknown word {word:?}; known are {}", words.join(", ")),
        });
    }
    Ok(())
}

fn wrong_type(shape: Shape, value: &Value, key: &str, path: &Path) -> ConfigError {
    ConfigError::WrongType {
        key: key.to_owned(),
        origin: Origin::File(path.to_owned()).to_string(),
        expected: shape.expected(),
        found: kind_of(value),
    }
}

/// What a value is, in words; never the value.
pub(crate) const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys and values",
    }
}

/// Reads a text as the shape says; what cannot be read stays text, so that the check names the mistake.
fn from_text(shape: Shape, text: &str) -> Value {
    let words = || text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let integer = |word: &str| word.parse::<u64>().map_or_else(|_| Value::from(word), Value::from);
    match shape {
        Shape::Integer => integer(text.trim()),
        Shape::Flag => match text.trim() {
            "true" | "1" => Value::Bool(true),
            "false" | "0" => Value::Bool(false),
            _ => Value::from(text),
        },
        Shape::Texts => words().map(Value::from).collect(),
        Shape::Integers => words().map(integer).collect(),
        _ => Value::from(text),
    }
}

/// The variable of a key; a key that holds a map has none.
fn variable(leaf: &Leaf) -> Option<String> {
    match leaf.shape {
        Shape::Targets(_) | Shape::SecretMap => None,
        _ => Some(format!("{PREFIX}{}", leaf.path.to_uppercase().replace('.', "_"))),
    }
}

fn put(root: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            root.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = root.entry(section.to_owned()).or_insert(Value::Null);
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// The known key that an unknown one resembles: among its siblings first, then one of the same last name elsewhere.
fn nearest_key(full: &str, key: &str, at: &str, leaves: &[Leaf]) -> Option<String> {
    let siblings = leaves
        .iter()
        .filter_map(|leaf| leaf.path.strip_prefix(at))
        .map(|rest| rest.split('.').next().unwrap_or(rest));
    nearest(key, siblings)
        .map(|sibling| format!("{at}{sibling}"))
        .or_else(|| {
            let same_name = leaves.iter().find(|leaf| leaf.path.rsplit('.').next() == Some(key));
            same_name.map(|leaf| leaf.path.to_owned())
        })
        .or_else(|| nearest(full, leaves.iter().map(|leaf| leaf.path)))
}

/// The candidate within a third of the text's length, and at least two, edits.
fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let allowed = (text.chars().count() / 3).max(2);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(text, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= allowed && *edits < candidate.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate.to_owned())
}
