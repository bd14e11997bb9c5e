"""A folder of compiled programs, so that the same run compiles once on a machine."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Has JAX keep what it compiles in the user's cache folder, unless a folder is set already."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "fedjax_edge" / "compiled"))
