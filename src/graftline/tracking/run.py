"""A tracked run: what a stage tells MLflow, in the words of the stage."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from mlflow.entities import Run as MlflowRun

from graftline.data.version import DatasetVersion
from graftline.files import write_json
from graftline.tracking import names, parameters
from graftline.tracking.client import absolute_uri, place, reason, without_password
from graftline.tracking.datasets import dataset_inputs
from graftline.tracking.environment import MAIN_LIBRARIES, git_state, versions
from graftline.tracking.outbox import FOLDER, Outbox
from graftline.tracking.system import SystemMetrics

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from graftline.tracking.tracking import Tracking

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PATIENCE = {"FINISHED": 10.0, "FAILED": 10.0, "KILLED": 5.0}  # s at the end; `docker stop` kills for good after 10
_MODEL_PATIENCE = 10.0  # s, to learn the version that a model gets
_ERROR = "graftline.error"
_CONFIG = "config.yaml"


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same as Ctrl-C, from a machine."""


class Run:
    """A run in MLflow. Nothing that is logged waits for MLflow; see `graftline.tracking.outbox`.

    As a context manager it ends FINISHED, FAILED on an exception, KILLED on Ctrl-C or SIGTERM.

    Attributes:
        id: MLflow's id of the run.
        directory: its output directory.
        url: its page in MLflow's user interface, None without a server.
    """

    def __init__(
        self, tracking: Tracking, run: MlflowRun, directory: Path, *, tags: Mapping[str, str], is_resumed: bool
    ) -> None:
        """Begin to track; called by `Tracking.start`."""
        uri = absolute_uri(tracking.uri)
        self.id: str = run.info.run_id
        self.directory = directory
        page = f"{without_password(uri)}/#/experiments/{run.info.experiment_id}/runs/{self.id}"
        self.url = page if uri.startswith("http") else None
        self._place = place(uri)
        group = "tracking=server " if self.url else ""
        self._sync_command = f"make sync run_id={self.id} {group}tracking.uri={without_password(uri)}"
        self._registers = tracking.register
        self._params: dict[str, str] = dict(run.data.params)
        self._latest: dict[str, tuple[float, int, int]] = {}  # metric -> value, ms since 1970, step
        self._model_tags = {"graftline.run_id": self.id}
        self._is_over = False
        self._outbox = Outbox(directory, uri, self.id)
        if is_resumed:
            self._outbox.put("status", status="RUNNING", at=_now())
            self.set_tags({_ERROR: "", **tags})
        self._system: SystemMetrics | None = None
        if tracking.system_metrics:
            self._system = SystemMetrics(self.id, uri, self.log_metrics, is_resumed=is_resumed)

    def log_params(self, config: Mapping[str, Any], text: str) -> None:
        """Log a configuration.

        Args:
            config: nested; its parameters get dotted names.
            text: the same as YAML, kept whole as the artifact ``config.yaml``.

        Parameters cannot change in MLflow: where a resumed run has others, the tag ``graftline.changed_params`` tells.
        """
        params = parameters.flatten(config, whole=_CONFIG)
        changed = {key: value for key, value in params.items() if self._params.get(key, value) != value}
        new = {key: value for key, value in params.items() if key not in self._params}
        self._params.update(new)
        self._outbox.put("params", values=new)
        if changed:
            self.set_tags({"graftline.changed_params": json.dumps(changed)})
        file = self.directory / FOLDER / _CONFIG
        file.write_text(without_password(text), encoding="utf-8", errors="backslashreplace")
        self.log_artifact(file)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of this moment; a class name in a metric's name may hold any character."""
        at = _now()
        values = {names.key(name): float(value) for name, value in values.items()}
        self._latest.update({name: (value, at, step) for name, value in values.items()})
        self._outbox.put("metrics", at=at, step=step, values=values)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._outbox.put("tags", values=dict(tags))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or what is in a directory; it has to stay until it has been sent.

        Args:
            path: the file or directory.
            folder: in the run's artifacts.
        """
        path = path.resolve()
        assert path.exists(), path
        inside = path.relative_to(self.directory) if path.is_relative_to(self.directory) else path
        self._outbox.put("artifact", path=str(inside), folder=folder)

    def log_dataset(self, version: DatasetVersion) -> None:
        """Log a dataset version as inputs: its training part in the context "training", its test part in "test"."""
        self._model_tags["graftline.dataset_digest"] = version.digest
        self._outbox.put("dataset", datasets=dataset_inputs(version))
        self.set_tags({"graftline.dataset": version.name, "graftline.dataset_digest": version.digest})

    def log_environment(self) -> None:
        """Log the code's commit, whether it was changed since, and the libraries' versions."""
        commit, is_dirty = git_state()
        self._model_tags["mlflow.source.git.commit"] = commit
        found = versions()
        main = {f"graftline.version.{name}": found[name] for name in ("python", *MAIN_LIBRARIES) if name in found}
        self.set_tags({"mlflow.source.git.commit": commit, "graftline.git.dirty": is_dirty, **main})
        file = self.directory / FOLDER / "versions.json"
        write_json(file, found)
        self.log_artifact(file, "requirements")

    def log_model(
        self, bundle: Path, *, registered_name: str | None, input_example: bytes, metrics: Mapping[str, float]
    ) -> str | None:
        """Log a bundle as a model that `mlflow models serve` can run, and register it.

        Args:
            bundle: the bundle's directory.
            registered_name: the data set's name; None: do not register.
            input_example: an image file's bytes.
            metrics: the test metrics, for the model's page.

        Returns:
            ``models:/NAME/VERSION`` (``models:/ID`` if not registered); None if MLflow has not got it after a bounded
            wait, and it is sent when MLflow is back.
        """
        from graftline.serving.package import describe, save_model

        number = self._outbox.journal.total
        path = self.directory / FOLDER / "models" / str(number)
        shutil.rmtree(path, ignore_errors=True)
        save_model(bundle, path, input_example)
        name = names.registered_name(registered_name) if registered_name is not None and self._registers else None
        number = self._outbox.put(
            "model",
            path=str(path.relative_to(self.directory)),
            name="model",
            registered_name=name,
            tags=self._model_tags,
            description=describe(bundle, self.id, metrics),
            metrics=self._model_metrics(metrics),
        )
        self._outbox.wait(_MODEL_PATIENCE)
        return self._outbox.delivery.model_uris.get(number)

    def _model_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, float, int, int]]:
        """Return MLflow's fields; a value that the run has logged keeps its time, else it would be there twice."""
        fields = []
        for name, number in metrics.items():
            key, value = names.key(name), float(number)
            before, at, step = self._latest.get(key, (None, _now(), 0))
            fields.append((key, value, at, step) if before == value else (key, value, _now(), 0))
        return fields

    def finish(self, status: Status = "FINISHED", error: BaseException | None = None) -> None:
        """End the run; tell the user if MLflow has not got everything after a bounded wait.

        Args:
            status: how it ended.
            error: why, if not well.
        """
        if self._is_over:
            return
        self._is_over = True
        if self._system is not None:
            self._system.finish()
        if error is not None:
            text = f"{type(error).__name__}: {reason(error)}" if str(error) else type(error).__name__
            self.set_tags({_ERROR: text})
        self._outbox.put("status", status=status, at=_now())
        with suppress(KeyboardInterrupt):  # from somebody who does not want to wait
            self._outbox.wait(_PATIENCE[status])
        self._outbox.close()
        self._tell_what_is_unsent()

    def _tell_what_is_unsent(self) -> None:
        unsent, refused = self._outbox.journal.num_unsent, self._outbox.delivery.refused
        folder = self.directory / FOLDER
        if unsent:
            why = f" ({self._outbox.problem})" if self._outbox.problem else ""
            logger.warning(
                f"{unsent:,} records of this run have not reached the {self._place}{why}: "
                f"they lie in {folder}, and `{self._sync_command}` sends them."
            )
        if refused:
            logger.warning(
                f"MLflow refused {len(refused):,} of this run's values, the first being {refused[0]}; "
                f"all are in {folder / 'refused.jsonl'}."
            )

    def __enter__(self) -> Self:
        self._handler_before: Any = None
        if threading.current_thread() is threading.main_thread():  # signals can be handled there only
            self._handler_before = signal.signal(signal.SIGTERM, _terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.finish(*_ending(error))
        finally:
            if self._handler_before is not None:
                signal.signal(signal.SIGTERM, self._handler_before)


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's signature
    raise Terminated("SIGTERM")


def _ending(error: BaseException | None) -> tuple[Status, BaseException | None]:
    """Return how a run ended that ``error`` left, and what did it.

    Lightning turns Ctrl-C into SystemExit(1), so that what the error came from counts too.
    """
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED", None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return "KILLED", cause
        cause = cause.__cause__ or cause.__context__
    return "FAILED", error


def _now() -> int:
    """Return ms since 1970, MLflow's time."""
    return time.time_ns() // 1_000_000
