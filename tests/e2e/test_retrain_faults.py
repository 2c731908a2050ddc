"""A retraining that finds the champion or the disk damaged, and one that is killed before it has told its decision."""

import errno
import json
from collections.abc import Callable

from factory import NAME, Factory
from workplace import Workplace

FEW, HOOK = "trainer.max_epochs=6", "notify.command=tee -a told.json"
GATE = "graftline.pipeline.promotion.examination"


def test_a_damaged_champion_and_a_decision_that_was_not_told(make_workplace: Callable[[str], Workplace]) -> None:
    factory = Factory(make_workplace("damaged"))
    factory.paint(20)
    assert factory.outcome(FEW, "gate.milliseconds=0.0001") == "refused"
    again = factory.retrain(FEW)
    assert "The challenger with a fresh start was trained before" in again.output
    assert (again.result["outcome"], again.result["ledger_line"]) == ("promoted", 2), "by a machine that is not busy"
    factory.paint(5)
    weights = factory.registry.bundle(f"models:/{NAME}/1") / "model.onnx"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ran = factory.retrain(FEW)
    assert ran.code == 1, ran.output
    assert f"is not the bundle that was logged as models:/{NAME}/1" in ran.output.splitlines()[-1]
    assert "Challenger, fresh start" not in ran.output, "nothing was trained"
    assert factory.results()[-1]["outcome"] == "failed"
    weights.write_bytes(content)

    full = OSError(errno.ENOSPC, "No space left on device")
    assert "No space left" in factory.fail(f"{GATE}:Examination.run", full, FEW).output.splitlines()[-1]
    factory.paint(1, "red")
    killed = factory.die("graftline.pipeline.retraining.notify:Notify.tell", "before", FEW)
    assert "Going on with run" in killed.output
    assert "was trained before" in killed.output
    (factory.images / "red" / f"{factory.painted:04}.png").unlink()
    for _ in range(2):
        assert factory.outcome(FEW, HOOK) == "nothing new", "it is decided"
    told = json.loads((factory.place.root / "told.json").read_text())  # of two it would be no JSON
    assert (told["model_uri"], told["ledger_line"]) == (f"models:/{NAME}/2", 3)
    assert told["outcome"] in ("promoted", "refused")
    assert "accuracy" in told["metrics"]
    factory.check(2, decided=[1, 1, 2])
