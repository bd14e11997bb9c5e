"""A mechanism of two halves: what the devices do, and what the server makes of it."""

from typing import NamedTuple

from fedjax_edge.core.protocols import Accountant, Aggregator, UpdateTransform


class Mechanism(NamedTuple):
    """Noise that is added on the devices, and the sum it belongs to.

    `fedavg(..., uplink=mechanism.uplink, aggregator=mechanism.aggregator)`; one half without the other is refused.
    """

    uplink: UpdateTransform
    aggregator: Aggregator

    @property
    def accountant(self) -> Accountant:
        """What both halves together guarantee."""
        return self.uplink.accountant
