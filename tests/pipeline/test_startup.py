"""A mistake is refused, and a configuration is printed, before anything heavy is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from workplace import Workplace

from graftline.backbones import catalog

HEAVY = ("torch", "pytorch_lightning", "torchmetrics", "timm", "albumentations", "mlflow", "sklearn", "pandas")
COMMANDS = [
    (["train", "bakbone=lite0", "trainer.max_epoch=3", "augment.crop.siez=1"], 1),
    (["train", "train.batch_size=many", "trainer.precision=17", "optim.lr=fast", "data.source=7"], 1),
    (["cost", "backbone=resnet18,efficientnet_bo"], 1),
    (["predict"], 1),
    (["config", "backbone=resnet18.a1_in1k", "augment=strong", "trainer.limit_train_batches=2"], 0),
]
SCRIPT = f"""
import json, sys
from graftline.pipeline.__main__ import main
for arguments, code in json.loads(sys.argv[1]):
    assert main(arguments) == code
    print(arguments, *sorted(set({HEAVY}) & set(sys.modules)), sep="|")
"""


def test_nothing_heavy_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    catalog.keep()
    command = [sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)]
    environment = {**os.environ, **Workplace(tmp_path).environment()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("['")] == [str(a) for a, _ in COMMANDS]
    assert "did you mean efficientnet_b0" in done.stdout
    assert "optim.lr=fast: must be a number or Tensor" in done.stdout
