//! Which targets a request means. A word names a target, or a kind (all targets of it), or is a glob over names.
//!
//! A request either resolves completely or not at all: a word that stands for nothing is an error, because a backup that
//! silently left something out would be taken for a whole one.

use strongroom_proto::{TargetKind, TargetName};

/// The longest list of known targets that an error shows.
const KNOWN_SHOWN: usize = 50;

/// Words that stand for every target of a kind.
const KIND_WORDS: &[(&str, TargetKind)] = &[
    ("postgres", TargetKind::Postgres),
    ("files", TargetKind::Files),
    ("scenarios", TargetKind::Files),
    ("minio", TargetKind::Bucket),
    ("bucket", TargetKind::Bucket),
    ("config", TargetKind::Config),
    ("command", TargetKind::Command),
];

/// A request for targets that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// Nothing was asked for.
    #[error("no target is named; {}", known_sentence(known))]
    NoWords {
        /// The targets there are.
        known: Vec<TargetName>,
    },
    /// A word is neither a target nor a kind.
    #[error("unknown target {word:?}{}; {}", nearest_sentence(nearest.as_deref()), known_sentence(known))]
    Unknown {
        /// The word.
        word: String,
        /// The known word it is most like, where one is close.
        nearest: Option<String>,
        /// The targets there are.
        known: Vec<TargetName>,
    },
    /// A kind that no target has.
    #[error("no target is of kind {word:?}; {}", known_sentence(known))]
    NoneOfKind {
        /// The word for the kind.
        word: String,
        /// The targets there are.
        known: Vec<TargetName>,
    },
    /// A glob that no target's name matches.
    #[error("no target matches {glob:?}; {}", known_sentence(known))]
    NoMatch {
        /// The glob.
        glob: String,
        /// The targets there are.
        known: Vec<TargetName>,
    },
}

/// The targets that `words` mean, each once, in the order they were asked for; those of a kind or a glob in the order of
/// `known`. A target's name wins over a kind of the same name.
pub fn select(known: &[(TargetName, TargetKind)], words: &[String]) -> Result<Vec<TargetName>, SelectError> {
    let names = || known.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if words.is_empty() {
        return Err(SelectError::NoWords { known: names() });
    }
    let mut selected = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for word in words {
        for name in resolve(known, word.trim()).map_err(|miss| miss.explain(word.trim(), names()))? {
            if seen.insert(name) {
                selected.push(name.clone());
            }
        }
    }
    Ok(selected)
}

/// Why a word stands for nothing.
enum Miss {
    Unknown { nearest: Option<String> },
    NoneOfKind,
    NoMatch,
}

impl Miss {
    fn explain(self, word: &str, known: Vec<TargetName>) -> SelectError {
        match self {
            Self::Unknown { nearest } => SelectError::Unknown {
                word: word.to_owned(),
                nearest,
                known,
            },
            Self::NoneOfKind => SelectError::NoneOfKind {
                word: word.to_owned(),
                known,
            },
            Self::NoMatch => SelectError::NoMatch {
                glob: word.to_owned(),
                known,
            },
        }
    }
}

fn resolve<'a>(known: &'a [(TargetName, TargetKind)], word: &str) -> Result<Vec<&'a TargetName>, Miss> {
    if let Some((name, _)) = known.iter().find(|(name, _)| name.as_str() == word) {
        return Ok(vec![name]);
    }
    if let Some((_, kind)) = KIND_WORDS.iter().find(|(kind_word, _)| *kind_word == word) {
        let scenarios_only = word == "scenarios";
        let of_kind = known
            .iter()
            .filter(|(name, k)| k == kind && (!scenarios_only || name.is_scenario()));
        return some(of_kind.map(|(name, _)| name), Miss::NoneOfKind);
    }
    if word.contains(['*', '?']) {
        let matching = known
            .iter()
            .map(|(name, _)| name)
            .filter(|name| matches_glob(word.as_bytes(), name.as_str().as_bytes()));
        return some(matching, Miss::NoMatch);
    }
    Err(Miss::Unknown {
        nearest: nearest(known, word),
    })
}

fn some<'a>(found: impl Iterator<Item = &'a TargetName>, miss: Miss) -> Result<Vec<&'a TargetName>, Miss> {
    let found: Vec<_> = found.collect();
    if found.is_empty() { Err(miss) } else { Ok(found) }
}

/// `*` is any text, slashes included, and `?` any one character. On a mismatch the last star takes one character more,
/// so the work is bounded by the product of the lengths.
fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    let (mut at_glob, mut at_text) = (0, 0);
    let mut last_star = None;
    while at_text < text.len() {
        match glob.get(at_glob) {
            Some(b'*') => {
                last_star = Some((at_glob, at_text));
                at_glob += 1;
            }
            Some(&c) if c == b'?' || Some(&c) == text.get(at_text) => {
                at_glob += 1;
                at_text += 1;
            }
            _ => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    at_glob = star + 1;
                    at_text = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob.iter().skip(at_glob).all(|&c| c == b'*')
}

/// The known name or kind that differs from `word` least, by at most a third of its letters.
fn nearest(known: &[(TargetName, TargetKind)], word: &str) -> Option<String> {
    let words = known
        .iter()
        .map(|(name, _)| name.as_str())
        .chain(KIND_WORDS.iter().map(|(word, _)| *word));
    let lower = word.to_lowercase();
    words
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&candidate.to_lowercase(), &lower),
                candidate,
            )
        })
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .map(|(_, candidate)| candidate.to_owned())
}

fn nearest_sentence(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!(" (did you mean {nearest:?}?)"))
}

fn known_sentence(known: &[TargetName]) -> String {
    if known.is_empty() {
        return "no target is configured: declare one in the configuration".to_owned();
    }
    let shown: Vec<&str> = known.iter().take(KNOWN_SHOWN).map(TargetName::as_str).collect();
    match known.len() - shown.len() {
        0 => format!("known targets are: {}", shown.join(", ")),
        hidden => format!("known targets are: {} and {hidden} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known() -> Vec<(TargetName, TargetKind)> {
        [
            ("orders-db", TargetKind::Postgres),
            ("billing-db", TargetKind::Postgres),
            ("scenario/checkout", TargetKind::Files),
            ("scenario/search", TargetKind::Files),
            ("home", TargetKind::Files),
            ("media", TargetKind::Bucket),
        ]
        .map(|(name, kind)| (name.parse().unwrap(), kind))
        .to_vec()
    }

    fn chosen(words: &[&str]) -> Result<Vec<String>, SelectError> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        select(&known(), &words).map(|names| names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn targets_are_named_by_name_by_kind_and_by_glob() {
        assert_eq!(chosen(&["home"]).unwrap(), ["home"]);
        assert_eq!(chosen(&["postgres"]).unwrap(), ["orders-db", "billing-db"]);
        assert_eq!(
            chosen(&["files"]).unwrap(),
            ["scenario/checkout", "scenario/search", "home"]
        );
        assert_eq!(
            chosen(&["scenarios"]).unwrap(),
            ["scenario/checkout", "scenario/search"]
        );
        assert_eq!(chosen(&["minio"]).unwrap(), ["media"]);
        assert_eq!(chosen(&["*-db"]).unwrap(), ["orders-db", "billing-db"]);
        assert_eq!(chosen(&["?o*e*"]).unwrap(), ["home"]);
        assert_eq!(chosen(&["*"]).unwrap().len(), 6);
    }

    #[test]
    fn a_target_named_twice_is_backed_up_once_in_the_order_asked_for() {
        assert_eq!(
            chosen(&["billing-db", "postgres", "*db"]).unwrap(),
            ["billing-db", "orders-db"]
        );
    }

    #[test]
    fn a_targets_name_wins_over_a_kind() {
        let known = [("postgres", TargetKind::Files), ("orders", TargetKind::Postgres)]
            .map(|(name, kind)| (name.parse::<TargetName>().unwrap(), kind));
        assert_eq!(select(&known, &["postgres".to_owned()]).unwrap(), [known[0].0.clone()]);
    }

    #[test]
    fn an_unknown_word_is_refused_with_the_nearest_and_the_known_ones() {
        let error = chosen(&["home", "ordrs-db"]).unwrap_err().to_string();
        assert!(
            error.starts_with(
                r#"unknown target "ordrs-db" (did you mean "orders-db"?); known targets are: orders-db, "#
            ),
            "{error}"
        );
        let error = chosen(&["postgress"]).unwrap_err().to_string();
        assert!(error.contains(r#"did you mean "postgres"?"#), "{error}");
        let error = chosen(&["nothing-like-it"]).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_word_that_stands_for_nothing_is_refused() {
        assert!(matches!(chosen(&["command"]), Err(SelectError::NoneOfKind { .. })));
        assert!(matches!(chosen(&["home", "x*"]), Err(SelectError::NoMatch { .. })));
        assert!(matches!(chosen(&[]), Err(SelectError::NoWords { .. })));
        assert!(matches!(chosen(&[""]), Err(SelectError::Unknown { .. })));
        let none = select(&[], &["*".to_owned()]).unwrap_err().to_string();
        assert!(none.contains("no target is configured"), "{none}");
    }

    proptest! {
        #[test]
        fn a_glob_matches_as_a_plain_definition_says(glob in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            fn plain(glob: &[u8], text: &[u8]) -> bool {
                match (glob, text) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) if plain(rest, text) => true,
                    ([b'*', ..], [_, tail @ ..]) => plain(glob, tail),
                    ([g, rest @ ..], [t, tail @ ..]) if *g == b'?' || g == t => plain(rest, tail),
                    _ => false,
                }
            }
            prop_assert_eq!(matches_glob(glob.as_bytes(), text.as_bytes()), plain(glob.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn every_target_selected_is_known_and_selected_once(words in prop::collection::vec("[a-z*?/-]{1,6}|files|postgres|home", 1..5)) {
            if let Ok(mut names) = select(&known(), &words) {
                prop_assert!(names.iter().all(|name| known().iter().any(|(k, _)| k == name)));
                let count = names.len();
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), count);
            }
        }
    }
}
