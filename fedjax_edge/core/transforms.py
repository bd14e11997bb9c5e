"""Combining what happens to an update on its way: `chain`, `compose`, and a codec as a transform or a downlink."""

from dataclasses import dataclass
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp

from fedjax_edge.core.counts import Count
from fedjax_edge.core.protocols import Codec, Downlink, PrivacyError, PyTree, UpdateTransform
from fedjax_edge.core.trees import size_in_bits


def chain(*parts: UpdateTransform | Codec) -> UpdateTransform:
    """Returns the transform that applies `parts` from left to right; `chain()` leaves updates alone.

    Codecs that follow one another are composed (see `compose`): `chain(top_k(0.1), stochastic_uniform(8))` sends the
    numbers that top-k keeps at 8 bits each. The bits are those of the last part that encodes: what it makes is what
    goes over the wire. Each part, or run of codecs, gets a key of its own, by its position.

    Raises:
      TypeError: for anything that is neither an `UpdateTransform` nor a `Codec`.
      ValueError: for two parts that are each half of a privacy mechanism.
      PrivacyError: for a part after a mechanism whose claim is about the sum alone (`discrete_gaussian`, `skellam`):
        the devices' shares of the noise would not arrive as they were accounted for.
    """
    runs = [(kind, list(run)) for kind, run in groupby(parts, key=lambda part: isinstance(part, Codec))]
    composed = [[compose(*run)] if are_codecs else run for are_codecs, run in runs]
    transforms = [as_transform(part) for run in composed for part in run]
    private = [transform for transform in transforms if transform.accountant is not None]
    if len(private) > 1:
        raise ValueError(f"a chain holds at most one half of a privacy mechanism, got {len(private)}")
    if private and not private[0].is_local and private[0] is not transforms[-1]:
        raise PrivacyError(
            "nothing may follow a mechanism whose claim is about the sum alone, got a chain that ends with "
            f"{parts[-1]!r}: it would alter each device's share of the noise; put it before the mechanism"
        )

    def init(update: PyTree) -> tuple[PyTree, ...]:
        return tuple(transform.init(update) for transform in transforms)

    def apply(update: PyTree, states: tuple[PyTree, ...], key: jax.Array) -> tuple[PyTree, tuple[PyTree, ...], object]:
        bits, new_states = None, []
        for position, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            update, state, sent = transform.apply(update, state, jax.random.fold_in(key, position))
            bits = bits if sent is None else sent
            new_states.append(state)
        return update, tuple(new_states), bits

    claim = {"accountant": private[0].accountant, "is_local": private[0].is_local} if private else {}
    return UpdateTransform(init, apply, **claim)


@partial(jax.tree_util.register_dataclass, data_fields=["floats", "rest"], meta_fields=["is_float", "structure"])
@dataclass(frozen=True)
class Composed:
    """What is sent: one codec's payload, its floats encoded by another."""

    floats: PyTree  # the other codec's payload
    rest: tuple[PyTree, ...]  # indices, seeds and codes of the first
    is_float: tuple[bool, ...]  # of each part of the first codec's payload
    structure: jax.tree_util.PyTreeDef


def compose(*codecs: Codec) -> Codec:
    """Returns the codec that encodes by the first, the floats of its payload by the second, and so on.

    What a codec sends as integers (indices, seeds, packed codes) goes out as it is. So
    `compose(top_k(0.1), stochastic_uniform(8))` costs 8 bits and an index for each kept number, and 64 for the grid.

    ======================  ===========================================================================
    codecs                  composed
    ======================  ===========================================================================
    one                     itself
    the second is unbiased  an unbiased first stays so, if it decodes its floats linearly (`random_k`,
                            `rotated`, `qsgd`); the mean of what is decoded is the first's decoded update
    a payload has no float  the next codec is given no leaf
    ======================  ===========================================================================

    A composed codec is a codec: `error_feedback(compose(...))` remembers what all of them lost together. Each of
    several codecs gets a key of its own, split from the one given (`None` will do if none of them draws).

    Raises:
      TypeError: for anything but `Codec`s.
      ValueError: for none.

    >>> from fedjax_edge.compression import stochastic_uniform, top_k
    >>> payload = compose(top_k(0.1), stochastic_uniform(8)).encode(jnp.arange(100.0), jax.random.key(0))
    >>> size_in_bits(payload) == 10 * 8 + 72 + 64  # values; 10 indices of 7 bits in whole bytes; the grid
    True
    """
    for codec in codecs:
        if not isinstance(codec, Codec):
            raise TypeError(f"compose takes Codecs, got {codec!r}")
    if not codecs:
        raise ValueError("compose needs at least one codec")
    if len(codecs) == 1:
        return codecs[0]
    first, second = codecs[0], compose(*codecs[1:])

    def encode(update: PyTree, key: jax.Array | None) -> Composed:
        own, others = (None, None) if key is None else jax.random.split(key)
        parts, structure = jax.tree.flatten(first.encode(update, own), is_leaf=lambda node: not _has_floats(node))
        is_float = tuple(map(_has_floats, parts))
        floats = [part for part, chosen in zip(parts, is_float, strict=True) if chosen]
        rest = tuple(part for part, chosen in zip(parts, is_float, strict=True) if not chosen)
        return Composed(second.encode(floats, others), rest, is_float, structure)

    def decode(payload: Composed) -> PyTree:
        floats, rest = iter(second.decode(payload.floats)), iter(payload.rest)
        return first.decode(
            payload.structure.unflatten(next(floats if chosen else rest) for chosen in payload.is_float)
        )

    return Codec(encode, decode)


def _has_floats(node: PyTree) -> bool:
    return any(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(node))


def as_transform(part: UpdateTransform | Codec) -> UpdateTransform:
    """Returns a codec as the transform that sends its payload, counting the payload's bits.

    Raises:
      TypeError: for anything that is neither an `UpdateTransform` nor a `Codec`.
    """
    if isinstance(part, UpdateTransform):
        return part
    if not isinstance(part, Codec):
        raise TypeError(f"an uplink or downlink is made of UpdateTransforms and Codecs, got {part!r}")

    def apply(update: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, int]:
        payload = part.encode(update, key)
        return part.decode(payload), state, size_in_bits(payload)

    return UpdateTransform(init=lambda update: (), apply=apply)


def as_downlink(part: Downlink | UpdateTransform | Codec) -> Downlink:
    """Returns a transform or codec as the downlink that sends every client the same bits, its memory at the server.

    Raises:
      TypeError: for anything else than a `Downlink`, an `UpdateTransform` or a `Codec`.
    """
    if isinstance(part, Downlink):
        return part
    transform = as_transform(part)
    return Downlink(
        init=transform.init,
        apply=transform.apply,
        client_init=lambda: (),
        receive=lambda bits, memory, state: (Count.of(bits), memory),
    )


IDENTITY = chain()
"""Leaves updates alone; they are sent at their full size."""
