"""Two versions of a registered model, and the stages that decide on them as a user runs them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from workplace import TINY, Workplace

from conftest import paint
from graftline.evaluation.gate import Gate
from graftline.pipeline.cli import compose
from graftline.pipeline.promote import PromoteResult, Verdict
from graftline.pipeline.stage import StageResult
from graftline.tracking.ledger import ChampionDecision
from graftline.tracking.promotions import Promotions, author, now
from graftline.tracking.tracking import Tracking

COLORS = {"blue": (90, 100, 130), "red": (130, 95, 90)}
QUICK = ("gate.resamples=100", "gate.slower=null")  # no timing decides a test
GATE = Gate(resamples=100, slower=None)


@pytest.fixture(scope="session")
def trained(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """A model that has not learned anything, and then a good one."""
    place = make_workplace("promote")
    for number, (name, color) in enumerate(COLORS.items()):
        (place.root / "dusk" / name).mkdir(parents=True)
        for index in range(60):
            paint(color, 1000 * number + index).save(place.root / "dusk" / name / f"{index:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        for name, typed in (("weak", ["optim.lr=1e-9"]), ("good", ["trainer.max_epochs=6"])):
            data = ["data=folder", f"data.path={place.root}/dusk"]
            compose("train", [*TINY, *data, f"name={name}", *typed]).run(place.root / "outputs" / name)
    return place


@pytest.fixture
def place(trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A folder of its own with the two versions, whose files are shared."""
    shutil.copyfile(trained.root / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


@pytest.fixture
def client(place: Workplace) -> MlflowClient:
    return place.mlflow


def run(stage: str, *typed: str) -> StageResult:
    return compose(stage, typed).run()


def promote(*typed: str) -> Verdict:
    result = run("promote", *QUICK, *typed)
    assert isinstance(result, PromoteResult)
    return result.verdict


def crown(version: int) -> None:
    """Make a version champion without a gate."""
    promotions = Promotions(Tracking(), "dusk", Path("ledger"))
    standing = promotions.read_sound()
    made = ChampionDecision("dusk", "promoted", version, standing.champion, version, author(), now())
    promotions.finish(promotions.append(standing, made))


def aliases(client: MlflowClient) -> dict[str, str]:
    return {name: str(number) for name, number in client.get_registered_model("dusk").aliases.items()}


def decisions(client: MlflowClient) -> list[MlflowRun]:
    experiment = client.get_experiment_by_name("dusk promotions")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))
