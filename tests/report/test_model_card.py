"""The model card: what programs read of it, what people read of it, and how it is shortened."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.evaluation.metrics import Interval
from graftline.evaluation.predictions import Classifier
from graftline.evaluation.slices import Slice
from graftline.report.model_card import MOST_CLASSES, CardFacts, shortened, write_card

PREPROCESSING = {"image_size": [48, 64], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
CARD = {
    "weights": "weights from the hub (somewhere)",
    "weights_license": "mit",
    "cost": {"parameters": 1_500_000, "macs": 2_000_000},
    "freeze_plan": {"reason": "all *but* the head", "trained_parameters": 30, "frozen_parameters": 70},
    "calibration": {"sentence": "The probabilities are as they were."},
}

LOGITS = "mean of the logits (the geometric mean of the probabilities)"
SOUP = "One network, whose weights are the mean of those of"


@pytest.fixture(scope="module")
def result(classifier: Classifier, version: DatasetVersion) -> EvaluationResult:
    return Evaluation(resamples=100).run(classifier, version)


def describe(folder: Path, version: DatasetVersion, **entries: Any) -> Path:
    """Write a description as a bundle has it, and return the folder."""
    content = {
        "format": 4,
        "digest": "0123456789abcdef",
        "timm_name": "lenet5",
        "class_names": list(version.class_names),
        "preprocessing": {**PREPROCESSING, "crop_pct": 0.9, "crop_mode": "center", "channels": 3},
        "files": {},
        "embedding_size": None,
        "card": CARD,
        **entries,
    }
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(content))
    return folder


def test_it_says_what_is_known(tmp_path: Path, version: DatasetVersion, result: EvaluationResult) -> None:
    worst = Slice("stratum", "mono_|_poly", 20, Interval(0.5, 0.3, 0.7), 0.9, 0.001)
    facts = CardFacts(version, "folder squares", "cc0-1.0", result, "abc", [worst])
    card = ModelCard.load(write_card(describe(tmp_path / "bundle", version), facts), ignore_metadata_errors=False)
    assert card.data.license_name == "weights-mit-images-cc0-1.0"
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found == {name: one.value for name, one in result.scores.items() if "/" not in name}
    recalls = {name: result.scores[f"recall/{name}"] for name in version.class_names}
    lowest = min(recalls.values(), key=lambda one: one.value)
    for text in (
        f"least well of all classes: {100 * lowest.value:.1f} % ({100 * lowest.low:.1f} to {100 * lowest.high:.1f} %)",
        r"| stratum mono\_\|\_poly | 20 | 50.0 % | 30.0 to 70.0 % |",
        "The model is significantly less accurate on 1 of 1 slices than on other images of the same classes: ",
        "48 x 64 px, RGB; bicubic, center crop of 90 %",
        r"all \*but\* the head; 30 of 100 parameters are trained",
        "1.50 M parameters, 2.00 M multiply-adds per image",
        "| all | 3 | 3 | 60 |",
        f"digest `{version.test_digest}`",
        r"\<script>alert(1)\</script>",
        "Source: folder squares",
        "import graftline.backbones.zoo",  # lenet5 is not one of timm's
    ):
        assert text in card.text
    assert "<script" not in card.text.replace(r"\<", "")


@pytest.mark.parametrize(
    ("crops", "average", "soup", "told"),
    [
        ("1", "probabilities", [], "The mean of the probabilities of 2 networks, on 1 crop of each image:"),
        ("10", "logits", [], f"The {LOGITS} of 2 networks, on 10 crops of each image:"),
        ("1", "probabilities", ["a", "b"], f"{SOUP} 2 networks (a soup), on 1 crop of each image:"),
        ("10", "logits", ["a", "b", "c"], f"{SOUP} 3 networks (a soup); the {LOGITS} over 10 crops of each image:"),
    ],
)
def test_it_says_what_an_ensemble_averages(
    tmp_path: Path, version: DatasetVersion, crops: str, average: str, soup: list[str], told: str
) -> None:
    entries = [
        {"folder": one, "digest": one, "share": 0.5, "name": "lenet5"} for one in (["1"] if soup else ["1", "2"])
    ]
    for entry in entries:
        describe(tmp_path / str(entry["folder"]), version, card={**CARD, "soup": soup})
    own = {"members": entries, "crops": crops, "average": average, "format": 5, "decoding": {}}
    card = write_card(describe(tmp_path, version, **own), CardFacts(version, "folder", None, None, "abc"))
    assert f"\n- {told}\n- 50 %: lenet5 at 48 x 64 px" in card.read_text()
    assert f"# {f'Soup of {len(soup)}' if soup else 'Ensemble of 2'} on squares" in card.read_text()


def test_what_is_unknown_says_so(tmp_path: Path, version: DatasetVersion) -> None:
    bundle = describe(tmp_path / "bundle", version, card={})
    card = ModelCard.load(write_card(bundle, CardFacts(version, "folder", None, None, "abc")))
    assert card.data.license == "unknown"
    assert card.data.eval_results is None
    assert "It was not tested" in card.text
    assert card.text.count("unknown") >= 3  # weights, their license, that of the images
    assert "## Scores" not in card.text
    assert "## Cost" not in card.text


def test_many_classes_stay_short(tmp_path: Path, version: DatasetVersion, result: EvaluationResult) -> None:
    names = [*version.class_names, *(f"a class whose name is long {number}" for number in range(1000))]
    bundle = describe(tmp_path / "bundle", version, class_names=names)
    card = write_card(bundle, CardFacts(version, "folder", None, result, "abc"))
    assert len(card.read_text()) < 10_000
    assert f"and {len(names) - MOST_CLASSES:,} more" in card.read_text()
    assert "| 1,003 classes |" in card.read_text()


def test_what_is_shortened_keeps_whole_sections(
    tmp_path: Path, version: DatasetVersion, result: EvaluationResult
) -> None:
    facts = CardFacts(version, "folder", None, result, "abc")
    card = write_card(describe(tmp_path / "bundle", version), facts)
    whole = shortened(card, 100_000)
    assert whole.startswith("# lenet5 on squares")
    assert whole == ModelCard.load(card).text.strip()
    for most in (3000, 1500, 200):
        short = shortened(card, most)
        assert len(short) <= most
        assert short.endswith("The rest is in the bundle's README.md.")
    sections = shortened(card, 3000).removesuffix("\n\nThe rest is in the bundle's README.md.").split("\n## ")
    assert "Scores" in sections[1]
    assert set(sections) <= {one.rstrip() for one in whole.split("\n## ")} | set(whole.split("\n## "))
    untested = replace(facts, result=None)
    assert "not tested" in shortened(write_card(card.parent, untested), 5000)
