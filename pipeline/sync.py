"""Sync: send what a tracking server did not get while it was away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftline.errors import UserError
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.tracking.outbox import sync
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class SyncResult(StageResult):
    """What was sent: how many records arrived, and those that the server refused for good."""

    num_sent: int
    refused: Sequence[str]


@dataclass(frozen=True)
class Sync:
    """The stage ``sync`` (Hydra target of conf/sync.yaml).

    Attributes:
        tracking: where the run is looked up.
        run_id: id of the MLflow run of which records are still unsent.
    """

    tracking: Tracking
    run_id: str

    def run(self, directory: Path) -> SyncResult:
        """Send the rest of a run."""
        output = self.tracking.find_output_directory(self.run_id)
        RunDirectory(output).check_is_of(self.run_id)
        report = sync(output)
        if report.problem is not None:
            raise UserError(
                f"{report.num_unsent:,} records are still unsent ({report.problem}); they are safe, "
                f"try again when MLflow is there: {RunDirectory(directory).command(program(), 'sync')}"
            )
        table = [("sent", f"{report.num_sent:,} records"), ("refused", f"{len(report.refused):,}")]
        facts = {"run_id": self.run_id, "sent": report.num_sent}
        return SyncResult(num_sent=report.num_sent, refused=report.refused, facts=facts, table=table)
