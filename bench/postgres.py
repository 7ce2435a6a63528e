"""Whole Postgres clusters and their WAL, beside pgBackRest and `pg_basebackup -Ft -X none | zstd -3 | age`.

  backup  a full backup, a full one after 1 % of the pages changed, an incremental one after 2,000 transactions of
          pgbench, and a restore of the last one, without starting a server
  load    throughput of pgbench before and during a first full backup
  wal     drain: WAL of a write-heavy pgbench lies there, and archiving begins
          live:  write-heavy pgbench for a time, with archiving all along

Each tool has a copy of the same cluster and a fresh repository in every round; each step is run by everybody before the
next one begins, and who goes first changes with the round. The copies have page checksums and fsync, and what changes in
one changes in all. All encrypt, and compress with zstd at level 3. pgBackRest has two processes, bundles, block
incremental and asynchronous archiving; it runs on the database's machine, as it has to. Everything is written out before a
step.

Wall time is that of the command, of ours the command line's with --wait. Processor time and peak memory are those of the
peer's processes; of ours the worker's, and the processor time of the command line. `server` is the processor time of
Postgres. `stored` is what a step added, without WAL. `flush` is how long writing out takes that is left over when the
command has ended. Outside of the measured time, what was restored is started, replays the WAL that the source has, and
sums of its tables are compared with the source's.

The rate of WAL is its size up to the end of the last segment, over the time until the server knows that it is archived: by
its slot from us, by its archiver from pgBackRest. `live` counts from the start of pgbench and cannot be above what pgbench
writes; `drain` is what the tool can do. `backlog` is what was not archived when pgbench ended.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import cluster as clusters
import fleet
from cluster import LIMIT_SECONDS, MIB, SEGMENT, Cluster, wait_until
from fleet import Failed
from repositories import BASEBACKUP, OURS, PGBACKREST, TOOLS, Tool

PEERS = (PGBACKREST, BASEBACKUP)
SCENARIOS = ("backup", "load", "wal")
STEPS = ("full", "changed", "incremental", "restore")
INCREMENTAL_SINCE = 17
WARM_SECONDS = 10
# Ours divided by pgBackRest's: wall times at most, throughput and rates of WAL at least.
WALL_BARS = {"full": 0.8, "incremental": 0.5, "restore": 0.9}
LOAD_BAR = 0.95
WAL_BAR = 2.0
# Of what our first backup stored, at most.
CHANGED_BAR = 0.1


class Bench:
    def __init__(self, folder: str, options: argparse.Namespace, tools: list[str]) -> None:
        self.folder, self.options, self.tools = folder, options, tools
        self.results: dict[tuple[int, str, str], list[dict]] = {}
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        print(f"FAILED {what}", flush=True)
        self.failures.append(what)

    def keep(self, key: tuple[int, str, str], took: dict) -> None:
        self.results.setdefault(key, []).append(took)
        print(row(key, took), flush=True)

    def turns(self, number: int, tools: list[str]) -> list[str]:
        turn = (number - 1) % len(tools)
        return tools[turn:] + tools[:turn]

    def major(self, major: int) -> None:
        print(f"\nPostgres {major}: making a cluster", flush=True)
        self.template = Cluster.filled(major, os.path.join(self.folder, f"template-{major}"), self.options.scale)
        version = subprocess.run([f"{self.template.bin}/postgres", "--version"], capture_output=True, text=True, check=True)
        size = fleet.folder_bytes(os.path.join(self.template.data, "base"))
        print(f"{version.stdout.strip()}, {size / MIB:.0f} MiB, pgbench's scale {self.options.scale}")
        for scenario in self.options.only:
            for number in range(1, self.options.rounds + 1):
                print(f"\nround {number}\n{HEADS[scenario]}", flush=True)
                if scenario == "backup":
                    self.backup(major, number)
                else:
                    self.alone(major, number, scenario)
        self.template.remove()

    def backup(self, major: int, number: int) -> None:
        """The steps of `backup`, each by all tools."""
        running: list[Tool] = []
        try:
            for name in self.turns(number, self.tools):
                try:
                    running.append(TOOLS[name](self.template, self.folder))
                except Failed as failed:
                    self.fail(f"{name} on Postgres {major}: {failed}")
            for step in STEPS:
                self.change(step, number, running)
                for tool in running[:]:
                    if step == "incremental" and tool.name == BASEBACKUP:
                        continue
                    try:
                        if step == "restore":
                            self.restore(major, tool)
                        else:
                            self.step(major, step, tool, lambda: tool.backup(step))
                    except Failed as failed:
                        self.fail(f"{step} by {tool.name} on Postgres {major}: {failed}")
                        running.remove(tool)
                        tool.stop()
        finally:
            for tool in running:
                tool.stop()

    def change(self, step: str, number: int, running: list[Tool]) -> None:
        since = [tool.cluster.position() for tool in running]
        for tool in running:
            if step == "changed":
                tool.cluster.update_pages(0.01, number)
            elif step == "incremental":
                tool.cluster.transactions(2000, number)
        if step in ("changed", "incremental") and running:
            counts = [tool.cluster.changed_pages(at) for tool, at in zip(running, since)]
            changed, total = counts[0]
            print(f"{'':2} {step:11} {changed} of {total} pages, {changed / total:.2%}")

    def step(self, major: int, step: str, tool: Tool, action) -> None:
        os.sync()
        server, before = tool.cluster.cpu_seconds(), tool.stored()[0]
        took = action()
        took["server"] = tool.cluster.cpu_seconds() - server
        began = time.monotonic()
        os.sync()
        took |= {"flush": time.monotonic() - began, "size": tool.stored()[0] - before}
        self.keep((major, step, tool.name), took)

    def restore(self, major: int, tool: Tool) -> None:
        folder = os.path.join(self.folder, "restored")  # ours leaves a file beside the destination
        destination = os.path.join(folder, "data")
        subprocess.run([*fleet.unprivileged(), "mkdir", "-p", destination], check=True)
        try:
            self.step(major, "restore", tool, lambda: tool.restore(destination))
            clusters.check_restored(destination, tool.cluster, os.path.join(self.folder, "check"))
        finally:
            shutil.rmtree(folder)

    def alone(self, major: int, number: int, scenario: str) -> None:
        """A scenario in which each tool runs by itself, on a fresh copy."""
        tools = [name for name in self.tools if scenario == "load" or TOOLS[name].archives]
        for name in self.turns(number, tools) if tools else []:
            try:
                tool = TOOLS[name](self.template, self.folder)
                try:
                    {"load": self.load, "wal": self.wal}[scenario](major, tool)
                finally:
                    tool.stop()
            except Failed as failed:
                self.fail(f"{scenario} by {name} on Postgres {major}: {failed}")

    def load(self, major: int, tool: Tool) -> None:
        tool.cluster.sql("CHECKPOINT")
        os.sync()
        pgbench = clusters.Throughput(tool.cluster)
        try:
            time.sleep(WARM_SECONDS)
            began = time.time()
            took = tool.backup("full")
            ended = time.time()
            time.sleep(2.5)  # so that the last second has been reported
        finally:
            pgbench.stop()
        before = pgbench.rate(began - WARM_SECONDS + 2.5, began)
        self.keep((major, "load", tool.name), {"wall": took["wall"], "before": before, "during": pgbench.rate(began, ended)})

    def wal(self, major: int, tool: Tool) -> None:
        cluster = tool.cluster
        self.settle(tool)
        tool.pause()
        begin, wanted = cluster.position(), self.options.wal_mib * MIB
        with cluster.write_heavy():
            wait_until(lambda: cluster.position() - begin >= wanted, "WAL", LIMIT_SECONDS, 0.1)
        end = cluster.switch()
        if tool.backlog(end) < wanted:
            raise Failed("WAL was archived although archiving had been stopped")
        os.sync()
        stored, began, cpu = tool.stored()[1], time.monotonic(), machine_cpu_seconds()
        self.archived(major, "drain", tool, begin, end, began, cpu, stored, tool.resume)

        self.settle(tool)
        begin, stored, began, cpu = cluster.position(), tool.stored()[1], time.monotonic(), machine_cpu_seconds()
        with cluster.write_heavy():
            time.sleep(self.options.wal_seconds)
        self.archived(major, "live", tool, begin, cluster.switch(), began, cpu, stored)

    def settle(self, tool: Tool) -> None:
        """All that was written so far is on the disk and archived, and pages are written whole again."""
        tool.cluster.sql("CHECKPOINT")
        end = tool.cluster.switch()
        wait_until(lambda: tool.backlog(end) == 0, "the WAL of the checkpoint", 120)
        os.sync()

    def archived(
        self, major: int, step: str, tool: Tool, begin: int, end: int, began: float, cpu: float, stored: int, start=None
    ) -> None:
        backlog = tool.backlog(end)
        if start:
            start()
        wait_until(lambda: tool.backlog(end) == 0, "the last segment to be archived", LIMIT_SECONDS, 0.1)
        wall = time.monotonic() - began
        took = {"wall": wall, "bytes": end - begin, "rate": (end - begin) / wall, "backlog": backlog}
        took |= {"cpu": machine_cpu_seconds() - cpu, "size": tool.stored()[1] - stored}
        self.keep((major, step, tool.name), took)

    # -----------------------------------------------------------------------------------------------------------------
    # Report

    def report(self) -> None:
        middle = {key: {name: statistics.median(t[name] for t in taken) for name in taken[0]} for key, taken in self.results.items()}
        for key, taken in self.results.items():
            if "memory" in taken[0]:
                middle[key]["memory"] = max(t["memory"] for t in taken)
        print(f"\nmedians of {self.options.rounds} rounds, the highest peak")
        for scenario, steps in (("backup", STEPS), ("load", ("load",)), ("wal", ("drain", "live"))):
            chosen = {key: took for key, took in middle.items() if key[1] in steps}
            if chosen:
                print("\n" + HEADS[scenario])
            for key, took in chosen.items():
                print(row(key, took))
        ours = {key[:2]: took for key, took in middle.items() if key[2] == OURS}
        if not ours:
            return
        print(f"\n{'ours / pgBackRest':24} {'ours':>12} {'peer':>12} {'ratio':>6}")
        for (major, step), took in ours.items():
            label = f"{major} {step:11}"
            peer = middle.get((major, step, PGBACKREST))
            bar = WALL_BARS.get(step)
            if bar and peer and (step != "incremental" or major >= INCREMENTAL_SINCE):
                print(verdict(f"{label} wall s", took["wall"], peer["wall"], bar, at_most=True))
            if step == "changed" and (major, "full") in ours:
                first = ours[major, "full"]["size"] / MIB
                print(verdict(f"{label} / first MiB", took["size"] / MIB, first, CHANGED_BAR, at_most=True))
            if step == "load" and peer:
                print(verdict(f"{label} during tps", took["during"], peer["during"], LOAD_BAR, at_most=False))
            if step == "drain" and peer:
                print(verdict(f"{label} MiB/s", took["rate"] / MIB, peer["rate"] / MIB, WAL_BAR, at_most=False))
            if step == "live":
                if peer:
                    print(verdict(f"{label} MiB/s", took["rate"] / MIB, peer["rate"] / MIB, None, at_most=False))
                # The segment that was just ended and the one before may be under way; a backlog is more.
                passed = "PASS" if took["backlog"] <= 2 * SEGMENT else "MISSED"
                print(f"{label + ' backlog':24} {took['backlog'] / MIB:12.2f} {'':19} at most {2 * SEGMENT / MIB:.2f}  {passed}")


HEADS = {
    "backup": f"{'':14} {'':13} {'wall':>10} {'cpu':>10} {'server':>10} {'peak':>10} {'stored':>13} {'flush':>9}",
    "load": f"{'':14} {'':13} {'backup':>10} {'before':>10} {'during':>10} {'kept':>7}",
    "wal": f"{'':14} {'':13} {'wall':>10} {'machine':>10} {'WAL':>12} {'rate':>13} {'stored':>13} {'backlog':>13}",
}


def row(key: tuple[int, str, str], took: dict) -> str:
    major, step, tool = key
    start = f"{major:2} {step:11} {tool:13} {took['wall']:8.2f} s"
    if step == "load":
        kept = took["during"] / took["before"]
        return f"{start} {took['before']:6.0f} tps {took['during']:6.0f} tps {kept:7.2f}"
    if step in ("drain", "live"):
        return (
            f"{start} {took['cpu']:8.2f} s {took['bytes'] / MIB:8.0f} MiB {took['rate'] / MIB:7.1f} MiB/s"
            f" {took['size'] / MIB:9.1f} MiB {took['backlog'] / MIB:9.1f} MiB"
        )
    return (
        f"{start} {took['cpu']:8.2f} s {took['server']:8.2f} s {took['memory']:6.0f} MiB"
        f" {took['size'] / MIB:9.1f} MiB {took['flush']:7.2f} s"
    )


def verdict(label: str, ours: float, peer: float, bar: float | None, *, at_most: bool) -> str:
    value = ours / peer
    line = f"{label:24} {ours:12.2f} {peer:12.2f} {value:6.2f}"
    if bar is None:
        return line
    passed = value <= bar if at_most else value >= bar
    return f"{line} {'at most' if at_most else 'at least'} {bar:.2f}  {'PASS' if passed else 'MISSED'}"


def machine_cpu_seconds() -> float:
    """Processor time of everything on the machine: archivers outlive whoever starts them."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, softirq = (int(field) for field in f.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / fleet.CLOCK


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--majors", type=lambda text: [int(n) for n in text.split(",")], default=[15, 18], metavar="15,18")
    arguments.add_argument("--only", type=fleet.names(SCENARIOS), default=[*SCENARIOS], metavar=",".join(SCENARIOS))
    arguments.add_argument("--peers", type=fleet.names(PEERS), default=[*PEERS], metavar=",".join(PEERS), help="may be empty")
    arguments.add_argument("--peers-only", action="store_true", help="without ours")
    arguments.add_argument("--scale", type=int, default=80, help="pgbench's; 80 makes 1.3 GB")
    arguments.add_argument("--wal-mib", type=int, default=1024, help="how much WAL lies there before it is drained")
    arguments.add_argument("--wal-seconds", type=int, default=20, help="how long WAL is written live")
    arguments.add_argument("--work", help="a folder for everything, on the disk to measure [default: under /tmp]")
    options = arguments.parse_args()
    tools = options.peers if options.peers_only else [OURS, *options.peers]
    if not tools:
        arguments.error("nobody is left to run")
    for major in options.majors:
        clusters.binaries(major)
    if PGBACKREST in tools:
        setup = os.path.join(fleet.ROOT, "bench", "setup", "peers.sh")
        if subprocess.run(["bash", setup, PGBACKREST]).returncode:
            return 1
    print(fleet.machine())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = tempfile.mkdtemp(prefix="sr-bench-postgres-", dir=options.work or "/tmp")
    os.chmod(folder, 0o777)
    bench = Bench(folder, options, tools)
    try:
        for major in options.majors:
            bench.major(major)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bench.report()
    for failure in bench.failures:
        print(f"FAILED {failure}")
    return 1 if bench.failures else 0


sys.exit(main())
