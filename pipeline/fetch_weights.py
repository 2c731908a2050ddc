"""Fetch-weights: a backbone's weights into the weights directory, which a machine without network trains from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from graftline.backbones.backbone import Backbone
from graftline.backbones.fetch import FetchedWeights, fetch
from graftline.backbones.weights_store import WeightsStore
from graftline.pipeline.stage import StageResult


@dataclass(frozen=True)
class FetchResult(StageResult):
    """The weights file, where it came from, and whether it is new."""

    weights: FetchedWeights


@dataclass(frozen=True)
class FetchWeights:
    """The stage ``fetch-weights`` (Hydra target of conf/fetch-weights.yaml).

    Attributes:
        backbone: whose weights are fetched, into its weights directory.
    """

    backbone: Backbone

    def run(self, directory: Path) -> FetchResult:  # noqa: ARG002 - the weights directory outlives the run's own
        """Fetch what is not there yet."""
        store = WeightsStore(self.backbone.weights_dir)
        fetched = fetch(self.backbone.name, store)
        entry = fetched.entry
        table = [
            ("weights", f"{fetched.path} ({entry.bytes / 1e6:,.1f} MB)"),
            ("from", entry.source),
            ("license", entry.license),
            ("SHA-256", entry.sha256),
            ("lock file", f"{store.lock_file} ({len(store.entries())} networks)"),
        ]
        return FetchResult(weights=fetched, facts={"is_new": fetched.is_new, **asdict(entry)}, table=table)
