"""Send journal records to MLflow, so that sending one twice leaves the same as sending it once.

Metrics, parameters, tags, datasets and artifacts are like that in MLflow itself: it drops a metric with the same key,
step, time and value, and overwrites or keeps the others. Models are not; see `graftline.tracking.models`.

Kinds of records and their fields:

    metrics   at (ms since 1970), step, values {key: float}
    params    values {key: str}
    tags      values {key: str}
    artifact  path (relative to the output directory if inside), folder (in the run's artifacts, "" for their root)
    dataset   datasets [{context, name, digest, source_type, source, schema, profile}]
    model     see `graftline.tracking.models`
    status    at (ms since 1970), status (MLflow's word)
    anew      step: metrics of the phase that begins there are logged again; it is for a resume, and not sent
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from graftline.tracking import client, mlflow_errors, models, names
from graftline.tracking.journal import JournalEntry, Record

T = TypeVar("T")

MAX_PARAMS_OR_TAGS = 100  # per request (MAX_PARAMS_TAGS_PER_BATCH)
_MAX_BYTES = 900_000  # per request; the limit is 1e6 for all of its JSON (MAX_BATCH_LOG_REQUEST_SIZE)

_UPLOADS = ("artifact", "model")  # kinds of records that send files
_REQUEST_SECONDS = 20
_BYTES_PER_SECOND = 500_000  # a slow line; what an upload may take grows with its size


class Delivery:
    """Send the records of one run.

    Attributes:
        refused: one sentence for each thing that MLflow will not take.
        model_uris: by the number of a model's record, its URI in MLflow.
    """

    def __init__(self, uri: str, run_id: str, directory: Path) -> None:
        """Note MLflow's URI, the run's id and its output directory; nothing is sent yet."""
        self._uri = uri
        self._run_id = run_id
        self._directory = directory
        self.refused: list[str] = []
        self.model_uris: dict[int, str] = {}

    @cached_property
    def _client(self) -> MlflowClient:
        return client.connect(self._uri)

    def upload_seconds(self, entry: JournalEntry) -> float:
        """Return how long sending the files of ``entry`` takes on a slow line."""
        if entry.record["kind"] not in _UPLOADS:
            return 0.0
        path = self._directory / entry.record["path"]
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        num_bytes: int = sum(file.stat().st_size for file in files)
        return num_bytes / _BYTES_PER_SECOND

    def send(self, entries: Sequence[JournalEntry]) -> JournalEntry:
        """Send the first of ``entries``, or the first few that go into one request.

        Returns:
            The last entry that has been dealt with: taken by MLflow, or noted in `refused`.

        Raises:
            Exception: of any kind, when it is worth trying again.
        """
        kind = entries[0].record["kind"]
        with client.request_limit(_REQUEST_SECONDS + self.upload_seconds(entries[0])):
            if kind == "metrics":
                return self._send_metrics(entries)
            send: Callable[[JournalEntry], None] = {
                "params": self._send_params,
                "tags": self._send_tags,
                "artifact": self._send_artifact,
                "dataset": self._send_dataset,
                "model": self._send_model,
                "status": self._send_status,
                "anew": lambda _: None,
            }[kind]
            try:
                send(entries[0])
            except Exception as error:
                # the tag that tells a value at fault from a server says nothing of the disk that files go to
                if (kind in _UPLOADS and mlflow_errors.is_of_an_upload(error)) or not self._is_refusal(error):
                    raise
                self._refuse(kind, entries[0].record, error)
        return entries[0]

    def _send_metrics(self, entries: Sequence[JournalEntry]) -> JournalEntry:
        metrics: list[Metric] = []
        for entry in entries:
            record = entry.record
            if record["kind"] != "metrics" or (metrics and len(metrics) + len(record["values"]) > models.MAX_METRICS):
                break
            metrics += [Metric(key, value, record["at"], record["step"]) for key, value in record["values"].items()]
            last = entry
        for chunk in _chunks(metrics, models.MAX_METRICS, lambda metric: len(metric.key) + 100):
            self._in_halves("metric", chunk, lambda part: self._log(metrics=part))
        return last

    def _send_params(self, entry: JournalEntry) -> None:
        params = [Param(key, value) for key, value in entry.record["values"].items()]
        for chunk in _chunks(params, MAX_PARAMS_OR_TAGS, _size):
            self._in_halves("param", chunk, lambda part: self._log(params=part))

    def _send_tags(self, entry: JournalEntry) -> None:
        tags = [RunTag(key, value) for key, value in entry.record["values"].items()]
        for chunk in _chunks(tags, MAX_PARAMS_OR_TAGS, _size):
            self._in_halves("tag", chunk, lambda part: self._log(tags=part))

    def _log(self, **what: Any) -> None:
        self._client.log_batch(self._run_id, synchronous=True, **what)

    def _send_artifact(self, entry: JournalEntry) -> None:
        path = self._directory / entry.record["path"]  # an absolute path stays as it is
        folder = entry.record["folder"] or None
        if path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), folder)
        else:
            path.stat()  # a file that is gone must be a FileNotFoundError here, whatever the artifact store makes of it
            self._client.log_artifact(self._run_id, str(path), folder)

    def _send_dataset(self, entry: JournalEntry) -> None:
        inputs = []
        for fields in entry.record["datasets"]:
            context = InputTag("mlflow.data.context", fields["context"])
            entity = Dataset(**{name: value for name, value in fields.items() if name != "context"})
            inputs.append(DatasetInput(entity, [context]))
        self._client.log_inputs(self._run_id, datasets=inputs)

    def _send_model(self, entry: JournalEntry) -> None:
        # a run that was killed after it sent its model, and resumed, sends the same files again; old records lack them
        identity = f"{self._run_id}-{entry.record['tags'].get(names.BUNDLE_FILES, entry.number)}"
        self.model_uris[entry.number] = models.send(
            self._client, self._run_id, self._directory, entry.record, identity=identity
        )

    def _send_status(self, entry: JournalEntry) -> None:
        status = entry.record["status"]
        if status == "RUNNING":
            self._client.update_run(self._run_id, status=status)
        else:
            self._client.set_terminated(self._run_id, status, end_time=entry.record["at"])

    def _in_halves(self, what: str, items: list[T], send: Callable[[list[T]], None]) -> None:
        """Send ``items`` in one request. If MLflow refuses them, send each half, so that the others arrive."""
        try:
            send(items)
        except Exception as error:
            if not self._is_refusal(error):
                raise
            if len(items) == 1:
                self._refuse(what, {"kind": what, **dict(items[0])}, error)  # type: ignore[call-overload]  # an MLflow entity
                return
            middle = len(items) // 2
            self._in_halves(what, items[:middle], send)
            self._in_halves(what, items[middle:], send)

    def _is_refusal(self, error: Exception) -> bool:
        """Return whether MLflow would refuse every time what it was just sent."""
        if mlflow_errors.is_unclear(error):
            try:  # if something harmless can be written, the server is well and the value is at fault
                self._client.set_tag(self._run_id, names.OUTPUT_DIRECTORY, str(self._directory), synchronous=True)
            except Exception:
                return False
            return True
        return mlflow_errors.is_refusal(error)

    def _refuse(self, what: str, record: Record, error: Exception) -> None:
        name = record.get("key") or record.get("path") or ""
        self.refused.append(f"{what} {name}: {mlflow_errors.reason(error)}")
        with (self._directory / "outbox" / "refused.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": mlflow_errors.reason(error), **record}) + "\n")


def _size(item: Param | RunTag) -> int:
    """Return about how many bytes of a request an item takes."""
    return len(item.key) + len(item.value.encode("utf-8", "replace"))


def _chunks(items: list[T], max_items: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut ``items`` so that no part has more than ``max_items``, or more bytes (by ``size``) than one request holds."""
    chunk: list[T] = []
    total = 0
    for item in items:
        if chunk and (len(chunk) == max_items or total + size(item) > _MAX_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size(item)
    if chunk:
        yield chunk
