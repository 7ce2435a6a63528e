//! What a snapshot could not take, for its receipt.

use strongroom_proto::receipt::Missing;

/// So many are named; more are counted.
const MAX_NAMED: usize = 10_000;

/// What is missing, as it is found.
#[derive(Debug, Default)]
pub(super) struct MissingList {
    named: Vec<Missing>,
    more: u64,
}

impl MissingList {
    pub(super) fn add(&mut self, path: &[u8], reason: impl Into<String>) {
        if self.named.len() < MAX_NAMED {
            self.named.push(Missing {
                name: String::from_utf8_lossy(path).into_owned(),
                reason: reason.into(),
            });
        } else {
            self.more += 1;
        }
    }

    pub(super) fn into_named(mut self) -> Vec<Missing> {
        if self.more > 0 {
            self.named.push(Missing {
                name: "…".to_owned(),
                reason: format!("and {} more", self.more),
            });
        }
        self.named
    }
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
}
