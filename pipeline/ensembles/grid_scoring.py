"""What becomes of members x crops in a stage: a table, a picture, a report, and entries in its MLflow run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.bundle.ensemble import Ensemble
from graftline.data.decode import decode_rgb
from graftline.data.file_names import to_path
from graftline.data.version import DatasetVersion
from graftline.evaluation.grid import GridResult
from graftline.pipeline.ensembles.members import Members, counted, shared_backbone
from graftline.pipeline.evaluating.scoring import FIGURES_FOLDER, write_evaluation
from graftline.pipeline.evaluating.seen_images import seen_facts
from graftline.pipeline.evaluating.slices import SliceReport
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.missing import missing_of_grid
from graftline.pipeline.runs.stage_summaries import find_summaries
from graftline.pipeline.training.result import MOST_PROBABLE_ANSWER
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.content import Calibrated, MembersAndCrops, PictureFile, Report
from graftline.report.crops_figure import crops_figure
from graftline.report.grid_figure import grid_figure
from graftline.report.grid_tables import crops_harm, crops_in_words, describe, sentence, write_grid_table
from graftline.report.run_note import run_note
from graftline.report.run_report import write_report
from graftline.report.style import save

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

GRID_TABLE, GRID_FIGURE, CROPS_FIGURE = "grid.csv", "members_and_crops.png", "crops.png"


@dataclass(frozen=True)
class GridOutcome:
    """All that came of an evaluation of members x crops.

    Attributes:
        files: of the stage.
        version: has the images.
        members: that were evaluated.
        whole: all of them together, with the last set of crops.
        result: the scores.
        slices: on which images the whole is worse.
        seen: how many of the images have trained a member.
    """

    files: RunDirectory
    version: DatasetVersion
    members: Members
    whole: Ensemble
    result: GridResult
    slices: SliceReport
    seen: int

    @property
    def sets(self) -> list[str]:
        """The sets of crops."""
        return list(dict.fromkeys(row.crops for row in self.result.rows))

    @property
    def images(self) -> str:
        """How many images of which split were classified."""
        tested = self.result.whole.predictions
        return f"{len(tested.paths):,} ({tested.split_in_words}), digest {tested.split_digest}"

    @property
    def average(self) -> str:
        """What is averaged, and how much each member counts where they do not count alike."""
        return f"of {self.whole.average}{_shares_in_words(self.whole)}"

    @property
    def gain(self) -> str:
        """What the whole gains over the first row, a sentence."""
        return sentence(self.result.whole_row, self.result.rows[0])

    def description(self, run_id: str) -> str:
        """Return what the page of the run shows first."""
        facts = {
            "Members": "".join(f"\n    - {member}" for member in self.members.described),
            "Average": self.average,
            "Gain": self.gain,
            "Data": f"{self.version.name}, version `{self.version.digest}`",
            "Images": self.images,
            **seen_facts(self.seen),
            "Again": f"`{self.files.command(program(), 'evaluate')}`",
        }
        return run_note(run_id, self.result.whole.scores, facts)


def name_grid(members: Members, crops: Sequence[str], whole: Ensemble, version: DatasetVersion) -> str:
    """Return a name that says what is special about the run of an evaluation of members x crops."""
    sets = crops_in_words(crops[0]) if len(crops) == 1 else f"crops {', '.join(crops)}"
    of_logits = ", mean of logits" if whole.average == "logits" else ""
    return f"{counted(members.labels)}, {sets}{of_logits}{_shares_in_words(whole)} on {version.name}"


def _shares_in_words(whole: Ensemble) -> str:
    """Say how much the members count, where they do not count alike."""
    if len(set(whole.shares)) == 1:
        return ""
    return f", shares {', '.join(f'{100 * share:.0f} %' for share in whole.shares)}"


def write_grid(outcome: GridOutcome, run_id: str) -> Path:
    """Write table, pictures, predictions of the whole and a report; returns the report."""
    result, directory = outcome.result, outcome.files.path
    tested = result.whole.predictions
    write_grid_table(result.rows, directory / GRID_TABLE)
    save(grid_figure(result.rows, len(tested.paths)), directory / FIGURES_FOLDER / GRID_FIGURE)
    image = decode_rgb(to_path(tested.paths[0]), tested.decoding)
    where = crops_figure(image, outcome.members.predictors[0].preprocessing, outcome.sets)
    crops = save(where, directory / FIGURES_FOLDER / CROPS_FIGURE)
    write_evaluation(result.whole, directory)
    return write_report(directory, _report(outcome, PictureFile(crops, HEADINGS["crops"], CAPTIONS["crops"]), run_id))


def _report(outcome: GridOutcome, crops: PictureFile, run_id: str) -> Report:
    """Return what the report shows; a member alone is calibrated and decides, an average of several does neither."""
    result, members, whole, version = outcome.result, outcome.members, outcome.whole, outcome.version
    card = whole.card if len(members.predictors) == 1 else {}
    summaries = find_summaries(version, backbone=shared_backbone(members.directories))
    return Report(
        title=f"{describe(result.whole_row)} on {version.name}",
        kind="evaluation",
        facts={
            "Average": outcome.average,
            "Data": f"{version.name}, version {version.digest}",
            "Images": outcome.images,
            "Speed": f"{result.whole.images_per_second:,.1f} images per second, on all crops",
            "Run": run_id,
            "Again": outcome.files.command(program(), "evaluate"),
        },
        result=result.whole,
        calibrated=Calibrated.of_card(card),
        decision=[card.get("decision", {}).get("sentence") or MOST_PROBABLE_ANSWER],
        slices=outcome.slices.slices,
        members_and_crops=MembersAndCrops(
            result.rows, members.described, [outcome.gain, *result.verdict_notes, *crops_harm(outcome.sets)], [crops]
        ),
        summaries=summaries,
        notes=[*seen_facts(outcome.seen).values(), outcome.slices.sentence],
        missing=missing_of_grid(
            outcome.files,
            run_id,
            members.references,
            crops=whole.crops,
            average=whole.average,
            counts_alike=len(set(whole.shares)) == 1,
            is_test=result.whole.predictions.split == "test" and outcome.seen == 0,
            summaries=summaries,
        ),
    )


def log_grid(run: "Run", outcome: GridOutcome) -> None:
    """Log what the whole gains and costs, the table, and what the page of the run shows first."""
    row = outcome.result.whole_row
    gains = {"gain/accuracy": row.accuracy_gain.value, "gain/log_loss": row.log_loss_gain.value}
    run.log_metrics({**gains, "cost/ms_per_image": row.milliseconds}, step=0)
    run.log_artifact(outcome.files.path / GRID_TABLE)
    run.describe(outcome.description(run.id))
