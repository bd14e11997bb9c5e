"""A mechanism of two halves: what the devices do, and what the server makes of it."""

from typing import NamedTuple

from fedjax_edge.core.protocols import Aggregator, UpdateTransform


class Mechanism(NamedTuple):
    """Noise that is added on the devices, and the sum it belongs to; used as one, or the claim is of something else.

    `fedavg(..., uplink=mechanism.uplink, aggregator=mechanism.aggregator)`; the aggregator carries the accountant.
    """

    uplink: UpdateTransform
    aggregator: Aggregator
