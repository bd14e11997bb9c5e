"""What a run leaves behind: a folder that can repeat it, and a few lines on the screen."""

import itertools
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedjax_edge.cli.build import Parts
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import PrivacyClaim
from fedjax_edge.core.trees import size_in_bits
from fedjax_edge.simulation import RunResult

VERSIONS_OF = ("fedjax-edge", "jax", "jaxlib", "flax", "optax", "numpy", "dp-accounting")


def new_folder(path: Path | None) -> Path:
    """Makes the folder of a run, by default `runs/` and the time.

    Raises:
      ValueError: if there is something in it already.
    """
    if path is None:
        return _numbered(Path("runs", time.strftime("%Y-%m-%d_%H%M%S")))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"out={path} is not empty; choose a new folder, so that nothing is lost")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _numbered(path: Path) -> Path:
    """Makes a folder that nobody has: `path`, or `path` and a number."""
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate


def read_config(path: str | os.PathLike) -> RunConfig:
    """Returns the options of the run whose `config.json` this is.

    Raises:
      ValueError: if the file is not there or not such a file.
    """
    try:
        return RunConfig.from_dict(json.loads(Path(path).read_text())["options"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"config={path} is not the config.json of a run: {error!r}") from error


def save(folder: Path, config: RunConfig, parts: Parts, plan: Plan, result: RunResult) -> None:
    """Writes `config.json`, `history.csv` and `curves.png`, each whole or not at all."""
    from fedjax_edge.plotting import plot_history  # matplotlib is slow to import

    options = {**config.to_dict(), "devices": plan.devices, "out": None}
    record = {
        "options": options,
        "noise_multiplier": parts.noise_multiplier,
        "plan": plan._asdict(),
        "claim": result.claim and result.claim._asdict(),
        "versions": {name: version(name) for name in VERSIONS_OF},
    }
    result.history.to_csv(folder / "history.csv")
    _replace(folder / "config.json", lambda partial: partial.write_text(json.dumps(record, indent=2) + "\n"))
    _replace(folder / "curves.png", lambda partial: plot_history(result.history).savefig(partial, format="png"))


def _replace(path: Path, write) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)


def summary(result: RunResult, parts: Parts, seconds: float) -> str:
    """Returns what a run ends by saying: accuracy, privacy, traffic and time."""
    history = result.history
    lines = [f"interrupted after {history.rounds} rounds; what was done is kept"] if result.interrupted else []
    accuracy, loss = history.last("test_accuracy"), history.last("test_loss")
    lines.append("not evaluated yet" if np.isnan(accuracy) else f"test accuracy {accuracy:.2%}, loss {loss:.4f}")
    lines.append(_privacy(result.claim))
    if np.isnan(history["bits_up"]).any():
        return "\n".join([*lines, "traffic, time and training metrics are withheld: epsilon does not cover them"])
    sent = history["bits_up"].sum() / 8e6
    whole = history["clients"].sum() * size_in_bits(parts.params) / 8e6
    lines.append(f"sent up {sent:.1f} MB, {sent / whole:.0%} of the {whole:.1f} MB of uncompressed updates")
    return "\n".join([*lines, f"{history.rounds} rounds in {seconds:.1f} s"])


def _privacy(claim: PrivacyClaim | None) -> str:
    if claim is None:
        return "no differential privacy: epsilon is infinite"
    return (
        f"epsilon {claim.epsilon:.2f} at delta {claim.delta:g} ({claim.relation}; {claim.sampling}; "
        f"{claim.accountant}; noise multiplier {claim.noise_multiplier:.4g})"
    )
