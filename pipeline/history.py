"""History: who was champion when and why, by the ledger, whose chain is verified."""

import os
from dataclasses import dataclass
from pathlib import Path

from graftline.console import say, warn
from graftline.errors import UserError
from graftline.files import write_text
from graftline.pipeline.program import program
from graftline.pipeline.promotion.decided_model import open_promotions
from graftline.pipeline.stage import StageResult
from graftline.report.history_tables import print_history
from graftline.tracking.standing import Standing
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class HistoryResult(StageResult):
    """What the stage ``history`` read: how things stand, and the picture, a PNG file."""

    standing: Standing
    figure: Path


@dataclass(frozen=True)
class History:
    """The stage ``history`` (Hydra target of conf/history.yaml). It changes nothing.

    Attributes:
        tracking: where the models are registered.
        model: name of the registered model; None: the only one.
        copies: folder where this machine keeps the lines of the ledger that it has seen; None: it keeps none.
    """

    tracking: Tracking
    model: str | None = None
    copies: str | None = "ledger"

    def run(self, directory: Path) -> HistoryResult:
        """Print and draw the history, and verify it.

        Raises:
            UserError: a line of the ledger was changed, removed or inserted; what is there is shown before.
        """
        from graftline.report.history_figure import history_figure  # matplotlib takes a second
        from graftline.report.style import save

        promotions = open_promotions(self.tracking, self.model, self.copies)
        standing, model = promotions.read(), promotions.model
        if not standing.lines:
            raise UserError(f"Nothing was decided on {model} yet: `{program()} promote model={model}` does.")
        print_history(model, standing.lines)
        write_text(directory / "ledger.jsonl", "".join(f"{line.text}\n" for line in standing.lines))
        figure = save(history_figure(model, standing.lines), directory / "history.png")
        if (damage := standing.damage) is not None:
            raise UserError(f"{damage} The lines as they are lie in {directory / 'ledger.jsonl'}.")
        say("")
        say(f"The chain holds: {len(standing.lines):,} lines, the last with the hash {standing.lines[-1].hash[:16]}…")
        _warn_of_alias(standing)
        champion = "none" if standing.champion is None else f"version {standing.champion}"
        return HistoryResult(
            facts={
                "model": model,
                "champion": standing.champion,
                "lines": len(standing.lines),
                "hash": standing.lines[-1].hash,
            },
            table=[
                ("champion", champion),
                ("picture", os.path.relpath(figure)),
                ("lines", os.path.relpath(directory / "ledger.jsonl")),
            ],
            standing=standing,
            figure=figure,
        )


def _warn_of_alias(standing: Standing) -> None:
    """Say where the alias is not what was decided."""
    if standing.interrupted is not None:
        line = standing.interrupted.number
        warn(f"Line {line} was interrupted before the alias moved: the next promote or rollback moves it.")
    elif standing.was_moved_by_hand:
        warn(f"{standing.by_hand} The next promote or rollback notes it in the ledger.")
