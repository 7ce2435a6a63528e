"""What the benchmarks share: a private Postgres with data, a standalone fleet, and measuring processes."""

import argparse
import contextlib
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARIES = os.path.join(ROOT, "target", "release")
CLOCK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A tool failed."""


def machine() -> str:
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    with open("/proc/meminfo") as f:
        memory = int(next(f).split()[1]) / 1024 / 1024
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {os.uname().release}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pg_bin() -> str:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[4]))
    if not found:
        raise SystemExit("no PostgreSQL server under /usr/lib/postgresql: run deploy/bootstrap")
    return found[-1]


def unprivileged() -> list[str]:
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


class Postgres:
    """A Postgres of its own on a free port, in a temporary folder."""

    def __init__(self) -> None:
        self.bin = pg_bin()
        self.dir = tempfile.mkdtemp(prefix="sr-bench-pg-", dir="/tmp")
        os.chmod(self.dir, 0o777)
        self.port = free_port()
        data = os.path.join(self.dir, "data")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.run_as([f"{self.bin}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"], check=True, **quiet)
        options = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.dir}"]
        options += ["-c", "fsync=off", "-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB"]
        self.process = subprocess.Popen(unprivileged() + [f"{self.bin}/postgres", "-D", data] + options, cwd="/", **quiet)
        while subprocess.run([f"{self.bin}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            time.sleep(0.1)

    def run_as(self, command, **more):
        return subprocess.run(unprivileged() + command, cwd="/", **more)

    def url(self, database: str) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, database: str, text: str) -> str:
        command = [f"{self.bin}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.url(database)]
        return subprocess.run(command, input=text, text=True, check=True, capture_output=True).stdout.strip()

    def load(self, megabytes: int) -> None:
        """Half pgbench's tables, half text, numbers and JSON of a shop."""
        self.sql("postgres", "CREATE DATABASE shop")
        scale = max(1, megabytes // 2 // 15)
        command = [f"{self.bin}/pgbench", "-i", "-q", "-s", str(scale), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "shop"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = megabytes // 2 * 1024 * 1024 // 420
        self.sql(
            "shop",
            f"""CREATE TABLE orders AS SELECT n AS id, 'customer ' || (n * 7919 % 100003) AS customer,
                    (n * 31 % 100000) / 100.0 AS total, timestamptz '2020-01-01' + n * interval '17 seconds' AS placed_at,
                    md5(n::text) AS reference,
                    jsonb_build_object('items', jsonb_build_array(md5((n+1)::text), md5((n+2)::text)), 'note',
                        'leave at the door of number ' || n % 300, 'weights', jsonb_build_array(n % 7, n % 11, n % 13)) AS detail
                FROM generate_series(1::bigint, {rows}) AS n;
                ALTER TABLE orders ADD PRIMARY KEY (id); VACUUM ANALYZE;""",
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Standalone:
    """`strongroom standalone` in a temporary folder, with settings from the environment."""

    def __init__(self, parent: str = "/tmp", **settings: str) -> None:
        self.dir = tempfile.mkdtemp(prefix="sr-bench-", dir=parent)
        os.chmod(self.dir, 0o711)
        self.settings = {f"STRONGROOM_{key.upper()}": value for key, value in settings.items()}
        self.start()

    def start(self) -> None:
        self.log = open(os.path.join(self.dir, "bench.log"), "ab")
        environment = {**os.environ, **self.settings}
        command = [os.path.join(BINARIES, "strongroom"), "standalone", "--dir", self.dir]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        env_file = os.path.join(self.dir, "env")
        deadline = time.monotonic() + 90
        while not os.path.exists(env_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(open(os.path.join(self.dir, "bench.log")).read())
            time.sleep(0.05)
        self.env = {}
        for line in open(env_file):
            name, value = line.removeprefix("export ").rstrip("\n").split("=", 1)
            self.env[name] = value.strip("'")

    def add_target(self, name: str, **fields: str) -> None:
        path = os.path.join(self.dir, "targets", name.replace("/", "-") + ".yaml")
        with open(path, "w") as f:
            json.dump({"name": name, **fields}, f)

    def api(self, path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": "Bearer " + self.env["STRONGROOM_TOKEN"], "Content-Type": "application/json"}
        request = urllib.request.Request(self.env["STRONGROOM_API"] + path, data=data, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def sql(self, query: str) -> str:
        command = [f"{pg_bin()}/psql", "-XAtq", self.env["CATALOG_URL"], "-c", query]
        return subprocess.run(command, text=True, check=True, capture_output=True).stdout.strip()

    def worker(self, service: str, key: str, **settings: str) -> subprocess.Popen:
        """One more worker, as a process of its own."""
        keys = os.path.join(self.dir, "keys")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
        environment.update({f"STRONGROOM_{name.upper()}": value for name, value in settings.items()})
        environment.update(
            NATS_URL=self.env["NATS_URL"],
            CATALOG_URL=self.env["CATALOG_URL"],
            STRONGROOM_VAULT_URL="file://" + os.path.join(self.dir, "vault"),
            STRONGROOM_TARGETS_DIR=os.path.join(self.dir, "targets"),
            STRONGROOM_KEYS_SIGNING_KEY_FILE=os.path.join(keys, f"signing-{service}.key"),
        )
        name, file = key.split("=")
        environment[name] = os.path.join(keys, file)
        log = os.path.join(self.dir, f"{service}.log")
        process = subprocess.Popen([os.path.join(BINARIES, f"strongroom-{service}")], env=environment, stderr=open(log, "ab"))
        while b"worker ready" not in open(log, "rb").read():
            if process.poll() is not None:
                raise SystemExit(open(log).read())
            time.sleep(0.02)
        return process

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that ended."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(int(fields[n]) for n in (11, 12, 13, 14)) / CLOCK


def peak_mebibytes(pid: int) -> float:
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def resident_mebibytes(pid: int) -> float:
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))


def folder_bytes(path: str) -> int:
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)


def forget_peak(pid: int | str) -> None:
    """Begins the peak memory of a process anew, where the kernel can."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as f:
        f.write("5")


def timed(command: list[str], log: str, **more) -> tuple[dict, str]:
    """Runs a command to its end; what it took, and what it printed."""
    # A child begins with the peak of whoever started it.
    forget_peak("self")
    with open(log, "w+b") as out, open(log + ".err", "w+b") as errors:
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, **more)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        text = out.read().decode(errors="replace")
        if process.returncode:
            end = (text + errors.read().decode(errors="replace"))[-2000:]
            raise Failed(f"{os.path.basename(command[0])} ended with {process.returncode}: {end.strip()}")
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 1024}, text


def names(known: tuple[str, ...]):
    """Reads a list of these names, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return chosen

    return parse
