"""The line to MLflow is cut at each request of `make retrain`: what is there afterwards, and does the next one go on?

    PYTHONPATH=tests:. python benchmarks/retrain_cuts.py [every] [first]

A real server is behind a line that is cut at one request after the other, of those that change something; by turns the
request is lost, or its answer. Each time an image has arrived, and the retraining is started again when the line is
whole; then it is looked at whether anything is lost, there twice, or there by half (tests/factory.py). Of the files of
a model, which are sent one like the other, some stand for all.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cut_line import Line, Loses
from dying import hurried
from factory import Factory
from mlflow_server import Server
from workplace import Workplace

from graftline.tracking.database import create_database

ALIKE = re.compile(r"/models/m-\w+/artifacts/.*(code|golden)/")


def main(every: int = 1, first: int = 1) -> None:
    """Print a line for each cut, and a sum in the end."""
    root = Path(tempfile.mkdtemp(prefix="retrain-cuts-"))
    for name in ("server", "place"):
        (root / name).mkdir()
    create_database(root / "empty.db")
    server = Server(root / "server", root / "empty.db")
    server.start()
    try:
        with Line(server.port).open() as line:
            _cut_each(line, Factory(Workplace(root / "place"), uri=server.uri), every, first)
    finally:
        server.kill()


def _cut_each(line: Line, factory: Factory, every: int, first: int) -> None:
    factory.settings += ["tracking=server", f"tracking.uri={line.uri}", "trainer.max_epochs=2"]
    factory.settings += ["gate.resamples=100", "gate.slower=null"]
    factory.paint(10)
    factory.outcome()
    factory.paint(1)
    line.mend()
    factory.outcome()
    done, cut, numbers = 2, 0, list(_numbers(line.asked))
    for turn, number in enumerate(numbers[first - 1 :: every]):
        factory.paint(1)
        before = _champion(factory)
        loses: Loses = "answer" if turn % 2 else "request"
        line.cut("", number, loses)
        away = factory.place.run_function(partial(hurried, ["retrain", *factory.settings]), 600)
        was_cut, asked = line.is_cut, line.asked
        line.mend()
        told = away.output.strip().splitlines()[-1]
        assert away.code == 1 or not was_cut or re.search("rename|delete", asked[-1]), away.output
        assert "Traceback" not in away.output, away.output
        champion, done, cut = _champion(factory), done + 1, cut + was_cut
        assert champion in (before, done), "it is the old or the new one"
        if away.code == 1:
            again = factory.retrain()
            assert again.code == 0, again.output
            assert champion == before or _champion(factory) == champion, "what was promoted stays"
        factory.check(done)
        what = asked[number - 1] if was_cut else "not cut, it asked less"
        print(f"{number:3}. {loses} of {what} is lost -> {away.code}: {told}", flush=True)
    print(f"{cut} cuts of {len(numbers)}, {done} retrainings, {done} versions, {done} decisions.")


def _champion(factory: Factory) -> int | None:
    champion = factory.champion
    return None if champion is None else champion.version


def _numbers(asked: list[str]) -> Iterator[int]:
    """Yield the numbers of the requests at which it is cut."""
    alike = 0
    for number, request in enumerate(asked, 1):
        alike += (is_alike := ALIKE.search(request) is not None)
        if not is_alike or alike % 20 == 1:
            yield number


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
