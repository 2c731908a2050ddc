"""A schedule in Dagster: its real daemon fires clock and sensor, and its own API tells what they made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tracking_server import SERVICES, free_port, health_check
from workplace import PROJECT, TINY, Workplace

from graftline.pipeline.schedule import DAGSTER, STAGE
from graftline.scheduling import dagster
from graftline.scheduling.dagster import DagsterOptions
from graftline.scheduling.job import Job
from graftline.scheduling.times import parse_times
from graftline.tracking.promotions import Promotions
from graftline.tracking.tracking import Tracking

PROGRAMS = PROJECT / ".venv-dagster" / "bin"
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(not (PROGRAMS / "dagster").exists(), reason="Dagster is missing: make test-extras installs it"),
]

RUNS = "{runsOrError{...on Runs{results{status tags{key value}}}}}"
ASSET = """query($path: [String!]!) {assetOrError(assetKey: {path: $path}) {...on Asset {assetMaterializations {
    metadataEntries {label ...on TextMetadataEntry {text} ...on FloatMetadataEntry {floatValue}
    ...on UrlMetadataEntry {url} ...on MarkdownMetadataEntry {mdStr}}}}}}"""

LOOKS = """
import time
import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG
from definitions import OUTCOME, defs

(sensor,) = defs.sensors
instance, cursor = dg.DagsterInstance.ephemeral(), None

def look():
    global cursor
    found = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))
    cursor = found.cursor
    print(f"{len(found.run_requests)} run, {found.skip_message}")
    return found.run_requests[0].run_key if found.run_requests else None

def run(key, status, outcome="nothing new"):
    tags = {SENSOR_NAME_TAG: sensor.name, RUN_KEY_TAG: key, OUTCOME: outcome}
    return instance.add_run(dg.DagsterRun(job_name="retrain", tags=tags, status=dg.DagsterRunStatus[status]))

first = look()
started = run(first, "STARTED")
look()
instance.delete_run(started.run_id)
run(first, "FAILURE")
look()
time.sleep(1)  # the key is the second
run(look(), "SUCCESS", "held")
look()
time.sleep(1)
run(look(), "SUCCESS")
look()
"""
RETRIED = """
import json, os
from pathlib import Path
import dagster as dg
import definitions

definitions.RETRIES = dg.RetryPolicy(max_retries=definitions.RETRIES.max_retries)  # without the minutes between them
job = json.loads(Path(os.environ["DAGSTER_HOME"], "schedules", "pets.json").read_text())
resources = {"pipes": dg.PipesSubprocessClient(), "io_manager": dg.mem_io_manager}
instance = dg.DagsterInstance.ephemeral()
assets = [definitions.retraining(job)]
done = dg.materialize(assets, resources=resources, instance=instance, raise_on_error=False)
print("outcome:", instance.get_run_by_id(done.run_id).tags.get(definitions.OUTCOME))
print("succeeded:", done.success)
"""
FAILS = """
import pathlib, sys
tried = pathlib.Path("tried")
tried.write_text((tried.read_text() if tried.exists() else "") + "x")
pathlib.Path("result.json").write_text('{"outcome": "nothing new", "metrics": {}}')
print(pathlib.Path.cwd())
sys.exit(len(tried.read_text()) < int(sys.argv[1]))
"""


def in_dagster(script: str, folder: Path, **changes: Any) -> list[str]:
    """Run a script in Dagster's environment beside definitions of one schedule, and return what it prints."""
    (folder / "images").mkdir()
    (folder / "images" / "1.png").touch()
    job = Job("pets", "retrain", (), Path("python"), folder, 60)
    text = dagster.dagster_schedule(job, parse_times("hourly"), "images", DagsterOptions(1, 1e-6), "Etc/UTC")
    dagster.install(job, json.dumps(json.loads(text) | changes), DAGSTER)
    environment = os.environ | {"DAGSTER_HOME": str(folder / dagster.HOME), "PYTHONPATH": str(DAGSTER)}
    command = [str(PROGRAMS / "python"), "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_run_that_has_failed_has_not_seen_the_images(tmp_path: Path) -> None:
    first, under_way, failed, second, held, third, seen = in_dagster(LOOKS, tmp_path)
    assert first == second == third == "1 run, None", "one that has failed or was held is asked for again"
    told = "the last run has failed or was held: one is due 1e-06 h after it."
    assert failed == held == f"0 run, 1 of 1 files are new; {told}"
    assert under_way == "0 run, 1 of 1 files are new; a run is under way."
    assert seen.startswith("0 run, 0 of 1 files are new;")


@pytest.mark.parametrize(("needed", "succeeded"), [(3, True), (4, False)])
def test_a_run_that_fails_is_tried_twice_more(tmp_path: Path, needed: int, succeeded: bool) -> None:
    *_, outcome, told = in_dagster(RETRIED, tmp_path, command=[sys.executable, "-c", FAILS, str(needed)])
    assert told == f"succeeded: {succeeded}"
    assert outcome == f"outcome: {'nothing new' if succeeded else None}", "which the sensor reads"
    assert (tmp_path / "tried").read_text() == "xxx"


@pytest.fixture
def place(tmp_path: Path, color_folder: Path, empty_database: Path) -> Workplace:
    """A folder with images and a schedule for each minute, whose sensor looks each few seconds."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    shutil.copytree(color_folder, tmp_path / "colors")
    found = Workplace(tmp_path)
    typed = [*TINY, "trainer.max_epochs=1", "data=folder", "data.path=colors", "dagster.new_images=5"]
    done = found.run("schedule", "every=* * * * *", "engine=dagster", "install=true", *typed)
    assert done.code == 0, done.output
    file = tmp_path / dagster.HOME / dagster.SCHEDULES / "colors.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"look_seconds": 3}), encoding="utf-8")
    return found


@pytest.fixture
def server(place: Workplace) -> Iterator[str]:
    """Dagster as make dagster starts it; its address."""
    port = free_port()
    command = [str(PROGRAMS / "dagster"), "dev", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--python-file", str(DAGSTER / "definitions.py"), "--working-directory", str(DAGSTER)]
    with running_dagster(place.root, command, os.environ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running_dagster(folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> Iterator[None]:
    environment = {**variables, "DAGSTER_HOME": str(folder / dagster.HOME), "PYTHONWARNINGS": "ignore"}
    with (folder / "dagster.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what may be left of it


def ask(server: str, query: str, **variables: Any) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{server}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def runs(server: str) -> list[tuple[str, dict[str, str]]]:
    """Return status and tags of all runs; none while the server starts."""
    try:
        found = ask(server, RUNS)["runsOrError"]["results"]
    except OSError:
        return []
    return [(run["status"], {tag["key"]: tag["value"] for tag in run["tags"]}) for run in found]


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(1)


def has_made(server: str, by: str, number: int = 1) -> bool:
    return len([tags for status, tags in runs(server) if status == "SUCCESS" and by in tags]) >= number


def test_clock_and_sensor_start_runs_one_at_a_time(place: Workplace, server: str) -> None:
    log = place.root / "dagster.log"
    wait_for(lambda: has_made(server, "dagster/sensor_name"), log)
    wait_for(lambda: has_made(server, "dagster/schedule_name"), log)
    assert health_check("scheduler", {3000: int(server.rpartition(":")[2])})(), "that of docker/compose.yaml"
    found = runs(server)
    assert {tags["graftline/model"] for _, tags in found} == {"colors"}
    assert [tags["graftline/why"] for _, tags in found if "graftline/why" in tags] == ["60 of 60 files are new"]
    assert len([status for status, _ in found if status in ("STARTED", "STARTING")]) <= 1
    assert not [status for status, _ in found if status == "FAILURE"], log.read_text()[-5000:]

    results = [json.loads(file.read_text()) for file in sorted(place.root.glob(f"outputs/{STAGE}/*/result.json"))]
    first = results[0]
    ids = [run["runId"] for run in ask(server, "{runsOrError{...on Runs{results{runId}}}}")["runsOrError"]["results"]]
    (line, *_) = Promotions(Tracking(uri=f"sqlite:///{place.root / 'mlflow.db'}"), "colors").read().lines
    assert line.decision.author.scheduler in [f"dagster run {one}" for one in ids], "the ledger says which run it was"
    (dataset, *_) = reversed(materializations(server, "dataset"))
    assert dataset["digest"] == first["dataset_digest"]
    (model, *_) = reversed(materializations(server, "model"))
    assert model["model"] == first["model_uri"]
    assert model["accuracy"] == first["metrics"]["accuracy"]["value"]
    assert model["run"].startswith("http://127.0.0.1:5000/#/runs/")
    assert model["figure"].startswith("![confusion_matrix](data:image/svg+xml;base64,")
    assert " to " in model["scores"]


def test_the_command_of_compose_starts_dagster(tmp_path: Path, color_folder: Path) -> None:
    """The shell line of `scheduler`, of which places, port and address are those of this machine."""
    service, port = SERVICES["scheduler"], free_port()
    line: list[str] = [*service["entrypoint"], *service["command"]]
    shell, option, script, program, *typed = line
    (tmp_path / "graftline").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m graftline "$@"\n')
    (tmp_path / "graftline").chmod(0o755)
    here = {
        "$$": "$",
        "/opt/dagster/bin": str(PROGRAMS),
        "/opt/graftline/pipeline/dagster": str(DAGSTER),
        "0.0.0.0": "127.0.0.1",
        "3000": str(port),
        "/images": str(color_folder),
    }
    words = [script, program, *typed]
    for before, after in here.items():
        assert any(before in word for word in words)
        words = [word.replace(before, after) for word in words]
    variables = Workplace(tmp_path).environment() | {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "RETRAIN_EVERY": "daily 03:00",
    }
    is_healthy, log = health_check("scheduler", {3000: port}), tmp_path / "dagster.log"
    with running_dagster(tmp_path, [shell, option, *words], variables):
        wait_for(is_healthy, log)
        found = ask(f"http://127.0.0.1:{port}", "{assetNodes{assetKey{path}}}")["assetNodes"]
    assert {one["assetKey"]["path"][-1] for one in found} == {"dataset", "model", "champion"}
    assert {one["assetKey"]["path"][0] for one in found} == {color_folder.name}


def materializations(server: str, asset: str) -> list[dict[str, Any]]:
    """Return the metadata of each time that an asset was made, the newest first."""
    found = ask(server, ASSET, path=["colors", asset])["assetOrError"]["assetMaterializations"]
    kinds = ("text", "floatValue", "url", "mdStr")
    return [
        {
            entry["label"]: next((entry[kind] for kind in kinds if kind in entry), None)
            for entry in one["metadataEntries"]
        }
        for one in found
    ]
