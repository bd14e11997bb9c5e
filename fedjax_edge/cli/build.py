"""From options to the parts of a run."""

from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_edge import aggregation, algorithms, compression, data, models, privacy
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.core import RunStream, chain, derive
from fedjax_edge.core.protocols import Aggregator, FederatedAlgorithm, LossFn, PyTree, Sampler
from fedjax_edge.simulation import Evaluation, Setup, evaluation

DEFAULT_SKEW = {"dirichlet": 0.3, "shards": 2, "classes": 2, "power-law": 1.5, "log-normal": 1.0}


class Parts(NamedTuple):
    """What `fe.run` is called with."""

    algorithm: FederatedAlgorithm
    params: PyTree
    population: data.FederatedDataset
    sampler: Sampler
    evaluation: Evaluation
    noise_multiplier: float | None


def build(config: RunConfig) -> Parts:
    """Returns the parts of the run that resolved options describe."""
    key = jax.random.key(config.seed)
    population, test = build_data(config, derive(key, RunStream.SPLIT))
    setup = build_setup(config, population.num_clients, test)
    return Parts(
        algorithm=setup.algorithm,
        params=jax.jit(setup.params)(derive(key, RunStream.INIT)),  # compiled in one piece, and not by operations
        population=population,
        sampler=setup.sampler,
        evaluation=setup.evaluation,
        noise_multiplier=_noise_multiplier(config, setup.sampler),
    )


def build_setup(config: RunConfig, num_clients: int, test: PyTree) -> Setup:
    """Returns all but the data; options that are floats may be traced."""
    model, loss_fn = _model(config)
    sampler = _sampler(config, num_clients)
    algorithm = _algorithm(config, loss_fn, sampler, _noise_multiplier(config, sampler))
    return Setup(algorithm, model.init, sampler, evaluation(loss_fn, test))


def build_data(config: RunConfig, key: jax.Array) -> tuple[data.FederatedDataset, PyTree]:
    """Returns the devices' data and the test columns."""
    if config.dataset == "shakespeare":
        train, test = data.shakespeare()
        return train, test.columns
    train, test = data.mnist_sample() if config.dataset == "mnist-sample" else data.mnist(config.data_dir)
    return data.from_partition(train, _partition(config, key, train["label"])), test


def _partition(config: RunConfig, key: jax.Array, labels: np.ndarray) -> list[np.ndarray]:
    num_examples, clients = len(labels), config.clients
    skew = DEFAULT_SKEW.get(config.partition) if config.skew is None else config.skew
    match config.partition:
        case "iid":
            return data.partition.iid(key, num_examples, clients)
        case "dirichlet":
            return data.partition.dirichlet_labels(key, labels, clients, skew)
        case "shards":
            return data.partition.shards(key, labels, clients, _whole("skew", skew))
        case "classes":
            return data.partition.classes_per_client(key, labels, clients, _whole("skew", skew))
        case "power-law":
            return data.partition.power_law_sizes(key, num_examples, clients, skew)
        case "log-normal":
            return data.partition.log_normal_sizes(key, num_examples, clients, skew)


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name} must be a whole number for this partition, got {value!r}")
    return int(value)


def _model(config: RunConfig) -> tuple[models.Model, LossFn]:
    match config.model:
        case "small-cnn":
            model = models.small_cnn()
        case "cnn":
            model = models.mnist_cnn()
        case "2nn":
            model = models.mnist_2nn()
        case "logistic":
            model = models.logistic_regression()
        case "gru":
            model = models.char_gru()
            return model, models.next_character(model)
    return model, models.classification(model)


def _sampler(config: RunConfig, num_clients: int) -> Sampler:
    cohort = max(num_clients // 2, 1) if config.cohort is None else config.cohort
    match config.sampling:
        case "poisson":
            if not 1 <= cohort <= num_clients:
                raise ValueError(f"cohort must be from 1 to the {num_clients} clients, got {cohort}")
            return data.poisson(num_clients, cohort / num_clients)
        case "uniform":
            return data.uniform(num_clients, cohort)
        case "all":
            return data.everyone(num_clients)


def _noise_multiplier(config: RunConfig, sampler: Sampler) -> float | None:
    if config.target_epsilon is None:
        return config.noise_multiplier
    return privacy.calibrate_noise_multiplier(config.target_epsilon, config.delta, sampler.sampling, config.rounds)


def _algorithm(
    config: RunConfig, loss_fn: LossFn, sampler: Sampler, noise_multiplier: float | None
) -> FederatedAlgorithm:
    quantized = compression.stochastic_uniform
    return algorithms.fedavg(
        loss_fn,
        _client_optimizer(config),
        _server_optimizer(config),
        batch_size=config.batch_size,
        epochs=config.local_epochs,
        aggregator=_aggregator(config, sampler, noise_multiplier),
        uplink=chain() if config.bits is None else quantized(config.bits),
        downlink=chain() if config.bits_down is None else compression.delta_broadcast(quantized(config.bits_down)),
    )


def _aggregator(config: RunConfig, sampler: Sampler, noise_multiplier: float | None) -> Aggregator:
    if config.clip_norm is None:
        return aggregation.weighted_mean()
    if noise_multiplier is None:
        noiseless = privacy.gaussian_mean(config.clip_norm, 0.0, denominator=sampler.expected_size)
        return noiseless._replace(accountant=None)
    return privacy.gaussian_mean(config.clip_norm, noise_multiplier, denominator=sampler.expected_size)


def _client_optimizer(config: RunConfig) -> optax.GradientTransformation:
    match config.client_optimizer:
        case "sgd":
            optimizer = optax.sgd(config.client_learning_rate, config.client_momentum or None)
        case "adam":
            optimizer = optax.adam(config.client_learning_rate)
    if config.client_gradient_clip is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.client_gradient_clip), optimizer)


def _server_optimizer(config: RunConfig) -> optax.GradientTransformation:
    match config.server_optimizer:
        case "sgd":
            return optax.sgd(config.server_learning_rate, config.server_momentum or None)
        case "adam":
            return optax.adam(config.server_learning_rate)
        case "yogi":
            return optax.yogi(config.server_learning_rate)
        case "adagrad":
            return optax.adagrad(config.server_learning_rate)
