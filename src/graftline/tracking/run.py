"""Log a run: parameters, metrics, files, the dataset version, the model, and how the run ended."""

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
from types import TracebackType
from typing import Any, Literal, Self

from mlflow.entities import Run as MlflowRun

from graftline.data.version import DatasetVersion
from graftline.errors import UnreachableError, UserError, find_cause
from graftline.files import digest_directory, write_json
from graftline.processes import terminate
from graftline.tracking import names, parameters
from graftline.tracking.datasets import dataset_inputs
from graftline.tracking.environment import MAIN_LIBRARIES, git_state, versions
from graftline.tracking.journal import steps_before
from graftline.tracking.mlflow_errors import reason
from graftline.tracking.outbox import Outbox
from graftline.tracking.owner import FOLDER
from graftline.tracking.system import SystemMetrics
from graftline.tracking.uri import store_name, without_password

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_END_SECONDS = {"FINISHED": 10.0, "FAILED": 10.0, "KILLED": 5.0}  # to send the rest; `docker stop` kills after 10
_SETTLE_SECONDS = 10.0  # without a success, for who goes on only when all is there
_MODEL_SECONDS = 10.0  # to learn the version that a model gets
_NAME, _DESCRIPTION = "mlflow.runName", "mlflow.note.content"  # MLflow's own
_CONFIG = "config.yaml"


class Run:
    """Log to a run in MLflow. No call waits for MLflow but `log_model`; see `graftline.tracking.outbox`.

    As a context manager it ends FINISHED, FAILED on an exception, KILLED on Ctrl-C or SIGTERM.

    Attributes:
        id: MLflow's id of the run.
        name: of the run in MLflow.
        directory: its output directory.
        url: its page in MLflow's user interface, None without a server.
    """

    def __init__(
        self,
        run: MlflowRun,
        directory: Path,
        *,
        uri: str,
        tags: Mapping[str, str],
        is_resumed: bool,
        registers: bool = True,
        system_metrics: bool = True,
    ) -> None:
        """Begin to log; called by `Tracking.start`.

        Args:
            run: MLflow's, which exists already.
            directory: its output directory; the outbox is kept there.
            uri: absolute, of the database or server that has the run.
            tags: are set anew if the run is resumed.
            is_resumed: whether the run goes on.
            registers: whether `log_model` puts models into the registry.
            system_metrics: record the use of processor, memory, disk, network and GPUs.

        Raises:
            UserError: the run in ``directory`` is still going.
        """
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name or self.id
        self.directory = directory
        page = f"{without_password(uri)}/#/experiments/{run.info.experiment_id}/runs/{self.id}"
        self.url = page if uri.startswith("http") else None
        self._store = store_name(uri)
        self._registers = registers
        self._params: dict[str, str] = dict(run.data.params)
        self._latest: dict[str, tuple[float, int, int]] = {}  # metric -> value, ms since 1970, step
        self._model_tags = {"graftline.run_id": self.id}
        self._is_over = False
        self._outbox = Outbox(directory, uri, self.id)
        self._logged_before: set[tuple[str, int]] = set()  # metric, step
        if is_resumed:
            self._logged_before = self._outbox.journal.metric_steps()
            self._outbox.put("status", status="RUNNING", at=_now())
            self.set_tags({names.ERROR: "", **tags})
        self._system: SystemMetrics | None = None
        if system_metrics:
            self._system = SystemMetrics(self.id, uri, self.log_metrics, is_resumed=is_resumed)

    def log_params(self, config: Mapping[str, Any], text: str) -> None:
        """Log a configuration.

        Args:
            config: nested; its parameters get dotted names.
            text: the same as YAML, kept whole as the artifact ``config.yaml``.

        Parameters cannot change in MLflow: where a resumed run has others, the tag
        ``graftline.changed_params`` holds them.
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

    def log_metrics(self, values: Mapping[str, float], step: int, *, once: bool = False) -> None:
        """Log metrics at a step, with the time of this call; their names may hold any character.

        Args:
            values: by their names.
            step: of the training.
            once: leave out those that were logged at this step before the run was resumed, as an epoch that is trained
                again because the run was killed between its log and its checkpoint.
        """
        at = _now()
        values = {names.key(name): float(value) for name, value in values.items()}
        self._latest.update({name: (value, at, step) for name, value in values.items()})
        if once:
            values = {name: value for name, value in values.items() if (name, step) not in self._logged_before}
        if values:
            self._outbox.put("metrics", at=at, step=step, values=values)

    def begin_anew(self, step: int) -> None:
        """Let metrics of the phase that begins at a step be logged again, though ``once``, also after a resume."""
        self._logged_before = steps_before(self._logged_before, step)
        self._outbox.put("anew", step=step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._outbox.put("tags", values=dict(tags))

    def rename(self, name: str) -> None:
        """Give the run another name, as when it is known at last what is special about it."""
        self.name = name
        self.set_tags({_NAME: name})

    def describe(self, text: str) -> None:
        """Set the run's description, Markdown that its page shows first."""
        self.set_tags({_DESCRIPTION: text})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or what is in a directory. It is read when it is sent, and has to stay until then.

        Args:
            path: the file or directory.
            folder: in the run's artifacts.
        """
        path = path.resolve()
        assert path.exists(), path
        inside = path.relative_to(self.directory) if path.is_relative_to(self.directory) else path
        self._outbox.put("artifact", path=str(inside), folder=folder)

    def log_dataset(self, version: DatasetVersion) -> None:
        """Log a dataset version: as the run's inputs, and its files as artifacts under ``data/``.

        The inputs are its training part in the context "training" and its test part in "test". From the files a machine
        that has nothing but MLflow knows the split of every image; see `Registry.dataset`.
        """
        digests = {names.DATASET_DIGEST: version.digest, names.TEST_DIGEST: version.test_digest}
        self._model_tags.update(digests)
        self._outbox.put("dataset", datasets=dataset_inputs(version))
        validation = {names.VALIDATION_DIGEST: version.split_digests["validation"]}
        self.set_tags({names.DATASET: version.name, **digests, **validation})
        for file in version.files:
            self.log_artifact(file, names.DATA)

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
        self,
        bundle: Path,
        *,
        registered_name: str | None,
        input_example: bytes,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        """Log a bundle as a model that `mlflow models serve` can run, and register it; the same bundle only once.

        Args:
            bundle: the bundle's directory.
            registered_name: the data set's name; None: do not register.
            input_example: an image file's bytes.
            metrics: the test metrics, for the model's page.
            tags: of the registered version, beside the run's id, the dataset's digest and that of the bundle's files.

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
            tags={**self._model_tags, names.BUNDLE_FILES: digest_directory(bundle), **(tags or {})},
            description=describe(bundle, self.id, metrics),
            metrics=self._model_metrics(metrics),
        )
        self._outbox.wait(_MODEL_SECONDS)
        return self._outbox.delivery.model_uris.get(number)

    def settle(self) -> None:
        """Wait until MLflow has all that was logged, for who goes on only if it has.

        Raises:
            UnreachableError: it has not after a bounded wait.
            UserError: it refused some of it.
        """
        self._outbox.wait(_SETTLE_SECONDS)
        refused = self._outbox.delivery.refused
        if unsent := self._outbox.journal.num_unsent:
            why = self._outbox.problem or "no answer in time"
            raise UnreachableError(f"The {self._store} has not got {unsent:,} records of run {self.id} ({why}).")
        if refused:
            raise UserError(f"The {self._store} refused a value of run {self.id}: {refused[0]}.")

    def _model_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, float, int, int]]:
        """Return MLflow's fields; a value that the run has logged keeps its time, else MLflow would have it twice."""
        fields = []
        for name, number in metrics.items():
            key, value = names.key(name), float(number)
            before, at, step = self._latest.get(key, (None, _now(), 0))
            fields.append((key, value, at, step) if before == value else (key, value, _now(), 0))
        return fields

    def finish(self, status: Status = "FINISHED", error: BaseException | None = None) -> None:
        """End the run, and warn if MLflow has not got everything after a bounded wait.

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
            self.set_tags({names.ERROR: text})
        self._outbox.put("status", status=status, at=_now())
        with suppress(KeyboardInterrupt):  # from somebody who does not want to wait
            self._outbox.wait(_END_SECONDS[status])
        self._outbox.close()
        self._warn_of_unsent()

    def _warn_of_unsent(self) -> None:
        unsent, refused = self._outbox.journal.num_unsent, self._outbox.delivery.refused
        folder = self.directory / FOLDER
        if unsent:
            why = f" ({self._outbox.problem})" if self._outbox.problem else ""
            logger.warning(
                f"{unsent:,} records of run {self.id} have not reached the {self._store}{why}: "
                f"they are in {folder}, and sync() sends them."
            )
        if refused:
            logger.warning(
                f"MLflow refused {len(refused):,} of this run's values, the first being {refused[0]}; "
                f"all are in {folder / 'refused.jsonl'}."
            )

    def __enter__(self) -> Self:
        self._handler_before: Any = None
        if threading.current_thread() is threading.main_thread():  # signals can be handled there only
            self._handler_before = signal.signal(signal.SIGTERM, terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.finish(*_status_after(error))
        finally:
            if self._handler_before is not None:
                signal.signal(signal.SIGTERM, self._handler_before)


def _status_after(error: BaseException | None) -> tuple[Status, BaseException | None]:
    """Return the status of a run that ``error`` ended (None: it came to its end), and the error that decided it.

    Lightning turns Ctrl-C into SystemExit(1), so that the causes of the error count too.
    """
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED", None
    interrupt = find_cause(error, KeyboardInterrupt)
    return ("FAILED", error) if interrupt is None else ("KILLED", interrupt)


def _now() -> int:
    """Return ms since 1970, MLflow's time."""
    return time.time_ns() // 1_000_000
