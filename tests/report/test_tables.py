"""The short tables that the terminal shows."""

from dataclasses import replace

from made_predictions import draw_predictions

from graftline.bundle.verify import StepDifference, Verification
from graftline.console import console
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import Interval
from graftline.report.tables import print_scores, print_verification


def test_scores_are_a_table_of_headlines() -> None:
    scores = {"accuracy": Interval(0.884, 0.8604, 0.9091), "recall/cat": Interval(0.02, 0.015, 0.06)}
    predictions = draw_predictions(656, ["cat", "dog"], seed=0)

    def printed(groups: list[str] | None) -> str:
        with console.capture() as captured:
            result = EvaluationResult(replace(predictions, groups=groups), scores, [], 1.0)
            print_scores(result, "Test split, 656 images")
        return captured.get()

    text = printed(None)
    assert "Test split, 656 images" in text
    assert [line.split() for line in text.splitlines() if line.startswith("accuracy")] == [
        ["accuracy", "88.4", "%", "86.0", "to", "90.9", "%"]
    ]
    assert "cat" not in text
    assert "groups" not in text
    assert "groups" not in printed([f"patient {number % 40}" for number in range(656)])
    assert "are of 2 groups, " in printed([f"patient {number % 2}" for number in range(656)])
    assert "one group" in printed(["patient"] * 656)


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
