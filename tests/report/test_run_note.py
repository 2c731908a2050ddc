"""The description of a run."""

from graftline.evaluation.metrics import Interval
from graftline.report.run_note import run_note


def test_it_says_first_how_good_the_model_is() -> None:
    scores = {"accuracy": Interval(0.863, 0.837, 0.887), "log_loss": Interval(0.303, 0.261, 0.346)}
    lines = run_note("abc", scores, {"Freeze": "all", "Images": "`1f`"}).splitlines()
    assert lines[0] == "**86.3 % right** (83.7 to 88.7 %)"
    assert lines[2:4] == ["- **Freeze**: all", "- **Images**: `1f`"]
    assert "| log loss | 0.303 | 0.261 to 0.346 |" in lines
    assert lines[-1].endswith("(get-artifact?path=figures%2Fconfusion_matrix.svg&run_uuid=abc)")


def test_without_test_images_it_says_so() -> None:
    assert run_note("abc", {}, {"Freeze": "all"}).splitlines() == [
        "Not tested: there are no test images.",
        "",
        "- **Freeze**: all",
    ]
