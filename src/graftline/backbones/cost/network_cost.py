"""What a network costs: what was counted and, if it was, measured."""

from dataclasses import dataclass

from graftline.backbones.cost.counter import Cost
from graftline.backbones.cost.timing import EngineName, NetworkTiming


@dataclass(frozen=True)
class NetworkCost:
    """A network with its price: what was counted and, if it was, measured.

    Attributes:
        name: as the user knows it.
        cost: counted.
        measurement: on this machine; None: not measured.
    """

    name: str
    cost: Cost
    measurement: NetworkTiming | None = None

    def milliseconds(self, engine: EngineName, batch_size: int) -> float | None:
        """Return the time per image, or None if it was not measured."""
        return self.measurement.milliseconds(engine, batch_size) if self.measurement else None
