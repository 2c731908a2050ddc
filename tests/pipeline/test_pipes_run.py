"""What Dagster starts finds the run's result; `dagster_pipes`, which is not installed here, is a stand-in."""

import json
import subprocess
import sys
from pathlib import Path

from graftline.pipeline.schedule import DAGSTER

STAND_IN = """
import contextlib, json, os, types
@contextlib.contextmanager
def open_dagster_pipes():
    log = types.SimpleNamespace(info=print, error=print)
    yield types.SimpleNamespace(
        extras=json.loads(os.environ["JOB"]), run_id="1", log=log,
        report_custom_message=lambda message: print("told", json.dumps(message)),
    )
"""
RUN = """
import sys
print("x" * 5000)
print("outputs/now")
sys.stdout.flush()
print("\\nException ignored at interpreter exit", file=sys.stderr)
"""


def test_what_is_written_after_the_output_directory_hides_no_result(tmp_path: Path) -> None:
    (tmp_path / "dagster_pipes.py").write_text(STAND_IN)
    output = tmp_path / "outputs" / "now"
    output.mkdir(parents=True)
    (output / "result.json").write_text(json.dumps({"outcome": "promoted", "reason": "it is better"}))
    (tmp_path / "result.json").write_text("{}")
    job = {
        "command": [sys.executable, "-c", RUN],
        "directory": str(tmp_path),
        "log": "job.log",
        "variables": {},
        "seconds": 60.0,
    }
    env = {"JOB": json.dumps(job), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(DAGSTER / "pipes_run.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "promoted: it is better" in done.stdout
    assert json.loads(done.stdout.split("told ")[1])["directory"] == str(output)
