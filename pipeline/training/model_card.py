"""The model card that a stage writes into the bundle that it made, once that is tested."""

from collections.abc import Sequence
from pathlib import Path

from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.slices import Slice
from graftline.report.model_card import CardFacts, write_card


def write_model_card(
    bundle: Path,
    data: Ingest,
    version: DatasetVersion,
    result: EvaluationResult | None,
    run_id: str,
    slices: Sequence[Slice] = (),
) -> Path:
    """Write ``README.md`` into a bundle.

    Args:
        bundle: its directory.
        data: where its images came from, and their license.
        version: that it was trained on.
        result: of its test; None where there were no test images.
        run_id: of the run that made it.
        slices: scores on parts of the test images; none where they were not computed.
    """
    kind = type(data.source).__name__.lower()
    origin: str = getattr(data.source, "origin", kind)
    source = origin if data.path is None else f"{kind} {Path(data.path).name}"  # the rest of a path is private
    return write_card(bundle, CardFacts(version, source, data.license, result, run_id, slices))
