"""What a network costs: parameters, multiply-adds and activation memory counted, milliseconds measured."""

from graftline.backbones.cost.counter import Cost, LayerCost, LayerKind, StageCost, count
from graftline.backbones.cost.network_cost import NetworkCost
from graftline.backbones.cost.timing import NetworkTiming, Timing, measure

__all__ = ["Cost", "LayerCost", "LayerKind", "NetworkCost", "NetworkTiming", "StageCost", "Timing", "count", "measure"]
