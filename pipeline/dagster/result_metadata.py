"""What Dagster shows of a run: metadata of its assets, from ``result.json``."""

import base64
from pathlib import Path
from typing import Any

FIGURE = "confusion_matrix.svg"
LARGEST_FIGURE = 400_000  # bytes; it is stored with each run

Metadata = dict[str, tuple[str, Any]]  # name → kind of value, as a method of Dagster's MetadataValue, and value


def describe(report: dict[str, Any], address: str) -> dict[str, Metadata]:
    """Return the assets that a run made, each with its metadata; none where nothing was new.

    Args:
        report: ``result`` is what is in result.json, ``directory`` the output directory.
        address: of MLflow's pages.
    """
    result = report["result"]
    if result.get("model_uri") is None:
        return {}
    found = {"dataset": _dataset(result), "model": _model(result, Path(report["directory"]), address)}
    if result.get("outcome") == "promoted":
        found["champion"] = _champion(result, address)
    return found


def _dataset(result: dict[str, Any]) -> Metadata:
    """Describe the dataset version: its digest, and what changed since the last one."""
    found: Metadata = {"digest": ("text", result["dataset_digest"])}
    if "test_digest" in result:
        found["digest of the test images"] = ("text", result["test_digest"])
    if changes := result.get("changes"):
        found["changes"] = ("json", changes)
    return found


def _model(result: dict[str, Any], directory: Path, address: str) -> Metadata:
    """Describe the model: its scores with their intervals, each also as a number that Dagster plots, and a figure."""
    scores = {name: score for name, score in result["metrics"].items() if "/" not in name}  # without those of classes
    found: Metadata = {
        "model": ("text", result["model_uri"]),
        "outcome": ("text", result.get("outcome", "trained")),
        "verdict": ("text", result.get("reason", "")),
        "scores": ("md", score_table(scores)),
        "run": ("url", f"{address}/#/runs/{result.get('training_run_id') or result['run_id']}"),
        "directory": ("path", str(directory)),
    }
    if reasons := result.get("reasons"):
        found["reasons"] = ("md", "\n".join(f"- {reason}" for reason in reasons))
    found |= {name: ("float", float(score["value"])) for name, score in scores.items()}
    figure = next(iter(sorted(directory.glob(f"**/{FIGURE}"))), None)
    if figure is not None and figure.stat().st_size <= LARGEST_FIGURE:
        image = base64.b64encode(figure.read_bytes()).decode()
        found["figure"] = ("md", f"![{figure.stem}](data:image/svg+xml;base64,{image})")
    return found


def _champion(result: dict[str, Any], address: str) -> Metadata:
    """Describe the champion: which version, by which line of the ledger."""
    found: Metadata = {"model": ("text", result["model_uri"]), "verdict": ("text", result.get("reason", ""))}
    if "ledger_line" in result:
        found["line of the ledger"] = ("int", int(result["ledger_line"]))
    return {**found, "run": ("url", f"{address}/#/runs/{result['run_id']}")}


def score_table(metrics: dict[str, dict[str, float]]) -> str:
    """Return the scores as a table in Markdown.

    >>> print(score_table({"accuracy": {"value": 0.9, "low": 0.85, "high": 0.94}}))
    | score | value | 95 % interval |
    |---|---|---|
    | accuracy | 0.9000 | 0.8500 to 0.9400 |
    """
    rows = [
        f"| {name} | {score['value']:.4f} | {score['low']:.4f} to {score['high']:.4f} |"
        for name, score in metrics.items()
    ]
    return "\n".join(["| score | value | 95 % interval |", "|---|---|---|", *rows])
