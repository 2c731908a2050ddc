"""Short tables for the terminal: scores, a replay of golden images."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len

from graftline.bundle.golden import GRID
from graftline.bundle.verify import StepDifference, StepName, Verification
from graftline.console import console, print_facts, print_table, say
from graftline.evaluation.comparison import Comparison, PairedComparison, format_difference, format_p_value
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import HEADLINES, SHARES, Interval, format_interval, format_score
from graftline.evaluation.notes import FEW_GROUPS, groups_in_words

UNITS: dict[StepName, str] = {
    "decode": "gray levels",
    "resize": "gray levels",
    "normalize": "input units",
    "network": "logit",
}

OTHER_COLUMNS = 71  # of the terminal, for what a comparison tells beside the models' names


def print_scores(result: EvaluationResult, title: str) -> None:
    """Print the headline scores with their intervals as a short table, and whether the intervals are too narrow."""
    scores, predictions = result.scores, result.predictions
    rows = [
        (label, format_score(name, scores[name].value), format_interval(name, scores[name]))
        for name, label in HEADLINES.items()
        if name in scores
    ]
    print_table(title, ["score", "value", "95 % interval"], rows)
    images, groups = len(predictions.labels), predictions.num_groups
    if groups < min(FEW_GROUPS, images):
        say(f"{groups_in_words(images, groups)}.")


def print_comparison(comparison: Comparison) -> None:
    """Print what is known of each model beside the reference, and what to know before believing it."""
    metric, models = comparison.metric, (comparison.reference, *comparison.rows)
    shared, names = _without_shared_words([model.name for model in models])
    title_of_names = shared or "model"
    if max(map(cell_len, (shared, *names))) > console.width - OTHER_COLUMNS:
        names = [str(number) for number in range(1, len(models) + 1)]
        print_facts("Models", zip(names, [model.name for model in models], strict=True))
        title_of_names = ""
    rows = [
        (
            name,
            _with_brackets(metric, row.scores[metric]),
            *(_against(comparison, row) if isinstance(row, PairedComparison) else ("", "", "reference")),
        )
        for name, row in zip(names, models, strict=True)
    ]
    title = f"{comparison.num_images:,} images of {comparison.dataset} ({comparison.split}); 95 % intervals"
    difference = "difference, points" if metric in SHARES else "difference"
    print_table(title, (title_of_names, HEADLINES[metric], difference, "p", ""), rows)
    for note in comparison.notes:
        say(note)


def _with_brackets(metric: str, score: Interval) -> str:
    """Write a score and its interval.

    >>> _with_brackets("accuracy", Interval(0.84, 0.811, 0.867)), _with_brackets("brier", Interval(0.1, 0.08, 0.12))
    ('84.0 % [81.1, 86.7]', '0.100 [0.080, 0.120]')
    """
    low, high = (format_score(metric, end).removesuffix(" %") for end in (score.low, score.high))
    return f"{format_score(metric, score.value)} [{low}, {high}]"


def _without_shared_words(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the words that all names begin with, and the names without them, for a narrow terminal.

    >>> _without_shared_words(["lite0 seed=0", "lite0 seed=1"]), _without_shared_words(["a b", "a"])
    (('lite0', ['seed=0', 'seed=1']), ('', ['a b', 'a']))
    """
    words = [name.split(" ") for name in names]
    count = 0
    while all(len(one) > count + 1 and one[count] == words[0][count] for one in words):
        count += 1
    return " ".join(words[0][:count]), [" ".join(one[count:]) for one in words]


def _against(comparison: Comparison, row: PairedComparison) -> tuple[str, str, str]:
    return (
        format_difference(comparison.metric, row.differences[comparison.metric]).removesuffix(" points"),
        format_p_value(row.corrected_p_value),
        row.verdict,
    )


def print_verification(verification: Verification) -> None:
    """Print by how much each step differs from where the bundle was written, and from what it was written with."""
    say(f"Saved with {_versions(verification.writer)}.")
    say(f"Replayed with {_versions(verification.here)}.")
    rows: list[tuple[str, str, str]] = [
        (step.step, f"{step.num_differing}", _largest(step)) for step in verification.steps
    ]
    rows.append(("probability", "", f"{verification.largest_probability_change:.2g}"))
    print_table(
        f"{verification.num_images} golden images, {GRID * GRID} pixels of each",
        ("step", "images that differ", "largest difference"),
        rows,
    )


def _versions(environment: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in environment.items())


def _largest(step: StepDifference) -> str:
    return f"{step.largest:.3g} {UNITS[step.step]}"
