"""A tracking database that the first run makes: once, with one line, and not out of another file."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from lasting_run import log_together
from workplace import Workplace

from graftline.errors import UserError
from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking


def test_a_database_that_is_none(tmp_path: Path, directory: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("not a database")
    with pytest.raises(UserError, match="cannot be used"):
        Tracking(uri=f"sqlite:///{file}").start(run_name="first", experiment="pets", directory=directory, tags={})


def test_runs_that_start_together_make_one_database(tmp_path: Path) -> None:
    """MLflow's own creation fails in all processes but one."""
    ready = tmp_path / "ready"
    log = partial(log_together, "sqlite:///mlflow.db", ready=ready)
    place = Workplace(tmp_path)
    processes = [place.start_function(partial(log, Path(f"outputs/{number}"))) for number in range(3)]
    while len(list(tmp_path.glob("waits.*"))) < len(processes) and all(process.code is None for process in processes):
        time.sleep(0.01)
    ready.touch()
    codes = [process.wait(120) for process in processes]
    outputs = [process.output for process in processes]
    assert codes == [0, 0, 0], outputs
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'pets'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == {output.splitlines()[-1] for output in outputs}
    assert not list(tmp_path.glob(".mlflow.db*"))


FIRST_USE = """
from pathlib import Path
from graftline.console import show_log
from graftline.tracking.tracking import Tracking

show_log()
tracking = Tracking(uri="sqlite:///mlflow.db", system_metrics=False)
with tracking.start(run_name="first", experiment="pets", directory=Path("outputs/run"), tags={}) as run:
    run.log_metrics({"loss": 0.5}, 0)
    print(run.id)
"""


@pytest.mark.long
def test_the_first_use_says_one_line_and_leaves_the_working_directory_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_USE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    say, run_id = done.stdout.splitlines()
    assert say.startswith("Creating the tracking database")
    assert len(run_id) == 32
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlartifacts", "outputs"}
    assert [path.name for path in (tmp_path / "outputs" / "run").iterdir()] == ["outbox"]
