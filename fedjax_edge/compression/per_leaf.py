"""A codec applied to each leaf as if it were the whole update."""

from dataclasses import dataclass
from functools import partial

import jax

from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["payloads"], meta_fields=["structure"])
@dataclass(frozen=True)
class Leaves:
    """What is sent: a payload for each leaf."""

    payloads: tuple[PyTree, ...]
    structure: jax.tree_util.PyTreeDef


def per_leaf(codec: Codec) -> Codec:
    """Returns the codec that gives `codec` one leaf at a time.

    So `per_leaf(top_k(0.1))` keeps a tenth of every leaf, and at least one number: no layer falls silent because
    another has the larger numbers. Bias and variance bounds of `codec` hold for each leaf, and so for the whole if
    they are proportional to its squared norm. Each leaf has a key of its own.

    Raises:
      TypeError: for anything but a `Codec`.

    Source: Lin et al., "Deep Gradient Compression", ICLR 2018 (arXiv:1712.01887), Algorithm 1 (per-layer threshold).

    >>> import jax.numpy as jnp
    >>> from fedjax_edge.compression.top_k import top_k
    >>> codec = per_leaf(top_k(0.5))
    >>> [leaf.tolist() for leaf in codec.decode(codec.encode([jnp.array([1.0, 2.0]), jnp.array([80.0, 90.0])], None))]
    [[0.0, 2.0], [0.0, 90.0]]
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"per_leaf wraps a Codec, got {codec!r}")

    def encode(update: PyTree, key: jax.Array | None) -> Leaves:
        leaves, structure = jax.tree.flatten(update)
        keys = [key if key is None else jax.random.fold_in(key, position) for position in range(len(leaves))]
        return Leaves(tuple(map(codec.encode, leaves, keys)), structure)

    def decode(payload: Leaves) -> PyTree:
        return payload.structure.unflatten(map(codec.decode, payload.payloads))

    return Codec(encode, decode)
