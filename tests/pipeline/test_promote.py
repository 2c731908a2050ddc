"""Promote, history and rollback as a user runs them: what is decided and kept, and what becomes of a killed one."""

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
from dying import die_at
from full_disk import files_up_to
from manifest import manifest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow_server import Server
from sqlalchemy import text
from warm_process import WarmProcess
from workplace import TINY, Workplace

from conftest import paint
from graftline.data.version import DatasetVersion, write_version
from graftline.errors import UserError
from graftline.evaluation.gate import Gate
from graftline.pipeline import examination
from graftline.pipeline import promote as promote_module
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli import compose
from graftline.pipeline.examination import Examination, Examined
from graftline.pipeline.promote import Promote, PromoteResult, Verdict
from graftline.pipeline.stage import StageResult
from graftline.tracking import run as run_module
from graftline.tracking.client import connect
from graftline.tracking.ledger import Decision, find_break
from graftline.tracking.names import BUNDLE_DIGEST, DATASET_DIGEST, TEST_DIGEST
from graftline.tracking.promotions import OvertakenError, Promotions, author, now
from graftline.tracking.tracking import Tracking

COLORS = {"blue": (90, 100, 130), "red": (130, 95, 90)}
QUICK = ("gate.resamples=100", "gate.slower=null")  # no timing decides a test
GATE = Gate(resamples=100, slower=None)


@pytest.fixture(scope="module")
def trained(make_workplace: Callable[[str], Workplace]) -> Iterator[Workplace]:
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
        yield place


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
    made = Decision("dusk", "promoted", version, standing.champion, version, author(), now())
    promotions.finish(promotions.append(standing, made))


def aliases(client: MlflowClient) -> dict[str, str]:
    return {name: str(number) for name, number in client.get_registered_model("dusk").aliases.items()}


def decisions(client: MlflowClient) -> list[MlflowRun]:
    experiment = client.get_experiment_by_name("dusk promotions")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_story(place: Workplace, client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    weak = promote("version=1")
    assert (weak.promoted, weak.first, weak.champion) == (False, True, None)
    assert weak.reasons[0].startswith("It is not shown to be better than class frequencies: the log loss differs by ")
    assert aliases(client) == {"challenger": "1"}
    good = promote()
    assert (good.promoted, good.first, good.challenger, good.line.number) == (True, True, 2, 2)
    assert aliases(client) == {"champion": "2"}
    again = promote()
    assert (again.promoted, again.is_new, again.line) == (True, False, good.line)

    refused = promote("version=1")
    printed = capsys.readouterr().out
    assert "dusk: version 1 against version 2" in printed
    assert "FAILS" in printed
    assert (refused.promoted, refused.champion) == (False, 2)
    assert any("The accuracy is surely worse" in reason for reason in refused.reasons)
    same = promote("version=1")
    assert (same.line, same.is_new) == (refused.line, False), "it would be the same"
    assert promote("version=1", "gate.margin=0.2").is_new

    forced = promote("version=1", "force=a new camera")
    assert (forced.promoted, forced.forced) == (True, "a new camera")
    assert aliases(client) == {"champion": "1", "previous": "2"}
    back = run("rollback", "reason=misses dark cells")
    assert back.facts["version"] == 2
    assert aliases(client)["champion"] == "2"
    last = promote("version=1")
    assert last.reasons[-1].endswith("was rolled back (line 6 of the ledger): misses dark cells")

    history = run("history")
    assert history.facts["lines"] == 7
    told = capsys.readouterr().out
    assert "forced: a new camera" in told
    assert "The chain holds: 7 lines" in told
    folder = sorted((place.root / "outputs" / "history").iterdir())[-1]
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == 7

    runs = decisions(client)
    stages = sorted(one.data.tags["graftline.stage"] for one in runs)
    assert stages == ["ledger", *["promote"] * 6, "rollback"], "each decision has a run of its own, refusals too"
    assert {one.info.status for one in runs} == {"FINISHED"}
    (refusal,) = [one for one in runs if one.info.run_id == refused.line.decision.run_id]
    files = {item.path for item in client.list_artifacts(refusal.info.run_id)}
    assert {"verdict.json", "flips.csv", "flips.png", "config.yaml"} <= files
    assert refusal.data.tags["graftline.ledger_line"] == "3"
    assert "| log loss |" in refusal.data.tags["mlflow.note.content"]
    assert client.get_model_version("dusk", "1").tags["graftline.decision"] == "refused (line 7)"


def test_what_a_version_carries(place: Workplace, client: MlflowClient, trained: Workplace) -> None:
    tags = client.get_model_version("dusk", "2").tags
    card = json.loads((trained.root / "outputs" / "good" / "bundle" / "bundle.json").read_text())
    assert tags[BUNDLE_DIGEST] == card["digest"]
    notes = card["card"]
    assert (tags[DATASET_DIGEST], tags[TEST_DIGEST]) == (notes["dataset_digest"], notes["test_digest"])
    accuracy = notes["metrics"]["accuracy"]
    assert tags["graftline.scores"].startswith(
        f"accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}], "
    )
    assert len(tags["mlflow.source.git.commit"]) in (7, 40)


def test_the_champion_is_a_bundle_wherever_one_is_asked_for(
    place: Workplace, trained: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(2)
    crown(1)
    champion, images = "models:/dusk@champion", trained.root / "dusk"
    digest = Promotions(Tracking(), "dusk").read().version(1).tags[BUNDLE_DIGEST]
    assert run("verify", f"bundle={champion}").facts["bundle"] == champion
    assert run("predict", f"bundle={champion}", f"images={images / 'red'}").facts["bundle_digest"] == digest
    data = ["data=folder", f"data.path={images}", "evaluation.resamples=100"]
    evaluated = run("evaluate", f"bundle={champion}", *data)
    assert evaluated.facts["bundle"] == champion
    typed = [*TINY, *data, f"runs=[{champion},models:/dusk@previous]", "choose=all", "tracking.register=false"]
    assert list(run("ensemble", *typed).facts["shares"]) == [0.5, 0.5]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root}/mlflow.db")
    served = mlflow.pyfunc.load_model(champion)  # what `mlflow models serve` does first
    assert served.metadata.model_id in str(Promotions(Tracking(), "dusk").read().version(1).source)


@pytest.mark.parametrize(
    ("where", "when", "is_decided"),
    [
        ("graftline.pipeline.examination:Examination._contestant", "after", False),
        ("graftline.tracking.promotions:Promotions.append", "before", False),
        ("graftline.tracking.promotions:Promotions.append", "after", True),
        ("mlflow.tracking.client:MlflowClient.set_registered_model_alias", "after 2", True),  # after that of "previous"
    ],
)
def test_a_gate_that_is_killed_leaves_the_champion_and_finishes_when_run_again(
    place: Workplace, client: MlflowClient, where: str, when: str, is_decided: bool
) -> None:
    crown(1)
    typed = ["promote", *QUICK, "version=2"]
    process = WarmProcess(partial(die_at, where, when, typed), place.root, place.environment(), place.root / "out.txt")
    assert process.wait(200) == -signal.SIGKILL, process.output
    assert aliases(client)["champion"] == "1", "the old champion stays"
    assert find_break(Promotions(Tracking(), "dusk").read().lines) is None

    verdict = promote("version=2")
    assert verdict.promoted
    assert verdict.is_new is not is_decided
    assert aliases(client) == {"champion": "2", "previous": "1"}
    standing = Promotions(Tracking(), "dusk").read()
    assert [line.decision.kind for line in standing.lines] == ["promoted", "promoted"], "nothing twice"
    runs = decisions(client)
    assert "RUNNING" not in {one.info.status for one in runs}, "the dead one is marked"


@pytest.mark.parametrize(
    ("method", "when"), [("append", "after"), ("_move", "after"), ("tag", "before"), ("end", "before")]
)
def test_a_rollback_that_is_killed_goes_back_once_when_run_again(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    add_version(client)
    for version in (1, 2, 3):
        crown(version)
    original = getattr(Promotions, method)

    def dying(*arguments: object) -> None:
        if when == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Promotions, method, dying)
        with pytest.raises(KeyboardInterrupt):
            run("rollback", "reason=misses dark cells")
    again = run("rollback", "reason=misses dark cells")
    assert (again.facts["version"], again.facts["before"], again.facts["line"]) == (2, 3, 4)
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert client.get_model_version("dusk", "2").tags["graftline.decision"] == "rolled back (line 4)"
    with pytest.raises(UserError, match=r"^Version 2 of dusk is the champion already\.$"):
        run("rollback", "to=2")
    assert run("rollback").facts["version"] == 1, "once more is a decision of its own"
    assert aliases(client) == {"champion": "1"}


def add_version(client: MlflowClient) -> None:
    """Register version 2 once more, as version 3."""
    known = client.get_model_version("dusk", "2")
    client.create_model_version("dusk", str(known.source), known.run_id, tags=known.tags, await_creation_for=0)


def test_a_rollback_to_another_version_is_another_one(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(client)
    for version in (1, 2, 3):
        crown(version)
    with monkeypatch.context() as patch:
        patch.setattr(Promotions, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("rollback")
    assert aliases(client)["champion"] == "3"
    assert run("rollback", "to=1").facts["line"] == 5
    assert aliases(client) == {"champion": "1"}


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once_one_wins_and_the_other_is_told(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine = Examination.run

    def overtaken(self: Examination) -> Examined:
        examined = examine(self)
        if "rival" not in done:
            done.append("rival")
            done.append(Promote(Tracking(), GATE, "dusk", 2).decide(place.root / "rival"))
        return examined

    done: list[object] = []
    monkeypatch.setattr(Examination, "run", overtaken)
    with pytest.raises(
        OvertakenError, match=r"^The champion of dusk or this version was decided on meanwhile \(promoted "
    ):
        Promote(Tracking(), GATE, "dusk", 1, force="so").decide(place.root / "ours")
    assert isinstance(done[1], Verdict)
    assert aliases(client)["champion"] == "2"
    assert len(Promotions(Tracking(), "dusk").read().lines) == 1


def test_a_refusal_that_comes_between_changes_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    examine = Examination.run

    def beside(self: Examination) -> Examined:
        examined = examine(self)
        if self.challenger.version == 2:
            Promote(Tracking(), GATE, "dusk", 1).decide(place.root / "beside")
        return examined

    monkeypatch.setattr(Examination, "run", beside)
    verdict = Promote(Tracking(), GATE, "dusk", 2).decide(place.root / "ours")
    assert (verdict.promoted, verdict.line.number) == (True, 2)


def test_a_bundle_that_was_changed_is_refused_on_record(place: Workplace, client: MlflowClient) -> None:
    crown(1)
    source = Path(str(client.get_model_version("dusk", "2").source).removeprefix("file://"))
    file = source / "artifacts" / "bundle" / "bundle.json"
    content = file.read_text()
    try:
        file.write_text(content.replace('"card"', '"cart"'))
        verdict = promote()
        assert not verdict.promoted
        assert "is not the bundle that was logged as models:/dusk/2: put its files back" in verdict.reasons[0]
        with pytest.raises(UserError, match=r"^Nobody can tell what would be promoted: "):
            promote("force=whatever")
        with pytest.raises(UserError, match=r"^.* is not the bundle that was logged as models:/dusk/2"):
            run("rollback", "to=2")
        assert aliases(client)["champion"] == "1"
    finally:
        file.write_text(content)
    assert promote().promoted, "nothing was compared before, so that it is examined anew"


def test_a_refusal_whose_figures_were_cut_is_known(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(2)
    whole = promote("version=1", "gate.margin=0.2").line
    monkeypatch.setattr("graftline.tracking.promotions.MOST_LETTERS", len(whole.text) - 100)
    refused = promote("version=1")
    assert refused.line.decision.figures is None
    assert promote("version=1").line == refused.line


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fail: Callable[[], None]) -> None:
    """Let something happen after the next call of a function, and never again."""
    original = getattr(owner, name)

    def failing(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(owner, name, original)
        result = original(*arguments, **named)
        fail()
        return result

    monkeypatch.setattr(owner, name, failing)


def fail_to_promote(capsys: pytest.CaptureFixture[str], *typed: str) -> str:
    """Run the stage on the command line, which ends with 1 and one sentence; returns the sentence."""
    capsys.readouterr()
    assert main(["promote", *QUICK, "version=2", *typed]) == 1
    output = capsys.readouterr().out
    assert "raceback" not in output
    return output.strip().splitlines()[-1]


def test_a_server_that_goes_away_in_the_middle_of_a_gate(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the line is written nothing is decided, after it everything; run again, it goes on from there."""
    monkeypatch.setitem(run_module._END_SECONDS, "FAILED", 0.5)
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", place.root / "mlflow.db")
    promotions, at = Promotions(Tracking(uri=server.uri), "dusk"), f"tracking.uri={server.uri}"
    try:
        server.start()
        fails_once(monkeypatch, Examination, "run", server.kill)
        assert f"The tracking server {server.uri} does not answer" in fail_to_promote(capsys, at)
        server.start()
        standing = promotions.read()
        assert (standing.lines, standing.champion) == ((), None)

        fails_once(monkeypatch, Promotions, "append", server.kill)
        assert f"The tracking server {server.uri} does not answer" in fail_to_promote(capsys, at)
        server.start()
        standing = promotions.read()
        assert standing.champion is None
        assert standing.interrupted == standing.lines[0]
        assert not promote("version=2", at).is_new
        assert promotions.read().champion == 2
        assert {one.info.status for one in decisions(connect(server.uri))} == {"FINISHED", "FAILED"}
    finally:
        server.kill()


def test_a_database_that_is_locked_in_the_middle_of_a_gate(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(place.root / "mlflow.db", isolation_level=None)) as database:
        sooner = "mlflow.store.db.utils.sql.text"  # MLflow waits for 20 s at each question
        monkeypatch.setattr(sooner, lambda statement: text(statement.replace("20000", "200")))
        fails_once(monkeypatch, Examination, "run", lambda: database.execute("BEGIN EXCLUSIVE") and None)
        told = fail_to_promote(capsys)
        assert told.startswith("The tracking database ")
        assert "locked" in told
    assert aliases(client) == {"challenger": "2"}
    assert promote("version=2").line.number == 1


def test_a_disk_that_is_full_when_the_verdict_is_written(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = promote_module.write_json

    def to_full_disk(file: Path, content: object) -> None:
        with files_up_to(1000):
            write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(promote_module, "write_json", to_full_disk)
        assert "verdict.json cannot be written (File too large): make room on the disk" in fail_to_promote(capsys)
    assert Promotions(Tracking(), "dusk").read().lines == ()
    assert aliases(client) == {"challenger": "2"}
    assert {one.info.status for one in decisions(client)} == {"FINISHED", "FAILED"}
    assert promote("version=2").line.number == 1


def test_a_clock_that_was_moved_back(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order is that of the lines: also for what is rolled back, and for who is told of it."""
    crown(1)
    crown(2)
    monkeypatch.setattr("graftline.pipeline.rollback.now", lambda: "1999-01-01T00:00:00+00:00")
    assert run("rollback").facts["version"] == 1
    assert run("history").facts["champion"] == 1
    told = capsys.readouterr().out
    assert "The chain holds: 3 lines" in told
    assert "1999-01-01 00:00" in told
    refused = promote("version=2")
    assert refused.reasons[-1].startswith("Version 2 was champion and was rolled back (line 3 of the ledger)")


@pytest.mark.parametrize(
    ("stage", "typed", "said"),
    [
        (
            "promote",
            ["tracking.uri=http://127.0.0.1:9"],
            r"^The tracking server .* does not answer \(connection refused",
        ),
        (
            "rollback",
            ["tracking.uri=http://127.0.0.1:9"],
            r"^The tracking server .* does not answer \(connection refused",
        ),
        ("promote", ["model=cats"], r"^There is no registered model 'cats': there is dusk\.$"),
        ("promote", ["version=7"], r"^The registered model 'dusk' has no version 7: there are 1, 2\.$"),
        ("promote", ["force=' '"], r"^force is empty: give the reason, which the ledger keeps\.$"),
        ("promote", [f"force={'ж' * 1001}"], r"^force has 1,001 characters, the ledger has room for 1,000: give a sho"),
        ("rollback", [f"reason={'ж' * 1001}"], r"^reason has 1,001 characters, the ledger has room for 1,000: give a "),
        ("promote", ["gate.resamples=5"], r"^gate.resamples is 5, too few for a 95 % interval: use at least 100"),
        ("rollback", [], r"^dusk has no champion before this that is still registered: give a version as to\.$"),
        ("history", [], r"^Nothing was decided on dusk yet: `graftline promote model=dusk` does\.$"),
    ],
)
def test_what_cannot_be_is_one_sentence(place: Workplace, stage: str, typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(stage, *typed)


def test_a_history_that_was_changed_is_shown_and_told(
    place: Workplace, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    crown(1)
    crown(2)
    client.set_registered_model_alias("dusk", "champion", "1")
    run("history")
    assert "! The alias 'champion' was set to version 1 by hand: the next promote" in capsys.readouterr().out
    copy = next(Path("ledger").iterdir())
    copy.write_text(copy.read_text().replace("promoted", "forced"))
    with pytest.raises(
        UserError, match=r"^Line 1 of the ledger is another now, which this machine has seen .*\.jsonl\.$"
    ):
        run("history")
    assert "Champions of dusk" in capsys.readouterr().out


def versions(tmp_path: Path, *tables: pd.DataFrame) -> list[DatasetVersion]:
    return [
        write_version(tmp_path / str(number) / "pets", "pets", table, ("cat", "dog"))[0]
        for number, table in enumerate(tables)
    ]


def test_test_images_that_are_gone_or_relabeled(tmp_path: Path) -> None:
    table = manifest(["cat", "dog"] * 15, ["train"] * 10 + ["test"] * 20)
    shuffled = table.assign(label=["cat", "dog"] * 5 + ["dog", "cat"] * 10)
    fewer = table.iloc[:19]
    more = pd.concat([table, table.assign(sha256=lambda rows: "a" + rows["sha256"].str[1:], path=table["path"] + "x")])
    before, same, other, gone, grown = versions(tmp_path, table, table, shuffled, fewer, more)
    assert examination._same_test(before, same, 0.1)[0].passed
    assert examination._same_test(before, grown, 0.1)[0].passed
    (guard,) = examination._same_test(before, other, 0.1)
    assert guard.reason.startswith(
        "Of the 20 images that tested the champion 0 are gone and 20 have another label, 100"
    )
    (guard,) = examination._same_test(before, gone, 0.1)
    assert guard.difference == "11 gone, 0 relabeled"
    assert not guard.passed
    assert examination._same_test(None, gone, 0.1) == []
    moved = replace(before)
    assert examination._seen(moved, ["0" * 63 + "1", f"{15:064x}"]).tolist() == [True, False]
