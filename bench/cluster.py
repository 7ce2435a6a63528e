"""Postgres clusters of the benchmark of whole clusters: copies of one that was filled once, and work done in them.

Every tool has a copy of its own, so that all back up the same, and none archives for another. The copies are made while
the first is stopped, so they share its system identifier.
"""

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import fleet
from fleet import Failed

PAGE = 8192
MIB = 1 << 20
SEGMENT = 16 * MIB
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
# How long anything may take before it counts as hanging.
LIMIT_SECONDS = 1800
# 200 rows a transaction, each most likely in a page of its own. Two clients never wait for each other.
WRITE_HEAVY = """UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN
(SELECT 1 + :client_id + 2 * floor(random() * :half)::int FROM generate_series(1, 200));
"""
SUMS = """SELECT (SELECT count(*) || ' ' || sum(abalance) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history),
(SELECT sum(tbalance) FROM pgbench_tellers)"""
CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'"


def binaries(major: int) -> str:
    """The folder of a version's programs: of the tools, else the system's."""
    for folder in (os.path.join(os.environ["STRONGROOM_TOOLS"], f"pg{major}", "bin"), f"/usr/lib/postgresql/{major}/bin"):
        if os.path.exists(os.path.join(folder, "pgbench")) and os.path.exists(os.path.join(folder, "postgres")):
            return folder
    raise SystemExit(f"no Postgres {major}: run deploy/bootstrap, install postgresql-{major}, or leave it out with --majors")


def wait_until(done: Callable[[], bool], what: str, seconds: float = 300, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


def number_of(position: str) -> int:
    """A place in WAL, from how Postgres writes it."""
    high, low = position.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Cluster:
    """A server with a data folder of its own."""

    def __init__(self, major: int, folder: str) -> None:
        self.major, self.bin, self.dir = major, binaries(major), folder
        self.data = os.path.join(folder, "data")
        self.port = fleet.free_port()
        self.process: subprocess.Popen | None = None
        os.mkdir(folder)
        os.chmod(folder, 0o777)

    @classmethod
    def filled(cls, major: int, folder: str, scale: int) -> "Cluster":
        """A new cluster with pgbench's tables, stopped. A tenth of each page is free, so that rows stay in their pages."""
        cluster = cls(major, folder)
        cluster.run("initdb", "-D", cluster.data, "-U", "postgres", "-A", "trust", "--data-checksums", "--no-sync")
        cluster.configure()
        cluster.start()
        try:
            cluster.run("pgbench", "--initialize", "--quiet", "--scale", str(scale), "--fillfactor", "90", *cluster.address(), "postgres")
            cluster.sql("VACUUM FREEZE ANALYZE; CHECKPOINT")
        except BaseException:
            cluster.kill()
            raise
        cluster.stop()
        return cluster

    def copy(self, folder: str, archive_command: str | None = None) -> "Cluster":
        """A copy of this one, which is stopped; the copy runs."""
        copy = Cluster(self.major, folder)
        subprocess.run(["cp", "-a", "--reflink=auto", self.data, copy.data], check=True)
        copy.configure(archive_command)
        copy.start()
        return copy

    def configure(self, archive_command: str | None = None) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.dir,
            "wal_level": "replica",
            "max_wal_senders": 10,
            "max_replication_slots": 10,
            "shared_buffers": "512MB",
            # Checkpoints come with backups only, and nothing is cleaned meanwhile: the copies stay the same.
            "max_wal_size": "32GB",
            "checkpoint_timeout": "1h",
            "autovacuum": "off",
            # All WAL stays, to compare what was restored with.
            "wal_keep_size": "64GB",
            "fsync": "on",
        }
        if archive_command:
            settings |= {"archive_mode": "on", "archive_command": archive_command}
        if self.major >= 17:
            settings["summarize_wal"] = "on"
        with open(os.path.join(self.data, "postgresql.conf"), "a") as f:
            f.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        command = [*fleet.unprivileged(), os.path.join(self.bin, program), *arguments]
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        if done.returncode:
            raise Failed(f"{program} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:].strip()}")

    def sql(self, text: str) -> str:
        command = [os.path.join(self.bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", self.url()]
        done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=LIMIT_SECONDS)
        if done.returncode:
            raise Failed(f"psql ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self, **settings: str) -> None:
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.log = os.path.join(self.dir, "log")
        with open(self.log, "ab") as log:
            command = [*fleet.unprivileged(), os.path.join(self.bin, "postgres"), "-D", self.data, *options]
            self.process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self.is_ready, f"the server of {self.data}")
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        if self.process and self.process.poll() is not None:
            with open(self.log, errors="replace") as log:
                raise Failed(f"the server of {self.data} ended: {log.read()[-2000:]}")
        return subprocess.run([os.path.join(self.bin, "pg_isready"), "-q", *self.address()[:4]], **QUIET).returncode == 0

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(LIMIT_SECONDS)
            self.process = None

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def cpu_seconds(self) -> float:
        """Processor time of the server, with its children that ended."""
        assert self.process
        pid = self.process.pid
        total = fleet.cpu_seconds(pid)
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            for child in f.read().split():
                with contextlib.suppress(OSError):
                    total += fleet.cpu_seconds(int(child))
        return total

    # -----------------------------------------------------------------------------------------------------------------
    # Work

    def accounts(self) -> int:
        return int(self.sql("SELECT max(aid) FROM pgbench_accounts"))

    def update_pages(self, share: float, number: int) -> None:
        """Updates rows so that a share of all pages changes, the same ones in every copy."""
        self.sql(
            f"""SELECT setseed({number % 97 / 100});
                UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN (
                    SELECT 1 + floor(random() * {self.accounts()})::int
                    FROM generate_series(1, (SELECT ceil(sum(pg_database_size(oid)) / {PAGE} * {share})::int FROM pg_database)))"""
        )

    def transactions(self, count: int, number: int) -> None:
        """Runs pgbench's own transactions, the same ones in every copy."""
        self.run("pgbench", "-n", "-c", "1", "-t", str(count), f"--random-seed={number}", *self.address(), "postgres")

    def changed_pages(self, since: int) -> tuple[int, int]:
        """How many pages of the tables and indexes were changed since a place in WAL, and how many there are."""
        self.sql("CHECKPOINT")
        changed = total = 0
        for folder, _, files in os.walk(os.path.join(self.data, "base")):
            for name in files:
                if not re.fullmatch(r"\d+(\.\d+)?", name):
                    continue
                with open(os.path.join(folder, name), "rb") as f:
                    while part := f.read(1024 * PAGE):
                        for at in range(0, len(part) - PAGE + 1, PAGE):
                            high, low = struct.unpack_from("<II", part, at)
                            total += 1
                            changed += (high << 32 | low) > since
        return changed, total

    def position(self) -> int:
        return number_of(self.sql("SELECT pg_current_wal_lsn()"))

    def switch(self) -> int:
        """Ends the segment; the place up to which WAL has to be archived then."""
        return number_of(self.sql("SELECT pg_switch_wal()"))

    def segment_before(self, position: int) -> str:
        """The name of the segment that ends at or holds the byte before a place, on the first timeline."""
        number = (position - 1) // SEGMENT
        per_file = (1 << 32) // SEGMENT
        return f"{1:08X}{number // per_file:08X}{number % per_file:08X}"

    @contextlib.contextmanager
    def write_heavy(self) -> Iterator[None]:
        """Two clients that write WAL as fast as they can."""
        script = os.path.join(self.dir, "write-heavy.sql")
        with open(script, "w") as f:
            f.write(WRITE_HEAVY)
        command = [os.path.join(self.bin, "pgbench"), "-n", "-c", "2", "-j", "1", "-T", str(LIMIT_SECONDS), "-f", script]
        command += ["-D", f"half={self.accounts() // 2}", *self.address(), "postgres"]
        process = subprocess.Popen(command, **QUIET)
        try:
            yield
            if process.poll() is not None:
                raise Failed("pgbench ended too early")
        finally:
            process.terminate()
            process.wait()
            # The server's side of its connections ends a little later.
            wait_until(lambda: self.sql(CLIENTS) == "0", "the end of pgbench's connections")


class Throughput:
    """pgbench's own transactions by four clients, counted by the second."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = os.path.join(cluster.dir, "progress")
        command = [os.path.join(cluster.bin, "pgbench"), "-n", "-c", "4", "-j", "1", "-T", str(LIMIT_SECONDS), "-P", "1"]
        command += ["--progress-timestamp", *cluster.address(), "postgres"]
        with open(self.path, "wb") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def rate(self, began: float, ended: float) -> float:
        """Transactions a second between two moments, both as time.time() has them."""
        known: list[tuple[float, float]] = []
        with open(self.path, errors="replace") as lines:
            for line in lines:
                if found := re.match(r"progress: ([\d.]+) s, ([\d.]+) tps", line):
                    at, rate = float(found[1]), float(found[2])
                    known.append((at, known[-1][1] + rate * (at - known[-1][0]) if known else 0.0))
        if len(known) < 2 or known[0][0] > began or known[-1][0] < ended:
            raise Failed("pgbench did not report its progress over the whole time")

        def count(moment: float) -> float:
            for (a, low), (b, high) in zip(known, known[1:]):
                if moment <= b:
                    return low + (high - low) * (moment - a) / (b - a)
            return known[-1][1]

        return (count(ended) - count(began)) / (ended - began)


def sums(cluster: Cluster) -> str:
    return cluster.sql(SUMS)


def check_restored(destination: str, source: Cluster, folder: str) -> None:
    """Starts what was restored, lets it replay the source's WAL to its end, and compares the sums of both."""
    restored = Cluster(source.major, folder)
    try:
        restored.data = destination
        if prefix := fleet.unprivileged():
            user, group = (word.split("=")[1] for word in prefix[1:3])
            subprocess.run(["chown", "-R", f"{user}:{group}", destination], check=True)
        os.chmod(destination, 0o700)
        signals = [os.path.join(destination, f"{name}.signal") for name in ("recovery", "standby")]
        if not any(os.path.exists(path) for path in signals):
            subprocess.run([*fleet.unprivileged(), "touch", signals[0]], check=True)
        restored.start(
            port=str(restored.port),
            listen_addresses="127.0.0.1",
            unix_socket_directories=restored.dir,
            archive_mode="off",
            restore_command=f"cp {source.data}/pg_wal/%f %p",
        )
        wait_until(lambda: restored.sql("SELECT pg_is_in_recovery()") == "f", "the end of the recovery")
        if (found := sums(restored)) != (wanted := sums(source)):
            raise Failed(f"restored is something else: wanted {wanted}, got {found}")
    finally:
        restored.remove()
