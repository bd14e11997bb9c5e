"""Finished trials of a sweep in a folder, one file each, so that none is run twice."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fedjax_edge.core.hosts import agreed
from fedjax_edge.simulation.history import History


def save_trial(directory: Path | None, description: Mapping[str, Any], history: History) -> None:
    """Writes a file named after the description, whole or not at all; nothing without a directory.

    Of several processes the first one writes.
    """
    if directory is None or jax.process_index() > 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = _path(directory, description)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"description": description, "history": history.to_dict()}) + "\n")
    partial.replace(path)


def find_trial(directory: Path | None, description: Mapping[str, Any]) -> History | None:
    """Returns the history that was saved with this description, or None; of several processes the first one decides."""
    if directory is None:
        return None
    path = _path(directory, description)
    try:
        stored = json.loads(path.read_text())["history"] if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: remove it, and its trial will be run again ({error})") from error
    saved = agreed(stored)
    return None if saved is None else History(saved)


def _path(directory: Path, description: Mapping[str, Any]) -> Path:
    text = json.dumps(description, sort_keys=True)
    return directory / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
