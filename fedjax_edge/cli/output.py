"""What a run leaves behind: a folder that can repeat it, and a few lines on the screen."""

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_edge.cli.build import Parts
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import PrivacyClaim
from fedjax_edge.core.trees import size_in_bits
from fedjax_edge.simulation import RunResult, Summary, SweepResult

VERSIONS_OF = ("fedjax-edge", "jax", "jaxlib", "flax", "optax", "numpy", "dp-accounting")


def open_folder(path: Path | None, resume: bool = False) -> Path:
    """Makes the folder of a run, by default `runs/` and the time; or finds the one that is to be resumed.

    Raises:
      ValueError: if there is something in a new one already.
    """
    if resume:
        return path
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
        return RunConfig.from_dict(read_record(path)["options"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"config={path} is not the config.json of a run: {error!r}") from error


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Returns all that a `config.json` holds.

    Raises:
      ValueError: if the file is not there or not such a file.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"config={path} is not the config.json of a run: {error!r}") from error


def options_of(config: RunConfig) -> dict[str, Any]:
    """Returns the options that repeat a run, in a folder of its own."""
    return {**config.to_dict(), "out": None}


def versions() -> dict[str, str]:
    """Returns the versions of what a run's numbers depend on; what is not installed, as a clone may be, is left out."""
    found = {}
    for name in VERSIONS_OF:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `config.json`, whole or not at all."""
    _replace(folder / "config.json", lambda partial: partial.write_text(json.dumps(record, indent=2) + "\n"))


@contextmanager
def recorded(folder: Path, record: dict[str, Any]) -> Iterator[None]:
    """Has `config.json` hold `record` while something runs; what is refused leaves the folder as it was."""
    path = folder / "config.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    write_record(folder, before | record)
    try:
        yield
    except ValueError:
        if before:
            write_record(folder, before)
        elif list(folder.iterdir()) == [path]:  # nothing was begun
            path.unlink()
            with suppress(OSError):  # such as where one works
                folder.rmdir()
        raise


def save(folder: Path, config: RunConfig, parts: Parts, plan: Plan, result: RunResult) -> None:
    """Writes `config.json`, `history.csv` and `curves.png`, each whole or not at all."""
    from fedjax_edge.plotting import plot_history  # matplotlib is slow to import

    record = {
        "options": {**options_of(config), "devices": plan.devices},
        "noise_multiplier": parts.noise_multiplier,
        "plan": plan._asdict(),
        "claim": result.claim and result.claim._asdict(),
        "versions": versions(),
    }
    result.history.to_csv(folder / "history.csv")
    write_record(folder, record)
    _replace(folder / "curves.png", lambda partial: plot_history(result.history).savefig(partial, format="png"))


def save_sweep(folder: Path, grid: dict[str, list], result: SweepResult) -> None:
    """Writes `sweep.csv` and, of a grid with two or more sides, `heat_map.png`, each whole or not at all.

    Where none is drawn, that of an earlier table is removed.
    """
    from fedjax_edge.plotting import plot_sweep

    if result.trials:
        result.to_csv(folder / "sweep.csv")
    sides, picture = [name for name, values in grid.items() if len(values) > 1], folder / "heat_map.png"
    if len(sides) >= 2 and not result.interrupted:
        figure = plot_sweep(result, *sides[:2]).figure
        _replace(picture, lambda partial: figure.savefig(partial, format="png"))
    else:
        picture.unlink(missing_ok=True)


def _replace(path: Path, write) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)


def summary(result: RunResult, parts: Parts, rounds: int, seconds: float) -> str:
    """Returns what a run that was to last `rounds` ends by saying: accuracy, privacy, traffic and time."""
    history = result.history
    lines = [f"interrupted after {history.rounds} rounds; --resume goes on"] if history.rounds < rounds else []
    accuracy, loss = history.last("test_accuracy"), history.last("test_loss")
    lines.append("not evaluated yet" if np.isnan(accuracy) else f"test accuracy {accuracy:.2%}, loss {loss:.4f}")
    lines.append(_privacy(result.claim))
    if np.isnan(history["bits_up"]).any():
        return "\n".join([*lines, "traffic, time and training metrics are withheld: epsilon does not cover them"])
    sent = history["bits_up"].sum() / 8e6
    whole = history["clients"].sum() * size_in_bits(parts.params) / 8e6
    lines.append(f"sent up {sent:.1f} MB, {sent / whole:.0%} of the {whole:.1f} MB of uncompressed updates")
    lines.append(f"sent down {history['bits_down'].sum() / 8e6:.1f} MB")
    return "\n".join([*lines, f"{history.rounds} rounds in {seconds:.1f} s"])


def sweep_summary(result: SweepResult, seconds: float) -> str:
    """Returns what a sweep ends by saying: every configuration, the best one, and the time."""
    lines = [f"{_words(one.hyperparameters)}: test accuracy {_mean_and_std(one)}" for one in result.summaries()]
    if result.interrupted:
        lines.append(f"interrupted after {len(result.trials)} trials; --resume goes on")
    if result.trials:
        lines.append(f"best: {_words(result.best().hyperparameters)}")
    return "\n".join([*lines, f"{len(result.trials)} trials in {seconds:.1f} s"])


def _words(hyperparameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in hyperparameters.items())


def _mean_and_std(one: Summary) -> str:
    return f"{one.mean:.2%}" if np.isnan(one.std) else f"{one.mean:.2%} ± {one.std:.2%} over {len(one.values)} seeds"


def _privacy(claim: PrivacyClaim | None) -> str:
    if claim is None:
        return "no differential privacy: epsilon is infinite"
    return (
        f"epsilon {claim.epsilon:.2f} at delta {claim.delta:g} ({claim.relation}; {claim.sampling}; "
        f"{claim.accountant}; noise multiplier {claim.noise_multiplier:.4g})"
    )
