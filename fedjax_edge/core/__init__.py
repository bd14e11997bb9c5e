"""What every other part builds on: protocols, the round, the executor, keys. Imports nothing of the package."""

from fedjax_edge.core.counts import Count
from fedjax_edge.core.devices import use_cpu_cores
from fedjax_edge.core.executor import map_clients, on_all_devices
from fedjax_edge.core.keys import ClientStream, RunStream, TrainingStream, client_key, derive
from fedjax_edge.core.permutation import permutation
from fedjax_edge.core.plan import Plan, choose_plan, make_plan
from fedjax_edge.core.protocols import (
    Aggregator,
    ClientOutput,
    ClientUpdate,
    Codec,
    Cohort,
    CyclicSampling,
    Downlink,
    Examples,
    FederatedAlgorithm,
    FixedSampling,
    FullParticipation,
    Mean,
    PoissonSampling,
    PrivacyClaim,
    PrivacyError,
    Release,
    RoundRecord,
    Sampler,
    ServerUpdate,
    Stacked,
    Traffic,
    UpdateTransform,
)
from fedjax_edge.core.round import RoundState, federated
from fedjax_edge.core.server import as_server_update
from fedjax_edge.core.transforms import IDENTITY, as_downlink, as_transform, chain

__all__ = [
    "IDENTITY",
    "Aggregator",
    "ClientOutput",
    "ClientStream",
    "ClientUpdate",
    "Codec",
    "Cohort",
    "Count",
    "CyclicSampling",
    "Downlink",
    "Examples",
    "FederatedAlgorithm",
    "FixedSampling",
    "FullParticipation",
    "Mean",
    "Plan",
    "PoissonSampling",
    "PrivacyClaim",
    "PrivacyError",
    "Release",
    "RoundRecord",
    "RoundState",
    "RunStream",
    "Sampler",
    "ServerUpdate",
    "Stacked",
    "Traffic",
    "TrainingStream",
    "UpdateTransform",
    "as_downlink",
    "as_server_update",
    "as_transform",
    "chain",
    "choose_plan",
    "client_key",
    "derive",
    "federated",
    "make_plan",
    "map_clients",
    "on_all_devices",
    "permutation",
    "use_cpu_cores",
]
