"""What becomes of members x crops in a stage: a table, a picture, a report, and entries in its MLflow run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.augment.crops import CROP_SETS
from graftline.bundle.grid import Average
from graftline.data.decode import decode_rgb
from graftline.data.file_names import to_path
from graftline.data.version import DatasetVersion
from graftline.evaluation.grid import GridResult
from graftline.pipeline.members import Members
from graftline.pipeline.missing import comparison_of
from graftline.pipeline.scoring import FIGURES_FOLDER, write_evaluation
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.content import MembersAndCrops, PictureFile, Report
from graftline.report.crops_figure import crops_figure
from graftline.report.grid_figure import grid_figure
from graftline.report.grid_tables import crops_in_words, describe, sentence, write_grid_table
from graftline.report.run_report import write_report
from graftline.report.style import save

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

GRID_TABLE, GRID_FIGURE, CROPS_FIGURE = "grid.csv", "members_and_crops.png", "crops.png"


def write_grid(
    result: GridResult, members: Members, average: Average, version: DatasetVersion, directory: Path, run_id: str
) -> Path:
    """Write table, picture, predictions of the whole and a report; returns the report."""
    tested = result.whole.predictions
    write_grid_table(result.rows, directory / GRID_TABLE)
    save(grid_figure(result.rows, len(tested.paths)), directory / FIGURES_FOLDER / GRID_FIGURE)
    image = decode_rgb(to_path(tested.paths[0]), tested.decoding)
    sets = list(dict.fromkeys(row.crops for row in result.rows))
    where = crops_figure(image, members.predictors[0].preprocessing, sets)
    crops = save(where, directory / FIGURES_FOLDER / CROPS_FIGURE)
    write_evaluation(result.whole, directory)
    row, first = result.whole_row, result.rows[0]
    named = zip(members.labels, members.references, strict=True)
    report = Report(
        title=f"{describe(row)} on {version.name}",
        kind="evaluation",
        facts={
            "Average": f"of {average}",
            "Data": f"{version.name}, version {version.digest}",
            "Images": f"{len(tested.paths):,} ({tested.split} split), digest {tested.split_digest}",
            "Speed": f"{result.whole.images_per_second:,.1f} images per second, on all crops",
            "Run": run_id,
        },
        result=result.whole,
        members_and_crops=MembersAndCrops(
            result.rows,
            [f"{label}, {reference}" for label, reference in named],
            [sentence(row, first), *_warnings(sets)],
            [PictureFile(crops, HEADINGS["crops"], CAPTIONS["crops"])],
        ),
        missing=[comparison_of(run_id)],
    )
    return write_report(directory, report)


def log_grid(run: "Run", result: GridResult, directory: Path) -> None:
    """Log what the whole gains and costs, and the table."""
    row = result.whole_row
    gains = {"gain/accuracy": row.accuracy_gain.value, "gain/log_loss": row.log_loss_gain.value}
    run.log_metrics({**gains, "cost/ms_per_image": row.milliseconds}, step=0)
    run.log_artifact(directory / GRID_TABLE)


def _warnings(sets: Sequence[str]) -> Iterator[str]:
    """Yield where each set of crops is wrong."""
    for name in sets:
        if name != "1":
            yield f"{crops_in_words(name)[:1].upper()}{crops_in_words(name)[1:]} do harm {CROP_SETS[name].wrong}."
