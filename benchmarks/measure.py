"""One workload on many sides: they start alike, take turns, and must end with the same loss."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import task as tasks
from handwritten import loss_fn
from plain_models import MODELS
from side import Side, SideError
from task import Task

LOSS_TOLERANCE = 0.1  # relative; every side shuffles in its own way
SLOWER = 3.0  # times the fastest mode so far; a mode that takes longer is given up
NO_MODEL = ("matmul",)  # sides that train nothing

Measure = Callable[[Side, Path], float]  # (a prepared side, where to write its parameters) -> seconds


@dataclass
class Row:
    """What one side did."""

    seconds: float | None = None  # median of a warm round
    measured: list[float] = field(default_factory=list)  # in each repeat
    first: float | None = None  # the first round, with compilation
    peak_bytes: int | None = None
    loss: float | None = None  # of the final model
    mode: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    problem: str | None = None  # why there are no numbers, or none to compare
    trains_differently: bool = False


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int
    repeats: int = 5
    patience: float = 120.0  # seconds after which a side has taken part in enough repeats
    once: tuple[str, ...] = ()  # sides that take part in one repeat


def compare(task: Task, start: dict[str, Callable[[], list[Side]]], settings: Settings) -> dict[str, Row]:
    """Returns a row for each side; each is started as candidates, one a mode, of which the fastest goes on."""
    rows = {name: Row() for name in start}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tasks.save(task, Path(folder))
        chosen = {}
        for name, candidates in start.items():
            with reported(rows[name]):
                chosen[name] = _first_rounds(candidates(), Path(folder), rows[name], stack)
        in_turns(chosen, rows, settings, Path(folder), warm_rounds(settings.rounds))
        for name, side in chosen.items():
            if rows[name].problem:
                continue
            with reported(rows[name]):
                rows[name].peak_bytes = side.peak_bytes()
                if name not in NO_MODEL:
                    rows[name].loss = loss(task, tasks.load_params(Path(folder) / f"{name}.npz"))
    check_losses(rows)
    return rows


def warm_rounds(rounds: int) -> Measure:
    def measure(side: Side, params: Path) -> float:
        return side.ask(do="run", rounds=rounds, params=str(params))["seconds"] / rounds

    return measure


def in_turns(sides: dict[str, Side], rows: dict[str, Row], settings: Settings, folder: Path, measure: Measure) -> None:
    """Measures the sides one at a time, there and back again, each as often as patience allows."""
    for repeat in range(settings.repeats):
        for name in list(sides)[:: (-1) ** repeat]:
            row = rows[name]
            is_enough = settings.rounds * sum(row.measured) > settings.patience or (
                row.measured and name in settings.once
            )
            if row.problem or is_enough:
                continue
            with reported(row):
                row.measured.append(measure(sides[name], folder / f"{name}.npz"))
                row.seconds = statistics.median(row.measured)


def loss(task: Task, params: dict[str, np.ndarray]) -> float:
    """Returns a model's mean loss on examples spread over all clients, computed here for all sides alike."""
    if set(params) != set(task.params):
        raise SideError(f"it returned parameters {sorted(params)}")
    return float(jax.jit(loss_fn, static_argnums=0)(MODELS[task.model], params, *task.sample())[0])


def check_losses(rows: dict[str, Row]) -> None:
    """Marks the sides that did not end with the loss of the hand-written loop, or of ours without it."""
    losses = {name: row.loss for name, row in rows.items() if row.loss is not None}
    reference = losses.get("handwritten", losses.get("ours"))
    for name, value in losses.items():
        if reference is not None and not abs(value / reference - 1) <= LOSS_TOLERANCE:
            rows[name].problem = f"ends with loss {value:.4f}, not {reference:.4f}"
            rows[name].trains_differently = True


def ratios(rows: dict[str, Row]) -> dict[str, float]:
    """Returns ours divided by each side that trains alike: the median over the repeats that both took part in."""
    comparable = {name: row.measured for name, row in rows.items() if row.measured and not row.trains_differently}
    ours = comparable.pop("ours", None)
    if ours is None:
        return {}
    return {
        name: statistics.median(a / b for a, b in zip(ours, measured, strict=False))
        for name, measured in comparable.items()
    }


def as_json(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value not in (None, False, "", [], {})}


@contextmanager
def reported(row: Row) -> Iterator[None]:
    """Puts a `SideError` into a row."""
    try:
        yield
    except SideError as error:
        row.problem = str(error)


def _first_rounds(sides: list[Side], folder: Path, row: Row, stack: ExitStack) -> Side:
    """Prepares candidates, runs a first and a warm round of each, and returns the fastest; fills in the row."""
    for side in sides:
        stack.callback(side.close)
    timed, errors = [], []
    for side in sides:
        limit = {"patience": SLOWER * min(timed)[0] + 10} if timed else {}  # seconds for what another mode did already
        try:
            row.versions = side.ask(do="prepare", task=str(folder), mode=side.mode)["versions"]
            unused = str(folder / "unused.npz")
            first, warm = (side.ask(do="run", rounds=1, params=unused, **limit)["seconds"] for _ in range(2))
            timed.append((warm, len(timed), first, side))
        except SideError as error:
            errors.append(error)
    if not timed:
        raise errors[0]
    _, _, row.first, best = min(timed)
    row.mode = best.mode
    for side in sides:
        if side is not best:
            side.close()
    return best
