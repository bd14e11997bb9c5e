"""W1 to W5 and W7: what each trains on whom. (W6 sweeps W3: `sweeping.py`; W8 grows W7: `growing.py`.)"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from plain_models import SHAPES
from task import Task

import fedjax_edge as fe

LEARNING_RATE = 0.1
CNN_LEARNING_RATE = 0.03  # at 0.1 seeds differ by 5 % in loss after W2's four rounds, here by 2 %


class Workload(NamedTuple):
    """A task, and how many of its rounds make one measurement of a few seconds."""

    about: str
    make: Callable[[Path], Task]  # (folder of MNIST)
    rounds: int


def mnist_task(
    folder: Path,
    model: str,
    sizes: list[int],
    batch_size: int,
    cohort: int | None = None,
    learning_rate: float = LEARNING_RATE,
) -> Task:
    """Returns a task of MNIST, dealt at random to clients of the sizes given; beyond 60,000 images, some again."""
    train = fe.data.mnist(folder).train
    rows = np.resize(np.random.default_rng(0).permutation(len(train["label"])), sum(sizes))
    return Task(
        model=model,
        batch_size=batch_size,
        learning_rate=learning_rate,
        cohort=cohort or len(sizes),
        images=train["image"][rows],
        labels=train["label"][rows].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        params=initial(model),
    )


def cifar_shaped(_: Path) -> Task:
    """Returns a task of random images in ten classes, each around a pattern of its own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 50_000, np.int32)
    patterns = rng.integers(0, 128, (10, 32, 32, 3), np.uint8)
    noise = rng.integers(0, 128, (len(labels), 32, 32, 3), np.uint8)
    return Task(
        model="cifar_cnn",
        batch_size=10,
        learning_rate=LEARNING_RATE,
        cohort=50,
        images=patterns[labels] + noise,
        labels=labels,
        offsets=np.arange(0, len(labels) + 1, 50),
        params=initial("cifar_cnn"),
    )


def power_law(folder: Path) -> Task:
    """Returns W1 with the client of rank r holding a share proportional to 1 / r."""
    parts = fe.data.partition.power_law_sizes(jax.random.key(0), 60_000, 100, exponent=1.0, min_size=10)
    return mnist_task(folder, "perceptron", [len(rows) for rows in parts], 10)


def initial(model: str) -> dict[str, np.ndarray]:
    """Returns random kernels of variance 1 / inputs, and zero biases."""
    rng = np.random.default_rng(0)
    params = {}
    for layer, shape in SHAPES[model].items():
        scale = 1 / math.sqrt(math.prod(shape[:-1]))
        params[f"{layer}/kernel"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        params[f"{layer}/bias"] = np.zeros(shape[-1], np.float32)
    return params


WORKLOADS = {
    "W1": Workload(
        "784-200-200-10 perceptron, 100 clients x 600 examples, batches of 10",
        lambda folder: mnist_task(folder, "perceptron", [600] * 100, 10),
        rounds=4,
    ),
    "W2": Workload(
        "CNN of McMahan et al. 2017, 10 clients x 600 examples, batches of 10",
        lambda folder: mnist_task(folder, "mnist_cnn", [600] * 10, 10, learning_rate=CNN_LEARNING_RATE),
        rounds=4,
    ),
    "W3": Workload(
        "softmax regression, 500 clients x 60 examples, batches of 20",
        lambda folder: mnist_task(folder, "softmax_regression", [60] * 500, 20),
        rounds=20,
    ),
    "W4": Workload(
        "CNN on random images of CIFAR-10's shape, 50 of 1,000 clients x 50 examples, batches of 10",
        cifar_shaped,
        rounds=1,
    ),
    "W5": Workload("W1 on 100 clients whose sizes follow a power law", power_law, rounds=4),
    "W7": Workload(
        "W1's perceptron and images on 10,000 clients x 6 examples, batches of 2",
        lambda folder: mnist_task(folder, "perceptron", [6] * 10_000, 2),
        rounds=1,
    ),
}
