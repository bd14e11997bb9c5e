"""How much memory there is, and how much is asked for."""

from pathlib import Path

import jax

CGROUP = Path("/sys/fs/cgroup")


def accelerator_bytes() -> int | None:
    """Returns the bytes of an accelerator that JAX may use, free or not, or None where that is not known."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def available_bytes() -> int | None:
    """Returns the bytes that are free on a device, or None where that is not known; CPU devices share the host's.

    On a host, of a container's limit (cgroup 2) too.
    """
    if jax.default_backend() != "cpu":
        limit = accelerator_bytes()
        return None if limit is None else limit - jax.local_devices()[0].memory_stats().get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return free
    pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    used = int((CGROUP / "memory.current").read_text()) - int(pages["inactive_file"])  # which are given up when needed
    return min(free, int(most) - used)


def copies_in_one_memory(devices: int) -> int:
    """Returns how many of so many devices, with a copy each, share the memory that `available_bytes` is about."""
    return min(devices, jax.local_device_count()) if jax.default_backend() == "cpu" else 1


def in_words(count: int) -> str:
    """Returns a number of bytes as a person says it.

    >>> in_words(1_663_370 * 4)
    '6.7 MB'
    """
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} bytes"
