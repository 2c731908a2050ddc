"""A place where images arrive and models are retrained, as on a machine that nobody looks at."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from mlflow.entities import Run
from safetensors.torch import save_file
from workplace import TINY, Ran, Workplace

from conftest import COLORS, paint
from graftline.data.version import DatasetVersion, newest_version
from graftline.tracking.registry import RegisteredVersion, Registry

NAME = "colors"


@dataclass
class Factory:
    """Images by color, which come and go, and what `make retrain` makes of them.

    Attributes:
        place: where stages run.
        painted: number of images that were painted.
        settings: overrides of each retraining.
    """

    place: Workplace
    painted: int = 0
    settings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        weights = self.place.root / "weights.safetensors"
        save_file(timm.create_model("test_efficientnet").state_dict(), weights)
        self.settings = [
            *(line for line in TINY if line.partition("=")[0] not in ("backbone.weights", "freeze", "features")),
            f"backbone.file={weights}",
            "freeze=all_but_head",
            "features=cached",
            "data=folder",
            "data.path=images",
            f"data.name={NAME}",
        ]

    @property
    def images(self) -> Path:
        return self.place.root / "images"

    def paint(self, number: int, *names: str) -> None:
        """Let images of some colors arrive, so many of each."""
        for name in names or tuple(COLORS):
            (self.images / name).mkdir(parents=True, exist_ok=True)
            for _ in range(number):
                self.painted += 1
                paint(COLORS.get(name, (220, 220, 40)), self.painted).save(
                    self.images / name / f"{self.painted:04}.png"
                )

    def remove(self, name: str, number: int) -> None:
        for file in sorted((self.images / name).iterdir())[:number]:
            file.unlink()

    def retrain(self, *overrides: str, stage: str = "retrain") -> Ran:
        """Retrain in a process of its own."""
        return self.place.run(stage, *self.settings, *overrides)

    def outcome(self, *overrides: str) -> str:
        """Retrain, and return what came of it."""
        ran = self.retrain(*overrides)
        assert ran.code == 0, ran.output
        outcome: str = ran.result["outcome"]
        return outcome

    @property
    def registry(self) -> Registry:
        return Registry(f"sqlite:///{self.place.root / 'mlflow.db'}")

    @property
    def champion(self) -> RegisteredVersion | None:
        return self.registry.aliased(NAME, "champion")

    @property
    def versions(self) -> tuple[RegisteredVersion, ...]:
        return self.registry.versions(NAME)

    @property
    def newest(self) -> DatasetVersion:
        found = newest_version(self.place.root / "data" / NAME)
        assert found is not None
        return found

    def runs(self, **tags: str) -> list[Run]:
        """Return the runs of all experiments that have some tags, the oldest first."""
        experiments = [one.experiment_id for one in self.place.mlflow.search_experiments()]
        which = " and ".join(f"tags.`graftline.{name}` = '{value}'" for name, value in tags.items())
        return list(self.place.mlflow.search_runs(experiments, which, order_by=["attributes.start_time ASC"]))

    def results(self) -> list[dict[str, Any]]:
        """Return what each retraining said it came to, the oldest first."""
        files = sorted(self.place.root.glob("outputs/retrain/*/result.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def clear(self) -> None:
        shutil.rmtree(self.images)
