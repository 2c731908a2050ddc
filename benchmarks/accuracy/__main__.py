"""Run what is not there yet, print the table, draw the picture: `python -m benchmarks.accuracy`.

Each run starts from nothing on an idle machine: let nothing else run beside it. A run that is in the results is not
done again, so an interrupted benchmark goes on where it was; it is done again where the set, the number of cores or the
code (graftline's for its own runs, the scripts' for the peers) is another. A run that fails is kept as such, and the
others go on.
"""

import argparse
import itertools
import json
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.accuracy.picture import draw_picture
from benchmarks.accuracy.results import RESULTS, Failure, Result, Run, add, read
from benchmarks.accuracy.runners import (
    PEERS,
    PEERS_PYTHON,
    ROOT,
    Place,
    RunFailedError,
    is_current,
    origin,
    set_digest,
    start,
)
from benchmarks.accuracy.sets.catalog import SETS
from benchmarks.accuracy.sets.folders import DIGEST, write
from benchmarks.accuracy.table import markdown, write_page
from benchmarks.accuracy.weights import write_weights

SETS_OF_DEFAULT = ("elpv", "fashion1k", "letters", "digits", "textures", "textures9")


def plan(sets: Iterable[str], peers: Iterable[str], minutes: Iterable[float], seeds: Iterable[int]) -> list[Run]:
    """Return the runs, the cheapest first; a peer without a budget runs once per set and seed."""
    runs = {
        Run(image_set, peer, budget if PEERS[peer].has_budget else None, seed): None
        for budget, image_set, peer, seed in itertools.product(sorted(minutes), sets, peers, seeds)
    }
    return list(runs)


def main() -> None:
    """Do what the command line says."""
    given = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the run that is going on ends too
    place = Place(given.folder / "sets", given.folder / "weights", given.folder)
    for name in given.sets:
        if not (place.sets / name / DIGEST).exists():
            print(write(SETS[name](), place.sets / name))
    write_weights(place.weights)
    runs = plan(given.sets, given.peers, given.minutes, given.seeds)
    done = read(given.folder)
    missing = [run for run in runs if run not in done or not is_current(done[run], place)]
    for number, run in enumerate(missing, start=1):
        print(f"{number} of {len(missing)}: {run.name}", flush=True)
        add(given.folder, _attempt(run, place))
    results = on_these_images(read(given.folder), place)
    if not results:
        raise SystemExit(f"No run came to a result: {given.folder / RESULTS} says why.")
    print(markdown(results, given.folder))
    draw_picture(results, given.folder / "accuracy.png")
    if given.page:
        write_page(results, given.folder, ROOT)


def on_these_images(results: Mapping[Run, Result], place: Place) -> dict[Run, Result]:
    """Return the results on the sets as they lie here: only those can be compared, image by image."""
    return {
        run: result
        for run, result in results.items()
        if result.origin.set_digest == set_digest(run.image_set, place) != ""
    }


def _attempt(run: Run, place: Place) -> Result | Failure:
    """Do a run and say what came of it."""
    try:
        result = start(run, place)
    except RunFailedError as error:
        print(f"  failed: {error}", flush=True)
        return Failure(run, str(error), origin(run, place))
    facts = json.dumps(result.facts)
    print(f"  {result.accuracy:.2%} after {result.trained_seconds:.0f} s ({result.seconds:.0f} s) {facts}", flush=True)
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS_OF_DEFAULT)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "bench-accuracy", help="of sets and results")
    parser.add_argument("--page", action="store_true", help="write table and picture into docs/")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    if not PEERS_PYTHON.exists() and any(not name.startswith("graftline") for name in given.peers):
        parser.error("the peers' environment is not there: make bench-accuracy makes it")
    return given


if __name__ == "__main__":
    main()
