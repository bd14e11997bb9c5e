"""What the package costs beside hand-written JAX: seconds a round of `fe.run` and of `handwritten.py`, in turns.

    python benchmarks/overhead.py [--workloads W1 W2 W3] [--rounds N] [--repeats R] [--json FILE]

W1: 784-200-200-10 perceptron, 100 clients of 600 images, batches of 10. W2: the CNN of McMahan et al. 2017, 10 clients
of 600, batches of 10. W3: softmax regression, 500 clients of 60, batches of 20. One local epoch of SGD, full MNIST, the
same initial parameters. One line a workload: medians over the repeats, the median of each repeat's ratio, and the
training loss and accuracy both sides end with, which must agree. The measured time is that of the whole call, without
compilation and with the data on the devices already, over its rounds.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import handwritten
import jax
import numpy as np
import optax
import tyro

import fedjax_edge as fe
from fedjax_edge.core.executor import clients_mesh, on_all_devices

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
LOSS_TOLERANCE = 0.1  # relative; the two shuffle differently


class Workload(NamedTuple):
    """A federated task of equal clients, with default numbers of rounds of one measurement."""

    model: Callable[[], fe.models.Model]  # called late, since it starts JAX
    apply: handwritten.Apply  # the same model by hand
    clients: int
    examples: int
    batch_size: int
    learning_rate: float
    rounds: int


WORKLOADS = {
    "W1": Workload(fe.models.mnist_2nn, handwritten.perceptron, 100, 600, 10, 0.1, 4),
    "W2": Workload(fe.models.mnist_cnn, handwritten.cnn, 10, 600, 10, 0.1, 1),
    "W3": Workload(fe.models.logistic_regression, handwritten.softmax_regression, 500, 60, 20, 0.1, 20),
}


@dataclass(frozen=True)
class Options:
    """Compares the package with hand-written JAX."""

    workloads: tuple[Literal["W1", "W2", "W3"], ...] = ("W1", "W2", "W3")
    """What to run."""
    rounds: int | None = None
    """Rounds of one measurement; by default a few seconds' worth."""
    repeats: int = 7
    """Measurements of each side."""
    width: int | None = None
    """Clients vmapped at once, in the place of the package's own choice."""
    data_dir: Path = MNIST
    """The folder of the four files of MNIST."""
    json: Path | None = None
    """A file to write the results to."""


class Measurement(NamedTuple):
    """One timed call."""

    seconds: float  # of a round
    loss: float
    accuracy: float


def clients_data(workload: Workload, folder: Path) -> fe.FederatedDataset:
    train = fe.data.mnist(folder).train
    total = workload.clients * workload.examples
    train = {name: column[:total] for name, column in train.items()}
    return fe.data.from_partition(train, fe.data.partition.iid(jax.random.key(0), total, workload.clients))


def package(
    workload: Workload, model: fe.models.Model, params: Any, data: fe.FederatedDataset, width: int | None
) -> Callable[[int], Measurement]:
    algorithm = fe.algorithms.fedavg(
        fe.models.classification(model),
        optax.sgd(workload.learning_rate),
        batch_size=workload.batch_size,
        epochs=1,
    )
    sampler = fe.data.everyone(workload.clients)
    data = on_all_devices(data, fe.make_plan(devices=jax.device_count()))
    plan = None if width is None else fe.make_plan(width, jax.device_count())

    def call(rounds: int) -> Measurement:
        started = time.perf_counter()
        result = fe.run(
            algorithm, params, data, sampler=sampler, rounds=rounds, key=jax.random.key(1), plan=plan, progress=False
        )
        jax.block_until_ready(result.params)
        seconds = (time.perf_counter() - started) / rounds
        return Measurement(seconds, result.history.last("train_loss"), result.history.last("train_accuracy"))

    return call


def by_hand(workload: Workload, params: Any, data: fe.FederatedDataset) -> Callable[[int], Measurement]:
    mesh = clients_mesh(jax.device_count())
    round_ = handwritten.make_round(workload.apply, workload.learning_rate, workload.batch_size, mesh)
    shape = (workload.clients, workload.examples)
    images, labels = (data.columns[name].reshape(*shape, *data.columns[name].shape[1:]) for name in ("image", "label"))
    images, labels = handwritten.spread((images, labels.astype(np.int32)), mesh)

    def call(rounds: int) -> Measurement:
        started = time.perf_counter()
        state = handwritten.copied(params, mesh)  # the first round donates it
        for number in range(rounds):
            state, loss, accuracy = round_(state, images, labels, jax.random.fold_in(jax.random.key(1), number))
        jax.block_until_ready(state)
        return Measurement((time.perf_counter() - started) / rounds, float(loss), float(accuracy))

    return call


def compare(workload: Workload, options: Options) -> dict[str, float]:
    data = clients_data(workload, options.data_dir)
    model = workload.model()
    params = model.init(jax.random.key(0))
    calls = (package(workload, model, params, data, options.width), by_hand(workload, params, data))
    rounds = options.rounds or workload.rounds
    for call in calls:
        call(1)  # compiles
    ours, theirs = [], []
    for repeat in range(options.repeats):
        for call, measured in list(zip(calls, (ours, theirs), strict=True))[:: (-1) ** repeat]:
            measured.append(call(rounds))
    if abs(ours[-1].loss / theirs[-1].loss - 1) > LOSS_TOLERANCE:
        raise AssertionError(f"after {rounds} rounds the losses differ: {ours[-1]}, by hand {theirs[-1]}")
    return {
        "ours": statistics.median(one.seconds for one in ours),
        "by_hand": statistics.median(one.seconds for one in theirs),
        "ratio": statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)),
        "rounds": rounds,
        "loss_ours": ours[-1].loss,
        "loss_by_hand": theirs[-1].loss,
        "accuracy_ours": ours[-1].accuracy,
        "accuracy_by_hand": theirs[-1].accuracy,
    }


def main(options: Options) -> None:
    fe.use_cpu_cores()
    print(f"{jax.device_count()} {jax.default_backend()} devices; load {os.getloadavg()[0]:.1f} at the start")
    print("workload   ours s/round   by hand   ratio   loss ours / by hand   accuracy ours / by hand")
    results = {}
    for name in options.workloads:
        results[name] = row = compare(WORKLOADS[name], options)
        losses = f"{row['loss_ours']:.4f} / {row['loss_by_hand']:.4f}"
        accuracies = f"{row['accuracy_ours']:.4f} / {row['accuracy_by_hand']:.4f}"
        times = f"{name:<8} {row['ours']:>14.4f} {row['by_hand']:>9.4f} {row['ratio']:>7.3f}"
        print(f"{times}   {losses:>19}   {accuracies:>23}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json is not None:
        options.json.write_text(json.dumps({"load": os.getloadavg(), "workloads": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
