"""Majority vote: each client says plus or minus for every number, and the majority decides."""

import jax
import jax.numpy as jnp

from fedjax_edge.core.protocols import Aggregator, PyTree
from fedjax_edge.core.trees import at_least_float32


def majority_vote() -> Aggregator:
    """Returns the sign of the sum of the clients' signs: -1, 0 or 1 for each number, float32 for narrower leaves.

    Every client has one vote, whatever its weight and magnitudes. Signs are all that is used of an update, so that
    `fe.compression.sign` as the uplink sends what is needed, one bit a number (it votes plus for a zero). The size of
    the step is the server's: `optax.sgd(learning_rate)`. As long as more clients are right about a sign than are wrong,
    hostile ones included, the step goes the right way. Biased, and not even a mean of identical updates is kept.

    ==========================================  ========================================
    clients                                     aggregate
    ==========================================  ========================================
    as many for plus as for minus               0
    an update's number is 0                     abstains
    a weight of zero or less                    has no vote: a client without examples
    nobody                                      0
    a NaN or an infinity                        rejected by the round, as everywhere
    ==========================================  ========================================

    Source: Bernstein et al., "signSGD with Majority Vote is Communication Efficient and Fault Tolerant", ICLR 2019
    (arXiv:1810.05291), Algorithm 1; the momentum that it keeps on the workers is the client optimizer's.

    >>> vote = majority_vote()
    >>> updates = jnp.array([[0.1, -0.1, 5.0], [0.2, 900.0, -5.0], [-900.0, -0.3, 0.0]])
    >>> votes = jax.vmap(lambda update: vote.contribution(update, jnp.float32(1), ()))(updates)
    >>> vote.finish(votes.sum(0), (), None)[0].tolist()
    [1.0, -1.0, 0.0]
    """

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.sign(leaf) * (weight > 0).astype(leaf.dtype), at_least_float32(update))

    def finish(total: PyTree, state: tuple, key: jax.Array) -> tuple[PyTree, tuple]:
        return jax.tree.map(jnp.sign, total), state

    return Aggregator(init=lambda update: (), contribution=contribution, finish=finish)
