"""What other stages have found about a model or its images, for its report: they are known by the digests they note.

An explanation is of the same bundle, an audit and a learning curve are of the same dataset version; the newest output
directory of each stage that says so is taken, of learning curves one with the model's backbone first.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from graftline.backbones.weights_store import full_name
from graftline.data.decisions import COLUMNS
from graftline.data.sources.delimited import find_form, read_delimited
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.content import PictureFile, StageSummary, SuspectLabel

EXPLAIN, AUDIT, LEARNING_CURVE = "explain", "audit", "learning-curve"
EXPLANATIONS_PICTURE, DECISIONS_FILE, SHEET_FILE = "explanations.png", "decisions.csv", "audit.html"
CURVE_PICTURE = "learning_curve.png"
OUTPUTS = Path("outputs")  # where stages write, as conf/hydra/default.yaml has it
MOST_READ = 50  # output directories of a stage, the newest
MOST_LABELS = 6  # suspect ones that are shown

logger = logging.getLogger(__name__)


def find_summaries(
    version: DatasetVersion, bundle_digest: str = "", split: str = "test", backbone: str = ""
) -> list[StageSummary]:
    """Return what other stages have found; that files of theirs cannot be read is logged, and no more.

    Args:
        version: the images.
        bundle_digest: of the model; empty: nobody can have explained it yet.
        split: whose mistakes would be explained.
        backbone: of the model, whose learning curve is preferred; empty: the newest one is taken.
    """
    found = list[StageSummary]()
    for summaries in (_explanations(bundle_digest, split), _audit(version), _learning_curve(version, backbone)):
        try:
            found += summaries
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:  # people edit, move and remove files
            logger.info(f"The report leaves out what another stage has found: {first_line(error)}.")
    return found


def _explanations(bundle_digest: str, split: str) -> Iterator[StageSummary]:
    wanted = {"bundle_digest": bundle_digest, "split": split}
    for directory, result in _newest(EXPLAIN, wanted, ["images"], EXPLANATIONS_PICTURE):
        picture = _picture(directory / EXPLANATIONS_PICTURE, "explanations")
        sentence = f"The {result['images']:,} mistakes on the {split} images that the model was surest of."
        heading, source = "Where the mistakes were seen", str(directory)
        yield StageSummary(EXPLAIN, "Explanations", heading, [sentence], source, pictures=[picture])


def _audit(version: DatasetVersion) -> Iterator[StageSummary]:
    keys = ["images", "label_errors", "near_duplicates", "near_duplicates_across_splits"]
    for directory, result in _newest(AUDIT, {"dataset_digest": version.digest}, keys, DECISIONS_FILE):
        images, errors, pairs, across = (result[key] for key in keys)
        sentence = (
            f"{errors:,} of {images:,} labels are probably wrong, by heads that had not seen the image; {pairs:,} "
            f"pairs of images are almost the same, {across:,} of them in two splits."
        )
        yield StageSummary(
            AUDIT,
            "Labels",
            "Whether the labels are right",
            [sentence],
            str(directory / SHEET_FILE),
            labels=_suspect_labels(directory / DECISIONS_FILE),
            decoding=version.decoding,
        )


def _suspect_labels(file: Path) -> list[SuspectLabel]:
    """Return the labels that are most probably wrong and undecided, from the table that people are to fill in."""
    table = read_delimited(file, find_form(file, COLUMNS)).fillna("")
    rows = table[(table["suggested"] != "") & (table["decision"] == "")].head(MOST_LABELS)
    columns = rows[["path", "label", "suggested", "score"]]
    return [
        SuspectLabel(path, label, suggested, float(score))
        for path, label, suggested, score in columns.itertuples(index=False, name=None)
    ]


def _learning_curve(version: DatasetVersion, backbone: str) -> Iterator[StageSummary]:
    own, keys = full_name(backbone), ["metrics", "check_holds", "label_next"]

    def is_own(result: Mapping[str, Any]) -> bool:
        return "backbone" in result and full_name(result["backbone"]) == own

    for directory, result in _newest(LEARNING_CURVE, {"dataset_digest": version.digest}, keys, CURVE_PICTURE, is_own):
        value, low, high = (100 * result["metrics"]["gain/times_2"][end] for end in ("value", "low", "high"))
        gain = f"twice the labels would bring {value:+.1f} [{low:.1f}, {high:.1f}] points of accuracy"
        of = f"Heads on {result['backbone']} at {result['image_size_px']} px: " if "backbone" in result else ""
        told = [f"{of}{gain}." if of else f"{gain[0].upper()}{gain[1:]}."]
        if result["label_next"]:
            told.append(f"Those of “{result['label_next']}” would bring most.")
        if not result["check_holds"]:
            told.append("The curve is no power law here: trust the forecast less than its interval.")
        picture = _picture(directory / CURVE_PICTURE, "learning_curve")
        heading, source = "What more labels would bring", str(directory)
        yield StageSummary(LEARNING_CURVE, "More labels", heading, told, source, pictures=[picture])


def _picture(file: Path, name: str) -> PictureFile:
    """Return a picture with its heading and caption, if the file is whole; else it is as one that cannot be read."""
    with Image.open(file) as image:
        image.load()
    return PictureFile(file, HEADINGS[name], CAPTIONS[name])


def _newest(
    stage: str,
    wanted: Mapping[str, str],
    keys: Sequence[str],
    file: str,
    is_preferred: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the newest output directory of a stage, and its result, at most one.

    Args:
        stage: its name.
        wanted: what the result must say.
        keys: that it must have.
        file: that must be there.
        is_preferred: tells of a result whether it comes before newer ones.
    """
    results = sorted((OUTPUTS / stage).glob("*/result.json"), key=lambda one: one.stat().st_mtime, reverse=True)
    found = []
    for one in results[:MOST_READ]:
        try:
            result = json.loads(one.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # people edit and move files
            continue
        if _says(result, wanted) and result.keys() >= set(keys) and (one.parent / file).is_file():
            found.append((one.parent, result))
    yield from sorted(found, key=lambda one: not is_preferred(one[1]))[:1]


def _says(result: object, wanted: Mapping[str, str]) -> bool:
    return isinstance(result, dict) and all(result.get(key) == value for key, value in wanted.items())
