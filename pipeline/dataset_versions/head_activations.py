"""Images as the head of a network sees them: its frozen pass over splits of a dataset version."""

import torch

from graftline.backbones.backbone import Backbone
from graftline.console import say
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.learning_curve import Activated
from graftline.execution import Execution
from graftline.features.cache import CacheFullError, Features
from graftline.features.cut import UncuttableError
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.training.head_trunk import HeadTrunk
from graftline.training.setup import PassSetup


def cut_below_head(
    backbone: Backbone,
    version: DatasetVersion,
    features: Features,
    execution: Execution,
    cluster: NoCluster | RayCluster,
) -> HeadTrunk:
    """Build a network for a version's images and classes, and cut it below its head.

    Raises:
        UserError: it cannot be cut there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights, where a network has no others, are the same each time
        graft = backbone.for_images(version.typical_side(), version.typical_aspect()).build(version.class_names)
    say(f"Backbone {backbone.network_name}: {graft.weights.describe()}.")
    try:
        return HeadTrunk.of(PassSetup(graft, version, features, execution, cluster=cluster), "only heads are fitted")
    except UncuttableError as error:
        raise UserError(
            f"{backbone.name} cannot be divided into a frozen part and a head ({error}): take another backbone."
        ) from error


def activate(trunk: HeadTrunk, split: str) -> Activated:
    """Return the images of a split as the head sees them, computed now or earlier.

    Raises:
        UserError: the split has no images, or there is no room for their activations.
    """
    version = trunk.setup.version
    samples = version.samples(split)
    try:
        activations = trunk.activations(samples)
    except CacheFullError as error:
        raise UserError(f"There is no room for the activations of the {split} images: {error}") from error
    return Activated(activations, samples.labels, version.groups(split))
