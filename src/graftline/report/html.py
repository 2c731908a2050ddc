"""The report of a run: one HTML page that needs nothing else, to read on any screen, to mail and to archive."""

import base64
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

import graftline
from graftline.evaluation.metrics import HEADLINES, LOWER_IS_BETTER, Interval, format_interval, format_score
from graftline.files import atomic_file
from graftline.report.page import page
from graftline.report.style import DPI, png

WIDE_INCHES = 8  # figures at least this wide get a row of their own
LONG_FACT = 50  # characters; longer ones get the room of two
MOST_OPEN_CLASSES = 12  # beyond, the table of the classes is folded

MEANINGS = {
    "accuracy": "Share of images classified rightly.",
    "accuracy_weighted": "The same, each image counting by its weight.",
    "balanced_accuracy": "Recall averaged over the classes, so that rare ones count as much as common ones.",
    "f1_macro": "Precision and recall in one number, averaged over the classes.",
    "cost": "What an answer costs on average, by the costs that the model was given.",
    "set_coverage": "Share of the images whose set of classes holds the true one.",
    "set_size": "How many classes are in a set, on average.",
    "auroc": "How often an image of a class is ranked above one of another class; guessing gives 0.5.",
    "log_loss": "Surprise at the true class, in nats; confident mistakes cost most.",
    "brier": "Squared error of the probabilities.",
    "ece": "Average gap between how sure and how right the predictions are.",
}

HEADINGS = {
    "members_and_crops": "What members and crops bring, and cost",
    "crops": "Where the crops lie",
    "confusion_matrix": "Which classes are confused",
    "roc_curves": "How well the classes separate",
    "precision_recall_curves": "What finding more would cost",
    "reliability_diagram": "Whether the probabilities can be believed",
    "coverage_curve": "What the surest answers are worth",
    "confident_mistakes": "Where the model is sure and wrong",
    "slices": "On which images it is worse",
}

CAPTIONS = {
    "members_and_crops": "Each point is a combination of members and crops whose probabilities are averaged. Those on "
    "the line are worth their time on this machine: no other combination is as accurate in as little. Intervals that "
    "overlap do not say that two are alike; the table's gains are of the same images and tell more.",
    "confusion_matrix": "Follow a row: where do the images of that class end up? A dark blue diagonal is the goal. An "
    "orange cell is a confusion; if its mirror image across the diagonal is orange too, the two classes look alike to "
    "the model.",
    "roc_curves": "What share of a class is found, against the share of the other images falsely reported as it. The "
    "closer to the upper left corner the better. Moving the threshold moves along the curve: another trade-off costs "
    "no training.",
    "precision_recall_curves": "What share of the images reported as a class is right, as more of the class is found. "
    "It tells more than the ROC curve where a class is rare: look where the curve begins to fall.",
    "reliability_diagram": "On the dashed line, of the predictions made with 80 %, 80 % are right. Below it the model "
    "is too sure of itself, above it too modest. Thin lines are 95 % intervals; the histogram shows which bins matter.",
    "coverage_curve": "If only the images that the model is surest of were answered, and the others left to people, "
    "how many would be right? The steeper the curve falls to the right, the more it brings to leave the last ones out.",
    "confident_mistakes": "Look at these first. Often they are wrong labels, images that nobody could tell apart, or "
    "something that the training images do not show.",
    "slices": "The accuracy on images that share something: a group, how bright or sharp they are, their shape. Red: "
    "surely worse than the rest, corrected for looking at all slices. More training images like these would help "
    "there.",
}


def write_report(
    directory: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Interval],
    figures: Mapping[str, Figure | Path],
    notes: Sequence[str],
) -> Path:
    """Write ``report.html``: headline, facts, scores with intervals, figures with captions, notes.

    Everything is inside the file, and a content security policy keeps it from asking for more. It follows the
    reader's choice of light or dark. All texts are escaped.

    Args:
        directory: where to write it.
        title: of the page, as plain text.
        facts: label → text, in the order to show.
        scores: from :func:`graftline.evaluation.metrics.score`; empty where nothing was tested.
        figures: name → figure, or the path of its PNG. Those of an evaluation get their captions here, others are
            headed by their name.
        notes: sentences, in the order to show.

    Returns:
        The file's path.
    """
    sections = [
        _header(title, scores.get("accuracy")),
        _facts(facts),
        _scores(scores),
        _figures(figures),
        _classes(scores),
        _notes(notes),
    ]
    body = "\n".join(section for section in sections if section)
    path = directory / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page(title, body, FOOTER.format(version=escape(graftline.__version__))), encoding="utf-8")
    return path


FOOTER = """Written by graftline {version}. Scores by scikit-learn and torchmetrics. Intervals: 95 %, percentiles of the
same score on resampled sets of these images (bootstrap). They say how much the score would change with other images of
the same kind, not what happens with images of another kind."""


def _header(title: str, accuracy: Interval | None) -> str:
    if accuracy is None:
        return f"<header>\n<h1>{escape(title)}</h1>\n<p>No test scores.</p>\n</header>"
    return f"""<header>
<h1>{escape(title)}</h1>
<p class="headline"><strong>{format_score("accuracy", accuracy.value)}</strong>
<span>accuracy<br>95 % interval {format_interval("accuracy", accuracy)}</span></p>
{_bar("accuracy", accuracy)}
</header>"""


def _facts(facts: Mapping[str, str]) -> str:
    rows = "\n".join(
        f"<div{' class=long' if len(text) > LONG_FACT else ''}><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>"
        for label, text in facts.items()
    )
    return f'<section aria-label="Facts">\n<dl class="facts">\n{rows}\n</dl>\n</section>' if facts else ""


def _scores(scores: Mapping[str, Interval]) -> str:
    if not scores:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{label}{_direction(name)}<small>{MEANINGS[name]}</small></th>'
        f"{_cells(name, scores[name])}</tr>"
        for name, label in HEADLINES.items()
        if name in scores
    )
    return f"""<section>
<h2>Scores</h2>
<table>
<thead><tr><th scope="col">score</th><th scope="col">value</th><th scope="col">95 % interval</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>"""


def _direction(name: str) -> str:
    return ' <span class="better">lower is better</span>' if name in LOWER_IS_BETTER else ""


def _cells(name: str, interval: Interval | None) -> str:
    if interval is None:
        return '<td class="number">not defined</td><td></td>'
    return (
        f'<td class="number">{format_score(name, interval.value)}</td>'
        f'<td class="interval">{_bar(name, interval)}<small>{format_interval(name, interval)}</small></td>'
    )


def _bar(name: str, interval: Interval) -> str:
    """Draw an interval on a line that starts at 0 and ends at 1, or beyond the interval if that is higher."""
    end = max(1.0, 1.1 * interval.high)
    low, value, high = (100 * number / end for number in (interval.low, interval.value, interval.high))
    label = f"{format_score(name, interval.value)}, 95 % interval {format_interval(name, interval)}"
    return (
        f'<span class="bar" role="img" aria-label="{label}">'
        f'<i style="left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"></i><b style="left:{value:.2f}%"></b></span>'
    )


def _classes(scores: Mapping[str, Interval]) -> str:
    """Return the table of recall and precision per class, in the order of the classes."""
    names = list(dict.fromkeys(name.split("/", 1)[1] for name in scores if "/" in name))
    if not names:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cells(kind, scores.get(f"{kind}/{name}")) for kind in ("recall", "precision"))
        + "</tr>"
        for name in names
    )
    columns = "".join(
        f'<th scope="col">{kind}</th><th scope="col">95 % interval</th>' for kind in ("recall", "precision")
    )
    is_open = " open" if len(names) <= MOST_OPEN_CLASSES else ""
    return f"""<section>
<h2>Class by class</h2>
<p>Recall: what share of the class is found. Precision: what share of the images reported as the class is of it.</p>
<details{is_open}><summary>{len(names):,} classes</summary>
<div class="scroll"><table class="classes">
<thead><tr><th scope="col">class</th>{columns}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</details>
</section>"""


def _figures(figures: Mapping[str, Figure | Path]) -> str:
    drawn = "\n".join(_figure(name, figure) for name, figure in figures.items())
    return f'<section>\n<h2>Pictures</h2>\n<div class="figures">\n{drawn}\n</div>\n</section>' if figures else ""


def _figure(name: str, figure: Figure | Path) -> str:
    heading, caption = HEADINGS.get(name, name.replace("_", " ").capitalize()), CAPTIONS.get(name, "")
    content = figure.read_bytes() if isinstance(figure, Path) else png(figure)
    width, height = struct.unpack(">II", content[16:24])  # a PNG file's header
    kind = ' class="wide"' if width >= WIDE_INCHES * DPI else ""
    source = base64.b64encode(content).decode("ascii")
    return (
        f'<figure{kind}><img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
        f'alt="{escape(heading)}">\n'
        f"<figcaption><strong>{escape(heading)}.</strong> {escape(caption)}</figcaption></figure>"
    )


def _notes(notes: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section>\n<h2>Notes</h2>\n<ul>\n{items}\n</ul>\n</section>" if notes else ""
