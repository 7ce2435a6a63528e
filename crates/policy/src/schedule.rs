//! When a schedule is due: five-field cron in a time zone, with the daylight saving rules of Vixie cron.
//!
//! - A fixed time that a clock change skips fires at the end of the gap; one that happens twice fires the first time.
//!   A wildcard or a step in the minute or hour field means an interval, which keeps to the real passing of time.
//! - Due instants only move forward. A clock that is set back fires nothing again.
//! - After a time in which nothing ran, all missed instants together fire once, or not at all ([`DueRules::catch_up`]).

use std::time::Duration;

use chrono::{DateTime, Utc};
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use strongroom_proto::ScheduleId;

/// A due instant older than this was missed; a younger one is merely served a little late.
const MISSED_AFTER: Duration = Duration::from_secs(5 * 60);

/// Missed instants are counted up to this many.
const MISSED_COUNT_LIMIT: u32 = 1_000;

/// The fields of a cron expression and what each may hold.
const FIELDS: [(&str, &str); 5] = [
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of month", "1-31, L, or 1W to 31W"),
    ("month", "1-12 or JAN-DEC"),
    ("day of week", "0-7 or SUN-SAT, 5L, or 5#2"),
];

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Not five fields.
    #[error(
        "cron expression {cron:?} has {count} fields; write five: minute, hour, day of month, month, day of week \
         (\"30 2 * * *\" is 02:30 every day)"
    )]
    FieldCount {
        /// The expression.
        cron: String,
        /// How many fields it has.
        count: usize,
    },
    /// A field that means nothing.
    #[error(
        "{field} {text:?} of cron expression {cron:?} is not valid; it may hold {allowed}, lists (1,2), ranges (1-5) and steps (*/5)"
    )]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is written in it.
        text: String,
        /// What it may hold.
        allowed: &'static str,
        /// The expression.
        cron: String,
    },
    /// Fields that are valid one by one and not together, or a nickname that is not one.
    #[error(
        "cron expression {cron:?} is not valid; write five fields (\"30 2 * * *\"), or @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Expression {
        /// The expression.
        cron: String,
    },
    /// A time zone that the database does not have.
    #[error("time zone {timezone:?} is not known; write an IANA name such as UTC, Europe/Berlin or America/New_York")]
    TimeZone {
        /// The name.
        timezone: String,
    },
}

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: croner::Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a cron expression of five fields (or a nickname such as `@daily`) and the IANA name of a time zone.
    pub fn parse(cron: &str, timezone: &str) -> Result<Self, ScheduleError> {
        let zone = TimeZone::get(timezone.trim()).map_err(|_| ScheduleError::TimeZone {
            timezone: timezone.to_owned(),
        })?;
        let cron = parse_cron(cron.trim())?;
        Ok(Self { cron, zone })
    }

    /// The first due instant after `instant`; `None` when there is none (the 31st of February).
    pub fn next_after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let from = self.zoned(instant)?;
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        DateTime::from_timestamp(next.timestamp().as_second(), 0)
    }

    /// The last due instant at or before `instant`.
    fn last_until(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let from = self.zoned(instant)?;
        let last = self.cron.find_previous_occurrence(&from, true).ok()?;
        DateTime::from_timestamp(last.timestamp().as_second(), 0)
    }

    /// Due instants are whole seconds, so the fraction of a second does not matter.
    fn zoned(&self, instant: DateTime<Utc>) -> Option<jiff::Zoned> {
        Some(
            Timestamp::from_second(instant.timestamp())
                .ok()?
                .to_zoned(self.zone.clone()),
        )
    }
}

fn parse_cron(cron: &str) -> Result<croner::Cron, ScheduleError> {
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    let invalid = || ScheduleError::Expression { cron: cron.to_owned() };
    if cron.starts_with('@') {
        return parser.parse(cron).map_err(|_| invalid());
    }
    let fields: Vec<&str> = cron.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(ScheduleError::FieldCount {
            cron: cron.to_owned(),
            count: fields.len(),
        });
    }
    // The parser does not say which field is wrong, so each is tried among stars.
    for (place, (&text, (field, allowed))) in fields.iter().zip(FIELDS).enumerate() {
        let mut alone = ["*"; FIELDS.len()];
        alone[place] = text;
        // It reads an empty item of a list as nothing, and a field of nothing as one that never matches.
        if text.split(',').any(str::is_empty) || parser.parse(&alone.join(" ")).is_err() {
            return Err(ScheduleError::Field {
                field,
                text: text.to_owned(),
                allowed,
                cron: cron.to_owned(),
            });
        }
    }
    parser.parse(cron).map_err(|_| invalid())
}

/// How a schedule's due instants are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueRules {
    /// Whether instants missed while nothing ran are made up for, once.
    pub catch_up: bool,
    /// How long after each due instant this schedule is served; see [`jitter`].
    pub jitter: Duration,
}

/// What is to be done about a schedule now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuePlan {
    /// The due instant to fire, which stands for those missed before it; `None` when nothing is to be fired.
    pub fire: Option<DateTime<Utc>>,
    /// Due instants that passed without a run of their own, up to a limit of a thousand.
    pub missed: u32,
    /// The due instant to wait for, later than every one before; `None` when there will be none.
    pub next_due: Option<DateTime<Utc>>,
}

/// Plans a schedule whose next instant not yet served is `due`, at the time `now`.
///
/// With [`DuePlan::next_due`] as the next call's `due`, the instants fired are strictly increasing, whatever the clock
/// does in between.
pub fn plan(due: DateTime<Utc>, now: DateTime<Utc>, schedule: &Schedule, rules: DueRules) -> DuePlan {
    let Some(passed) = chrono::Duration::from_std(rules.jitter)
        .ok()
        .and_then(|jitter| now.checked_sub_signed(jitter))
    else {
        return DuePlan {
            fire: None,
            missed: 0,
            next_due: Some(due),
        };
    };
    if passed < due {
        return DuePlan {
            fire: None,
            missed: 0,
            next_due: Some(due),
        };
    }
    let (latest, before_latest, next_due) = latest_due(due, passed, schedule);
    let late = (passed - latest).to_std().unwrap_or_default();
    if rules.catch_up || late <= MISSED_AFTER {
        DuePlan {
            fire: Some(latest),
            missed: before_latest,
            next_due,
        }
    } else {
        DuePlan {
            fire: None,
            missed: before_latest.saturating_add(1),
            next_due,
        }
    }
}

/// The last due instant from `due` until `passed`, how many came before it, and the one after it.
fn latest_due(
    due: DateTime<Utc>,
    passed: DateTime<Utc>,
    schedule: &Schedule,
) -> (DateTime<Utc>, u32, Option<DateTime<Utc>>) {
    let mut latest = due;
    for before_latest in 0..MISSED_COUNT_LIMIT {
        match schedule.next_after(latest) {
            Some(next) if next <= passed => latest = next,
            next => return (latest, before_latest, next),
        }
    }
    // So many were missed that counting on would take long: the search goes backward from the present instead.
    let latest = schedule.last_until(passed).unwrap_or(latest).max(latest);
    (latest, MISSED_COUNT_LIMIT, schedule.next_after(latest.max(passed)))
}

/// How long after its due instants a schedule is served, so that not all that are due at midnight start at once: from 0
/// to `max_seconds`, always the same for one schedule.
pub fn jitter(schedule: ScheduleId, max_seconds: u32) -> Duration {
    // FNV-1a with a final mix; fixed here, because a hash that changes with a release would move every schedule.
    let mut hash = schedule
        .as_uuid()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    Duration::from_secs(hash % (u64::from(max_seconds) + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ON_TIME: DueRules = DueRules {
        catch_up: true,
        jitter: Duration::ZERO,
    };

    fn at(text: &str) -> DateTime<Utc> {
        text.parse::<DateTime<chrono::FixedOffset>>().unwrap().to_utc()
    }

    /// The due instants from `from` until `until`, as local times with their offsets.
    fn due(cron: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let schedule = Schedule::parse(cron, zone).unwrap();
        let mut found = Vec::new();
        let mut instant = at(from);
        while let Some(next) = schedule.next_after(instant).filter(|next| *next <= at(until)) {
            let local = schedule.zoned(next).unwrap();
            found.push(local.strftime("%d %H:%M%:z").to_string());
            instant = next;
        }
        found
    }

    #[test]
    fn a_fixed_time_in_the_gap_of_spring_fires_at_its_end() {
        assert_eq!(
            due(
                "30 2 * * *",
                "Europe/Berlin",
                "2026-03-28T00:00:00Z",
                "2026-03-31T00:00:00Z"
            ),
            ["28 02:30+01:00", "29 03:00+02:00", "30 02:30+02:00"]
        );
        assert_eq!(
            due(
                "0 2 * * *",
                "America/New_York",
                "2026-03-07T12:00:00Z",
                "2026-03-10T00:00:00Z"
            ),
            ["08 03:00-04:00", "09 02:00-04:00"]
        );
    }

    #[test]
    fn a_fixed_time_in_the_overlap_of_autumn_fires_once() {
        assert_eq!(
            due(
                "30 2 * * *",
                "Europe/Berlin",
                "2026-10-24T12:00:00Z",
                "2026-10-27T00:00:00Z"
            ),
            ["25 02:30+02:00", "26 02:30+01:00"]
        );
        assert_eq!(
            due(
                "30 1 * * *",
                "America/New_York",
                "2026-10-31T12:00:00Z",
                "2026-11-03T00:00:00Z"
            ),
            ["01 01:30-04:00", "02 01:30-05:00"]
        );
    }

    #[test]
    fn an_interval_keeps_to_the_passing_of_time_through_both_changes() {
        assert_eq!(
            due(
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-10-24T23:45:00Z",
                "2026-10-25T02:00:00Z"
            ),
            [
                "25 02:00+02:00",
                "25 02:30+02:00",
                "25 02:00+01:00",
                "25 02:30+01:00",
                "25 03:00+01:00"
            ]
        );
        assert_eq!(
            due(
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-03-29T00:15:00Z",
                "2026-03-29T01:30:00Z"
            ),
            ["29 01:30+01:00", "29 03:00+02:00", "29 03:30+02:00"]
        );
    }

    #[test]
    fn a_year_of_a_daily_schedule_fires_once_each_day() {
        for (zone, start) in [
            ("Europe/Berlin", "2026-01-01T00:00:00+01:00"),
            ("America/New_York", "2026-01-01T00:00:00-05:00"),
        ] {
            for cron in ["30 2 * * *", "0 0 * * *", "59 23 * * *", "15 1 * * *", "@daily"] {
                let schedule = Schedule::parse(cron, zone).unwrap();
                let mut now = at(start);
                let end = now + chrono::Duration::days(365);
                let mut due = schedule.next_after(now - chrono::Duration::seconds(1)).unwrap();
                let mut days = Vec::new();
                while now < end + chrono::Duration::hours(1) {
                    let plan = plan(due, now, &schedule, ON_TIME);
                    if let Some(fired) = plan.fire.filter(|fired| *fired < end) {
                        assert_eq!(plan.missed, 0);
                        days.push(schedule.zoned(fired).unwrap().date());
                    }
                    due = plan.next_due.unwrap();
                    now += chrono::Duration::minutes(7);
                }
                assert_eq!(days.len(), 365, "{cron} in {zone}");
                days.dedup();
                assert_eq!(days.len(), 365, "{cron} in {zone}: no day twice");
            }
        }
    }

    #[test]
    fn all_that_was_missed_is_made_up_for_once() {
        let schedule = Schedule::parse("0 2 * * *", "UTC").unwrap();
        let (due, back) = (at("2026-06-01T02:00:00Z"), at("2026-06-04T09:00:00Z"));
        let caught_up = plan(due, back, &schedule, ON_TIME);
        let expected = DuePlan {
            fire: Some(at("2026-06-04T02:00:00Z")),
            missed: 3,
            next_due: Some(at("2026-06-05T02:00:00Z")),
        };
        assert_eq!(caught_up, expected);
        let again = plan(caught_up.next_due.unwrap(), back, &schedule, ON_TIME);
        assert_eq!(
            again,
            DuePlan {
                fire: None,
                missed: 0,
                next_due: expected.next_due
            }
        );
    }

    #[test]
    fn without_catching_up_what_was_missed_stays_missed_and_the_next_one_fires() {
        let rules = DueRules {
            catch_up: false,
            ..ON_TIME
        };
        let schedule = Schedule::parse("0 2 * * *", "UTC").unwrap();
        let skipped = plan(at("2026-06-01T02:00:00Z"), at("2026-06-04T09:00:00Z"), &schedule, rules);
        let next = at("2026-06-05T02:00:00Z");
        assert_eq!(
            skipped,
            DuePlan {
                fire: None,
                missed: 4,
                next_due: Some(next)
            }
        );
        let served = plan(next, next + chrono::Duration::seconds(20), &schedule, rules);
        assert_eq!(served.fire, Some(next));
    }

    #[test]
    fn a_jitter_delays_a_schedule_and_is_not_taken_for_lateness() {
        let rules = DueRules {
            catch_up: false,
            jitter: Duration::from_secs(1_800),
        };
        let schedule = Schedule::parse("0 2 * * *", "UTC").unwrap();
        let due = at("2026-06-01T02:00:00Z");
        assert_eq!(plan(due, at("2026-06-01T02:29:59Z"), &schedule, rules).fire, None);
        assert_eq!(plan(due, at("2026-06-01T02:30:01Z"), &schedule, rules).fire, Some(due));
    }

    #[test]
    fn years_of_missed_minutes_are_planned_quickly_and_end_at_the_present() {
        let schedule = Schedule::parse("* * * * *", "Europe/Berlin").unwrap();
        let plan = plan(
            at("2020-01-01T00:00:00Z"),
            at("2026-06-04T09:00:30Z"),
            &schedule,
            ON_TIME,
        );
        assert_eq!(plan.fire, Some(at("2026-06-04T09:00:00Z")));
        assert_eq!(plan.missed, MISSED_COUNT_LIMIT);
        assert_eq!(plan.next_due, Some(at("2026-06-04T09:01:00Z")));
    }

    #[test]
    fn an_error_names_the_part_that_is_wrong() {
        let message = |cron: &str, zone: &str| Schedule::parse(cron, zone).unwrap_err().to_string();
        for (cron, field) in [
            ("61 * * * *", "minute \"61\""),
            ("0 24 * * *", "hour \"24\""),
            ("0 0 32 * *", "day of month \"32\""),
            ("0 0 * FOO *", "month \"FOO\""),
            ("0 0 * * 9", "day of week \"9\""),
            ("1,, * * * *", "minute \"1,,\""),
            ("*/0 * * * *", "minute \"*/0\""),
            ("é * * * *", "minute \"é\""),
        ] {
            assert!(message(cron, "UTC").starts_with(field), "{}", message(cron, "UTC"));
        }
        assert!(message("* * * *", "UTC").contains("has 4 fields"));
        assert!(message("0 * * * * *", "UTC").contains("has 6 fields"));
        assert!(message("", "UTC").contains("has 0 fields"));
        assert!(message("@sometimes", "UTC").contains("@daily"));
        assert!(message("* * * * *", "Europe/Berln").contains("time zone \"Europe/Berln\""));
        assert!(message("* * * * *", "").contains("time zone"));
    }

    #[test]
    fn a_date_that_never_comes_is_never_due() {
        let schedule = Schedule::parse("0 0 31 2 *", "UTC").unwrap();
        assert_eq!(schedule.next_after(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn a_leap_day_is_found_years_ahead() {
        let schedule = Schedule::parse("0 0 29 2 *", "UTC").unwrap();
        assert_eq!(
            schedule.next_after(at("2096-03-01T00:00:00Z")),
            Some(at("2104-02-29T00:00:00Z"))
        );
    }

    #[test]
    fn jitter_spreads_schedules_and_keeps_each_where_it_is() {
        let ids: Vec<ScheduleId> = (0..1_000).map(|_| ScheduleId::fresh()).collect();
        let mut buckets = [0; 10];
        for &id in &ids {
            let delay = jitter(id, 599);
            assert_eq!(delay, jitter(id, 599));
            buckets[delay.as_secs() as usize / 60] += 1;
        }
        assert!(buckets.iter().all(|&count| count > 50), "{buckets:?}");
        assert_eq!(jitter(ids[0], 0), Duration::ZERO);
    }

    const CRONS: [&str; 8] = [
        "* * * * *",
        "*/7 * * * *",
        "30 2 * * *",
        "0 */6 * * *",
        "15,45 1-3 * * *",
        "0 0 1 * *",
        "30 2 L * *",
        "0 2 * * SUN",
    ];
    const ZONES: [&str; 5] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
    ];

    proptest! {
        #[test]
        fn due_instants_strictly_increase(cron in 0..CRONS.len(), zone in 0..ZONES.len(), start in 1_700_000_000_i64..1_900_000_000) {
            let schedule = Schedule::parse(CRONS[cron], ZONES[zone]).unwrap();
            let mut instant = DateTime::from_timestamp(start, 500_000_000).unwrap();
            for _ in 0..50 {
                let next = schedule.next_after(instant).unwrap();
                prop_assert!(next > instant, "{next} after {instant}");
                instant = next;
            }
        }

        #[test]
        fn a_clock_that_jumps_about_never_fires_an_instant_twice(
            cron in 0..CRONS.len(), zone in 0..ZONES.len(), catch_up: bool,
            jumps in prop::collection::vec(-200_000_i64..400_000, 1..40),
        ) {
            let schedule = Schedule::parse(CRONS[cron], ZONES[zone]).unwrap();
            let rules = DueRules { catch_up, jitter: Duration::from_secs(90) };
            let mut now = at("2026-03-27T12:00:00Z");
            let mut due = schedule.next_after(now).unwrap();
            let mut last_fired = None;
            for jump in jumps {
                now += chrono::Duration::seconds(jump);
                let plan = plan(due, now, &schedule, rules);
                if let Some(fired) = plan.fire {
                    prop_assert!(Some(fired) > last_fired, "{fired} after {last_fired:?}");
                    prop_assert!(fired <= now);
                    last_fired = Some(fired);
                    prop_assert!(plan.next_due > last_fired);
                }
                prop_assert!(plan.next_due >= Some(due));
                due = plan.next_due.unwrap();
            }
        }
    }
}
