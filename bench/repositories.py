"""Those that the benchmark of whole clusters compares: Strongroom, pgBackRest, and pg_basebackup in a pipe."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import cluster as clusters
import fleet
from cluster import LIMIT_SECONDS, SEGMENT, Cluster, wait_until
from fleet import Failed

OURS, PGBACKREST, BASEBACKUP = "strongroom", "pgbackrest", "pg_basebackup"


class Tool:
    """Somebody's repository, and the copy of the cluster that goes into it, running."""

    name: str
    archives = False

    def __init__(self, template: Cluster, folder: str) -> None:
        self.dir = os.path.join(folder, self.name)
        self.log = os.path.join(self.dir, "log")
        os.mkdir(self.dir)
        os.chmod(self.dir, 0o777)
        self.cluster: Cluster | None = None
        try:
            self.cluster = template.copy(os.path.join(self.dir, "pg"), self.archive_command())
            self.begin()
        except BaseException:
            self.stop()
            raise

    def archive_command(self) -> str | None:
        return None

    def begin(self) -> None:
        """Makes the repository."""

    def backup(self, step: str) -> dict:
        raise NotImplementedError

    def restore(self, destination: str) -> dict:
        raise NotImplementedError

    def stored(self) -> tuple[int, int]:
        """Bytes of backups and bytes of WAL."""
        raise NotImplementedError

    def end(self) -> None:
        """Ends what was started, before the cluster is."""

    def stop(self) -> None:
        try:
            self.end()
        finally:
            if self.cluster:
                self.cluster.remove()
            shutil.rmtree(self.dir, ignore_errors=True)

    # Of those that archive.

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def backlog(self, position: int) -> int:
        """How many bytes of WAL before a place the server has to keep because they are not archived."""
        raise NotImplementedError


def run(command: list[str], log: str, **more) -> dict:
    return fleet.timed(["timeout", "--foreground", str(LIMIT_SECONDS), *command], log, **more)[0]


def stop_process(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class PgBackRest(Tool):
    name = PGBACKREST
    archives = True

    def archive_command(self) -> str:
        return " ".join([*self.command(), "archive-push", "%p"])

    def command(self) -> list[str]:
        program = os.path.join(os.environ["STRONGROOM_TOOLS"], "peers", "bin", "pgbackrest")
        return [program, f"--config={self.dir}/pgbackrest.conf", "--stanza=bench"]

    def run(self, *arguments: str) -> dict:
        return run([*fleet.unprivileged(), *self.command(), *arguments], self.log, cwd="/")

    def begin(self) -> None:
        settings = {
            "repo1-path": f"{self.dir}/repository",
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": "a password of the benchmark",
            "repo1-bundle": "y",
            "repo1-block": "y",
            "repo1-retention-full": "9",
            "compress-type": "zst",
            "compress-level": "3",
            "process-max": "2",
            "start-fast": "y",
            "archive-async": "y",
            "spool-path": f"{self.dir}/spool",
            "lock-path": f"{self.dir}/lock",
            "log-level-file": "off",
            "log-level-console": "warn",
        }
        database = {
            "pg1-path": self.cluster.data,
            "pg1-port": self.cluster.port,
            "pg1-socket-path": self.cluster.dir,
            "pg1-user": "postgres",
        }
        with open(f"{self.dir}/pgbackrest.conf", "w") as f:
            for section, lines in (("global", settings), ("bench", database)):
                f.write(f"[{section}]\n" + "".join(f"{name}={value}\n" for name, value in lines.items()))
        self.run("stanza-create")

    def backup(self, step: str) -> dict:
        return self.run(f"--type={'incr' if step == 'incremental' else 'full'}", "backup")

    def restore(self, destination: str) -> dict:
        return self.run(f"--pg1-path={destination}", "restore")

    def stored(self) -> tuple[int, int]:
        return tuple(fleet.folder_bytes(f"{self.dir}/repository/{part}") for part in ("backup", "archive"))

    def pause(self) -> None:
        self.cluster.sql("ALTER SYSTEM SET archive_command = ''; SELECT pg_reload_conf()")

    def resume(self) -> None:
        self.cluster.sql("ALTER SYSTEM RESET archive_command; SELECT pg_reload_conf()")

    def backlog(self, position: int) -> int:
        states = os.listdir(os.path.join(self.cluster.data, "pg_wal", "archive_status"))
        waiting = sum(state.endswith(".ready") for state in states)
        last = self.cluster.segment_before(position)
        # The last one may not have been announced yet.
        if f"{last}.done" not in states and f"{last}.ready" not in states:
            waiting += 1
        return waiting * SEGMENT

    def end(self) -> None:
        # Archiving goes on in a process of its own, which outlives the server.
        if os.path.exists(f"{self.dir}/pgbackrest.conf"):
            with contextlib.suppress(Failed):
                self.run("--force", "stop")


class BaseBackup(Tool):
    name = BASEBACKUP

    def begin(self) -> None:
        self.key = os.path.join(self.dir, "key")
        made = subprocess.run(["age-keygen", "-o", self.key], capture_output=True, text=True, check=True)
        self.recipient = made.stderr.split()[-1]

    def run(self, script: str) -> dict:
        return run(["bash", "-o", "pipefail", "-c", script], self.log, cwd=self.dir)

    def backup(self, step: str) -> dict:
        self.last = os.path.join(self.dir, f"{step}.tar.zst.age")
        command = f"{self.cluster.bin}/pg_basebackup -d '{self.cluster.url()}' -D - -Ft -X none -c fast"
        return self.run(f"{command} | zstd -q -3 | age -r {self.recipient} -o {self.last} && sync -f {self.last}")

    def restore(self, destination: str) -> dict:
        return self.run(f"age -d -i {self.key} {self.last} | zstd -q -d | tar -x -C {destination}")

    def stored(self) -> tuple[int, int]:
        return sum(os.path.getsize(e) for e in os.scandir(self.dir) if e.name.endswith(".age")), 0


class Strongroom(Tool):
    """A fleet with a dumper and a restorer as processes of their own."""

    name = OURS
    archives = True
    slot = "strongroom_bench"

    def begin(self) -> None:
        self.workers: dict[str, subprocess.Popen] = {}
        self.fleet = fleet.Standalone(parent=self.dir, coordinator_verify_after_backup="false")
        target = {"kind": "postgres", "method": "physical_basebackup", "url": self.cluster.url()}
        self.fleet.add_target("cluster", **target, slot=self.slot, pool="bench")
        self.work("dumper")
        self.work("restorer")
        time.sleep(1.5)  # the fleet looks at its targets once a second
        slot = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        wait_until(lambda: self.cluster.sql(slot) == "t", "WAL to be received", 60)

    def work(self, service: str) -> None:
        key = {"dumper": "WRITER_KEY_FILE=writer.key", "restorer": "IDENTITY_FILE=identity.txt"}[service]
        settings = {"worker_pool": "bench", "worker_concurrency": "1", "worker_pg_bin_dirs": self.cluster.bin}
        scratch = os.path.join(self.fleet.dir, "scratch")
        self.workers[service] = self.fleet.worker(service, f"STRONGROOM_KEYS_{key}", worker_scratch_dir=scratch, **settings)

    def run(self, service: str, arguments: list[str]) -> tuple[dict, dict]:
        pid = self.workers[service].pid
        fleet.forget_peak(pid)
        cpu = fleet.cpu_seconds(pid)
        command = ["timeout", "--foreground", str(LIMIT_SECONDS), os.path.join(fleet.BINARIES, "strongroom")]
        took, text = fleet.timed([*command, *arguments, "--wait", "--json"], self.log, env={**os.environ, **self.fleet.env})
        took["cpu"] += fleet.cpu_seconds(pid) - cpu
        took["memory"] = fleet.peak_mebibytes(pid)
        return took, json.loads(text)

    def backup(self, step: str) -> dict:
        kind = "incremental" if step == "incremental" else "full"
        return self.run("dumper", ["backup", "cluster", "--type", kind])[0]

    def restore(self, destination: str) -> dict:
        where = ["--to", "latest", "--destination", destination, "--leave", "unstarted"]
        return self.run("restorer", ["restore", "cluster", *where])[0]

    def stored(self) -> tuple[int, int]:
        vault = os.path.join(self.fleet.dir, "vault")
        wal = fleet.folder_bytes(os.path.join(vault, "wal"))
        return fleet.folder_bytes(vault) - wal, wal

    def pause(self) -> None:
        stop_process(self.workers.pop("dumper"))

    def resume(self) -> None:
        self.work("dumper")

    def backlog(self, position: int) -> int:
        kept = self.cluster.sql(f"SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{self.slot}'")
        return max(0, position - clusters.number_of(kept))

    def end(self) -> None:
        for worker in getattr(self, "workers", {}).values():
            stop_process(worker)
        if hasattr(self, "fleet"):
            self.fleet.stop()


TOOLS = {tool.name: tool for tool in (Strongroom, PgBackRest, BaseBackup)}
