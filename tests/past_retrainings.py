"""Images that come and go, and retrainings of which only what MLflow has of them is made."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from workplace import Workplace

from conftest import COLORS, paint
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.pipeline.retraining.situation import Situation
from graftline.pipeline.retraining.telling import failure_noted
from graftline.tracking.ledger import ChampionDecision, Kind
from graftline.tracking.names import STAGE
from graftline.tracking.promotions import Promotions, author, now
from graftline.tracking.retrainings import AFTER, KEY, MODEL, RECIPE, RETRAIN, Retrainings, decided_tags
from graftline.tracking.tracking import Tracking

NAME = "colors"


@dataclass(frozen=True)
class Past:
    """Images that come and go, and retrainings of which only what MLflow has of them is made."""

    place: Workplace

    @property
    def images(self) -> Path:
        return self.place.root / "images"

    @property
    def tracking(self) -> Tracking:
        return Tracking(uri=f"sqlite:///{self.place.root / 'mlflow.db'}", system_metrics=False)

    def paint(self, first: int, last: int) -> None:
        for number, (name, color) in enumerate(COLORS.items()):
            (self.images / name).mkdir(parents=True, exist_ok=True)
            for index in range(first, last):
                paint(color, 1000 * number + index, 16).save(self.images / name / f"{index:03}.png")

    def remove(self, first: int, last: int) -> None:
        for name in COLORS:
            for index in range(first, last):
                (self.images / name / f"{index:03}.png").unlink()

    def look(self, machine: str = "here", recipe: str = "r") -> Situation:
        """Return how things are, as a machine sees them that has a disk of its own."""
        data = Ingest(NAME, str(self.images), Folder(), Split(), directory=str(self.place.root / machine / "data"))
        return Situation(data, self.tracking, Retrainings(self.tracking.uri, NAME, NAME), recipe)

    def retrain(self, kind: Kind, recipe: str = "r", tags: Mapping[str, str] | None = None) -> int:
        """Decide on the images of now, and return the number of the version that was made of them.

        Args:
            kind: what is decided.
            recipe: what it depends on beside the images.
            tags: of the run, where it is none of a retraining.
        """
        seen = self.look(recipe=recipe)
        directory = self.place.root / "outputs" / seen.key
        own = {STAGE: RETRAIN, MODEL: NAME, KEY: seen.key}
        tags = own if tags is None else tags
        run = self.tracking.start(run_name="", experiment=NAME, directory=directory, tags=tags)
        with run:
            run.log_dataset(seen.version)
            run.settle()
            number = self._register(run.id)
            self.decide(kind, number)
            if tags is own:
                run.set_tags(decided_tags(kind, number, seen.last))
        return number

    def begin(self, error: BaseException, *, trains: bool = True) -> str:
        """Begin a retraining of the images of now that ends with an error; returns the digest of their version.

        Args:
            error: which.
            trains: whether it is one of the training.
        """
        seen = self.look()
        tags = {STAGE: RETRAIN, MODEL: NAME, KEY: seen.key, RECIPE: "r", AFTER: seen.after}
        directory = self.place.root / "outputs" / f"begun-{seen.key}"
        run = self.tracking.start(run_name="", experiment=NAME, directory=directory, tags=tags)
        with suppress(type(error)), run:
            run.log_dataset(seen.version)
            with failure_noted(run) if trains else nullcontext():
                raise error
        return seen.version.digest

    def _register(self, run_id: str) -> int:
        client = self.place.mlflow
        if not client.search_registered_models(f"name = '{NAME}'"):
            client.create_registered_model(NAME)
        source = str(client.get_run(run_id).info.artifact_uri)
        return int(client.create_model_version(NAME, source, run_id, await_creation_for=0).version)

    def decide(self, kind: Kind, number: int) -> None:
        """Write into the ledger what becomes of a version, and move the alias."""
        promotions = Promotions(self.tracking, NAME)
        standing = promotions.read_sound()
        champion = standing.champion
        after = champion if kind == "refused" else number
        decision = ChampionDecision(NAME, kind, number, champion, after, author(), now(), compared_with=champion)
        images = {"dataset": self.look().version.digest}
        line = promotions.append(standing, replace(decision, digests=images))
        promotions.finish(line)


@pytest.fixture
def past(workplace: Workplace) -> Past:
    past = Past(workplace)
    past.paint(0, 12)
    return past
