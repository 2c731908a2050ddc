"""Every file in conf/ composes and becomes what it describes."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.cli.hydra_conf import CONF
from graftline.training.trainer import REFUSED

FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))
NEEDS = {  # what a user must say beside the option itself
    "data/folder": ["data.path=photos"],
    "data/table": ["data.path=labels.csv"],
    "data/archive": ["data.path=photos.zip"],
    "data/hf": ["data.path=photos"],
    "data/shards": ["data.path=photos"],
    "decision/cost": ["decision.costs={bad: {good: 10}}"],
    "decision/recall": ["decision.class_name=bad"],
    "freeze/first_stages": ["freeze.number=2"],
    "freeze/names": ["freeze.frozen=[conv_stem.*]"],
}
MANDATORY = {
    "drift": ["model=m"],
    "evaluate": ["bundle=b"],
    "ensemble": ["runs=[a,b]"],
    "explain": ["bundle=b"],
    "export": ["model=m"],
    "predict": ["model=m", "images=i"],
    "schedule": ["every=hourly"],
    "serve": ["model=m"],
    "shard": ["out=photos"],
    "sync": ["run_id=r"],
    "verify": ["bundle=b"],
}
STAGE_OF = {"gate": "promote", "keep": "prune"}  # group → a stage that has it; else train

pytestmark = pytest.mark.usefixtures("one_hydra")


def test_their_number() -> None:
    assert len(FILES) == 89, "a new file? the tests below find it; count it here"


@pytest.mark.parametrize("file", FILES)
def test_it_starts_with_the_command_that_uses_it(file: str) -> None:
    lines = (CONF / file).read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]  # Hydra wants its own line at the top
    assert first.startswith("# make ") or file in ("hydra/default.yaml", "data/base.yaml")


@pytest.mark.parametrize("file", FILES)
def test_it_composes_and_is_what_it_describes(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    if group == "hydra" or (group, name) == ("data", "base"):
        pytest.skip("no option of its own: every other file builds on it")
    if group == "":
        stage, overrides = name, MANDATORY.get(name, [])
    else:
        stage, overrides = STAGE_OF.get(group, "train"), [f"{group}={name}", *NEEDS.get(f"{group}/{name}", [])]
    composed = compose(stage, overrides)
    assert not OmegaConf.missing_keys(composed.config)
    assert type(composed.stage).__module__.startswith("graftline.pipeline.")


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("trainer/")])
def test_a_trainer_has_no_key_that_is_refused(file: str) -> None:
    assert not REFUSED.keys() & set(OmegaConf.load(CONF / file))


@pytest.mark.parametrize("name", [Path(file).stem for file in FILES if file.startswith("freeze/")])
def test_each_freeze_rule_has_the_key_of_all(name: str) -> None:
    given = [f"freeze={name}", *NEEDS.get(f"freeze/{name}", [])]
    for stage in ("train", "search"):
        for key in ("freeze.batchnorm", "batchnorm"):
            assert compose(stage, [*given, f"{key}=adapted"]).stage.freeze.batchnorm == "adapted"  # type: ignore[attr-defined]
        assert compose(stage, given).stage.freeze.batchnorm == "auto"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"freeze\.batchnorm"):
        compose("train", [*given, "freeze.batchnorm=frozn"])
