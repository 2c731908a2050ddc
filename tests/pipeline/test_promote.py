"""Promote, history and rollback as a user runs them: what is decided and kept."""

import json
import shutil
from pathlib import Path

import mlflow.pyfunc
import pytest
from dusk import GATE, QUICK, aliases, crown, decisions, promote, run
from mlflow import MlflowClient
from workplace import TINY, Workplace

from graftline.errors import UserError
from graftline.pipeline.bundles.source import find_source
from graftline.pipeline.cli import compose
from graftline.pipeline.promote import Promote, Verdict
from graftline.pipeline.promotion.examination import Examination, Examined
from graftline.tracking.names import BUNDLE_DIGEST, DATASET_DIGEST, TEST_DIGEST
from graftline.tracking.promotions import OvertakenError, Promotions
from graftline.tracking.tracking import Tracking


def test_a_story(
    place: Workplace, client: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    client.delete_model_version_tag("dusk", "1", "graftline.decision")  # as where the gate is killed before it
    same = promote("version=1")
    assert client.get_model_version("dusk", "1").tags["graftline.decision"] == f"refused (line {refused.line.number})"
    assert (same.line, same.is_new) == (refused.line, False), "it would be the same"
    assert promote("version=1", "gate.margin=0.2").is_new
    gate, standing = compose("promote", [*QUICK, "gate.margin=0.2"]).stage, Promotions(Tracking(), "dusk").read()
    assert isinstance(gate, Promote)
    assert gate._known(standing, standing.version(1)) is not None
    with monkeypatch.context() as patch:
        patch.setattr("graftline.pipeline.promote.code_digest", lambda _: "of a later graftline")
        assert gate._known(standing, standing.version(1)) is None

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
    verified, uri = run("verify", f"bundle={champion}"), "models:/dusk/1"
    assert (verified.facts["bundle"], verified.facts["model_uri"]) == (champion, uri)
    predicted = run("predict", f"model={champion}", f"images={images / 'red'}")
    assert (predicted.facts["bundle_digest"], predicted.facts["model_uri"]) == (digest, uri)
    data = ["data=folder", f"data.path={images}", "evaluation.resamples=100"]
    evaluated = run("evaluate", f"bundle={champion}", *data)
    assert (evaluated.facts["bundle"], evaluated.facts["model_uri"]) == (champion, uri)
    typed = [*TINY, *data, f"runs=[{champion},models:/dusk@previous]", "choose=all", "tracking.register=false"]
    assert list(run("ensemble", *typed).facts["shares"]) == [0.5, 0.5]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root}/mlflow.db")
    exported = run("export", f"model={champion}", "format=mlflow")
    assert (exported.facts["bundle_digest"], exported.facts["model_uri"]) == (digest, uri)
    source = find_source(champion, Tracking())  # as make serve takes it
    assert (source.find().uri, source.moves) == (uri, True)
    served = mlflow.pyfunc.load_model(champion)  # what `mlflow models serve` does first
    assert served.metadata.model_id in str(Promotions(Tracking(), "dusk").read().version(1).source)


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


def test_a_rollback_leads_to_no_version_that_never_was_champion(place: Workplace, client: MlflowClient) -> None:
    crown(1)
    with pytest.raises(
        UserError, match=r"^Version 2 of dusk never was champion, .* promote model=dusk version=2` asks"
    ):
        run("rollback", "to=2")
    assert aliases(client) == {"champion": "1"}


def test_a_model_made_anew_is_decided_on_anew_and_never_compared_with_itself(
    place: Workplace, client: MlflowClient
) -> None:
    assert not promote("version=1").promoted
    good = client.get_model_version("dusk", "2")
    client.delete_registered_model("dusk")
    client.create_registered_model("dusk")
    client.create_model_version("dusk", str(good.source), good.run_id, tags=good.tags, await_creation_for=0)
    assert promote("version=1").promoted, "another one of that number was refused"
    client.delete_registered_model_alias("dusk", "champion")
    again = promote("version=1")
    assert (again.is_new, again.first) == (True, True)


@pytest.mark.long
def test_a_refusal_whose_figures_were_cut_is_known(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(2)
    whole = promote("version=1", "gate.margin=0.2").line
    monkeypatch.setattr("graftline.tracking.promotions.MOST_LETTERS", len(whole.text) - 100)
    refused = promote("version=1")
    assert refused.line.decision.figures is None
    assert promote("version=1").line == refused.line


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
        ("promote", [f"force={chr(1) * 999}"], r"^force has many characters that cannot be printed, which take six"),
        (
            "promote",
            ["gate.metric=accuracy_weighted"],
            r"^gate\.metric is accuracy_weighted, but the test images have no weights: take another metric, or give",
        ),
        ("promote", ["gate.resamples=5"], r"^gate.resamples is 5, too few for a 95 % interval: use at least 100"),
        ("rollback", [], r"^dusk has no champion before this that is still registered: give a version as to\.$"),
        ("history", [], r"^Nothing was decided on dusk yet: `graftline promote model=dusk` does\.$"),
    ],
)
def test_what_cannot_be_is_one_sentence(place: Workplace, stage: str, typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(stage, *typed)


def test_a_database_that_was_made_anew_is_told_before_a_model_is_trained(
    place: Workplace, empty_database: Path
) -> None:
    """The gate decides nothing there until the copy of the ledger is moved away."""
    crown(1)
    shutil.copyfile(empty_database, place.root / "mlflow.db")
    check = Promote(Tracking(), GATE, "dusk").check
    with pytest.raises(UserError, match=r"^Line 1 of the ledger is gone, .*: if the tracking database was made anew"):
        check()
    shutil.rmtree("ledger")
    check()


def test_a_history_that_was_changed_is_shown_and_told(
    place: Workplace, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    crown(1)
    crown(2)
    client.set_registered_model_alias("dusk", "champion", "1")
    run("history")
    assert "! The alias 'champion' was set to version 1 by hand. The next promote" in capsys.readouterr().out
    client.delete_model_version("dusk", "2")
    run("history")
    assert "! Version 2 was deleted from the registry. The next promote" in capsys.readouterr().out
    copy = next(Path("ledger").iterdir())
    copy.write_text(copy.read_text().replace("promoted", "forced"))
    with pytest.raises(
        UserError, match=r"^Line 1 of the ledger is another now, which this machine has seen .*\.jsonl\.$"
    ):
        run("history")
    assert "Champions of dusk" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^Line 1 of the ledger is another now, .* Nothing is decided on such"):
        Promote(Tracking(), GATE, "dusk").check()
    Promote(Tracking(), GATE, "cats").check()  # which has no version yet
