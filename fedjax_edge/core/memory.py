"""How much memory there is, and how much is asked for."""

from pathlib import Path

import jax


def accelerator_bytes() -> int | None:
    """Returns the bytes of an accelerator that JAX may use, free or not, or None where that is not known."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def available_bytes() -> int | None:
    """Returns the bytes that are free on a device, or None where that is not known; CPU devices share the host's."""
    if jax.default_backend() != "cpu":
        limit = accelerator_bytes()
        return None if limit is None else limit - jax.local_devices()[0].memory_stats().get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def in_words(count: int) -> str:
    """Returns a number of bytes as a person says it.

    >>> in_words(1_663_370 * 4)
    '6.7 MB'
    """
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} bytes"
