"""Processes end with whoever they work for, however that ended."""

import subprocess
import sys

import psutil

WORK = "import time; from graftline.processes import end_with_parent; end_with_parent(); print('works', flush=True)"
START = f"""
import subprocess, sys, time
command = [sys.executable, "-c", "{WORK}; time.sleep(600)"]
process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        worker = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    assert not psutil.wait_procs([worker], timeout=10)[1]
