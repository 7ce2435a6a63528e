//! What a snapshot could not take, for its receipt.

use strongroom_proto::receipt::Missing;

/// The name that stands for those that are counted.
pub(super) const MORE: &str = "…";
/// So many are named; more are counted.
const MAX_NAMED: usize = 10_000;
/// And so much room they take in the receipt, which is JSON and has a limit of its own.
const MAX_NAMED_BYTES: usize = 4 << 20;

/// What is missing, as it is found.
#[derive(Debug, Default)]
pub(super) struct MissingList {
    named: Vec<Missing>,
    named_bytes: usize,
    more: u64,
}

impl MissingList {
    pub(super) fn add(&mut self, path: &[u8], reason: impl Into<String>) {
        self.push(path, reason.into(), false);
    }

    /// Something of which the backup has a part.
    pub(super) fn add_torn(&mut self, path: &[u8], reason: String) {
        self.push(path, reason, true);
    }

    fn push(&mut self, path: &[u8], reason: String, torn: bool) {
        if self.more > 0 || self.named.len() >= MAX_NAMED {
            self.more += 1;
            return;
        }
        let missing = Missing {
            name: String::from_utf8_lossy(path).into_owned(),
            reason,
            torn,
        };
        self.named_bytes += json_bytes(&missing.name) + json_bytes(&missing.reason);
        if self.named_bytes > MAX_NAMED_BYTES {
            self.more += 1;
        } else {
            self.named.push(missing);
        }
    }

    pub(super) fn into_named(mut self) -> Vec<Missing> {
        if self.more > 0 {
            self.named.push(Missing {
                name: MORE.to_owned(),
                reason: format!("and {} more", self.more),
                torn: false,
            });
        }
        self.named
    }
}

/// The length of a string in JSON at most: what is no text for the eye takes six times its length.
fn json_bytes(text: &str) -> usize {
    let bytes_of = |byte| match byte {
        b'"' | b'\\' => 2,
        byte if byte < b' ' => 6,
        _ => 1,
    };
    text.bytes().map(bytes_of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_name_is_counted() {
        let mut missing = MissingList::default();
        for number in 0..MAX_NAMED + 5 {
            missing.add(format!("f{number}").as_bytes(), "vanished");
        }
        let named = missing.into_named();
        assert_eq!(named.len(), MAX_NAMED + 1);
        assert_eq!(named.last().unwrap().reason, "and 5 more");
    }

    #[test]
    fn long_paths_leave_the_receipt_small_enough() {
        for path in [[b'p'; 4096], [1; 4096], [0xff; 4096]] {
            let mut missing = MissingList::default();
            for _ in 0..MAX_NAMED {
                missing.add(&path, "vanished");
            }
            let named = missing.into_named();
            let bytes = serde_json::to_vec_pretty(&named).unwrap().len();
            assert!((3 << 20..5 << 20).contains(&bytes), "{bytes} bytes of {path:?}");
            let more = MAX_NAMED - (named.len() - 1);
            assert_eq!(named.last().unwrap().reason, format!("and {more} more"));
        }
    }
}
