"""Backups and restores of files, beside restic, rustic and borg on the same files and the same disk.

  a       a tree of 50,000 small files and more
  b       a file of 2 GB made of pages, as a database has it, of which 1 % are rewritten between backups
  c       1 GB of media that do not compress
  memory  a sparse file of 1 TiB, and a tree of 1,000,000 empty files: ours alone, for its peak memory

Every round begins with a fresh vault of ours and fresh repositories of the peers; each step is run by everybody before
the next step begins, and who goes first changes with the round. All encrypt, and compress with zstd at level 3: restic's
default, `--compression auto`, is zstd's default level. Peers are run as they come otherwise, each with a cache of its
own. The sources are in the page cache before a round, and everything is written out before a step. `restore` finds the
page cache as the backups left it; ours writes past it, the peers' repositories are in it. `restore cold` begins with an
empty one, as a machine does that has just been set up to take over.

Wall time is that of the command, of ours the command line's with --wait. Processor time and peak memory are those of the
peer's processes; of ours the worker's, and the processor time of the command line. `flush` is how long writing out
takes that is left over when the command has ended. What was restored is compared with the source: contents, modes,
times, symbolic links.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import fleet
from fleet import Failed, forget_peak, timed

REST_SECONDS = 45

MIB = 1 << 20
PAGE = 8192
PEERS = ("restic", "rustic", "borg")
OURS = "strongroom"
TITLES = {"a": "small files", "b": "database file", "c": "media"}
RESTORES = ("restore", "restore cold")
STEPS = {"a": ("first", "unchanged", "changed", *RESTORES), "c": ("first", "unchanged", *RESTORES)}
STEPS["b"] = STEPS["a"]
# Ours divided by the best peer's, at most.
WALL_BARS = {
    "a": {"first": 1 / 4, "unchanged": 1 / 3, "changed": 1 / 2, "restore": 1 / 3, "restore cold": 1 / 3},
    "b": {"first": 1 / 2, "unchanged": 1 / 3, "changed": 1 / 2, "restore": 1 / 3, "restore cold": 1 / 3},
    "c": {"first": 1 / 2, "unchanged": 1 / 3, "restore": 1 / 3, "restore cold": 1 / 3},
}
SIZE_BAR = 0.95
MEMORY_BAR = 256.0
PASSWORD = "a password of the benchmark"


# ---------------------------------------------------------------------------------------------------------------------
# Sources


class SmallFiles:
    """A copy of what the system has installed."""

    def __init__(self, path: str, scale: float) -> None:
        self.path = path
        self.added = os.path.join(path, "added")
        wanted_files, wanted_bytes = int(50_000 * scale), int(1_200_000_000 * scale)
        whole = ("/usr/share", "/usr/include", "/usr/lib/gcc")
        os.mkdir(path)
        command = ["xargs", "-0", "cp", "-a", "--parents", "-t", path]
        copy = subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE)
        assert copy.stdin
        self.files = self.bytes = 0
        for top in (*whole, "/usr/lib"):
            for found in system_entries(top):
                # At full size the first three come whole, whatever the rest is.
                enough = self.files >= wanted_files and self.bytes >= wanted_bytes
                if enough and not (scale >= 1 and top in whole):
                    break
                if top == "/usr/lib" and found.startswith("/usr/lib/gcc/"):
                    continue
                copy.stdin.write(os.fsencode(found.lstrip("/")) + b"\0")
                if os.path.isfile(found) and not os.path.islink(found):
                    self.files += 1
                    self.bytes += os.path.getsize(found)
        copy.stdin.close()
        if copy.wait():
            raise SystemExit("the system's files could not be copied")
        if self.files < wanted_files or self.bytes < wanted_bytes:
            print(f"/usr holds less than the {wanted_files} files and {wanted_bytes / 1e9:.1f} GB that were wanted")
        self.chosen = [p for p in regular_files(path) if os.access(p, os.W_OK)]

    def describe(self) -> str:
        return f"{self.files} files of {self.bytes / 1e9:.2f} GB, from /usr"

    def begin(self) -> None:
        shutil.rmtree(self.added, ignore_errors=True)

    def change(self, number: int) -> None:
        """Some bytes more in the middle of 1 % of the files, and a few files more."""
        rng = random.Random(f"small files {number}")
        for path in rng.sample(self.chosen, max(1, self.files // 100)):
            with open(path, "r+b") as f:
                content = f.read()
                middle = len(content) // 2
                f.seek(middle)
                f.write(rng.randbytes(32).hex().encode() + content[middle:])
        os.mkdir(self.added)
        for n in range(max(1, self.files // 2000)):
            with open(os.path.join(self.added, f"{n}.txt"), "w") as f:
                f.write(rng.randbytes(rng.randrange(20_000)).hex())


class Database:
    """One file of pages as Postgres writes them, with rows of numbers and words."""

    def __init__(self, path: str, scale: float) -> None:
        self.path = path
        self.file = os.path.join(path, "16384")
        self.pages = int(2_000_000_000 * scale) // PAGE
        rng = random.Random("words")
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [20, 15, 14, 13, 12, 12, 11, 10, 10, 7, 6, 5, 5, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1]
        self.words = [" " + "".join(rng.choices(letters, weights, k=rng.randrange(2, 10))) for _ in range(256)]
        os.mkdir(path)
        with open(self.file, "wb") as f:
            for number in range(self.pages):
                f.write(self.page(number, 0))
        # borg never trusts the newest file of a backup to be unchanged. This one is it, not the large one.
        time.sleep(0.1)
        with open(os.path.join(path, "PG_VERSION"), "w") as f:
            f.write("18\n")

    def page(self, number: int, version: int) -> bytes:
        rng = random.Random(number << 16 | version)
        noise = rng.randbytes(2048)
        words = self.words
        page = bytearray(PAGE)
        lower, upper = 24, PAGE
        for n in range(200):
            at = n * 32 % 2016
            note = "".join([words[b] for b in noise[at : at + 6 + noise[at] % 12]])
            data = f"{number * 60 + n:>9}|customer {noise[at + 1] * 37 % 1000}|{noise[at + 2]}.{noise[at + 3] % 100:02}|open|{note}".encode()
            reference = noise[at + 16 : at + 22]
            length = 24 + 8 + len(reference) + len(data)
            start = (upper - length) & ~7
            if start < lower + 4:
                break
            upper = start
            ids = (745 + version, 0, 0, number >> 16, number & 0xFFFF, n + 1, 6, 0x0902, 24)
            row = struct.pack("<IIIHHHHHB", *ids) + b"\0" + struct.pack("<q", number * 60 + n) + reference + data
            page[upper : upper + len(row)] = row
            struct.pack_into("<I", page, lower, upper | 1 << 15 | length << 17)
            lower += 4
        checksum = int.from_bytes(noise[:2], "little")
        position = 0x1_0000_0000 + (version << 28) + number * 271
        # pd_lsn, pd_checksum, pd_flags, pd_lower, pd_upper, pd_special, pd_pagesize_version, pd_prune_xid
        struct.pack_into("<IIHHHHHHI", page, 0, position >> 32, position & 0xFFFFFFFF, checksum, 0, lower, upper, PAGE, 0x2004, 0)
        return bytes(page)

    def describe(self) -> str:
        return f"{self.pages} pages of {PAGE // 1024} KiB, {self.pages * PAGE / 1e9:.2f} GB"

    def begin(self) -> None:
        pass

    def change(self, number: int) -> None:
        rng = random.Random(f"pages {number}")
        with open(self.file, "r+b") as f:
            for page in sorted(rng.sample(range(self.pages), max(1, self.pages // 100))):
                f.seek(page * PAGE)
                f.write(self.page(page, number))


class Media:
    """Noise."""

    def __init__(self, path: str, scale: float) -> None:
        self.path = path
        self.size = max(1, int(64 * scale)) * MIB
        os.mkdir(path)
        rng = random.Random("media")
        for n in range(16):
            with open(os.path.join(path, f"{n:02}.mp4"), "wb") as f:
                for _ in range(self.size // MIB):
                    f.write(rng.randbytes(MIB))
        time.sleep(0.1)
        with open(os.path.join(path, "list.txt"), "w") as f:  # the newest file, as above
            f.writelines(f"{n:02}.mp4\n" for n in range(16))

    def describe(self) -> str:
        return f"16 files of {self.size // MIB} MiB"

    def begin(self) -> None:
        pass

    def change(self, number: int) -> None:
        raise AssertionError("media do not change")


Source = SmallFiles | Database | Media
SOURCES = {"a": SmallFiles, "b": Database, "c": Media}


def system_entries(top: str) -> Iterator[str]:
    """Readable files, symbolic links and empty folders below a folder, in order."""
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted(files + [f for f in folders if os.path.islink(os.path.join(folder, f))]):
            path = os.path.join(folder, name)
            if os.path.islink(path) or os.access(path, os.R_OK):
                yield path
        if not folders and not files:
            yield folder


def regular_files(top: str) -> list[str]:
    found = (os.path.join(d, f) for d, _, files in os.walk(top) for f in files)
    return sorted(p for p in found if not os.path.islink(p))


def read_all(top: str) -> None:
    buffer = bytearray(MIB)
    for path in regular_files(top):
        with open(path, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def list_tree(top: str, out: str) -> None:
    """A line for each entry: name, mode, time of change, and digest or the link's text."""
    buffer = bytearray(MIB)
    view = memoryview(buffer)
    with open(out, "w", errors="surrogateescape") as lines:
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(folder, name)
                facts = os.lstat(path)
                what = ""
                if os.path.islink(path):
                    what = os.readlink(path)
                elif name in files:
                    digest = hashlib.blake2b(digest_size=20)
                    with open(path, "rb", buffering=0) as f:
                        while count := f.readinto(buffer):
                            digest.update(view[:count])
                    what = digest.hexdigest()
                lines.write(f"{os.path.relpath(path, top)!r} {facts.st_mode:o} {facts.st_mtime_ns} {what!r}\n")


def first_difference(source: str, restored: str) -> str | None:
    with open(source, errors="surrogateescape") as one, open(restored, errors="surrogateescape") as two:
        while True:
            a, b = one.readline(), two.readline()
            if a != b:
                return f"wanted {a.strip() or 'nothing more'}, got {b.strip() or 'nothing more'}"
            if not a:
                return None


# ---------------------------------------------------------------------------------------------------------------------
# Tools


class Peer:
    def __init__(self, name: str, folder: str, source: Source) -> None:
        self.name, self.source = name, source
        self.dir = os.path.join(folder, name)
        self.repository = os.path.join(self.dir, "repository")
        self.program = os.path.join(os.environ["STRONGROOM_TOOLS"], "peers", "bin", name)
        self.log = os.path.join(self.dir, "log")
        os.mkdir(self.dir)
        caches = {n: os.path.join(self.dir, "cache") for n in ("RESTIC_CACHE_DIR", "RUSTIC_CACHE_DIR", "XDG_CACHE_HOME")}
        self.env = {"HOME": self.dir, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "BORG_BASE_DIR": self.dir, **caches}
        self.env |= {f"{n}_REPOSITORY": self.repository for n in ("RESTIC", "RUSTIC")} | {"BORG_REPO": self.repository}
        self.env |= {n: PASSWORD for n in ("RESTIC_PASSWORD", "RUSTIC_PASSWORD", "BORG_PASSPHRASE")}
        init = {
            "restic": ["init", "--quiet"],
            "rustic": ["init", "--set-compression", "3"],
            "borg": ["init", "--encryption", "repokey-blake2"],
        }
        try:
            self.run(init[name])
        except Failed:
            self.stop()
            raise

    def run(self, arguments: list[str], cwd: str | None = None) -> dict:
        return timed([self.program, *arguments], self.log, env=self.env, cwd=cwd or self.dir)[0]

    def backup(self, step: str) -> dict:
        path, self.last = self.source.path, step
        return self.run(
            {
                "restic": ["backup", "--quiet", "--compression", "auto", path],
                "rustic": ["backup", "--no-progress", path],
                "borg": ["create", "--compression", "zstd,3", f"::{step}", path],
            }[self.name]
        )

    def restore(self, destination: str) -> dict:
        path = self.source.path
        return self.run(
            {
                "restic": ["restore", "--quiet", f"latest:{path}", "--target", destination],
                "rustic": ["restore", "--no-progress", f"latest:{path}", destination],
                "borg": ["extract", "--strip-components", str(path.strip("/").count("/") + 1), f"::{self.last}"],
            }[self.name],
            cwd=destination,
        )

    def stored(self) -> int:
        return fleet.folder_bytes(self.repository)

    def stop(self) -> None:
        shutil.rmtree(self.dir)


class Strongroom:
    """A fleet with a snapshotter and a restorer as processes of their own."""

    name = OURS

    def __init__(self, folder: str, path: str) -> None:
        self.log = os.path.join(folder, "strongroom.log")
        self.workers: dict[str, subprocess.Popen] = {}
        self.fleet = fleet.Standalone(parent=folder, coordinator_verify_after_backup="false")
        try:
            self.fleet.add_target("files", kind="files", path=path, surface="bench", pool="bench")
            scratch = os.path.join(self.fleet.dir, "scratch")
            for service, key in (("snapshotter", "WRITER_KEY_FILE=writer.key"), ("restorer", "IDENTITY_FILE=identity.txt")):
                self.workers[service] = self.fleet.worker(
                    service, f"STRONGROOM_KEYS_{key}", worker_pool="bench", worker_concurrency="1", worker_scratch_dir=scratch
                )
            time.sleep(1.5)  # the fleet looks at its targets once a second
        except BaseException:
            self.stop()
            raise

    def run(self, service: str, arguments: list[str]) -> tuple[dict, dict]:
        pid = self.workers[service].pid
        forget_peak(pid)
        cpu = fleet.cpu_seconds(pid)
        command = [os.path.join(fleet.BINARIES, "strongroom"), *arguments, "--wait", "--json"]
        took, text = timed(command, self.log, env={**os.environ, **self.fleet.env})
        took["cpu"] += fleet.cpu_seconds(pid) - cpu
        took["memory"] = fleet.peak_mebibytes(pid)
        return took, json.loads(text)

    def backup(self, _: str) -> dict:
        took, answer = self.run("snapshotter", ["backup", "files"])
        self.last = answer["jobs"][0]["backup_id"]
        return took

    def restore(self, destination: str) -> dict:
        return self.run("restorer", ["restore", self.last, "--destination", destination])[0]

    def stored(self) -> int:
        return fleet.folder_bytes(os.path.join(self.fleet.dir, "vault"))

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.terminate()
            worker.wait()
        self.fleet.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Steps


class Bench:
    def __init__(self, folder: str, tools: list[str], rounds: int, scale: float) -> None:
        self.folder, self.tools, self.rounds, self.scale = folder, tools, rounds, scale
        self.results: dict[tuple[str, str, str], list[dict]] = {}
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        print(f"FAILED {what}", flush=True)
        self.failures.append(what)

    def step(self, scenario: str, step: str, tool: Peer | Strongroom, action) -> None:
        os.sync()
        took = action()
        began = time.monotonic()
        os.sync()
        took |= {"flush": time.monotonic() - began, "size": tool.stored()}
        self.results.setdefault((scenario, step, tool.name), []).append(took)
        print(row(scenario, step, tool.name, took), flush=True)

    def scenario(self, scenario: str) -> None:
        print(f"\n({scenario}) {TITLES[scenario]}: making them", flush=True)
        source = SOURCES[scenario](os.path.join(self.folder, f"source-{scenario}"), self.scale)
        print(source.describe())
        # As data at rest is: large files are trusted to be unchanged only 40 seconds after they were written.
        time.sleep(REST_SECONDS)
        for number in range(1, self.rounds + 1):
            print(f"\nround {number}\n{HEAD}", flush=True)
            self.round(scenario, source, number)
        shutil.rmtree(source.path)

    def round(self, scenario: str, source: Source, number: int) -> None:
        source.begin()
        read_all(source.path)
        turn = (number - 1) % len(self.tools)
        running: list[Peer | Strongroom] = []
        try:
            for name in self.tools[turn:] + self.tools[:turn]:
                try:
                    running.append(Strongroom(self.folder, source.path) if name == OURS else Peer(name, self.folder, source))
                except Failed as failed:
                    self.fail(f"({scenario}) {name}: {failed}")
            for step in STEPS[scenario]:
                if step == "changed":
                    source.change(number)
                wanted = os.path.join(self.folder, "wanted")
                if step == RESTORES[0]:
                    list_tree(source.path, wanted)
                for tool in running[:]:
                    try:
                        if step in RESTORES:
                            self.restore(scenario, step, tool, wanted)
                        else:
                            self.step(scenario, step, tool, lambda: tool.backup(step))
                    except Failed as failed:
                        self.fail(f"({scenario}) {step}: {failed}")
                        running.remove(tool)
                        tool.stop()
        finally:
            for tool in running:
                tool.stop()

    def restore(self, scenario: str, step: str, tool: Peer | Strongroom, wanted: str) -> None:
        destination = os.path.join(self.folder, "restored")
        os.mkdir(destination)
        try:
            if step == "restore cold":
                forget_page_cache()
            self.step(scenario, step, tool, lambda: tool.restore(destination))
            list_tree(destination, wanted + ".restored")
            if difference := first_difference(wanted, wanted + ".restored"):
                self.fail(f"({scenario}) {tool.name} restored something else: {difference}")
        finally:
            shutil.rmtree(destination)

    def memory(self) -> None:
        sparse = os.path.join(self.folder, "sparse")
        os.mkdir(sparse)
        rng = random.Random("sparse")
        size = int(self.scale * (1 << 40))
        with open(os.path.join(sparse, "disk.img"), "wb") as f:
            f.truncate(size)
            for _ in range(8):
                f.seek(rng.randrange(size - MIB))
                f.write(rng.randbytes(MIB // 2))
        self.alone("memory", sparse, f"a sparse file of {size / (1 << 30):.0f} GiB", ("sparse",))
        tree = os.path.join(self.folder, "empty")
        per_folder = max(1, int(1000 * self.scale))
        for n in range(1000):
            folder = os.path.join(tree, f"{n:03}")
            os.makedirs(folder)
            for m in range(per_folder):
                os.close(os.open(os.path.join(folder, f"{m:03}"), os.O_CREAT | os.O_WRONLY))
        self.alone("memory", tree, f"{1000 * per_folder} empty files", ("empty", "empty again"))

    def alone(self, scenario: str, path: str, what: str, steps: tuple[str, ...]) -> None:
        print(f"\n({scenario}) {what}\n{HEAD}", flush=True)
        ours = Strongroom(self.folder, path)
        try:
            for step in steps:
                self.step(scenario, step, ours, lambda: ours.backup(step))
        except Failed as failed:
            self.fail(f"({scenario}) {what}: {failed}")
        finally:
            ours.stop()
            shutil.rmtree(path)

    def report(self) -> None:
        middle = {key: median(taken) for key, taken in self.results.items()}
        print(f"\nmedians of {self.rounds} rounds, the highest peak\n{HEAD}")
        for (scenario, step, tool), taken in middle.items():
            print(row(scenario, step, tool, taken))
        if OURS not in self.tools:
            return
        print(f"\n{'ours / best peer':26} {'ours':>12} {'best':>12} {'':8} {'ratio':>6} {'at most':>8}")
        for (scenario, step, tool), taken in middle.items():
            if tool != OURS:
                continue
            others = {name: middle[scenario, step, name] for name in PEERS if (scenario, step, name) in middle}
            label = f"{scenario:6} {step:12}"
            if others:
                print(ratio(f"{label} wall", taken, others, "wall", WALL_BARS[scenario][step]))
                if step not in RESTORES:
                    print(ratio(f"{label} stored", taken, others, "size", SIZE_BAR))
            verdict = "PASS" if taken["memory"] <= MEMORY_BAR else "FAIL"
            print(f"{label + ' peak':26} {taken['memory']:8.0f} MiB {'':28} {MEMORY_BAR:4.0f} MiB  {verdict}")


def forget_page_cache() -> None:
    """What a machine knows that was just set up: nothing."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
    except OSError as error:
        raise Failed(f"the page cache cannot be emptied, which only root may: {error}") from error


HEAD = f"{'':6} {'':12} {'':10} {'wall':>10} {'cpu':>10} {'peak':>10} {'stored':>13} {'flush':>9}"


def row(scenario: str, step: str, tool: str, taken: dict) -> str:
    return (
        f"{scenario:6} {step:12} {tool:10} {taken['wall']:8.2f} s {taken['cpu']:8.2f} s {taken['memory']:6.0f} MiB"
        f" {taken['size'] / MIB:9.1f} MiB {taken['flush']:7.2f} s"
    )


def median(taken: list[dict]) -> dict:
    middle = {key: statistics.median(t[key] for t in taken) for key in ("wall", "cpu", "size", "flush")}
    return middle | {"memory": max(t["memory"] for t in taken)}


def ratio(label: str, ours: dict, others: dict[str, dict], key: str, bar: float) -> str:
    best = min(others, key=lambda name: others[name][key])
    value = ours[key] / others[best][key]
    one, two = (f"{t[key]:.2f} s" if key == "wall" else f"{t[key] / MIB:.1f} MiB" for t in (ours, others[best]))
    return f"{label:26} {one:>12} {two:>12} {best:8} {value:6.2f} {bar:8.2f}  {'PASS' if value <= bar else 'FAIL'}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", type=fleet.names((*SOURCES, "memory")), default=[*SOURCES, "memory"], metavar="a,b,c,memory")
    arguments.add_argument("--peers", type=fleet.names(PEERS), default=[*PEERS], metavar=",".join(PEERS), help="may be empty")
    arguments.add_argument("--peers-only", action="store_true", help="without ours")
    arguments.add_argument("--scale", type=float, default=1.0, help="of all sizes, to try it out")
    arguments.add_argument("--work", help="a folder for everything, on the disk to measure [default: under /tmp]")
    options = arguments.parse_args()
    tools = options.peers if options.peers_only else [OURS, *options.peers]
    if not tools:
        arguments.error("nobody is left to run")
    if options.peers:
        setup = os.path.join(fleet.ROOT, "bench", "setup", "peers.sh")
        if subprocess.run(["bash", setup, *options.peers]).returncode:
            return 1
    print(fleet.machine())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = tempfile.mkdtemp(prefix="sr-bench-files-", dir=options.work or "/tmp")
    os.chmod(folder, 0o711)
    bench = Bench(folder, tools, options.rounds, options.scale)
    try:
        for scenario in options.only:
            if scenario != "memory":
                bench.scenario(scenario)
            elif OURS in tools:
                bench.memory()
    finally:
        shutil.rmtree(folder)
    bench.report()
    for failure in bench.failures:
        print(f"FAILED {failure}")
    return 1 if bench.failures else 0


sys.exit(main())
