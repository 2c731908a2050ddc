"""What promote finds of bundles and test images: those that were changed, are gone, or say too little."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from dusk import GATE, aliases, crown, promote, run
from gone_run import remove_for_good
from mlflow import MlflowClient
from workplace import Workplace

from graftline.bundle.ensemble import load_predictor
from graftline.bundle.golden import VALUES_FILE
from graftline.bundle.layout import CARD_FILE, FREEZE_CHECKS, GOLDEN_FOLDER, bundle_digest, hash_files
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.errors import UserError
from graftline.evaluation.metrics import format_score
from graftline.files import digest_directory, write_json
from graftline.pipeline.promote import Promote
from graftline.pipeline.promotion.examination import Examination
from graftline.tracking.names import BUNDLE_FILES
from graftline.tracking.promotions import Promotions
from graftline.tracking.tracking import Tracking


@contextmanager
def _changed(client: MlflowClient, version: str) -> Iterator[None]:
    """Let a version's bundle be another one than was logged, during the block."""
    source = Path(str(client.get_model_version("dusk", version).source).removeprefix("file://"))
    file = source / "artifacts" / "bundle" / "bundle.json"
    content = file.read_text()
    file.write_text(content.replace('"card"', '"cart"'))
    try:
        yield
    finally:
        file.write_text(content)


def test_a_bundle_that_was_changed_is_refused_on_record(place: Workplace, client: MlflowClient) -> None:
    crown(2)
    crown(1)
    with _changed(client, "2"):
        verdict = promote()
        assert not verdict.promoted
        assert "is not the bundle that was logged as models:/dusk/2: put its files back" in verdict.reasons[0]
        with pytest.raises(UserError, match=r"^Nobody can tell what would be promoted: "):
            promote("force=whatever")
        with pytest.raises(UserError, match=r"^.* is not the bundle that was logged as models:/dusk/2"):
            run("rollback", "to=2")
        assert aliases(client)["champion"] == "1"
    assert promote().promoted, "nothing was compared before, so that it is examined anew"


def test_a_champion_whose_bundle_was_changed_decides_nothing(place: Workplace, client: MlflowClient) -> None:
    crown(1)
    with _changed(client, "1"):
        with pytest.raises(UserError, match=r"is not the bundle that was logged as models:/dusk/1: put its files back"):
            promote()
        assert len(Promotions(Tracking(), "dusk").read().lines) == 1, "the challenger is not refused for it"
        with pytest.raises(UserError, match=r"is not the bundle that was logged as models:/dusk/1"):
            Promote(Tracking(), GATE, "dusk").check()
        assert promote("force=its files are lost").forced == "its files are lost"
        crown(1)
    assert promote("version=2").promoted


def test_a_training_without_a_record_of_its_freeze_check_is_refused(
    place: Workplace, client: MlflowClient, tmp_path: Path
) -> None:
    crown(1)

    def forget(bundle: Path) -> None:
        described = json.loads((bundle / CARD_FILE).read_text())
        assert described["card"].pop(FREEZE_CHECKS) == [0], "the tests' models freeze nothing"
        write_json(bundle / CARD_FILE, described)

    _register_changed(client, tmp_path, forget)
    verdict = promote("version=3")
    assert not verdict.promoted
    assert [reason for reason in verdict.reasons if reason.startswith("Its training has no record")]
    (guard,) = [guard for guard in verdict.guards if guard.name == "freeze check"]
    assert (guard.champion, guard.challenger) == ("0 frozen", "no record")


def test_a_champion_whose_run_is_gone_is_compared_all_the_same(
    place: Workplace, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `mlflow gc`, which removes what was deleted for good."""
    crown(1)
    remove_for_good(place.root / "mlflow.db", str(client.get_model_version("dusk", "1").run_id))
    verdict = promote("version=2")
    assert verdict.promoted
    assert "What version 1 was trained on is not known" in " ".join(capsys.readouterr().out.split())
    assert "which images trained version 1 is not known, so that none are left out" in verdict.compared
    assert [guard.champion for guard in verdict.guards if guard.name == "test images"] == ["unknown"]


def test_a_weighted_score_decides_where_images_have_weights(
    place: Workplace, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(1)
    version = DatasetVersion.load(Tracking().registry().dataset("models:/dusk/2"))
    weighted = version.table().assign(weight=lambda table: 1 + np.arange(len(table)) % 3)
    written = write_version(tmp_path / "weighted" / "dusk", "dusk", weighted, version.class_names)[0]
    monkeypatch.setattr(Examination, "_trained_on", lambda *_: written)
    verdict = promote("version=2", "gate.metric=accuracy_weighted")
    samples = written.samples("test")
    predictor = load_predictor(Tracking().registry().bundle("models:/dusk/2"))
    right = predictor.predict(samples.paths).argmax(axis=1) == samples.labels
    expected = format_score("accuracy_weighted", float(np.average(right, weights=samples.weights)))
    assert (verdict.guards[0].name, verdict.guards[0].challenger) == ("accuracy, weighted", expected)


def test_a_test_image_that_is_gone_or_another(place: Workplace, trained: Workplace, client: MlflowClient) -> None:
    """The last of them, too: nothing is decided."""
    version = DatasetVersion.load(Tracking().registry().dataset("models:/dusk/2"))
    paths = version.samples("test").paths
    file = Path(paths[-1])
    hidden = file.rename(trained.root / "hidden.png")
    try:
        with pytest.raises(
            UserError, match=r"^1 of the \d+ test images of version 2 are not on this machine \(first: "
        ):
            promote("version=2")
        shutil.copyfile(paths[0], file)  # of another class
        said = (
            rf"^1 of the \d+ test images of version 2 have changed since it was trained \(first: {re.escape(str(file))}"
        )
        with pytest.raises(UserError, match=said):
            promote("version=2")
    finally:
        hidden.replace(file)
    assert aliases(client) == {"challenger": "2"}
    assert Promotions(Tracking(), "dusk").read().lines == ()


def test_a_model_that_answers_its_golden_images_otherwise_is_refused(
    place: Workplace, client: MlflowClient, tmp_path: Path
) -> None:
    """As one of another machine: whole, with the digests of its files, and with answers that this machine has not."""
    crown(1)

    def answer_otherwise(bundle: Path) -> None:
        values = bundle / GOLDEN_FOLDER / VALUES_FILE
        with np.load(values) as before:
            np.savez_compressed(values, **{**before, "logits": before["logits"] + [[1.0, 0.0]]})

    _register_changed(client, tmp_path, answer_otherwise)
    verdict = promote("version=3")
    assert not verdict.promoted
    (guard,) = [guard for guard in verdict.guards if not guard.passed]
    assert (guard.name, guard.champion, guard.challenger) == ("golden images", "as saved", "differ")
    assert re.fullmatch(
        r"This machine changes a probability by 0\.\d+, more than 0\.001, and differs from the step 'network' on: all "
        r"versions are the writer's\.",
        guard.reason,
    )
    assert verdict.reasons == (guard.reason,)
    assert promote("version=3").is_new, "another machine or moment may find something else"


def test_a_model_of_other_classes_is_refused_on_record(place: Workplace, client: MlflowClient, tmp_path: Path) -> None:
    """Not a failure, which a schedule would tell of each night."""
    crown(1)

    def rename_classes(bundle: Path) -> None:
        described = json.loads((bundle / CARD_FILE).read_text())
        names = [f"other {name}" for name in described["class_names"]]
        write_json(bundle / CARD_FILE, {**described, "class_names": names})

    _register_changed(client, tmp_path, rename_classes)
    verdict = promote("version=3")
    assert verdict.line.decision.kind == "refused"
    assert verdict.line.decision.is_final
    (reason,) = verdict.reasons
    assert reason.startswith(
        "version 3 and version 1 have no classes in common, so that nothing can be compared: force"
    )


def test_a_version_without_files_cannot_be_forced(place: Workplace, client: MlflowClient, tmp_path: Path) -> None:
    crown(1)
    _register_changed(client, tmp_path, lambda _: None)
    (tmp_path / "elsewhere" / "artifacts" / "bundle" / CARD_FILE).unlink()
    with pytest.raises(UserError, match=r"^Nobody can tell what would be promoted: models:/dusk/3 has no bundle in "):
        promote("version=3", "force=whatever")
    assert aliases(client)["champion"] == "1"
    assert len(Promotions(Tracking(), "dusk").read().lines) == 1


def _register_changed(client: MlflowClient, folder: Path, change: Callable[[Path], None]) -> None:
    """Register version 2 once more as version 3, with a bundle that was changed and has the digests of its files."""
    known = client.get_model_version("dusk", "2")
    source = folder / "elsewhere"
    shutil.copytree(str(known.source).removeprefix("file://"), source)
    bundle = source / "artifacts" / "bundle"
    change(bundle)
    described = json.loads((bundle / CARD_FILE).read_text())
    files = hash_files(bundle)
    write_json(bundle / CARD_FILE, {**described, "files": files, "digest": bundle_digest(described, files)})
    tags = {**known.tags, BUNDLE_FILES: digest_directory(bundle)}
    client.create_model_version("dusk", source.as_uri(), known.run_id, tags=tags, await_creation_for=0)
