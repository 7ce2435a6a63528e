//! `timeline`, `annotate`, and `restore --to`, as a person or a script meets them; the coordinator's own tests have the
//! decisions.

use serde_json::{Value, json};

use crate::stub::{problem, stderr, stub};

const JOB: &str = "01890000-0000-7000-8000-000000000001";
const BASE: &str = "bkp-20261121-090000Z-000000000001";

fn window() -> Value {
    json!({
        "system_identifier": "7400000000000000001", "timelines": [1, 2],
        "from": {"lsn": "0/2000100", "time": "2026-11-21T09:00:00Z"},
        "to": {"lsn": "0/9000000", "time": "2026-11-21T12:00:00Z"},
        "bases": [BASE], "end": "hole"
    })
}

fn gap() -> Value {
    json!({
        "system_identifier": "7400000000000000001", "timeline": 2,
        "from": {"lsn": "0/9000000", "time": "2026-11-21T12:00:00Z"},
        "to": {"lsn": "0/A000000", "time": "2026-11-21T12:05:00Z"}
    })
}

fn timeline() -> Value {
    json!({
        "target": "shop", "windows": [window()], "gaps": [gap()],
        "bases": [{
            "backup_id": BASE, "type": "full", "system_identifier": "7400000000000000001", "timeline": 1,
            "start_lsn": "0/2000028", "stop": {"lsn": "0/2000100", "time": "2026-11-21T09:00:00Z"},
            "size_bytes": 30_000_000, "stored_bytes": 5_000_000, "verified": true, "verification_error": null,
            "usable": true
        }],
        "stream": {
            "system_identifier": "7400000000000000001", "slot": "strongroom_shop", "holder": null, "timeline": 2,
            "received_to": "0/B000000", "server_time": "2026-11-21T13:00:00Z", "behind_bytes": 1000,
            "last_error": "no route\u{1b}[2J to host", "updated_at": "2026-11-21T13:00:00Z"
        },
        "alerts": [{
            "kind": "wal_gap", "message": "WAL is missing", "raised_at": "2026-11-21T12:06:00Z",
            "seen_at": "2026-11-21T12:07:00Z"
        }],
        "annotations": [{
            "at": "2026-11-21T10:00:00Z", "kind": "deploy", "text": "deployed\nv2", "source": "scenario.deployed"
        }]
    })
}

#[test]
fn a_timeline_shows_windows_base_backups_holes_and_what_happened() {
    let api = stub(&[("GET /api/v1/targets/shop/timeline", 200, timeline())]);
    let shown = api.shown(&["timeline", "shop"]);
    let lines: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    let has = |cells: &[&str]| assert!(lines.iter().any(|line| line == cells), "{cells:?} in:\n{shown}");
    has(&[
        "2026-11-21 09:00:00+00:00",
        "2026-11-21 12:00:00+00:00",
        "0/2000100 to 0/9000000",
        "1 > 2",
        "1",
        "a hole",
    ]);
    has(&[
        BASE,
        "full",
        "1",
        "2026-11-21 09:00:00+00:00 (0/2000100)",
        "30.0 MB",
        "5.0 MB",
        "verified",
    ]);
    has(&[
        "2026-11-21 12:00:00+00:00 (0/9000000)",
        "2026-11-21 12:05:00+00:00 (0/A000000)",
        "2",
    ]);
    has(&["by", "nobody"]);
    has(&["up to", "0/B000000 on timeline 2"]);
    has(&["last error", "no route\\u{1b}[2J to host"]);
    has(&["2026-11-21 12:06:00+00:00", "wal_gap", "WAL is missing"]);
    has(&[
        "2026-11-21 10:00:00+00:00",
        "deploy",
        "deployed\\nv2",
        "scenario.deployed",
    ]);
    let sent = api.shown(&["timeline", "shop", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), timeline());
}

#[test]
fn a_target_without_a_window_says_why() {
    let mut empty = timeline();
    empty["windows"] = json!([]);
    let api = stub(&[("GET /api/v1/targets/shop/timeline", 200, empty)]);
    let shown = api.shown(&["timeline", "shop"]);
    assert!(
        shown.contains("nothing yet: no base backup has all of the WAL"),
        "{shown}"
    );
}

#[test]
fn an_annotation_is_sent_with_its_time_and_a_time_without_a_zone_is_refused() {
    let written = json!({"at": "2026-11-21T10:00:00Z", "kind": "note", "text": "a\u{1b}b", "source": "me"});
    let api = stub(&[("POST /api/v1/targets/shop%2Fdb/annotations", 201, written)]);
    let shown = api.shown(&[
        "annotate",
        "shop/db",
        "before the migration",
        "--at",
        "2026-11-21 11:00:00+01",
    ]);
    assert_eq!(shown, "shop/db at 2026-11-21 10:00:00+00:00: a\\u{1b}b\n");
    assert_eq!(
        api.last_body(),
        json!({"text": "before the migration", "at": "2026-11-21T10:00:00Z"})
    );
    for bad in ["2026-11-21 11:00:00", "yesterday", "latest"] {
        let output = api.run(&["annotate", "shop", "x", "--at", bad]);
        assert_eq!(output.status.code(), Some(1), "{bad}");
        assert!(stderr(&output).contains("with its zone"), "{}", stderr(&output));
    }
}

#[test]
fn a_moment_of_a_target_is_asked_for_by_name_and_the_base_backup_is_left_to_the_coordinator() {
    let created = json!({
        "restore_id": JOB, "estimated_duration": "1m", "status": "pending",
        "validation_results": [{"backup_id": BASE, "validated": true, "detail": "passed"}],
        "notes": ["0/5000 lies on timelines 1 and 2: 2 is followed"]
    });
    let api = stub(&[("POST /api/v1/restore/create", 201, created)]);
    let shown = api.shown(&[
        "restore",
        "shop",
        "--to",
        "0/5000",
        "--destination",
        "/srv/back",
        "--leave",
        "running",
        "--tablespace",
        "16400=/srv/a",
        "--tablespace",
        "16401=/srv/b=c",
    ]);
    assert!(shown.contains("2 is followed") && shown.contains(BASE), "{shown}");
    let body = api.last_body();
    assert_eq!((&body["targets"], &body["to"]), (&json!(["shop"]), &json!("0/5000")));
    assert_eq!((&body["leave"], body.get("backup_id")), (&json!("running"), None));
    assert_eq!(body["tablespaces"], json!({"16400": "/srv/a", "16401": "/srv/b=c"}));

    api.shown(&[
        "restore",
        BASE,
        "--to",
        "xid:731",
        "--destination",
        "/srv/back",
        "--table",
        "shop.public.orders",
    ]);
    let body = api.last_body();
    assert_eq!((&body["backup_id"], &body["to"]), (&json!(BASE), &json!("xid:731")));
    assert_eq!(
        (&body["targets"], &body["tables"]),
        (&json!([]), &json!(["shop.public.orders"]))
    );

    let asked = api.asked.lock().unwrap().len();
    for (flags, advice) in [
        (["--to", "2026-11-21T14:03:05"], "give a time with its zone"),
        (["--leave", "asleep"], "known are stopped, running and unstarted"),
        (["--tablespace", "fast=/x"], "write it as OID=FOLDER"),
    ] {
        let output = api.run(&[&["restore", "shop", "--destination", "/srv/back"], flags.as_slice()].concat());
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(stderr(&output).contains(advice), "{}", stderr(&output));
    }
    assert_eq!(api.asked.lock().unwrap().len(), asked, "nothing wrong is sent");
}

#[test]
fn a_moment_outside_is_refused_in_the_words_of_the_api() {
    let detail = "0/1 cannot be recovered: it lies before the end of the first base backup";
    let api = stub(&[("POST /api/v1/restore/create", 422, problem(422, detail))]);
    let output = api.run(&["restore", "shop", "--to", "0/1", "--destination", "/srv/back"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(detail), "{}", stderr(&output));
}

#[test]
fn a_preview_says_what_would_be_done_and_needs_no_destination() {
    let preview = json!({
        "backup_id": BASE, "target": "shop", "target_kind": "postgres", "method": "physical_basebackup",
        "completed_at": "2026-11-21T09:00:00Z", "verified": false, "content_bytes": 30_000_000,
        "wal": {
            "timeline": 2, "from": "0/2000028", "to": "0/9000000", "bytes": 117_440_472, "window": window(),
            "first_gap": gap(), "seconds_before_end": 90
        },
        "estimated_duration": "2m", "source": {"tables": 3}, "notes": ["it was never verified"]
    });
    let api = stub(&[("POST /api/v1/restore/preview", 200, preview.clone())]);
    let shown = api.shown(&["restore", "shop", "--to", "latest", "--preview"]);
    for wanted in [
        "30.0 MB before compression, so that much or less",
        "0/2000028 to 0/9000000 on timeline 2, 117.4 MB or less",
        "timeline 1 > 2; after it comes a hole",
        "1 min 30 s",
        "2026-11-21 12:00:00+00:00 (0/9000000) to 2026-11-21 12:05:00+00:00 (0/A000000)",
        "it was never verified",
        "nothing was touched",
    ] {
        assert!(shown.contains(wanted), "{wanted:?} in:\n{shown}");
    }
    assert_eq!(api.last_body().get("destination"), None);
    let sent = api.shown(&["restore", "shop", "--to", "latest", "--preview", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), preview);
}
