"""Prune: remove old outputs, checkpoints, activations and refused versions; what a model in use needs stays."""

from dataclasses import dataclass
from pathlib import Path

from graftline.console import print_table, warn
from graftline.features.cache import Features
from graftline.features.store import in_words
from graftline.pipeline.retraining.keep import (
    Keep,
    Leftover,
    OldVersion,
    find_leftovers,
    find_old_versions,
    summarize,
)
from graftline.pipeline.stage import StageResult
from graftline.tracking.models_in_use import find_used_runs
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class Prune:
    """The stage ``prune`` (Hydra target of conf/prune.yaml).

    Attributes:
        keep: what stays, by age and number.
        features: whose cached activations are pruned.
        tracking: where the models in use are looked up; refused versions are removed from its registry.
        dry_run: whether it is only said what would be removed.
    """

    keep: Keep
    features: Features
    tracking: Tracking
    dry_run: bool = False

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - what it does is done to the others
        """Print what is to go, then remove it."""
        needed, store = find_used_runs(self.tracking.uri), self.features.store
        leftovers: list[Leftover | OldVersion] = [
            *find_leftovers(self.keep, self.tracking.uri, needed, store),
            *find_old_versions(self.keep, self.tracking),
        ]
        if leftovers:
            rows = [(one.name, one.kind, in_words(one.bytes), f"{one.days:,.0f} days") for one in leftovers]
            title = "Would be removed" if self.dry_run else "To be removed"
            print_table(title, ("what", "", "size", "unused for"), rows)
        kept = [] if self.dry_run else [one for one in leftovers if not one.remove(store)]
        if kept:
            warn(f"{len(kept)} of these stay: they are in use, or MLflow does not let them go.")
        gone = [one for one in leftovers if one not in kept]
        facts = {
            "dry_run": self.dry_run,
            "removed": [{"path": str(one.path), "kind": one.kind, "bytes": one.bytes} for one in gone],
            "needed": [one.id for one in needed],
        }
        return StageResult(
            facts=facts,
            table=[
                ("would be removed" if self.dry_run else "removed", summarize(gone)),
                ("kept in any case", f"what {len(needed)} runs need that made the models in use, or are running"),
            ],
        )
