"""Stages that are composed and run from Python, several in one process, as a stage that calls stages does it."""

import errno
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from workplace import TINY, Workplace

from graftline.console import console, logged, say
from graftline.errors import UserError
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli import compose, compose_all
from graftline.pipeline.cli.errors import report_error
from graftline.pipeline.rollback import Rollback
from graftline.pipeline.stage import StageResult
from graftline.pipeline.sync import Sync

TRAIN = (*TINY, "trainer.max_epochs=1", "tracking.register=false")


@pytest.fixture
def data(color_folder: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides for a folder of images, in a working directory of its own."""
    monkeypatch.chdir(workplace.root)
    return ["data=folder", f"data.path={color_folder}"]


def test_three_stages_in_one_process(data: list[str], tmp_path: Path) -> None:
    arguments = list(sys.argv)
    results: dict[str, StageResult] = {}
    for stage, overrides in (("ingest", data), ("train", [*data, *TRAIN])):
        results[stage] = compose(stage, overrides).run(tmp_path / stage)
    bundle = f"bundle={tmp_path / 'train' / 'bundle'}"
    evaluate = compose("evaluate", [*data, bundle, "evaluation.resamples=100"])
    results["evaluate"] = evaluate.run()

    assert all(isinstance(result, StageResult) for result in results.values())
    assert len({result.facts["dataset_digest"] for result in results.values()}) == 1
    assert results["evaluate"].metrics == results["train"].metrics
    assert sys.argv == arguments
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()

    assert evaluate.directory.parent == tmp_path / "outputs" / "evaluate"
    directories = {"ingest": tmp_path / "ingest", "train": tmp_path / "train", "evaluate": evaluate.directory}
    for stage, directory in directories.items():
        log = (directory / "log.txt").read_text()
        assert log.strip().endswith(str(directory))
        done = [line for line in log.splitlines() if ": done in " in line]
        assert [line.partition(":")[0] for line in done] == [stage], "its own lines only"
        assert set(data) <= set(yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text()))
        stored = OmegaConf.load(directory / ".hydra" / "config.yaml")
        assert stored._target_.startswith("graftline.pipeline.")
        assert "hydra" not in stored


@pytest.mark.long
def test_a_program_of_ones_own_trains_in_two_processes(data: list[str], workplace: Workplace) -> None:
    """Lightning starts the program again for the second process, which must not do all of it a second time."""
    overrides = [*data, *(line for line in TRAIN if not line.startswith("trainer=")), "trainer=ddp_cpu"]
    program = workplace.root / "program.py"
    program.write_text(
        "from graftline.pipeline.cli import compose\n"
        f"compose('ingest', {data}).run()\n"
        f"print('epochs', compose('train', {overrides}).run().facts['epochs'])\n"
    )
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=workplace.root,
        env=workplace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ingest: done") == done.stdout.count("train: done") == done.stdout.count("epochs 1") == 1
    assert len(list(workplace.root.glob("outputs/train/*"))) == 1


def test_a_stage_in_the_middle_of_another_keeps_its_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outer, inner = compose("cache"), compose("cache")

    class Outer:
        def run(self, _directory: Path) -> StageResult:
            say("before")
            inner.run(tmp_path / "inner")
            say("after")
            return StageResult()

    object.__setattr__(outer, "stage", Outer())
    say("of nobody's")
    outer.run(tmp_path / "outer")
    lines = (tmp_path / "outer" / "log.txt").read_text().splitlines()
    assert [line for line in lines if line] == ["before", "after", "cache: done in 0 s", str(tmp_path / "outer")]
    written = [*(tmp_path / "outer" / ".hydra").glob("*.yaml")]
    assert [file.stat().st_mode & 0o777 for file in written] == [0o600, 0o600], "an address may hold a password"
    inner_log = (tmp_path / "inner" / "log.txt").read_text()
    assert "No activations" in inner_log
    assert "before" not in inner_log


def test_a_directory_in_use_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outer = compose("cache", ["hydra.run.dir=shared"])

    def contents(directory: Path) -> dict[Path, bytes]:
        """Return all but the log, which has what this process prints, whichever run it is about."""
        files = [file for file in directory.rglob("*") if file.is_file() and file.name != "log.txt"]
        return {file: file.read_bytes() for file in files}

    class Outer:
        def run(self, directory: Path) -> StageResult:
            say("before")
            before, log = contents(directory), (directory / "log.txt").read_bytes()
            assert main(["cache", "hydra.run.dir=shared", "days=7"]) == 1
            assert "is still going" in capsys.readouterr().out
            assert contents(directory) == before
            assert (directory / "log.txt").read_bytes().startswith(log)
            assert b"before" in log
            return StageResult()

    object.__setattr__(outer, "stage", Outer())
    outer.run()
    assert sorted(file.name for file in tmp_path.rglob("*.*") if file.is_file()) == [
        "config.yaml",
        "log.txt",
        "overrides.yaml",
        "result.json",
    ]
    assert not list(tmp_path.rglob("lock"))
    (tmp_path / "shared" / ".hydra" / "lock").touch()  # of a run that was killed
    assert main(["cache", "hydra.run.dir=shared", "days=7"]) == 0
    assert "days: 7" in (tmp_path / "shared" / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "typed",
    [
        ["cache", "hydra.run.dir=file"],
        ["cache", "hydra.run.dir=file", "days=1,2"],
        ["ingest", "data.directory=file"],
        ["train", "features.directory=file", "freeze=all_but_head"],
        ["audit", "features.directory=file"],
        ["train", "freeze=none", "tracking.uri=sqlite:///folder"],
    ],
)
def test_where_nothing_can_be_written_is_told_before_images_are_read(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    assert main(typed) == 1
    told = " ".join(capsys.readouterr().out.split())
    key, _, value = typed[-1 if "tracking" in typed[-1] else 1].partition("=")
    assert f"{key} is " in told
    assert f"{value}, a folder: give the file of a database in it" in told or "file is no folder: move it away" in told
    assert "Checking images" not in told
    assert "failed" not in told


def test_one_stage_has_one_value_for_each_key() -> None:
    with pytest.raises(UserError, match="ask for 6 runs"):
        compose("train", ["seed=0,1", "freeze=none,auto,gradual"])
    composed = compose_all("train", ["seed=0,1", "freeze=none,auto"])
    assert [one.overrides for one in composed] == [
        ["freeze=none", "seed=0"],
        ["freeze=none", "seed=1"],
        ["freeze=auto", "seed=0"],
        ["freeze=auto", "seed=1"],
    ]
    assert [one.directory.name for one in composed] == ["0", "1", "2", "3"]
    assert len({one.directory.parent for one in composed}) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        *("a, b", "misses cracks, since Monday", "it's worse, and slower", "cameras (old), new", "a=b, c: d"),
        *("größer, später", "1, 2", "choice(a,b)", "null, or so", "costs $5, not 3"),
    ],
)
def test_a_comma_is_part_of_a_sentence(sentence: str) -> None:
    (rollback,) = compose_all("rollback", [f"reason={sentence}"])
    assert isinstance(rollback.stage, Rollback)
    assert rollback.stage.reason == sentence
    (promote,) = compose_all("promote", [f"force={sentence}"])
    assert promote.config.force == sentence
    (retrain,) = compose_all(
        "retrain", ["data=folder", "data.path=photos", f"command={sentence}", f"license={sentence}"]
    )
    assert (retrain.config.notify.command, retrain.config.data.license) == (sentence, sentence)
    assert compose("rollback", rollback.overrides).config == rollback.config, "as it is stored"


def test_a_sentence_may_be_quoted_or_none() -> None:
    reasons = [compose("rollback", [f"reason={typed}"]).config.reason for typed in ("'a, b'", '"a, b"', "null", "3")]
    assert reasons == ["a, b", "a, b", None, "3"]


@pytest.mark.parametrize(("stage", "key"), [("promote", "version"), ("rollback", "to")])
def test_a_champion_is_decided_on_once_per_command(stage: str, key: str) -> None:
    with pytest.raises(UserError, match=f"^These overrides ask for 2 runs of {stage}, of which each would replace"):
        compose_all(stage, [f"{key}=2,3"])


@pytest.mark.parametrize("stage", ["", "trian", "freeze/none"])
def test_what_is_no_stage_is_told_the_stages(stage: str) -> None:
    with pytest.raises(UserError, match=r"is not a stage: take one of audit, .*, cache, .*, train, verify"):
        compose(stage)


def test_values_that_do_not_go_together_are_found_before_the_first_run() -> None:
    with pytest.raises(UserError, match=r"^train\.batch_size must be even"):
        compose_all("train", ["train.mixup_alpha=0.2", "train.batch_size=16,15"])


@pytest.mark.parametrize(
    ("stage", "typed", "said"),
    [
        ("cache", "days=-1", r"^days is -1(\.0)?, but must be at least 0\.$"),
        ("cache", "days=nan", r"^days is nan, but must be at least 0\.$"),
        ("learning-curve", "seeds=1", r"^seeds is 1, but it takes \d+ to see how parts differ\.$"),
        ("learning-curve", "resamples=99", r"^resamples is 99, too few for a 95 % interval: use at least 100"),
    ],
)
def test_a_number_that_a_stage_cannot_use_is_told_as_its_key(stage: str, typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(stage, [typed])


def test_the_output_directory_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("cache", ["hydra.run.dir=here"]).directory == tmp_path / "here"
    for typed in (["hydra.sweep.dir=there"], ["hydra.run.dir=there"], ["hydra.run.dir=here", "hydra.sweep.dir=there"]):
        several = compose_all("cache", [*typed, "days=1,2"])
        assert [one.directory for one in several] == [tmp_path / "there" / "0", tmp_path / "there" / "1"]


def test_hydra_of_whoever_calls_is_left_alone() -> None:
    from hydra import initialize_config_dir

    from graftline.pipeline.cli.hydra_conf import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        compose("cache")
        assert GlobalHydra.instance().hydra is mine
    assert not GlobalHydra.instance().is_initialized()


def test_a_stage_is_what_its_configuration_says() -> None:
    stage = compose("sync", ["run_id=abc", "uri=sqlite:///other.db"]).stage
    assert isinstance(stage, Sync)
    assert (stage.run_id, stage.tracking.uri) == ("abc", "sqlite:///other.db")


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    group = tmp_path / "group"
    assert main(["cache", "days=1,2", "hydra.sweep.dir=group"]) == 0
    earlier = (group / "0" / "log.txt").read_text()
    assert earlier
    assert main(["cache", "clear=nothing,all", "hydra.sweep.dir=group"]) == 1
    assert not (group / "0" / "result.json").exists(), "nor that of the earlier run"
    assert (group / "1" / "result.json").exists()
    log = (group / "0" / "log.txt").read_text()
    assert log.startswith(earlier)
    assert log.removeprefix(earlier).startswith("There is no entry nothing")
    output = capsys.readouterr().out
    table = output[output.rindex("2 runs") :].splitlines()
    assert [line.split() for line in table[2:4]] == [["0", "clear=nothing", "failed"], ["1", "clear=all", "done"]]


@pytest.mark.parametrize(
    ("stage", "resume", "stays"), [("train", None, False), ("train", "an earlier run", True), ("retrain", None, True)]
)
def test_a_run_that_fails_leaves_the_result_that_it_goes_on_from_or_has_yet_to_tell(
    stage: str, resume: str | None, stays: bool, tmp_path: Path
) -> None:
    class Failing:
        def run(self, _directory: Path) -> StageResult:
            raise UserError("It fails.")

    composed = compose(stage, ["data=folder", "data.path=photos"]).with_value("train.resume", resume)
    object.__setattr__(composed, "stage", Failing())
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="It fails"):
        composed.run(tmp_path)
    assert (tmp_path / "result.json").exists() == stays


def test_a_path_that_a_comma_divides_is_told_to_need_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ingest", "data=folder", "data.path=cats, dogs"]) == 1
    assert "put quotes around it: data.path='cats, dogs'" in capsys.readouterr().out


def test_names_that_the_locale_does_not_know_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    report_error(UnicodeEncodeError("ascii", "gr\u00f6\u00dfe", 2, 4, "ordinal not in range(128)"))
    assert "are in ascii, and one is not: set PYTHONUTF8=1" in " ".join(capsys.readouterr().out.split())


def test_the_log_escapes_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with logged(tmp_path / "log.txt"):
        console.print("caf\udce9", markup=False)
    assert (tmp_path / "log.txt").read_text() == "caf\\udce9\n"


def test_a_directory_that_may_not_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    outer = ValueError("a library's own words")
    outer.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/mnt/photos/outputs")
    report_error(outer)
    output = " ".join(capsys.readouterr().out.split())
    assert (
        output
        == "There is no access to /mnt/photos/outputs (Permission denied): allow it, or choose another directory."
    )


def test_a_loader_process_that_imports_the_program_does_not_train(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match='under if __name__ == "__main__":'):
        compose("ingest", data).run(tmp_path / "ingest")
    assert not (tmp_path / "ingest").exists()
