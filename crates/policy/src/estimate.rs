//! How long a job will take, judged by how long such jobs took, and durations in words.

use std::time::Duration;

/// The median of earlier runs; `None` where there were none. One stray run does not move it.
pub fn estimate(previous_durations: &[Duration]) -> Option<Duration> {
    let mut sorted = previous_durations.to_vec();
    sorted.sort_unstable();
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(lower + (upper - lower) / 2)
}

/// A duration in its two largest units, rounded up to whole seconds: `40s`, `15m`, `2h 5m`, `3d 4h`.
pub fn humanize(duration: Duration) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let mut rest = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    let Some(largest) = UNITS.iter().position(|(seconds, _)| rest >= *seconds) else {
        return "0s".to_owned();
    };
    let mut parts = Vec::new();
    for (seconds, unit) in UNITS.iter().skip(largest).take(2) {
        if rest >= *seconds {
            parts.push(format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: &[u64]) -> Vec<Duration> {
        seconds.iter().copied().map(Duration::from_secs).collect()
    }

    #[test]
    fn an_estimate_is_the_median_and_needs_a_past() {
        assert_eq!(estimate(&[]), None);
        assert_eq!(estimate(&seconds(&[60])), Some(Duration::from_secs(60)));
        assert_eq!(estimate(&seconds(&[50, 9_000, 60])), Some(Duration::from_secs(60)));
        assert_eq!(estimate(&seconds(&[10, 40, 20, 9_000])), Some(Duration::from_secs(30)));
    }

    #[test]
    fn durations_read_as_people_say_them() {
        for (millis, text) in [
            (0, "0s"),
            (300, "1s"),
            (40_000, "40s"),
            (90_000, "1m 30s"),
            (900_000, "15m"),
            (7_500_000, "2h 5m"),
            (7_202_000, "2h"),
            (86_400_000 * 3 + 3_600_000 * 4, "3d 4h"),
        ] {
            assert_eq!(humanize(Duration::from_millis(millis)), text);
        }
    }
}
