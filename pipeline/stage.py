"""What all stages share: what one is, and what it says it did."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage did; each stage adds fields of its own, for whoever calls it from Python.

    Attributes:
        facts: goes into ``result.json`` (``dataset_digest``, ``run_id``, ``model_uri`` where there is one).
        metrics: name → ``{"value", "low", "high"}``.
        table: rows of the short table at the end.
        failed: the stage did its work, and what it found is bad: the exit code is 1.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    table: Sequence[tuple[str, str]] = ()
    failed: bool = False


class Stage(Protocol):
    """A stage: the object that a configuration at the root of conf/ describes."""

    def run(self, directory: Path) -> StageResult:
        """Do the stage's work, with ``directory`` for its files."""
        ...
