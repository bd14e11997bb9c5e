"""Checkpoints of a run: everything it needs to go on as if it had never stopped, written whole or not at all."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Population, PyTree
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.identity import describe_population, describe_shapes, without_key

COMPARED_BYTES = 2**26  # at once
SHOWN = 200  # characters of a difference


class Checkpoints(NamedTuple):
    """Where and how often a run is saved; made by `checkpoints`."""

    directory: Path
    every: int  # rounds
    keep: int
    resume: bool
    config: Mapping[str, Any]


class Saved(NamedTuple):
    """What a checkpoint holds."""

    state: PyTree
    history: History


def checkpoints(
    directory: str | Path,
    *,
    every: int = 10,
    keep: int = 2,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Checkpoints:
    """Returns where and how often `fe.run` saves its parameters, optimizer and client states, keys, round and history.

    A checkpoint is written under another name and renamed when it is whole: a run that is killed, even while writing,
    resumes from the last whole one and ends with the result of a run that was not, to the bit (but for the measured
    seconds). Epsilon follows from the number of rounds done, and so resumes with them.

    Args:
      directory: a folder of this run's own; made if it is not there.
      every: rounds between two checkpoints. The last round is always saved.
      keep: how many of the last ones stay.
      resume: go on from the last one, if there is one; without it, a folder that holds any is refused. More rounds than
        before may be asked for (what was the last one stays evaluated), and nothing else may have changed, such as the
        mechanism of the run's claim. Of the algorithm's functions the names and what they close over are compared: not
        globals, and not what they do.
      config: whatever else describes the run, as JSON has it (without NaN and infinity); a checkpoint with another one
        is refused.

    Raises:
      ValueError: for numbers below one.
      TypeError: for a `config` that JSON does not have.
    """
    checks.integer("every", every)
    checks.integer("keep", keep)
    return Checkpoints(Path(directory).absolute(), int(every), int(keep), resume, in_json(config))


def in_json(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what JSON makes of a `config`.

    Raises:
      TypeError: for one that JSON does not have, such as NaN, which would not equal itself when a run resumes.
    """
    try:
        return json.loads(json.dumps(config or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must hold only what JSON has (no NaN, no infinity), got {config!r}") from error


class Store(NamedTuple):
    """An open folder of checkpoints; without `where`, of none."""

    where: Checkpoints | None
    manager: Any  # orbax.checkpoint.CheckpointManager
    description: dict[str, Any]
    first_rows: dict[str, np.ndarray]  # of the arrays on the host, before the first round: of every client alike

    def next_due(self, done: int) -> float:
        """Returns after which round the next checkpoint is due."""
        return math.inf if self.where is None else (done // self.where.every + 1) * self.where.every

    def save(self, state: PyTree, history: History) -> None:
        """Writes a checkpoint, and removes those no longer kept."""
        if self.where is None:
            return
        import orbax.checkpoint as ocp

        arrays = _to_arrays(state)
        for name, first in self.first_rows.items():
            rows = _changed(arrays[name], first)
            arrays[name] = {"rows": rows, "values": arrays[name][rows]}
        layout = {
            "columns": {name: column.dtype.str for name, column in history.items()},
            "rows": {name: len(arrays[name]["rows"]) for name in self.first_rows},
        }
        self.manager.save(
            history.rounds,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave({"state": arrays, "history": dict(history)}),
                description=ocp.args.JsonSave({**self.description, "layout": layout}),
            ),
        )

    def latest(self, like: PyTree) -> Saved | None:
        """Returns the last checkpoint, its state shaped and placed `like` another; None if there is none.

        Raises:
          ValueError: if it belongs to another run, of which the differences are named, or is not to be resumed.
        """
        rounds = None if self.where is None else self.manager.latest_step()
        if rounds is None:
            return None
        import orbax.checkpoint as ocp

        if not self.where.resume:
            raise ValueError(f"{self.where.directory} holds a checkpoint (round {rounds}): resume it or choose another")
        stored = self.manager.restore(rounds, args=ocp.args.Composite(description=ocp.args.JsonRestore())).description
        _check_same(stored, self.description, self.where.directory)
        columns, state = stored["layout"]["columns"], jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_arrays(like))
        for name, count in stored["layout"]["rows"].items():
            shape, dtype = state[name].shape[1:], state[name].dtype
            state[name] = {"rows": np.empty(count, np.int64), "values": np.empty((count, *shape), dtype)}
        target = {"state": state, "history": {name: np.empty(rounds, dtype) for name, dtype in columns.items()}}
        arrays = self.manager.restore(rounds, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(target))).arrays
        history = History({name: arrays["history"][name] for name in columns})
        return Saved(_from_arrays(arrays["state"], like), history)


@contextmanager
def opened(
    where: Checkpoints | None,
    state: PyTree,
    population: Population | HostedDataset,
    describe: Callable[[], Mapping[str, Any]],
) -> Iterator[Store]:
    """Opens a folder of checkpoints for a run of this initial state; `describe` says what else it is, in JSON."""
    if where is None:
        yield Store(None, None, {}, {})
        return
    import orbax.checkpoint as ocp  # slow to import

    options = ocp.CheckpointManagerOptions(max_to_keep=where.keep, enable_async_checkpointing=False)
    with ocp.CheckpointManager(where.directory, options=options) as manager:
        config = {f"config {name}": value for name, value in where.config.items()}
        on_host = {name: array for name, array in _to_arrays(state).items() if isinstance(array, np.ndarray)}
        first_rows = {name: np.array(array[0]) for name, array in on_host.items()}
        data = describe_population(population)
        yield Store(where, manager, {**describe(), **data, **describe_shapes("state", state), **config}, first_rows)


def _check_same(stored: Mapping[str, Any], present: Mapping[str, Any], directory: Path) -> None:
    names = [*stored, *(name for name in present if name not in stored)]
    differing = [name for name in names if name != "layout" and stored.get(name) != present.get(name)]
    if len(differing) > 1:  # then the algorithm's follows from another one, which says it better
        differing = [name for name in differing if name != "algorithm"]
    if differing:
        words = "; ".join(_difference(name, stored.get(name), present.get(name)) for name in differing)
        raise ValueError(f"the checkpoint in {directory} is of another run: {words}")


def _difference(name: str, was: Any, now: Any) -> str:
    """Says what changed; of long texts, from shortly before the first difference on."""
    texts = repr(was), repr(now)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    start = max(alike - SHOWN // 3, 0)
    if max(map(len, texts)) > SHOWN:
        texts = tuple(f"{'...' * (start > 0)}{text[start : start + SHOWN]}..." for text in texts)
    return f"{name} was {texts[0]}, is {texts[1]}"


def _to_arrays(state: PyTree) -> dict[str, jax.Array]:
    """Returns the leaves that hold anything, by position; keys as their data."""
    return {f"{i:04}": without_key(leaf) for i, leaf in enumerate(jax.tree.leaves(state)) if leaf.size}


def _changed(array: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns which rows are not `first` to the bit, int64, and in any case 0, since orbax has no empty arrays."""
    changed, at_once = np.zeros(len(array), bool), max(COMPARED_BYTES // first.nbytes, 1)
    for start in range(0, len(array), at_once):
        rows = slice(start, start + at_once)
        changed[rows] = (_bytes_of(array[rows]) != _bytes_of(first[None])).any(1)
    changed[0] = True
    return np.flatnonzero(changed)


def _bytes_of(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)


def _from_arrays(arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    def restored(i: int, leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        array = arrays[f"{i:04}"]
        if isinstance(array, dict):
            whole = leaf if isinstance(leaf, np.ndarray) else np.array(leaf)
            whole[array["rows"]] = array["values"]
            return whole if whole is leaf else jax.device_put(whole, leaf.sharding)
        if isinstance(leaf, np.ndarray):  # on the host, perhaps a memory map
            leaf[...] = array
            return leaf
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if is_key else array

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [restored(i, leaf) for i, leaf in enumerate(leaves)])
