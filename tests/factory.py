"""A place where images arrive and models are retrained, as on a machine that nobody looks at."""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from dying import die_at, fail_at
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import save_file
from workplace import TINY, Ran, Workplace

from conftest import COLORS, paint
from graftline.bundle.ensemble import load_predictor
from graftline.data.version import DatasetVersion, newest_version
from graftline.tracking.ledger import find_break
from graftline.tracking.names import LEASE, OUTPUT_DIRECTORY
from graftline.tracking.promotions import Promotions
from graftline.tracking.registry import RegisteredVersion, Registry
from graftline.tracking.retrainings import OUTCOME
from graftline.tracking.tracking import Tracking

NAME = "colors"
REPLACED = ("backbone.weights", "freeze", "features", "optim.lr", "trainer.max_epochs")  # of `TINY`


@dataclass
class Factory:
    """Images by color, which come and go, and what `make retrain` makes of them.

    Attributes:
        place: where stages run.
        painted: number of images that were painted.
        settings: overrides of each retraining.
        uri: of MLflow, where that is a server; empty: its database is in the place.
    """

    place: Workplace
    painted: int = 0
    settings: list[str] = field(default_factory=list)
    uri: str = ""

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        weights = self.place.root / "weights.safetensors"
        save_file(timm.create_model("test_efficientnet").state_dict(), weights)
        self.settings = [
            *(line for line in TINY if line.partition("=")[0] not in REPLACED),
            f"backbone.file={weights}",
            "freeze=all_but_head",  # of random weights, whose features tell colors apart
            "optim.lr=0.1",
            "trainer.max_epochs=30",
            "features=cached",
            "data=folder",
            "data.path=images",
            f"data.name={NAME}",
        ]
        self.uri = self.uri or f"sqlite:///{self.place.root / 'mlflow.db'}"

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

    def retrain(self, *overrides: str) -> Ran:
        """Retrain in a process of its own."""
        return self.place.run("retrain", *self.settings, *overrides)

    def outcome(self, *overrides: str) -> str:
        """Retrain, and return what came of it."""
        ran = self.retrain(*overrides)
        assert ran.code == 0, ran.output
        outcome: str = ran.result["outcome"]
        return outcome

    @property
    def registry(self) -> Registry:
        return Registry(self.uri)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

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
        experiments = [one.experiment_id for one in self.mlflow.search_experiments()]
        which = " and ".join(f"tags.`graftline.{name}` = '{value}'" for name, value in tags.items())
        return list(self.mlflow.search_runs(experiments, which, order_by=["attributes.start_time ASC"]))

    def results(self) -> list[dict[str, Any]]:
        """Return what each retraining said it came to, the oldest first."""
        files = sorted(self.place.root.glob("outputs/retrain/*/result.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def die(self, place: str, when: str, *overrides: str) -> Ran:
        """Retrain, and be killed at a place in the code: before or after a call of ``module:Class.method``."""
        arguments = ["retrain", *self.settings, *overrides]
        ran = self.place.run_function(partial(die_at, place, when, arguments))
        assert ran.code == -signal.SIGKILL, ran.output
        return ran

    def fail(self, place: str, error: Exception, *overrides: str) -> Ran:
        """Retrain, and let the first call of ``module:Class.method`` fail."""
        ran = self.place.run_function(partial(fail_at, place, error, ["retrain", *self.settings, *overrides]))
        assert ran.code == 1, ran.output
        return ran

    def check(self, retrainings: int, decided: Sequence[int] | None = None) -> None:
        """Make sure that nothing is lost, nothing is there twice, and nothing is there by half.

        Args:
            retrainings: that were decided so far, each on images of its own.
            decided: the versions that were decided on, in this order; None: each of them once.
        """
        runs = self.runs(stage="retrain")
        ended = [run for run in runs if run.data.tags.get(OUTCOME)]
        assert len(ended) == retrainings
        assert {run.info.status for run in ended} == {"FINISHED"}
        assert {run.info.status for run in runs if run not in ended} <= {"KILLED"}
        models = [one.name for one in self.mlflow.search_registered_models()]
        assert NAME + LEASE not in models, "the lease is given back"
        assert self.registry.names() == [NAME]
        assert len(self.versions) == retrainings, "a version of each, and no other"
        for version in self.versions:
            load_predictor(self.registry.bundle(version.uri))  # checked against the digest that was logged
        standing = Promotions(Tracking(self.registry.uri), NAME).read()
        assert find_break(standing.lines) is None
        decisions = [line.decision.version for line in standing.lines if line.decision.kind != "rolled back"]
        assert decisions == list(decided or range(1, retrainings + 1)), "decided once on each, in this order"
        assert standing.champion == standing.decided
        for run in [run for run in self.runs() if run.data.tags.get("graftline.stage") != "ledger"]:
            assert run.info.status != "RUNNING", run.data.tags
        trained = [run for run in self.runs(stage="train") if run.info.status == "FINISHED"]
        folders = {run.data.tags[OUTPUT_DIRECTORY] for run in trained}
        assert len(trained) == len(folders) >= retrainings, "each was trained once"
