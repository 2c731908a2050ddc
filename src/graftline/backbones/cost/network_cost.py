"""Join what a network costs: its counts and, where there are any, its measured times."""

from dataclasses import dataclass

from graftline.backbones.cost.counter import Cost
from graftline.backbones.cost.timing import NetworkTiming, TimedEngine


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs.

    Attributes:
        name: of the network, different from those that it is compared with.
        cost: counted.
        timing: measured on this machine; None: not measured.
    """

    name: str
    cost: Cost
    timing: NetworkTiming | None = None

    def milliseconds(self, engine: TimedEngine, batch_size: int) -> float | None:
        """Return the time per image, or None if it was not measured."""
        return self.timing.milliseconds(engine, batch_size) if self.timing else None
