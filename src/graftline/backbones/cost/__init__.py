"""What a network costs: parameters, multiply-adds and activation memory counted, milliseconds measured."""

from graftline.backbones.cost.counter import Cost, Kind, LayerCost, StageCost, count
from graftline.backbones.cost.timing import Measurement, Timing, measure

__all__ = ["Cost", "Kind", "LayerCost", "Measurement", "StageCost", "Timing", "count", "measure"]
