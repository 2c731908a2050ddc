"""The description of a run in MLflow: what to know first, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from graftline.evaluation.metrics import HEADLINES, Interval, format_interval, format_score

CONFUSION = "figures/confusion_matrix.svg"  # artifact of a run that was tested


def run_note(run_id: str, scores: Mapping[str, Interval], facts: Mapping[str, str]) -> str:
    """Return the description of a run that has trained or tested a model.

    Args:
        run_id: of the run, whose artifacts have the picture of the confusions.
        scores: of the test; empty where there was none.
        facts: label → Markdown, in the order to show.
    """
    lines = [f"- **{label}**: {text}" for label, text in facts.items()]
    if "accuracy" not in scores:
        return "\n".join(["Not tested: there are no test images.", "", *lines])
    accuracy = scores["accuracy"]
    head = f"**{format_score('accuracy', accuracy.value)} right** ({format_interval('accuracy', accuracy)})"
    rows = [
        (label, format_score(name, scores[name].value), format_interval(name, scores[name]))
        for name, label in HEADLINES.items()
        if name in scores
    ]
    # relative: the server that shows the page gives out the run's artifacts too
    picture = f"get-artifact?path={quote(CONFUSION, safe='')}&run_uuid={run_id}"
    return "\n".join(
        [
            head,
            "",
            *lines,
            "",
            markdown_table(("score", "value", "95 % interval"), rows),
            "",
            f"![Confusion matrix: true classes in rows, predicted ones in columns]({picture})",
        ]
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a table in Markdown.

    >>> print(markdown_table(("run", "what differs"), [("0", "crops=1|5")]))
    | run | what differs |
    |---|---|
    | 0 | crops=1\|5 |
    """
    lines = [list(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + len(columns) * "---|", *body])
