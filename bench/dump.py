"""Backup of one Postgres database, beside `pg_dump -Fc -Z0 | zstd -3 | age -r …` on the same database.

The rounds are interleaved; every round of ours has a vault of its own, so that nothing is deduplicated. Prints wall
time, processor time, peak memory and size of each, the ratio of the medians, and a second backup into the same vault.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

import fleet


def peer(server: fleet.Postgres, recipient: str) -> dict:
    folder = tempfile.mkdtemp(prefix="sr-bench-peer-", dir="/tmp")
    out = os.path.join(folder, "dump.zst.age")
    script = f"{server.bin}/pg_dump -Fc -Z0 -d '{server.url('shop')}' | zstd -q -3 | age -r {recipient} -o {out} && sync -f {out}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = os.path.getsize(out)
    shutil.rmtree(folder)
    return {"wall": wall, "cpu": cpu, "memory": None, "size": size}


def backup(standalone: fleet.Standalone, dumper) -> dict:
    cpu = fleet.cpu_seconds(dumper.pid)
    before = fleet.folder_bytes(os.path.join(standalone.dir, "vault"))
    began = time.monotonic()
    job = standalone.api("/api/v1/backup/create", {"targets": ["shop"]})["job_id"]
    while True:
        view = standalone.api(f"/api/v1/jobs/{job}")
        if view["status"] not in ("pending", "running"):
            break
        time.sleep(0.01)
    wall = time.monotonic() - began
    if view["status"] != "completed":
        raise SystemExit(view["error"])
    return {
        "wall": wall,
        "cpu": fleet.cpu_seconds(dumper.pid) - cpu,
        "memory": fleet.peak_mebibytes(dumper.pid),
        "size": fleet.folder_bytes(os.path.join(standalone.dir, "vault")) - before,
        "content": view["size_bytes"],
    }


def ended(standalone: fleet.Standalone, job: str) -> None:
    while True:
        view = standalone.api(f"/api/v1/jobs/{job}")
        if view["status"] == "completed":
            return
        if view["status"] in ("failed", "cancelled"):
            raise SystemExit(view["error"])
        time.sleep(0.05)


def workers(server: fleet.Postgres) -> dict:
    """Peak memory of a dumper, a verifier and a restorer, each a process of its own, on one database."""
    standalone = fleet.Standalone(coordinator_verify_after_backup="false", worker_pool="elsewhere")
    peaks = {}
    running = []
    try:
        standalone.add_target("shop", kind="postgres", url=server.url("shop"))
        scratch = os.path.join(standalone.dir, "scratch")
        for service, key in (
            ("dumper", "STRONGROOM_KEYS_WRITER_KEY_FILE=writer.key"),
            ("verifier", "STRONGROOM_KEYS_IDENTITY_FILE=identity.txt"),
            ("restorer", "STRONGROOM_KEYS_IDENTITY_FILE=identity.txt"),
        ):
            running.append((service, standalone.worker(service, key, worker_scratch_dir=scratch)))
        time.sleep(1.5)
        ended(standalone, standalone.api("/api/v1/backup/create", {"targets": ["shop"]})["job_id"])
        backup_id = standalone.api("/api/v1/backup/list")["backups"][0]["backup_id"]
        ended(standalone, standalone.api("/api/v1/backup/verify", {"backup_id": backup_id})["job_id"])
        server.sql("postgres", "DROP DATABASE IF EXISTS shop_restored")
        ask = {"backup_id": backup_id, "destination": server.url("shop_restored")}
        ended(standalone, standalone.api("/api/v1/restore/create", ask)["restore_id"])
        for service, process in running:
            peaks[service] = fleet.peak_mebibytes(process.pid)
        server.sql("postgres", "DROP DATABASE shop_restored")
    finally:
        for _, process in running:
            process.terminate()
            process.wait()
        standalone.stop()
    return peaks


def ours(server: fleet.Postgres) -> tuple[dict, dict]:
    standalone = fleet.Standalone(coordinator_verify_after_backup="false")
    try:
        standalone.add_target("shop", kind="postgres", url=server.url("shop"), pool="bench")
        dumper = standalone.worker(
            "dumper", "STRONGROOM_KEYS_WRITER_KEY_FILE=writer.key", worker_pool="bench", worker_concurrency="1"
        )
        time.sleep(1.5)  # the fleet looks at its targets once a second
        try:
            return backup(standalone, dumper), backup(standalone, dumper)
        finally:
            dumper.terminate()
            dumper.wait()
    finally:
        standalone.stop()


def show(name: str, rounds: list[dict]) -> None:
    middle = {key: statistics.median(r[key] for r in rounds) for key in ("wall", "cpu", "size")}
    memory = [r["memory"] for r in rounds if r["memory"]]
    peak = f"{max(memory):7.0f}" if memory else "      -"
    print(f"{name:34} {middle['wall']:7.2f} s {middle['cpu']:7.2f} s {peak} MiB {middle['size'] / 2**20:8.1f} MiB")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--megabytes", type=int, default=1200)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    print(fleet.machine())
    keys = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True)
    recipient = keys.stderr.split()[-1]
    server = fleet.Postgres()
    try:
        server.load(options.megabytes)
        size = int(server.sql("shop", "SELECT pg_database_size('shop')"))
        print(f"Postgres {server.sql('shop', 'SHOW server_version')}, database of {size / 2**20:.0f} MiB, {options.rounds} rounds\n")
        peers, first, second = [], [], []
        # Both run once unmeasured: caches are filled, and what the loading left to be written is written.
        peer(server, recipient)
        ours(server)
        for _ in range(options.rounds):
            peers.append(peer(server, recipient))
            one, two = ours(server)
            first.append(one)
            second.append(two)
        print(f"{'medians':34} {'wall':>9} {'cpu':>9} {'peak':>11} {'stored':>12}")
        show("pg_dump -Fc -Z0 | zstd -3 | age", peers)
        show("strongroom, first backup", first)
        show("strongroom, second backup", second)
        ratio = statistics.median(r["wall"] for r in first) / statistics.median(r["wall"] for r in peers)
        size_ratio = statistics.median(r["size"] for r in first) / statistics.median(r["size"] for r in peers)
        print(f"\nwall time, first backup over peer: {ratio:.2f} (at most 1.10 wanted)")
        print(f"size, first backup over peer: {size_ratio:.2f}")
        peaks = ", ".join(f"{service} {peak:.0f} MiB" for service, peak in workers(server).items())
        print(f"peak memory of each worker: {peaks} (under 256 wanted)")
        print("rounds, wall seconds: peer " + ", ".join(f"{r['wall']:.2f}" for r in peers)
              + "; strongroom " + ", ".join(f"{r['wall']:.2f}" for r in first))
    finally:
        server.stop()


main()
