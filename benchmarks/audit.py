"""Measure what docs/audit.md says of the audit: how many labels that were changed here it finds.

    python benchmarks/audit.py [IMAGES]

IMAGES is a folder with a sub-folder per class; without it, ELPV and scikit-learn's digits (by their pixels).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from graftline.backbones.backbone import Backbone
from graftline.data.ingest import Ingest
from graftline.data.manifest import SPLITS
from graftline.data.sources.elpv import Elpv
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.evaluation.label_errors import find_label_errors
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.pipeline.dataset_versions.head_activations import activate, cut_below_head
from graftline.ray_cluster import NoCluster

SHARE, DRAWS = 0.05, 3


def activations(data: Ingest) -> tuple[np.ndarray, np.ndarray, int]:
    """Return activations (N, F), labels (N,) and the number of classes of a data set."""
    version = data.run().version
    trunk = cut_below_head(Backbone("tf_efficientnet_lite0"), version, Features(), Execution.local("cpu"), NoCluster())
    parts = [activate(trunk, split) for split in SPLITS if any(version.counts()[split].values())]
    labels = np.concatenate([part.labels for part in parts])
    return np.concatenate([part.activations for part in parts]), labels, len(version.class_names)


def measure(name: str, inputs: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Change labels, audit them, and print what was found."""
    rows = []
    for draw in range(DRAWS):
        generator = np.random.default_rng(draw)
        changed = generator.choice(len(labels), int(SHARE * len(labels)), replace=False)
        given = labels.copy()
        given[changed] = (labels[changed] + generator.integers(1, num_classes, len(changed))) % num_classes
        found = find_label_errors(inputs, given, num_classes, np.arange(len(labels)))
        planted = np.isin(np.arange(len(labels)), changed)
        worst = np.argsort(found.quality, kind="stable")[: len(labels) // 10]
        right = (found.suggested == labels).mean()
        hits = planted[found.likely].sum()
        rows.append((len(changed), found.likely.sum(), hits / found.likely.sum(), hits / len(changed)))
        rows[-1] += (planted[worst].sum() / len(changed), right)
    changed, listed, precision, recall, of_worst, right = np.mean(rows, axis=0)
    print(
        f"{name}: heads right for {right:.1%}; {changed:.0f} changed, {listed:.0f} listed, {precision:.0%} of these "
        f"changed, {recall:.0%} found, {of_worst:.0%} in the worst 10 %"
    )


def main() -> None:
    """Measure the folder that was named, or the data sets that are always here."""
    if len(sys.argv) > 1:
        measure(sys.argv[1], *activations(Ingest(None, sys.argv[1], Folder(), Split())))
        return
    measure("ELPV", *activations(Ingest("elpv", None, Elpv(), Split())))
    digits = load_digits()
    measure("digits, pixels", digits.data, digits.target.astype(np.int64), 10)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
