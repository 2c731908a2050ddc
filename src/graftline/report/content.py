"""What the report of a run shows. A stage fills in what it computed; what it leaves out gets no section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftline.data.decoding import PLAIN, Decoding
from graftline.evaluation.comparison import Comparison
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.grid import GridRow
from graftline.evaluation.metrics import Interval
from graftline.evaluation.slices import Slice


@dataclass(frozen=True)
class Calibrated:
    """How the probabilities were calibrated, on validation images.

    Attributes:
        sentence: what was done and why.
        before: calibration error of the network's own probabilities; None where nothing was fitted.
        after: with the calibration.
    """

    sentence: str
    before: Interval | None = None
    after: Interval | None = None

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> "Calibrated | None":
        """Return what a bundle's card says of it; None where it says nothing.

        >>> Calibrated.of_card({"calibration": {"sentence": "By a temperature.", "num_images": 100}})
        Calibrated(sentence='By a temperature.', before=None, after=None)
        """
        content = card.get("calibration")
        if not content:
            return None
        ends = [content.get(name) for name in ("error_before", "error_after")]
        before, after = (None if one is None else Interval(**one) for one in ends)
        return cls(content["sentence"], before, after)


@dataclass(frozen=True)
class PictureFile:
    """A picture that was drawn elsewhere.

    Attributes:
        file: a PNG.
        heading: what it shows.
        caption: how to read it.
    """

    file: Path
    heading: str
    caption: str


@dataclass(frozen=True)
class Training:
    """How a model was trained.

    Attributes:
        epochs: the metrics of each epoch.
        best: of the epoch that is kept.
        sentences: what was frozen and why, on what it was trained.
        pictures: such as of the augmentation.
    """

    epochs: Sequence[Mapping[str, float]]
    best: Mapping[str, float]
    sentences: Sequence[str]
    pictures: Sequence[PictureFile] = ()


@dataclass(frozen=True)
class MembersAndCrops:
    """What members and crops bring, and cost.

    Attributes:
        rows: every combination.
        members: what each member is, in the order of their numbers.
        sentences: what is gained, and where crops do harm.
        pictures: where the crops lie.
    """

    rows: Sequence[GridRow]
    members: Sequence[str] = ()
    sentences: Sequence[str] = ()
    pictures: Sequence[PictureFile] = ()


@dataclass(frozen=True)
class SuspectLabel:
    """A label that is probably wrong.

    Attributes:
        path: of the image.
        label: what it is called.
        suggested: the likelier class.
        probability: of the label.
    """

    path: str
    label: str
    suggested: str
    probability: float


@dataclass(frozen=True)
class StageSummary:
    """What another stage has found about the model or its images, in short.

    Attributes:
        stage: its name.
        link: a word or two that lead to it.
        heading: what it shows.
        sentences: what it found.
        source: where all of it lies.
        pictures: that it drew.
        labels: that are probably wrong.
        decoding: how the images of these become pixels.
    """

    stage: str
    link: str
    heading: str
    sentences: Sequence[str]
    source: str
    pictures: Sequence[PictureFile] = ()
    labels: Sequence[SuspectLabel] = ()
    decoding: Decoding = PLAIN


@dataclass(frozen=True)
class Missing:
    """What was not computed.

    Attributes:
        heading: what it would show.
        command: that computes it.
    """

    heading: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the report of a run shows.

    Attributes:
        title: of the page.
        kind: what the run did, such as ``training``.
        facts: label → text, in the order to show.
        result: the evaluation; None where there were no test images.
        calibrated: how the probabilities were calibrated.
        decision: sentences on which class is answered, on sets of classes, and on what is refused.
        slices: scores on parts of the images; none where they were not computed.
        members_and_crops: what they bring.
        comparison: with other models.
        training: how the model was trained.
        summaries: what other stages have found.
        notes: sentences beside those of the evaluation.
        missing: what was not computed.
    """

    title: str
    kind: str
    facts: Mapping[str, str]
    result: EvaluationResult | None
    calibrated: Calibrated | None = None
    decision: Sequence[str] = ()
    slices: Sequence[Slice] = ()
    members_and_crops: MembersAndCrops | None = None
    comparison: Comparison | None = None
    training: Training | None = None
    summaries: Sequence[StageSummary] = ()
    notes: Sequence[str] = ()
    missing: Sequence[Missing] = field(default_factory=tuple)

    @property
    def scores(self) -> Mapping[str, Interval]:
        """The scores; empty where nothing was tested."""
        return {} if self.result is None else self.result.scores
