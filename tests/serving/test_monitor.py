"""A server that keeps a sample of what it sees, and the check of that sample."""

from pathlib import Path

import pytest
from drifting import blur, make_model, paint_all
from http_server import FORM, HttpServer, form
from workplace import Workplace

from graftline.errors import UserError
from graftline.pipeline.bundles.watch import check_watch


def test_what_a_server_sees_is_compared_with_the_training(workplace: Workplace) -> None:
    make_model(workplace.root)
    files = paint_all(workplace.root / "same", range(1000, 1050))
    blurred = sorted(blur(files, workplace.root / "blurred").iterdir())
    with HttpServer(workplace.root, "model=./bundle", "monitor=kept", "monitor_images=12") as server:
        for start in range(0, len(blurred), 10):
            answer = server.ask("/predict", form(*(file.read_bytes() for file in blurred[start : start + 10])), FORM)
            assert answer.status == 200
        assert "What the models see is sampled into kept, for " in server.output
        broken = server.ask("/predict", b"no image")
        assert broken.status == 400, "and counted as unreadable"
        assert server.stop() == 0
    assert len(list((workplace.root / "kept").rglob("*.npz"))) == 1
    ran = workplace.run("drift", "model=./bundle", "monitor=kept", "window=1d")
    assert ran.code == 0, ran.output
    assert (ran.result["images"], ran.result["unreadable"], ran.result["outcome"]) == (51, 1, "drift")
    assert sum(ran.result["class_shares"].values()) == pytest.approx(1)
    page = (ran.directory / "drift.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 12
    nothing = workplace.run("drift", "model=./bundle", "monitor=elsewhere")
    assert nothing.code == 1
    assert nothing.output.strip().splitlines()[-1].startswith("monitor=elsewhere has nothing of ")


def test_a_server_does_not_claim_to_keep_what_it_does_not(bundle: Path, tmp_path: Path) -> None:
    with HttpServer(tmp_path, f"model={bundle}", "monitor=kept") as server:
        assert "Nothing of what it sees is kept: " in server.output
        assert "is sampled into" not in server.output


def test_pictures_need_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="monitor_images is 12, but nothing is kept: give monitor, a directory"):
        check_watch(None, 12)
    check_watch(str(tmp_path), 12)
