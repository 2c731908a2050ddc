"""An interrupt that arrives while Python cleans up."""

import subprocess
import sys

import pytest

LOST = """
import signal, time
from graftline.pipeline.cli.interrupts import keep_interrupts
from graftline.processes import Terminated

class Cleaned:
    def __del__(self):
        raise {raised}

def terminate(*_):
    raise Terminated

signal.signal(signal.SIGTERM, terminate)
signal.signal(signal.SIGINT, signal.default_int_handler)
{keep}
Cleaned()
try:
    time.sleep(2)
    print("went on")
except KeyboardInterrupt as interrupt:
    print("ended by", type(interrupt).__name__)
"""


@pytest.mark.parametrize(
    ("raised", "keep", "expected"),
    [
        ("KeyboardInterrupt", "keep_interrupts()", "ended by KeyboardInterrupt"),
        ("Terminated", "keep_interrupts()", "ended by Terminated"),
        ("ValueError", "keep_interrupts()", "went on"),
        ("KeyboardInterrupt", "", "went on"),  # as Python has it
    ],
)
def test_an_interrupt_of_a_finalizer_comes_again(raised: str, keep: str, expected: str) -> None:
    code = LOST.format(raised=raised, keep=keep)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == expected
    assert ("Exception ignored" in ran.stderr) == (expected == "went on")
