"""Federated learning on simulated edge devices, as pure, composable JAX functions.

>>> import fedjax_edge as fe

A round is put together from a client update (`fe.clients`), an uplink (`fe.compression`), an aggregator
(`fe.aggregation`, `fe.privacy`) and a server update (any optax optimizer) by `fe.federated`; `fe.algorithms` holds what
the literature made of them, and `fe.run` runs it. `fedjax_edge.plotting` is imported on its own.
"""

from fedjax_edge import (
    aggregation,
    algorithms,
    attacks,
    clients,
    compression,
    core,
    data,
    models,
    privacy,
    simulation,
)
from fedjax_edge.core import chain, choose_plan, federated, make_plan, use_cpu_cores
from fedjax_edge.data import FederatedDataset
from fedjax_edge.simulation import History, Setup, checkpoints, describe, evaluation, run, sweep, tune_plan

__version__ = "0.1.0"

__all__ = [
    "FederatedDataset",
    "History",
    "Setup",
    "aggregation",
    "algorithms",
    "attacks",
    "chain",
    "checkpoints",
    "choose_plan",
    "clients",
    "compression",
    "core",
    "data",
    "describe",
    "evaluation",
    "federated",
    "make_plan",
    "models",
    "privacy",
    "run",
    "simulation",
    "sweep",
    "tune_plan",
    "use_cpu_cores",
]
