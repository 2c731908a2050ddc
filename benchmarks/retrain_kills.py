"""SIGKILL at random moments of `make retrain`: what is there afterwards, and does the next one go on from it?

    PYTHONPATH=tests:. python benchmarks/retrain_kills.py [kills] [seed]

Each time images arrive, a retraining of a tiny network is killed at a random moment of the time that a whole one takes,
and started again; then it is looked at whether anything is lost, there twice, or there by half (tests/factory.py).
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from factory import Factory
from workplace import Ran, Workplace


def main(kills: int = 20, seed: int = 0) -> None:
    """Print a line for each kill, and a sum in the end."""
    chance = random.Random(seed)  # noqa: S311 - moments, no secrets
    factory = Factory(Workplace(Path(tempfile.mkdtemp(prefix="retrain-kills-"))))
    factory.paint(20)
    factory.outcome()  # the first one loads the libraries
    factory.paint(2)
    began = time.monotonic()
    factory.outcome()
    whole, done, tested = time.monotonic() - began, 2, set[str]()
    print(f"a whole retraining takes {whole:.1f} s")
    resumed = 0
    for number in range(1, kills + 1):
        while True:
            factory.paint(2)
            moment, began = chance.uniform(0, whole), time.monotonic()
            killed = kill(factory, moment)
            if killed.code == -signal.SIGKILL:
                break
            done, whole = done + 1, time.monotonic() - began  # it was faster than the kill
        last = [line for line in killed.output.splitlines() if line.strip()]
        again = factory.retrain()
        assert again.code == 0, again.output
        done += 1
        factory.check(done)
        test = set(factory.newest.samples("test").sha256)
        assert tested <= test, "the test split has lost an image"
        tested = test
        resumed += "Going on with run" in again.output
        outcome = again.result["outcome"]
        print(f"{number:2}. after {moment:4.1f} s, at: {last[-1][:70] if last else '-'} -> {outcome}", flush=True)
    print(
        f"{kills} kills, {done} retrainings, {done} versions, {done} decisions; {resumed} went on with the run begun."
    )


def kill(factory: Factory, seconds: float) -> Ran:
    """Retrain, and kill the process after some seconds; it may be done by then."""
    process = factory.place.start("retrain", *factory.settings)
    end = time.monotonic() + seconds
    while process.code is None and time.monotonic() < end:
        time.sleep(0.01)
    if process.code is None:
        process.send_signal(signal.SIGKILL)
    return Ran(process.wait(60), process.output)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
