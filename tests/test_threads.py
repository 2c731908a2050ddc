"""How torch's threads wait for one another, as OpenMP itself tells it where torch is loaded."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is another one elsewhere")
@pytest.mark.parametrize(("given", "spins"), [({}, False), ({"OMP_WAIT_POLICY": "ACTIVE"}, True)])
def test_they_sleep_unless_the_user_says_otherwise(given: dict[str, str], spins: bool) -> None:
    before = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "import graftline, torch"],
        env={**before, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '" in done.stderr
    assert ("GOMP_SPINCOUNT = '0'" not in done.stderr) == spins
