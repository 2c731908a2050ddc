"""Verify: whether a bundle, here or behind a server, gives the probabilities that it gave where it was saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.bundle.engines import EngineName
from graftline.bundle.verify import Verification, verify_bundle
from graftline.console import print_table
from graftline.errors import UserError
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundles.source import REGISTERED, find_bundle, find_model_uri
from graftline.pipeline.program import ADDRESSES
from graftline.pipeline.stage import StageResult
from graftline.report.tables import print_verification
from graftline.serving.check import STEPS, ServerCheck, check_server, describe_server
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class VerifyResult(StageResult):
    """What the stage ``verify`` found."""

    verification: Verification | ServerCheck


@dataclass(frozen=True)
class Verify:
    """The stage ``verify`` (Hydra target of conf/verify.yaml).

    Attributes:
        tracking: where models are registered.
        bundle: what is verified: a bundle, or the address of a server.
        against: the bundle that a server should serve; None: the one that it says it does.
        engine: what a bundle is run with.
        accelerator: where a bundle is run.
    """

    tracking: Tracking
    bundle: str
    against: str | None = None
    engine: EngineName = "onnx"
    accelerator: Accelerator = "auto"

    def run(self, directory: Path) -> VerifyResult:  # noqa: ARG002 - a stage's signature; this one writes no file
        """Check the bundle's files and replay its golden images, or replay them on a server.

        Raises:
            UserError: a file is not what was saved, or a probability differs by more than 0.001.
        """
        if self.bundle.startswith(ADDRESSES):
            return self._verify_server(self.bundle.rstrip("/"))
        model_uri = find_model_uri(self.bundle, self.tracking)
        bundle = find_bundle(model_uri or self.bundle, self.tracking)
        verification = verify_bundle(bundle, self.engine, Execution.local(self.accelerator))
        print_verification(verification)
        if (problem := verification.problem) is not None:
            raise UserError(problem)
        return VerifyResult(
            facts={
                "bundle": self.bundle,
                "model_uri": model_uri,
                "golden_images": verification.num_images,
                "largest_probability_change": verification.largest_probability_change,
            },
            table=[("files", "as they were saved"), ("probabilities", "as they were where the bundle was saved")],
            verification=verification,
        )

    def _verify_server(self, address: str) -> VerifyResult:
        served = describe_server(address)
        against = self.against or _bundle_of(served)
        if against is None:
            raise UserError(
                f"{address} does not tell which bundle of this machine it serves: name it as Verify.against."
            )
        model_uri = find_model_uri(against, self.tracking)
        check = check_server(address, served, find_bundle(model_uri or against, self.tracking))
        _print_server_check(check)
        if (problem := check.problem) is not None:
            raise UserError(problem)
        return VerifyResult(
            facts={
                "bundle": against,
                "model_uri": model_uri,
                "server": address,
                "golden_images": check.num_images,
                "largest_probability_change": check.largest_probability_change,
            },
            table=[("server", address), ("probabilities", "as they were where the bundle was saved")],
            verification=check,
        )


def _bundle_of(served: Mapping[str, Any]) -> str | None:
    """Return the bundle that a server says it serves; None where it is not here, or could be another one here."""
    uri = str(served.get("uri"))
    return uri if uri.startswith(REGISTERED) or (Path(uri).is_absolute() and Path(uri).is_dir()) else None


def _print_server_check(check: ServerCheck) -> None:
    """Print at which steps a server differs."""
    rows = [(step, str(check.num_differing[step])) for step in STEPS if step in check.num_differing]
    print_table(
        f"{check.num_images} golden images, {check.address}",
        ("step", "images that differ"),
        [*rows, ("largest change of a probability", f"{check.largest_probability_change:.2g}")],
    )
