"""What the figures were measured on: without it they say nothing."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from engine.runtime.embedded_redis import find_redis_server

SYNCS = 200
QUIET_LOAD = 0.5
PACKAGES = ("miaocang", "aiohttp", "uvloop", "httptools", "orjson", "msgspec", "redis", "asyncpg")


def describe_machine(scratch: Path) -> dict[str, object]:
    """Processor, kernel, stores, packages, and what a flush to the disk costs where the stores will be."""
    redis = subprocess.run([str(find_redis_server()), "--version"], capture_output=True, check=False)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "redis": redis.stdout.decode().strip(),
        "packages": {name: _version(name) for name in PACKAGES},
        "file_system": _file_system(scratch),
        "flush_microseconds": _flush_microseconds(scratch),
        "load_before": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def warnings_about(machine: dict[str, object]) -> list[str]:
    """What would make the figures worth less."""
    found = []
    if machine["file_system"] in {"tmpfs", "ramfs"}:
        found.append("the stores are in memory: nothing here says anything about durability; give --scratch on a disk")
    load = machine["load_before"]
    if isinstance(load, float) and load > QUIET_LOAD:
        found.append(f"the machine was not quiet before the run: load {load:.2f}")
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`: of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else "unknown"


def _flush_microseconds(scratch: Path) -> float:
    """The median of writes of a few hundred bytes, each with an fdatasync, as the append-only file does them."""
    path, times = scratch / "flush", []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(SYNCS):
            os.write(descriptor, b"x" * 400)
            started_at = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started_at)
    finally:
        os.close(descriptor)
        path.unlink()
    return sorted(times)[SYNCS // 2] * 1e6
