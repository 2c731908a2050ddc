"""Parameters divided among two processes on the CPU: the numbers of one process, and checkpoints that anyone reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from workplace import TINY, Workplace

SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


@pytest.fixture
def words(color_folder: Path, tmp_path: Path) -> list[str]:
    """A part of a network without batch statistics, whose groups have rates of their own."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    own = [
        "backbone=test_vit",
        "backbone.weights=file",
        f"backbone.file={tmp_path / 'weights.pth'}",
        "freeze=first_stages",
        "freeze.number=2",
        "schedule=constant",
        "train.layer_decay=0.75",
        "train.grad_checkpointing=true",
        "data=folder",
        f"data.path={color_folder}",
        "data.split.train=0.68",  # 41 images: the last batches of two processes have 3 and 2
        "data.split.test=0.2",
    ]
    return list({line.partition("=")[0]: line for line in (*TINY, *own)}.values())


def test_it_gives_the_numbers_of_one_process_and_goes_on(
    workplace: Workplace, make_workplace: Callable[[str], Workplace], words: list[str]
) -> None:
    begun = workplace.run_command("train", *words, *SHARDED, "train.batch_size=6", "trainer.max_epochs=1")
    assert begun.code == 0, begun.output
    resumed = [f"train.resume={begun.result['run_id']}", "trainer.max_epochs=2"]
    sharded = workplace.run_command("train", *resumed)
    assert sharded.code == 0, sharded.output
    assert "Warning" not in begun.output + sharded.output

    alone = make_workplace("alone").run("train", *words, "train.batch_size=12")
    assert alone.code == 0, alone.output
    weights, of_one = (load_file(ran.directory / "bundle" / "model.safetensors") for ran in (sharded, alone))
    assert max(float((weights[name] - of_one[name]).abs().max()) for name in of_one) < 1e-4
    for name, value in alone.result["metrics"].items():
        assert sharded.result["metrics"][name]["value"] == pytest.approx(value["value"], abs=1e-4)
