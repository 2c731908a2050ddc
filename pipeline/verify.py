"""Verify: whether a bundle is whole, and gives the probabilities here that it gave where it was saved."""

from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.predictor import EngineName
from graftline.bundle.verify import Verification, verify_bundle
from graftline.errors import UserError
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundle_source import find_bundle
from graftline.pipeline.stage import StageResult
from graftline.report.tables import print_verification
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class VerifyResult(StageResult):
    """What the stage ``verify`` found."""

    verification: Verification


@dataclass(frozen=True)
class Verify:
    """The stage ``verify`` (Hydra target of conf/verify.yaml)."""

    tracking: Tracking
    bundle: str
    engine: EngineName = "onnx"
    accelerator: Accelerator = "auto"

    def run(self, directory: Path) -> VerifyResult:  # noqa: ARG002 - a stage's signature; this one writes no file
        """Check the bundle's files and replay its golden images.

        Raises:
            UserError: a file is not what was saved, or a probability differs by more than 0.001.
        """
        bundle = find_bundle(self.bundle, self.tracking)
        verification = verify_bundle(bundle, self.engine, Execution.local(self.accelerator))
        print_verification(verification)
        if (problem := verification.problem) is not None:
            raise UserError(problem)
        return VerifyResult(
            facts={
                "bundle": self.bundle,
                "golden_images": verification.num_images,
                "largest_probability_change": verification.largest_probability_change,
            },
            table=[("files", "as they were saved"), ("probabilities", "as they were where the bundle was saved")],
            verification=verification,
        )
