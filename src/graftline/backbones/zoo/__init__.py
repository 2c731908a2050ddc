"""The networks that timm lacks, each registered with timm: importing this package makes their names known."""

from graftline.backbones.zoo import alexnet, efficientnet, googlenet, lenet5, nin, stages

__all__ = ["alexnet", "efficientnet", "googlenet", "lenet5", "nin", "stages"]
