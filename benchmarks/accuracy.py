"""Rounds to a target accuracy in three experiments of the literature, of a population drawn on at random each round.

    python benchmarks/accuracy.py {2nn,cnn,shakespeare} [--seed S] [--rounds N] [--learning-rate R] [--data-dir FOLDER]

2nn, cnn: MNIST on 100 clients of 600 images each, IID, 10 of them a round, batches of 10, 1 and 5 local epochs. McMahan
et al. 2017 (arXiv:1602.05629) report 87 rounds to 97 % (2NN, table 1) and 20 to 99 % (CNN, table 2) with the best of
many learning rates. shakespeare: the next character of 80, one client a speaking role, 10 roles a round, one local
epoch in batches of 10; the target is the accuracy after 150 rounds.

One line a round; the run ends at the target, that of Shakespeare after its rounds.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax
import tyro

import fedjax_edge as fe
from fedjax_edge.simulation.evaluation import measure

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"


@dataclass(frozen=True)
class Options:
    """Trains until the target accuracy."""

    experiment: tyro.conf.Positional[Literal["2nn", "cnn", "shakespeare"]]
    """Which one."""
    seed: int = 0
    """Of the split, the initial parameters, the cohorts and the batches."""
    rounds: int | None = None
    """Rounds at most; by default those of the experiment."""
    learning_rate: float | None = None
    """Of the clients; by default that of the experiment."""
    data_dir: Path = MNIST
    """The folder of the four files of MNIST."""


class Experiment(NamedTuple):
    """What is trained, how, and what is to be reached."""

    population: fe.FederatedDataset
    test: Any  # columns
    model: fe.models.Model
    loss_fn: Any
    epochs: int
    client_optimizer: optax.GradientTransformation
    server_optimizer: optax.GradientTransformation
    target: float  # test accuracy
    rounds: int
    stops_at_target: bool


def mnist_2nn(options: Options) -> Experiment:
    return _mnist(options, fe.models.mnist_2nn(), epochs=1, learning_rate=0.2, target=0.97, rounds=150)


def mnist_cnn(options: Options) -> Experiment:
    return _mnist(options, fe.models.mnist_cnn(), epochs=5, learning_rate=0.2, target=0.99, rounds=40)


def _mnist(options: Options, model: fe.models.Model, learning_rate: float, **setting: Any) -> Experiment:
    train, test = fe.data.mnist(options.data_dir)
    indices = fe.data.partition.iid(jax.random.key(options.seed), len(train["label"]), 100)
    return Experiment(
        population=fe.data.from_partition(train, indices),
        test=test,
        model=model,
        loss_fn=fe.models.classification(model),
        client_optimizer=optax.sgd(options.learning_rate or learning_rate),
        server_optimizer=optax.sgd(1.0),
        stops_at_target=True,
        **setting,
    )


def shakespeare(options: Options) -> Experiment:
    train, test = fe.data.shakespeare(window=80)
    model = fe.models.char_gru()
    return Experiment(
        population=train,
        test=test.columns,
        model=model,
        loss_fn=fe.models.next_character(model),
        epochs=1,
        client_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(options.learning_rate or 2.0)),
        server_optimizer=optax.sgd(1.0, momentum=0.5),
        target=0.43,
        rounds=150,
        stops_at_target=False,
    )


def accuracies(experiment: Experiment, seed: int) -> Iterator[float]:
    """Yields the test accuracy after every round."""
    algorithm = fe.algorithms.fedavg(
        experiment.loss_fn,
        experiment.client_optimizer,
        experiment.server_optimizer,
        batch_size=10,
        epochs=experiment.epochs,
    )
    sampler = fe.data.uniform(experiment.population.num_clients, 10)
    init_key, run_key, cohort_key = jax.random.split(jax.random.key(seed), 3)
    params = experiment.model.init(init_key)
    plan = fe.choose_plan(params, sampler.width)

    @jax.jit
    def step(state: Any, population: fe.FederatedDataset, test: Any, number: int) -> tuple[Any, jax.Array]:
        cohort = sampler.sample(jax.random.fold_in(cohort_key, number), number)
        state, _ = algorithm.round(state, cohort, population, plan)
        total, count = measure(algorithm.params(state), test, experiment.loss_fn, 250, plan)["accuracy"]
        return state, total / count

    state = algorithm.init(params, run_key, experiment.population)
    population, test = jax.device_put((experiment.population, experiment.test))
    for number in range(experiment.rounds):
        state, accuracy = step(state, population, test, number)
        yield float(accuracy)


def main(options: Options) -> None:
    fe.use_cpu_cores()
    experiments = {"2nn": mnist_2nn, "cnn": mnist_cnn, "shakespeare": shakespeare}
    experiment = experiments[options.experiment](options)
    experiment = experiment if options.rounds is None else experiment._replace(rounds=options.rounds)
    started, reached = time.perf_counter(), None
    for number, accuracy in enumerate(accuracies(experiment, options.seed), start=1):
        print(f"round {number:3}  accuracy {accuracy:.2%}  {time.perf_counter() - started:.0f} s", flush=True)
        if reached is None and accuracy >= experiment.target:
            reached = number
            if experiment.stops_at_target:
                break
    outcome = f"reached after {reached} rounds" if reached else "not reached"
    print(f"{options.experiment}: {experiment.target:.0%} {outcome}; {accuracy:.2%} after {number} rounds")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
