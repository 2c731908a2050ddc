"""Join what a network costs: its counts and, where there are any, its measured times."""

from dataclasses import dataclass

from graftline.backbones.cost.counter import Cost
from graftline.backbones.cost.timing import EngineName, NetworkTiming


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs.

    Attributes:
        name: of the network, with what tells it apart from others that it is compared with.
        cost: counted.
        measurement: on this machine; None: not measured.
    """

    name: str
    cost: Cost
    measurement: NetworkTiming | None = None

    def milliseconds(self, engine: EngineName, batch_size: int) -> float | None:
        """Return the time per image, or None if it was not measured."""
        return self.measurement.milliseconds(engine, batch_size) if self.measurement else None
