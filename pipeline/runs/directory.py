"""The output directory of a run: what lies where, for all that write there or read it later."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from graftline.errors import UserError
from graftline.files import write_json
from graftline.tracking.owner import read_owner
from graftline.tracking.uri import without_password

if TYPE_CHECKING:  # it loads pandas, which not all that look into a directory need
    from graftline.data.version import DatasetVersion

TRACKED_AT = r"tracking(\.uri|\.experiment)?(?==)"  # the keys that say where a run is found, for `RunDirectory.command`
_WORDS = re.compile(r"""(\w+)=\[('[\w./:@+-]+'(?:,'[\w./:@+-]+')*)\]""")


@dataclass(frozen=True)
class RunDirectory:
    """The names of the files in a run's output directory; what lies in ``checkpoints`` is the training's to say.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The composed configuration."""
        return self.path / ".hydra" / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The overrides that were typed."""
        return self.path / ".hydra" / "overrides.yaml"

    @property
    def config_dir(self) -> Path:
        """The folder that ``--config-dir`` named; there if one was."""
        return self.path / ".hydra" / "config_dir.json"

    def read_config_dir(self) -> Path | None:
        """Return that folder, absolute; None where none was named."""
        return Path(json.loads(self.config_dir.read_text(encoding="utf-8"))) if self.config_dir.exists() else None

    def write_config_dir(self, folder: Path | None) -> None:
        """Keep that folder, or forget the one of an earlier run."""
        if folder is None:
            self.config_dir.unlink(missing_ok=True)
        else:
            write_json(self.config_dir, str(folder))

    def command(self, program: str, stage: str, *more: str, group: str = "") -> str:
        """Return the command that does the same again.

        Args:
            program: the word that it begins with.
            stage: the stage.
            more: overrides that are added, or replace those of the same key.
            group: the node of the configuration whose overrides are repeated, as a regular expression; empty: all are.
        """
        typed: list[str] = yaml.safe_load(self.overrides.read_text(encoding="utf-8"))
        folder, given = self.read_config_dir(), {text.partition("=")[0] for text in more}
        options = [] if folder is None else ["--config-dir", str(folder)]
        repeated = [text for text in overrides_of(typed, group) if text.partition("=")[0] not in given]
        return shlex.join([program, stage, *options, *more, *repeated])

    @property
    def last_run_id(self) -> str | None:
        """The id of the run that was the last one to write here; None where no run did."""
        owner = read_owner(self.path)
        return None if owner is None else owner.run_id

    def check_is_of(self, run_id: str) -> None:
        """Make sure that what lies here is a run's.

        Raises:
            UserError: another run has written here since.
        """
        if self.last_run_id not in (None, run_id):
            raise UserError(
                f"Run {self.last_run_id} has written into {self.path} since, so that nothing of run {run_id} is left "
                "there to go on with or to send: name that run, or start a new one."
            )

    @property
    def dataset(self) -> Path:
        """Digest and folder of the dataset version."""
        return self.path / "dataset.json"

    def read_dataset(self) -> dict[str, str]:
        """Return what the file has: ``digest`` and ``directory``."""
        content: dict[str, str] = json.loads(self.dataset.read_text(encoding="utf-8"))
        return content

    @property
    def freeze_decision(self) -> Path:
        """What is frozen, phase by phase, and why."""
        return self.path / "freeze.json"

    def read_freeze_decision(self) -> dict[str, Any]:
        """Return what the file has, for ``FreezeDecision.from_json``."""
        content: dict[str, Any] = json.loads(self.freeze_decision.read_text(encoding="utf-8"))
        return content

    @property
    def policy_choice(self) -> Path:
        """Which transforms of a policy keep the label, where that was found out."""
        return self.path / "augment.json"

    def read_policy_choice(self) -> dict[str, Any]:
        """Return what the file has, for ``PolicyChoice.from_json``."""
        content: dict[str, Any] = json.loads(self.policy_choice.read_text(encoding="utf-8"))
        return content

    @property
    def measurement(self) -> Path:
        """The picture of the boundaries that were tried, where any were."""
        return self.path / "measurement.png"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training's own files."""
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        """Folder of the trained model."""
        return self.path / "bundle"

    @property
    def test(self) -> Path:
        """Folder of the predictions on the test split and their figures."""
        return self.path / "test"

    @property
    def validation(self) -> Path:
        """Folder of the predictions on the validation split, where all of it was classified."""
        return self.path / "validation"

    @property
    def augmentation(self) -> Path:
        """The picture of one training image, augmented."""
        return self.path / "augment.png"

    @property
    def cost(self) -> Path:
        """What a forward pass costs."""
        return self.path / "cost.json"

    def read_cost(self) -> dict[str, int]:
        """Return parameters and multiply-adds of the network, from that file."""
        content = json.loads(self.cost.read_text(encoding="utf-8"))
        return {key: content[key] for key in ("parameters", "macs")}

    @property
    def result(self) -> Path:
        """What the stage did; there once it is done."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any]:
        """Return what the file has; nothing where the stage is not done."""
        content: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8")) if self.result.is_file() else {}
        return content

    def keep_to_version(self, version: "DatasetVersion", *, resumed: bool) -> None:
        """Note the dataset version of a new run, and make sure that one that is resumed goes on with its own."""
        if not resumed:
            self.discard_training()
            write_json(self.dataset, {"digest": version.digest, "directory": str(version.directory.absolute())})
        elif not self.dataset.exists():
            raise UserError(
                "The run was started by an earlier graftline, which noted no dataset version: start it anew."
            )
        elif (before := self.read_dataset()["digest"]) != version.digest:
            raise UserError(
                f"The images are now dataset version {version.digest}, but the run began with version {before}: "
                "bring those back, or start a new run."
            )

    def discard_training(self) -> None:
        """Remove what an earlier run here decided, trained and found, which a new run must not go on with."""
        for file in (self.dataset, self.freeze_decision, self.policy_choice, self.measurement, self.result):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.test, self.validation):
            shutil.rmtree(folder, ignore_errors=True)


def _with_commas(override: str) -> str:
    """Return the override of a stage's list of words as people type it, who need no quotes.

    >>> _with_commas("runs=['best:3','models:/elpv/1']"), _with_commas("crops=['1']"), _with_commas("runs=['a b']")
    ('runs=best:3,models:/elpv/1', 'crops=1', "runs=['a b']")
    >>> _with_commas("runs=['12e3']")  # without quotes it would be read as 12000.0
    "runs=['12e3']"
    """
    found = _WORDS.fullmatch(override)
    if found is not None and _is_fraction(found[2][1:-1]):
        return override
    return override if found is None else f"{found[1]}={found[2][1:-1]}".replace("','", ",")


def _is_fraction(word: str) -> bool:
    """Tell whether a word reads as a number whose digits are not the word's."""
    try:
        return not word.isdigit() and math.isfinite(float(word))
    except ValueError:
        return False


def overrides_of(overrides: Sequence[str], group: str) -> list[str]:
    """Return those overrides, as they are typed and without passwords, that are of a node of the configuration.

    Args:
        overrides: all of them.
        group: the node, as a regular expression; empty: any.
    """
    words = [_with_commas(text.lstrip("+")) for text in overrides]
    return [without_password(word) for word in words if not group or re.match(rf"~?{group}\b", word)]
