"""Triggers: latency on an idle fleet, and a flood.

Latency: from the moment a message is published on backup.request to the moment backup.job.started arrives, one at a time.
Flood: 10,000 messages over 1,000 targets published at once; the fleet drains them. Every message must have come to a
job of its target, requests for a target that waits share one, and no job may be lost or done twice.
"""

import argparse
import asyncio
import json
import time
import uuid

import nats

import fleet


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def latency(standalone: fleet.Standalone, samples: int) -> None:
    client = await nats.connect(standalone.env["NATS_URL"])
    stream = client.jetstream()
    started: asyncio.Queue = asyncio.Queue()
    completed: asyncio.Queue = asyncio.Queue()

    async def on_started(message):
        await started.put((time.monotonic(), message))

    async def on_completed(message):
        await completed.put(message)

    await client.subscribe("backup.job.started", cb=on_started)
    await client.subscribe("backup.job.completed", cb=on_completed)
    await client.flush()
    waits = []
    for n in range(samples):
        began = time.monotonic()
        body = json.dumps({"targets": [f"t{n % 50}"]}).encode()
        await stream.publish("backup.request", body, headers={"Nats-Msg-Id": str(uuid.uuid4())})
        at, _ = await asyncio.wait_for(started.get(), 30)
        waits.append((at - began) * 1000)
        await asyncio.wait_for(completed.get(), 30)
        await asyncio.sleep(0.02)
    await client.close()
    print(f"publish to backup.job.started, {samples} one at a time: "
          f"p50 {quantile(waits, 0.5):.1f} ms, p90 {quantile(waits, 0.9):.1f} ms, p99 {quantile(waits, 0.99):.1f} ms, "
          f"max {max(waits):.1f} ms (p99 under 50 wanted)")


async def flood(standalone: fleet.Standalone, triggers: int, targets: int) -> None:
    client = await nats.connect(standalone.env["NATS_URL"])
    stream = client.jetstream()
    before = int(standalone.sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup'"))
    run = uuid.uuid4().hex[:8]
    gate = asyncio.Semaphore(512)

    async def publish(n: int) -> None:
        async with gate:
            body = json.dumps({"targets": [f"t{n % targets}"]}).encode()
            await stream.publish("backup.request", body, headers={"Nats-Msg-Id": f"{run}-{n}"}, timeout=60)

    began = time.monotonic()
    await asyncio.gather(*(publish(n) for n in range(triggers)))
    published = time.monotonic() - began
    while True:
        taken = int(standalone.sql(f"SELECT count(*) FROM triggers WHERE id LIKE 'backup.request#{run}-%'"))
        open_jobs = int(standalone.sql("SELECT count(*) FROM backup_jobs WHERE status IN ('pending', 'running')"))
        if taken == triggers and open_jobs == 0:
            break
        if time.monotonic() - began > 1800:
            raise SystemExit(f"not drained: {taken} triggers taken, {open_jobs} jobs open")
        await asyncio.sleep(0.5)
    drained = time.monotonic() - began
    await client.close()

    jobs = int(standalone.sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup'")) - before
    completed = int(standalone.sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup' AND status = 'completed'")) - before
    orphans = int(standalone.sql(
        f"SELECT count(*) FROM triggers t WHERE t.id LIKE 'backup.request#{run}-%' AND NOT EXISTS "
        "(SELECT 1 FROM backup_jobs j WHERE j.id = ANY(t.job_ids) AND j.status = 'completed')"))
    doubled = int(standalone.sql("SELECT count(*) FROM (SELECT job_id FROM receipts WHERE kind = 'backup' GROUP BY 1 HAVING count(*) > 1) d"))
    again = int(standalone.sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup' AND attempt > 1"))
    events = int(standalone.sql("SELECT count(*) FROM outbox WHERE subject = 'backup.job.completed'"))
    reached = int(standalone.sql(f"SELECT count(DISTINCT target_identifier) FROM backup_jobs j WHERE kind = 'backup' AND EXISTS "
                                 f"(SELECT 1 FROM triggers t WHERE t.id LIKE 'backup.request#{run}-%' AND j.id = ANY(t.job_ids))"))
    print(f"{triggers} triggers over {targets} targets: published in {published:.1f} s, drained in {drained:.1f} s, "
          f"{jobs} jobs, {jobs / drained:.0f} jobs/s, {triggers / drained:.0f} triggers/s")
    print(f"lost: {orphans} triggers without a completed job, {targets - reached} targets without one; "
          f"doubled: {doubled} receipts; second attempts: {again}; completed {completed} of {jobs}; completed events {events}")
    if orphans or doubled or completed != jobs or reached != targets:
        raise SystemExit("the flood lost or doubled jobs")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--samples", type=int, default=300)
    arguments.add_argument("--triggers", type=int, default=10_000)
    arguments.add_argument("--targets", type=int, default=1_000)
    options = arguments.parse_args()
    print(fleet.machine())
    # Every job is a real backup, of a command that prints one line.
    standalone = fleet.Standalone(coordinator_verify_after_backup="false", worker_concurrency="8", log_filter="warn")
    try:
        for n in range(options.targets):
            standalone.add_target(f"t{n}", kind="command", program="echo", args=[f"target {n}"])
        time.sleep(2)
        asyncio.run(latency(standalone, options.samples))
        asyncio.run(flood(standalone, options.triggers, options.targets))
    finally:
        standalone.stop()


main()
