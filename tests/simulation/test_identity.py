"""What runs are described by: all that may differ between them, and nothing that differs between processes."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import numpy as np
import optax
from flax import linen

import fedjax_edge as fe
from fedjax_edge.simulation import identity
from fedjax_edge.simulation.identity import describe_population, name_of


def test_functions_are_described_by_their_names():
    class Maker:
        def __call__(self):
            pass

    assert name_of(fe.sweep) == "sweep"
    assert name_of(functools.partial(fe.checkpoints, "x", every=2)) == "checkpoints('x', every=2)"
    assert name_of(Maker()) == Maker.__qualname__
    assert name_of(0.5) == "0.5"
    assert name_of(frozenset({"b", "a", "c"})) == "frozenset('a', 'b', 'c')"


def scaling(factor):
    """Functions that call each other, one of them jitted."""

    @jax.jit
    def up(update):
        return jax.tree.map(lambda leaf: leaf * factor, update) if factor else down(update)

    def down(update):
        return up(update)

    return up, down


class Scaling:
    def __init__(self, factor):
        self.factor, self.itself = factor, self

    def encode(self, update, key):
        return jax.tree.map(lambda leaf: leaf * self.factor, update)


def by_default(factor):
    return lambda update, key, factor=factor: factor * update


class Slots:
    __slots__ = ("factor",)


def with_slots(factor):
    made = Slots()
    made.factor = factor
    return made


@dataclasses.dataclass(eq=False)
class Config:
    weights: np.ndarray
    tags: set


class Net(linen.Module):
    activation: object

    @linen.compact
    def __call__(self, x):
        return self.activation(x)


class Remembering:
    @functools.cached_property
    def factor(self):
        return 2.0


def unset():
    def late():
        return undefined

    if False:
        undefined = None
    return late


def test_components_are_described_by_what_they_are_made_of():
    assert name_of(fe.compression.top_k(0.1)) == "Codec(top_k.<locals>.encode(fraction=0.1), top_k.<locals>.decode)"
    made = [
        lambda: fe.compression.qsgd(4), lambda: fe.compression.qsgd(8),
        lambda: optax.adam(0.1), lambda: optax.adam(0.2),
        lambda: fe.privacy.gaussian_mean(1.0, 2.0, denominator=3.0), lambda: fe.privacy.gaussian_mean(1.0, 2.0, 4.0),
        lambda: fe.compression.masked({"a": np.arange(5000) % 7 != 5}),
        lambda: fe.compression.masked({"a": np.arange(5000) % 7 != 4}),
        lambda: scaling(2.0), lambda: scaling(3.0), lambda: scaling(2.0)[0], lambda: scaling(3.0)[0],
        lambda: Scaling(2.0), lambda: Scaling(3.0), lambda: Scaling(2.0).encode, lambda: Scaling(3.0).encode,
        lambda: by_default(2.0), lambda: by_default(3.0), unset,
        lambda: jax.jit(Scaling(4.0).encode), lambda: jax.jit(functools.partial(Scaling.encode, Scaling(5.0))),
        lambda: with_slots(2.0), lambda: with_slots(3.0),
        lambda: Config(np.arange(5000), {"a", "b", "c"}), lambda: Config(np.arange(5000) // 4999, {"a", "b", "c"}),
        lambda: Net(by_default(2.0)), lambda: Net(by_default(3.0)),
        lambda: {None: 1.0, "a": 2.0, 3: 1.0}, lambda: {None: 1.0, "a": 2.0, 3: 2.0},
        lambda: np.array(["cat", "dog"]), lambda: np.array(["cat", "cow"]),
        lambda: np.array([np.ones(2), None], object), lambda: np.array([np.zeros(2), None], object),
        lambda: np.random.default_rng(0),
        lambda: optax.cosine_decay_schedule(0.1, 5), lambda: optax.cosine_decay_schedule(0.2, 5),
        lambda: scaling({"a": np.arange(5000.0)}), lambda: scaling({"a": np.arange(5000.0) + (np.arange(5000) == 99)}),
    ]  # fmt: skip
    names = [name_of(make()) for make in made]
    assert len(set(names)) == len(names) and " at 0x" not in "".join(names)
    assert names == [name_of(make()) for make in made]


def test_what_an_object_remembers_of_a_computation_does_not_describe_it():
    first = Remembering()
    before = name_of(first)
    assert first.factor == 2.0 and name_of(first) == before


def test_some_rows_describe_a_large_array(monkeypatch):
    monkeypatch.setattr(identity, "LARGE", 100)
    array = np.arange(3000.0)
    assert name_of(array) != name_of(np.where(np.arange(3000) == 2999, 0, array)) != name_of(array[:2999])


def test_what_many_share_is_described_once():
    codec = fe.compression.compose(*[fe.compression.top_k(0.5)] * 20)
    assert len(name_of(codec)) < 10_000


ALGORITHM = """
import jax, numpy as np, optax, fedjax_edge as fe
from fedjax_edge.simulation.identity import name_of
model = fe.models.mnist_2nn()
mask = jax.tree.map(lambda leaf: np.asarray(leaf) >= 0, model.init(jax.random.key(0)))
print(name_of(fe.algorithms.fedavg(
    fe.models.classification(model), optax.adam(0.1), optax.yogi(optax.cosine_decay_schedule(0.1, 5)), batch_size=2,
    epochs=1, uplink=fe.compression.error_feedback(fe.compression.masked(mask)),
    downlink=fe.compression.delta_broadcast(fe.compression.qsgd(4)),
    aggregator=fe.privacy.gaussian_mean(1.0, 1.0, 6.0),
)), name_of(frozenset(map(str, range(9)))))
"""


def test_every_process_describes_an_algorithm_alike():
    def described(seed):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", ALGORITHM], env=environment, check=True, capture_output=True
        ).stdout

    first = described("1")
    assert described("2") == first
    assert b" at 0x" not in first and b"decay_steps=5" in first


def test_a_population_of_any_leaves_is_described():
    keys = jax.random.split(jax.random.key(9))

    def described(seed, size=3):
        return describe_population({"key": jax.random.key(seed), "keys": keys, "size": size})

    assert described(0) == described(0)
    assert all(described(0)["examples"] != other["examples"] for other in (described(1), described(0, 4)))
