"""Augment-preview: what a policy does to an image of the data set, on one sheet."""

import os
from dataclasses import dataclass
from pathlib import Path

from graftline.augment.policy import Policy
from graftline.augment.preview import preview_sheet
from graftline.backbones.backbone import Backbone
from graftline.data.ingest import Ingest
from graftline.data.loaders import decode_sample
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class AugmentPreview:
    """The stage ``augment-preview`` (Hydra target of conf/augment-preview.yaml).

    Attributes:
        data: the images, of which the first training image is shown.
        augment: what may happen to it.
        backbone: the network, at whose image size it is shown.
        tracking: where ``data.parent`` is looked up if it is a run or a model.
        seed: of the draws.
    """

    data: Ingest
    augment: Policy
    backbone: Backbone
    tracking: Tracking
    seed: int = 0

    def run(self, directory: Path) -> StageResult:
        """Draw the sheet of the first training image."""
        version = with_parent(self.data, self.tracking).run().version
        image = decode_sample(version.samples("train"), 0)
        backbone = self.backbone.for_images(version.typical_side(), version.typical_aspect())
        sheet = preview_sheet(image, self.augment, backbone.preprocessing(), self.seed)
        file = directory / "preview.png"
        sheet.savefig(file)
        return StageResult(facts={"dataset_digest": version.digest}, table=[("preview", os.path.relpath(file))])
