"""Combining what happens to an update on its way: `chain`, and a codec as a transform."""

import jax

from fedjax_edge.core.protocols import Codec, PyTree, UpdateTransform
from fedjax_edge.core.trees import size_in_bits


def chain(*parts: UpdateTransform | Codec) -> UpdateTransform:
    """Returns the transform that applies `parts` from left to right; `chain()` leaves updates alone.

    The bits are those of the last part that encodes: what it makes is what goes over the wire. Each part gets a key
    of its own, by its position. (Codecs follow one another on the decoded update: quantizing after `top_k` sends every
    number again.)
    """
    transforms = [as_transform(part) for part in parts]

    def init(update: PyTree) -> tuple[PyTree, ...]:
        return tuple(transform.init(update) for transform in transforms)

    def apply(update: PyTree, states: tuple[PyTree, ...], key: jax.Array) -> tuple[PyTree, tuple[PyTree, ...], object]:
        bits, new_states = None, []
        for position, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            update, state, sent = transform.apply(update, state, jax.random.fold_in(key, position))
            bits = bits if sent is None else sent
            new_states.append(state)
        return update, tuple(new_states), bits

    return UpdateTransform(init, apply)


def as_transform(part: UpdateTransform | Codec) -> UpdateTransform:
    """Returns a codec as the transform that sends its payload, counting the payload's bits.

    Raises:
      TypeError: for anything that is neither an `UpdateTransform` nor a `Codec`.
    """
    if isinstance(part, UpdateTransform):
        return part
    if not isinstance(part, Codec):
        raise TypeError(f"an uplink is made of UpdateTransforms and Codecs, got {part!r}")

    def apply(update: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, int]:
        payload = part.encode(update, key)
        return part.decode(payload), state, size_in_bits(payload)

    return UpdateTransform(init=lambda update: (), apply=apply)


IDENTITY = chain()
"""Leaves updates alone; they are sent at their full size."""
