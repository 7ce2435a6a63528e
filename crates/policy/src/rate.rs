//! How fast a job is, over the last seconds.

use std::collections::VecDeque;
use std::time::Duration;

/// How much of the past a rate is taken over.
const WINDOW: Duration = Duration::from_secs(10);

/// Bytes a second over the last seconds, from counts taken now and then.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    samples: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// Takes a count, `at` so long after the first. `None` before the second.
    pub fn add(&mut self, at: Duration, bytes: u64) -> Option<u64> {
        self.samples.push_back((at, bytes));
        // The last one before the window stays: the rate is over the whole of it.
        while self
            .samples
            .get(1)
            .is_some_and(|(second, _)| at.saturating_sub(*second) >= WINDOW)
        {
            self.samples.pop_front();
        }
        let (first_at, first_bytes) = *self.samples.front()?;
        let nanoseconds = at.saturating_sub(first_at).as_nanos();
        let gained = u128::from(bytes.saturating_sub(first_bytes));
        (gained * 1_000_000_000)
            .checked_div(nanoseconds)
            .map(|rate| u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        let seconds = Duration::from_secs;
        assert_eq!(rate.add(Duration::ZERO, 0), None);
        assert_eq!(rate.add(seconds(2), 2000), Some(1000));
        for second in 3..20 {
            rate.add(seconds(second), 2000 + (second - 2) * 10);
        }
        assert_eq!(rate.add(seconds(20), 2180), Some(10));
        for second in 21..40 {
            rate.add(seconds(second), 2180);
        }
        assert_eq!(rate.add(seconds(40), 2180), Some(0));
        assert_eq!(rate.samples.len(), 11);
    }

    #[test]
    fn counts_at_one_instant_or_from_a_clock_that_stands_give_no_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.add(Duration::from_secs(1), 5), None);
        assert_eq!(rate.add(Duration::from_secs(1), 9), None);
        assert_eq!(rate.add(Duration::from_secs(2), u64::MAX), Some(u64::MAX - 5));
    }
}
