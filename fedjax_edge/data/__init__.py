"""Data of many clients: data sets, where they come from, how they are split, and who is sampled."""

from fedjax_edge.data import partition
from fedjax_edge.data.dataset import FederatedDataset, from_arrays, from_client_arrays, from_partition
from fedjax_edge.data.feature_noise import add_feature_noise, feature_noise_levels
from fedjax_edge.data.hosted import HostedDataset, on_host
from fedjax_edge.data.mnist import mnist, mnist_sample
from fedjax_edge.data.samplers import cyclic, everyone, poisson, uniform
from fedjax_edge.data.shakespeare import (
    SHAKESPEARE_VOCABULARY,
    decode_text,
    encode_text,
    shakespeare,
    shakespeare_roles,
)
from fedjax_edge.data.split import Split
from fedjax_edge.data.split_summary import SplitSummary, summarize

__all__ = [
    "SHAKESPEARE_VOCABULARY",
    "FederatedDataset",
    "HostedDataset",
    "Split",
    "SplitSummary",
    "add_feature_noise",
    "cyclic",
    "decode_text",
    "encode_text",
    "everyone",
    "feature_noise_levels",
    "from_arrays",
    "from_client_arrays",
    "from_partition",
    "mnist",
    "mnist_sample",
    "on_host",
    "partition",
    "poisson",
    "shakespeare",
    "shakespeare_roles",
    "summarize",
    "uniform",
]
