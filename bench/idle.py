"""An idle standalone: processor time and memory of our process, and of its servers, over a minute."""

import argparse
import subprocess
import time

import fleet


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    direct = [int(p) for p in listed]
    return direct + [p for child in direct for p in children(child)]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=int, default=60)
    options = arguments.parse_args()
    print(fleet.machine())
    standalone = fleet.Standalone()
    try:
        standalone.add_target("hello", kind="command", program="echo", args=["hello"])
        time.sleep(5)
        own = standalone.process.pid
        servers = children(own)
        before = fleet.cpu_seconds(own)
        before_servers = {pid: fleet.cpu_seconds(pid) for pid in servers}
        time.sleep(options.seconds)
        used = (fleet.cpu_seconds(own) - before) / options.seconds * 100
        used_servers = 0.0
        for pid, cpu in before_servers.items():
            try:
                used_servers += (fleet.cpu_seconds(pid) - cpu) / options.seconds * 100
            except FileNotFoundError:
                continue
        print(f"strongroom standalone, idle for {options.seconds} s: {used:.2f} % of a core, "
              f"{fleet.resident_mebibytes(own):.0f} MiB resident, {fleet.peak_mebibytes(own):.0f} MiB at its peak "
              f"(under 1 % and 150 MB wanted)")
        print(f"its nats-server and Postgres: {used_servers:.2f} % of a core")
    finally:
        standalone.stop()


main()
