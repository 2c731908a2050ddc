"""The worker processes of a loader: they end with whoever loads, and one that is gone is told."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

LOAD = """
import sys, time
from pathlib import Path
import numpy as np
from graftline.data.loaders import make_loader
from graftline.data.version import Samples

class Plain:
    def __call__(self, image, draw):
        return np.zeros((3, 8, 8), np.float32)

if __name__ == "__main__":
    paths = sorted(map(str, Path(sys.argv[1]).rglob("*.png")))
    samples = Samples(paths, np.zeros(len(paths), np.int64), None, paths)
    loader = make_loader(samples, Plain(), batch_size=4, shuffle=True, seed=0, workers=2)
    batches = iter(loader)
    next(batches)
    print("loading", flush=True)
    time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes as Linux lists them")
def test_workers_end_when_whoever_loads_is_killed(color_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    with subprocess.Popen([sys.executable, script, color_folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 4, "a server, its two workers, and multiprocessing's tracker of resources"
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
