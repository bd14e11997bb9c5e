"""What the parts of a federated round are: records of pure functions on pytrees.

One round, as data sees it::

    Sampler --Cohort--> ServerUpdate.broadcast --> Downlink --> ClientUpdate --> UpdateTransform
            --> Aggregator.contribution --sum or stack--> Aggregator.finish --> ServerUpdate.update

A component is built by calling a function with hyperparameters and combined by calling another, in the manner of
`optax.GradientTransformation`. Every function here is pure, jittable and vmappable; shapes in brackets are those one
client sees, without the axis over clients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from fedjax_edge.core.counts import Count

PyTree = Any

LossFn = Callable[[PyTree, PyTree, jax.Array | None], Any]
"""`loss_fn(params, batch, key) -> losses [batch]`, or `(losses, {name: [batch]})`: one number per example. The key is
`None` in evaluation, where nothing is random."""


class Examples(NamedTuple):
    """One client's view of the population's examples: the rows `start : start + size` of every column."""

    columns: PyTree  # leaves [examples of all clients, ...], shared by all clients
    start: jax.Array  # int32 []
    size: jax.Array  # int32 []; 0 for an absent client
    client: jax.Array  # int32 []; the client's id in the population


class Population(Protocol):
    """All clients' data: a `data.FederatedDataset`, or a user's own pytree with these."""

    @property
    def num_clients(self) -> int:
        """How many clients there are."""

    def size(self, client: jax.Array) -> jax.Array:
        """Returns the number of examples of clients, int32, in the shape of `client`."""

    def examples(self, client: jax.Array) -> Examples:
        """Returns the view of one client, int32 []."""

    @property
    def num_states(self) -> int:
        """How many clients' states are kept: of all clients, unless the population is one cohort's view."""

    def state_row(self, client: jax.Array) -> jax.Array:
        """Returns where clients' states are among these, int32, in the shape of `client`."""


class Mean(NamedTuple):
    """A mean that can be summed over batches, clients and devices before it is divided."""

    total: jax.Array  # float32 []
    count: jax.Array  # float32 []


class ClientOutput(NamedTuple):
    """What local training gives back."""

    update: PyTree  # what is sent: client minus broadcast, any pytree of floats
    weight: jax.Array  # float32 []; by convention the number of examples
    state: PyTree  # what stays on the client until it is next sampled
    metrics: dict[str, Mean]


def keep_state(state: PyTree, received: PyTree) -> PyTree:
    """Returns `state`: most clients need not know what became of their updates."""
    return state


class ClientUpdate(NamedTuple):
    """What a device does with the broadcast and its own examples.

    `settle(state, received) -> client_state`: what stays on the client, of the state that `update` returned, once it
    knows its update as the server received it.
    """

    init: Callable[[PyTree], PyTree]  # (params) -> client_state
    update: Callable[[PyTree, Examples, PyTree, jax.Array], ClientOutput]  # (broadcast, examples, client_state, key)
    settle: Callable[[PyTree, PyTree], PyTree] = keep_state


class UpdateTransform(NamedTuple):
    """What happens to an update between the client and the server, and what it costs on the wire.

    `apply(update, state, key) -> (update, state, bits)`: the update as the server receives it, the memory kept by the
    client, and the bits of the payload (int or int32 []), or `None` if the transform leaves the payload's form alone.
    One that adds a mechanism's noise carries the mechanism's accountant, and says whether what it sends is private by
    itself: then anything may follow in a chain. Otherwise the sum alone is private, of what is sent as it is, and
    nothing may.
    """

    init: Callable[[PyTree], PyTree]  # (update) -> state
    apply: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree, Any]]
    accountant: "Accountant | None" = None
    is_local: bool = False  # local differential privacy: the accountant's claim is about what one client sends


class Downlink(NamedTuple):
    """What happens to a broadcast between the server and the clients, and what it costs each of them.

    `apply(message, state, key) -> (message, state, bits)`: the message as all clients receive it, what the server
    keeps, and the bits of what it sends, or `None` for the message itself. `receive(bits, memory, state) -> (Count,
    memory)`: what of it one client is sent, given what it remembers of earlier ones, and what it then remembers.
    """

    init: Callable[[PyTree], PyTree]  # (message) -> state
    apply: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree, Any]]
    client_init: Callable[[], PyTree]  # () -> memory
    receive: Callable[[Any, PyTree, PyTree], tuple[Count, PyTree]]


class Codec(NamedTuple):
    """A lossy code: `decode(encode(update, key))` has the structure, shapes and dtypes of `update`.

    The payload is a pytree of arrays that also holds what decoding needs; its bits are what its leaves occupy.
    """

    encode: Callable[[PyTree, jax.Array], PyTree]  # (update, key) -> payload
    decode: Callable[[PyTree], PyTree]  # (payload) -> update


class Stacked(NamedTuple):
    """All contributions of a round in the order of the cohort, for a rule that must see them side by side."""

    rows: PyTree  # leaves [cohort, ...]; rows of clients that do not count are zero
    present: jax.Array  # bool [cohort]


class Aggregator(NamedTuple):
    """How the contributions of many clients become one aggregate.

    Contributions are summed over clients (`total`), unless `stacked` is true: then `total` is a `Stacked`. The
    contribution of an absent or rejected client is all zeros and never reaches the sum. An aggregator that is a
    privacy mechanism carries its own accountant, built by the same call; one that is half of a mechanism says which
    accountant the uplink must carry.
    """

    init: Callable[[PyTree], PyTree]  # (update) -> state
    contribution: Callable[[PyTree, jax.Array, PyTree], PyTree]  # (update, weight, state) -> contribution
    finish: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]  # (total, state, key) -> (aggregate, state)
    stacked: bool = False
    accountant: "Accountant | None" = None
    accountant_of_uplink: "Accountant | None" = None


class ServerUpdate(NamedTuple):
    """What the server sends, and what it makes of the aggregate."""

    init: Callable[[PyTree], PyTree]  # (params) -> state
    broadcast: Callable[[PyTree], PyTree]  # (state) -> message
    update: Callable[[PyTree, PyTree], PyTree]  # (state, aggregate) -> state
    params: Callable[[PyTree], PyTree]  # (state) -> the model's parameters


class Cohort(NamedTuple):
    """The clients of a round; entries that are not present are padding, whatever their id."""

    ids: jax.Array  # int32 [cohort]
    present: jax.Array  # bool [cohort]


class PoissonSampling(NamedTuple):
    """Each client takes part independently with this probability."""

    num_clients: int
    probability: float
    overflow_probability: float  # that a round's cohort was cut to the padded width, at most


class FixedSampling(NamedTuple):
    """Exactly `cohort_size` clients, drawn uniformly without replacement."""

    num_clients: int
    cohort_size: int


class FullParticipation(NamedTuple):
    """Every client, every round."""

    num_clients: int


class CyclicSampling(NamedTuple):
    """The clients in turn, `cohort_size` a round, around and around: round t takes those after round t - 1's."""

    num_clients: int
    cohort_size: int


Sampling = PoissonSampling | FixedSampling | FullParticipation | CyclicSampling | None


class Sampler(NamedTuple):
    """Who takes part in a round: a pure function of a key (and the round), and what an accountant may assume of it."""

    sample: Callable[[jax.Array, jax.Array], Cohort]  # (key, round) -> cohort
    width: int  # the length of every cohort it draws, padding included
    num_clients: int
    expected_size: float  # the expected number of clients that are present
    sampling: Sampling = None  # None: nothing can be claimed


class Release(NamedTuple):
    """What was released, as the mechanism that it is no less private than: all that composing it with others needs.

    Gaussian noise of a multiplier relative to what the neighbours move the release by. With a `FixedSampling`, whose
    neighbours differ by a replaced client, it is relative to one client's contribution: half of that.
    """

    noise_multiplier: float
    times: int
    sampling: PoissonSampling | FixedSampling | None = None  # of the clients, where chance makes it more private


class PrivacyClaim(NamedTuple):
    """An (epsilon, delta) guarantee, with all that must be said for the number to mean something."""

    epsilon: float
    delta: float
    relation: str  # "add-or-remove one client" or "replace one client"
    sampling: str  # how cohorts were drawn, in words
    accountant: str  # the method, such as "PLD"
    rounds: int
    noise_multiplier: float
    release: Release | None = None  # None: it can be composed with nothing else

    @property
    def mechanism(self) -> dict[str, str | float]:
        """What stays the same while a run goes on; of the accountant's words those before a count of rounds."""
        accountant, _, _ = self.accountant.partition(" at most ")
        return {
            "relation": self.relation,
            "sampling": self.sampling,
            "accountant": accountant,
            "noise multiplier": float(self.noise_multiplier),
        }


Accountant = Callable[[Sampling, int, float], PrivacyClaim]
"""`accountant(sampling, rounds, delta)`: what `rounds` releases of the mechanism guarantee, or `PrivacyError`."""


class PrivacyError(ValueError):
    """A privacy guarantee was asked for that cannot be given."""


class Traffic(NamedTuple):
    """The bits of one client in one round."""

    up: int
    down_first: int  # in the first round that a client takes part in
    down_next: int  # in the round after


class RoundRecord(NamedTuple):
    """What one round reports."""

    metrics: dict[str, Mean]  # summed over the clients that count
    bits_up: Count  # [], sent by the clients that were present
    bits_down: Count  # [], sent to them
    clients: jax.Array  # int32 []; present in the cohort
    rejected: jax.Array  # int32 []; of these, dropped for a NaN or an infinity


class FederatedAlgorithm(NamedTuple):
    """A whole algorithm: `core.round.federated` assembles one from the parts above.

    `round(state, cohort, population, plan=None) -> (state, record)`; the plan says how the executor maps over the
    cohort, and is chosen from the backend and the model's size if there is none.
    """

    init: Callable[[PyTree, jax.Array, Population], PyTree]  # (params, key, population) -> state
    round: Callable[..., tuple[PyTree, RoundRecord]]
    params: Callable[[PyTree], PyTree]  # (state) -> the model's parameters
    accountant: Accountant | None = None
    traffic: Callable[[PyTree, Population], Traffic] | None = None  # (params, population)
