"""The short tables that the terminal shows."""

from graftline.bundle.verify import StepDifference, Verification
from graftline.console import console
from graftline.evaluation.metrics import Interval
from graftline.report.tables import print_scores, print_verification


def test_scores_are_a_table_of_headlines() -> None:
    scores = {"accuracy": Interval(0.884, 0.8604, 0.9091), "recall/cat": Interval(0.02, 0.015, 0.06)}
    with console.capture() as printed:
        print_scores(scores, "Test split, 656 images")
    text = printed.get()
    assert "Test split, 656 images" in text
    assert [line.split() for line in text.splitlines() if line.startswith("accuracy")] == [
        ["accuracy", "88.4", "%", "86.0", "to", "90.9", "%"]
    ]
    assert "cat" not in text


def test_a_verification_says_where_it_differs() -> None:
    steps = (
        StepDifference("decode", 0, 0.0),
        StepDifference("resize", 7, 2.0),
        StepDifference("normalize", 7, 0.035),
        StepDifference("network", 7, 0.0123),
    )
    verification = Verification(35, steps, 0.0021, (), {}, {"pillow": "11.0"}, {"pillow": "13.0"})
    with console.capture() as printed:
        print_verification(verification)
    lines = printed.get().splitlines()
    assert {"Saved with pillow 11.0.", "Replayed with pillow 13.0."} <= set(lines)
    rows = [line.split() for line in lines[-5:]]
    assert rows == [
        ["decode", "0", "0", "gray", "levels"],
        ["resize", "7", "2", "gray", "levels"],
        ["normalize", "7", "0.035", "input", "units"],
        ["network", "7", "0.0123", "logit"],
        ["probability", "0.0021"],
    ]
