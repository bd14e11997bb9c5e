"""Partitions: which examples each client holds, as a pure function of a `jax.random` key.

Every partitioner returns one array of example indices per client, for `from_partition`. Kinds of skew and their
names follow Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos: An Experimental Study" (ICDE 2022,
arXiv:2102.02079, section IV), called Li et al. below:

    none                `iid`
    labels              `dirichlet_labels`, `shards`, `classes_per_client`
    labels and sizes    `dirichlet_allocation`
    sizes               `power_law_sizes`, `log_normal_sizes`
    features            `iid` with `feature_noise.add_feature_noise`
    as collected        `natural`
"""

from fedjax_edge.data.partition.label_skew import classes_per_client, dirichlet_allocation, dirichlet_labels, shards
from fedjax_edge.data.partition.plain import iid, natural
from fedjax_edge.data.partition.size_skew import log_normal_sizes, power_law_sizes

__all__ = [
    "classes_per_client",
    "dirichlet_allocation",
    "dirichlet_labels",
    "iid",
    "log_normal_sizes",
    "natural",
    "power_law_sizes",
    "shards",
]
