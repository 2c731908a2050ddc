"""What a predictor gave for the images of a split: the one value that all scores, figures and comparisons come from.

Letters: N images, K classes.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.refusal import Refusal
from graftline.console import counted
from graftline.data.decoding import PLAIN, Decoding
from graftline.data.review import require_known_classes
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.bootstrap import drawn_groups
from graftline.files import atomic_file

_FORMAT = 1  # raise it when the file's layout changes
_METADATA = b"graftline"  # key of what the file says beside its columns
ALL = "all"  # split of predictions for all images of a version that was not divided, whose test they are
_FACTS = ("class_names", "split", "dataset", "split_digest", "bundle_digest")


class Classifier(Protocol):
    """What predictions need of a predictor."""

    @property
    def class_names(self) -> Sequence[str]:
        """K names, in the order of the columns that ``logits`` returns."""
        ...

    @property
    def decision(self) -> Decision:
        """Which class it answers, given the probabilities."""
        ...

    @property
    def digest(self) -> str:
        """What names the classifier and all that it computes."""
        ...

    def logits(self, images: Iterable[str], batch_size: int, on_progress: Callable[[int], None] | None) -> np.ndarray:
        """Return (N, K) logits of image files; ``on_progress`` gets the number of images just done."""
        ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier gave for the images of a split.

    Attributes:
        paths: N absolute paths, of the machine that classified them.
        logits: (N, K) float32.
        labels: (N,) int64 in 0..K-1.
        weights: (N,) float32; None where the data set has none.
        sha256: N digests of the files' bytes, in hex.
        class_names: K names.
        split: its name; `ALL` where all images were asked for, whether or not they trained the classifier.
        dataset: name of the data set.
        split_digest: of the split's images and labels; predictions with the same one can be compared.
        bundle_digest: of the classifier.
        decoding: how the files become pixels, for those who look at them.
        decision: of the classifier: which class it answers.
        groups: N names; images of one group are alike, and so are copies of one image. None: each stands alone.
        refused: (N,) bool, whether the classifier marks an image as none of its classes; None: it does not tell.
    """

    paths: list[str]
    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    sha256: list[str]
    class_names: tuple[str, ...]
    split: str
    dataset: str
    split_digest: str
    bundle_digest: str
    decoding: Decoding = PLAIN
    decision: Decision = MOST_PROBABLE
    groups: Sequence[str] | None = None
    refused: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = len(self.paths)
        assert self.logits.shape == (size, len(self.class_names)), "one row per image, one column per class"
        assert len(self.labels) == len(self.sha256) == size, "a label and a digest for each image"
        assert self.groups is None or len(self.groups) == size, "a group for each image"

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K), as precise as the logits; each row sums to 1."""
        return softmax(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int64, the number of the class that is answered."""
        return self.decision.answer(self.probabilities)

    @cached_property
    def confidences(self) -> np.ndarray:
        """(N,), the probability of the class that is answered."""
        confidences: np.ndarray = self.probabilities[np.arange(len(self.predicted)), self.predicted]
        return confidences

    @property
    def split_in_words(self) -> str:
        """Which part of the data set was classified."""
        return "all splits" if self.split == ALL else f"{self.split} split"

    @property
    def num_groups(self) -> int:
        """How many there are, each image that stands alone one of its own."""
        return len(self.labels) if self.groups is None else len(set(self.groups))

    @cached_property
    def drawn_groups(self) -> np.ndarray | None:
        """(N,) int64, the number of each image's group, where groups are resampled; see `drawn_groups`."""
        return drawn_groups(self.groups)

    @property
    def num_drawn(self) -> int:
        """How many units are resampled: groups, or images."""
        return len(self.labels) if self.drawn_groups is None else self.num_groups

    @cached_property
    def surest_mistakes(self) -> np.ndarray:
        """The numbers of the images that are answered wrongly, the one with the highest probability first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    def table(self) -> pd.DataFrame:
        """Return one row per image, in order, to sort, filter and join.

        Columns: path, label, predicted (names of classes), correct, ``probability/CLASS`` for each class, weight (only
        with weights), group (only with groups), refused (only where the classifier tells), sha256, ``logit/CLASS`` for
        each class.
        """
        names = np.asarray(self.class_names, dtype=object)
        columns: dict[str, object] = {
            "path": self.paths,
            "label": names[self.labels],
            "predicted": names[self.predicted],
            "correct": self.predicted == self.labels,
        }
        columns |= {f"probability/{name}": column for name, column in zip(names, self.probabilities.T, strict=True)}
        if self.weights is not None:
            columns["weight"] = self.weights
        if self.groups is not None:
            columns["group"] = self.groups
        if self.refused is not None:
            columns["refused"] = self.refused
        columns["sha256"] = self.sha256
        columns |= {f"logit/{name}": column for name, column in zip(names, self.logits.T, strict=True)}
        return pd.DataFrame(columns)

    def save(self, file: Path) -> Path:
        """Write all as one Parquet file: the table, and the rest in its metadata."""
        table = pa.Table.from_pandas(self.table(), preserve_index=False)
        facts = {"format": _FORMAT, "decoding": self.decoding.to_dict(), "decision": self.decision.to_dict()}
        facts |= {name: getattr(self, name) for name in _FACTS}
        metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(facts).encode()}
        with atomic_file(file) as temporary:
            pq.write_table(table.replace_schema_metadata(metadata), temporary)
        return file

    @classmethod
    def load(cls, file: Path) -> "Predictions":
        """Read what ``save`` wrote.

        Raises:
            UserError: there is no such file, or another program or a later graftline wrote it.
        """
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{file} holds no predictions: it cannot be read as Parquet.") from error
        facts = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
        if facts.get("format") != _FORMAT:
            raise UserError(
                f"{file} holds no predictions with logits that this version of graftline reads: evaluate again."
            )
        class_names = tuple(facts["class_names"])
        logits = [f"logit/{name}" for name in class_names]
        few = [name for name in ("path", "label", "sha256", "weight", "group", "refused") if name in schema.names]
        table = pq.read_table(file, columns=[*few, *logits])  # without the probabilities, which are as large
        rows, numbers = table.select(few).to_pandas(), {name: number for number, name in enumerate(class_names)}
        return cls(
            paths=rows["path"].tolist(),
            logits=np.stack([table.column(name).to_numpy() for name in logits], axis=1),
            labels=rows["label"].map(numbers).to_numpy(np.int64),
            weights=rows["weight"].to_numpy() if "weight" in rows else None,
            groups=rows["group"].tolist() if "group" in rows else None,
            refused=rows["refused"].to_numpy(bool) if "refused" in rows else None,
            sha256=rows["sha256"].tolist(),
            decoding=Decoding.from_dict(facts.get("decoding")),
            decision=Decision.from_dict(facts.get("decision")),
            **{**{name: facts[name] for name in _FACTS}, "class_names": class_names},
        )


def predict_split(
    predictor: Classifier,
    version: DatasetVersion,
    split: str = "test",
    batch_size: int = 32,
    known_logits: np.ndarray | None = None,
    known_refused: np.ndarray | None = None,
) -> Predictions:
    """Classify the images of a split.

    Classes are matched by name, so that the version may have fewer than the predictor, in any order.

    Args:
        predictor: the classifier.
        version: has the images.
        split: its name.
        batch_size: images per step of the predictor.
        known_logits: (N, K), what the predictor gives, where that is known; then no image is classified.
        known_refused: (N,), which images it marks as none of its classes, where the logits are known and this is, too.

    Raises:
        UserError: the version has a class that the predictor does not know, the split is empty, or an image cannot be
            read.
    """
    class_names = tuple(predictor.class_names)
    require_known_classes(version.class_names, class_names)
    samples = version.samples(split)
    labels = version.renumber(samples.labels, class_names)
    logits, refused, groups = known_logits, known_refused, version.groups(split)
    if logits is None:
        with counted(f"Classifying the {split} images", len(samples.paths)) as advance:
            if (refusal := refusal_of(predictor)) is not None:
                assert isinstance(predictor, Predictor), "only such a one refuses"
                logits, embeddings = predictor.logits_and_embeddings(samples.paths, batch_size, advance)
                refused = refusal.refused(embeddings)
            else:
                logits, refused = predictor.logits(samples.paths, batch_size, advance), None
    return Predictions(
        paths=samples.paths,
        logits=logits,
        labels=labels,
        weights=samples.weights,
        sha256=samples.sha256,
        class_names=class_names,
        split=split,
        dataset=version.name,
        split_digest=version.split_digests[split],
        bundle_digest=predictor.digest,
        decoding=samples.decoding,
        decision=predictor.decision,
        groups=groups if len(set(groups)) < len(groups) else None,
        refused=refused,
    )


def refusal_of(predictor: Classifier) -> Refusal | None:
    """Return which images a classifier marks as none of its classes; None: it does not tell."""
    return predictor.refusal if isinstance(predictor, Predictor) else None


def largest_difference(predictor: Classifier, paths: Sequence[str], logits: np.ndarray, batch_size: int) -> float:
    """Return the largest difference of a predictor's logits from others, relative where they exceed 1.

    Args:
        predictor: the classifier.
        paths: n image files.
        logits: (n, K), of the same images.
        batch_size: images per step of the predictor.
    """
    found = predictor.logits(paths, batch_size, None)
    return float(np.abs(found - logits).max() / max(1.0, float(np.abs(found).max())))
