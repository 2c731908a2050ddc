"""Where a retraining begins: what was decided last, which images there are now, and whether it is due."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from graftline.console import say, warn
from graftline.data.ingest import Ingest
from graftline.data.listing import Listing
from graftline.data.references import find_url
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.decision import DecisionRule, MostProbable
from graftline.files import digest
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.retraining.changes import Changes
from graftline.pipeline.retraining.trigger import NAMES, Trigger
from graftline.tracking.drift_checks import last_check_rings
from graftline.tracking.names import BUNDLE_DIGEST, CHAMPION, registered_name
from graftline.tracking.registry import RegisteredVersion
from graftline.tracking.retrainings import Retraining, Retrainings
from graftline.tracking.standing import Standing
from graftline.tracking.tracking import Tracking

# name in a condition → field of the changes
CHANGED = {
    "new_images": "added",
    "removed_images": "removed",
    "changed_labels": "relabeled",
    "new_classes": "new_classes",
}
NEEDED = ("train", "validation", "test")  # splits: without test images nothing can be promoted


@dataclass(frozen=True)
class NotDue:
    """Why nothing is to be done yet.

    Attributes:
        reason: in words.
        changes: of the images, as the condition has seen them; None: it has not looked at them.
    """

    reason: str
    changes: Changes | None


@dataclass(frozen=True)
class Situation:
    """What is known before anything is trained; each part is looked at when it is asked for.

    Attributes:
        data: the images.
        tracking: knows the models.
        retrainings: those that there were.
        recipe: digest of what a retraining depends on beside the images.
        decision: chooses which class is answered; it may name classes, which are to be among those of the images.
    """

    data: Ingest
    tracking: Tracking
    retrainings: Retrainings
    recipe: str
    decision: DecisionRule = MostProbable()  # noqa: RUF009 - immutable

    @cached_property
    def model(self) -> str:
        """Name of the registered model."""
        return registered_name(self.data.dataset_name())

    @cached_property
    def champion(self) -> RegisteredVersion | None:
        """The version that is in use."""
        return self.tracking.registry().aliased(self.model, CHAMPION)

    @cached_property
    def last(self) -> Retraining | None:
        """The retraining that was decided last."""
        return self.retrainings.decided()

    @cached_property
    def version(self) -> DatasetVersion:
        """The images, read, checked and split now."""
        seen, check_classes = self.__dict__.pop("_seen", None), self.decision.check_classes
        if seen is None:
            return self._reader.run(NEEDED, check_classes).version
        return self._reader.write(seen, NEEDED, check_classes).version

    @cached_property
    def _seen(self) -> Listing:
        """The images as a look finds them; a version of them is written only if a retraining is due."""
        return self._reader.look(NEEDED, self.decision.check_classes)

    @cached_property
    def _reader(self) -> Ingest:
        """What reads the images: they keep their splits, also on a machine that has not seen the last ones."""
        before = self._before
        if self.data.parent != "newest" or before is None or self._directory(before.digest).is_dir():
            return with_parent(self.data, self.tracking)
        say(f"Dataset version {before.digest} was trained on elsewhere: images keep the splits that they have in it.")
        return replace(self.data, parent=str(before.directory))

    @cached_property
    def key(self) -> str:
        """Digest of all that a retraining depends on now."""
        return digest({"dataset": self.version.digest, "recipe": self.recipe})

    @cached_property
    def changes(self) -> Changes | None:
        """What has changed since the last retraining, or the champion's training; None: there was none."""
        before = self._before
        return None if before is None else Changes.between(before, self.version)

    def what_changed(self, changes: Changes) -> str:
        """Return changes in words; of a champion that no retraining has made, nobody knows its settings."""
        if self.last is None and changes.is_same_version:
            return "The champion was trained on these images by no retraining: its settings may have been others."
        return f"Since the last time: {'; '.join(changes.sentences)}."

    @property
    def after(self) -> str:
        """Run of the retraining that was decided last, as a tag."""
        return "none" if self.last is None else self.last.run_id

    def unfinished(self) -> "tuple[Situation, Retraining | None]":
        """Return the retraining to go on with, or None, and the situation in which it is to be decided.

        It is of the images that there were when it began, if each of them is here as it was; one whose training has
        failed by itself is gone on with only if nothing at all has changed.
        """
        for begun in self.retrainings.unfinished(self.recipe):
            if begun.key == self.key:
                return self, begun
            if begun.training_failed or begun.after != self.after:
                continue
            if (version := self._still_here(begun)) is not None:
                before = replace(self)
                before.__dict__["version"] = version  # where the cached property keeps it
                return before, begun
        return self, None

    def _still_here(self, begun: Retraining) -> DatasetVersion | None:
        """Return the dataset version of a retraining if it is on this machine and all of its images are here."""
        directory = None if begun.dataset_digest is None else self._directory(begun.dataset_digest)
        if directory is None or not (directory / "manifest.parquet").is_file():
            return None
        version = DatasetVersion.load(directory)
        return version if version.is_part_of(self.version) else None

    @cached_property
    def settled(self) -> Retraining | None:
        """A retraining on the same images, settings and code, after which another one would change nothing; or None.

        It was the last one, or its model is in use, or was and was rolled back, or the gate has held it against the
        model in use on these images: so of several recipes that take turns each is retrained once. One whose model was
        deleted settles nothing.
        """
        known = self.retrainings.decided(self.key)
        if known is None or self.last is None or self._was_deleted(known):
            return None
        return known if known.run_id == self.last.run_id or self._is_settled(known.version) else None

    def is_open(self, known: Retraining) -> bool:
        """Tell whether the gate is to decide once more on a retraining that was settled on this machine.

        It is where the gate has refused its model for what it may find otherwise at another moment, and only once.
        """
        standing = self._standing
        if known.outcome != "refused" or known.version is None or standing is None or not known.is_here:
            return False
        is_there = known.version in {version.version for version in standing.versions}
        return is_there and [line.decision.is_final for line in standing.lines_of(known.version)] == [False]

    @cached_property
    def _standing(self) -> Standing | None:
        """How things stand with the model, None where it is not registered."""
        from graftline.tracking.promotions import Promotions  # with MLflow

        is_there = self.model in self.tracking.registry().names()
        return Promotions(self.tracking, self.model).read() if is_there else None

    def _was_deleted(self, known: Retraining) -> bool:
        """Tell whether the version of a retraining was deleted, and not as one that was refused or rolled back."""
        standing = self._standing
        if standing is None or not standing.versions:
            return True
        if known.version is None or known.outcome == "refused":
            return False
        is_there = known.version in {version.version for version in standing.versions}
        is_it = is_there and bool(standing.lines_of(known.version))  # not another one of its number
        return not is_it and standing.rollback_of(known.version) is None

    def _is_settled(self, version: int | None) -> bool:
        standing = self._standing
        if version is None or standing is None:
            return False
        if self.champion is not None and self.champion.version == version:
            return True
        return standing.rollback_of(version) is not None or self._were_compared(version, standing)

    def _were_compared(self, version: int, standing: Standing) -> bool:
        """Tell whether the gate has held a version and the champion against each other on the images of now."""
        pair = {version, None if self.champion is None else self.champion.version}
        return any(
            {line.decision.version, line.decision.compared_with} == pair
            and all(standing.is_about(line, number) for number in pair)
            and (line.decision.digests or {}).get("dataset") == self.version.digest
            for line in standing.lines
        )

    @cached_property
    def _before(self) -> DatasetVersion | None:
        """Return the images of the last retraining, or of the champion's training, or those that these grew from."""
        if self.last is not None and self.last.dataset_digest is not None:
            return self._load(self.last.dataset_digest, self.last.run_id)
        if self.champion is not None:
            return DatasetVersion.load(self.tracking.registry().dataset(self.champion.uri))
        return None

    def _load(self, dataset_digest: str, run_id: str) -> DatasetVersion:
        here = self._directory(dataset_digest)
        return DatasetVersion.load(here if here.is_dir() else self.tracking.registry().dataset(run_id))

    def _directory(self, dataset_digest: str) -> Path:
        """Return where a version of the data set is on this machine, if it is here."""
        return Path(self.data.directory) / self.data.dataset_name() / dataset_digest

    def why_not_due(self, when: str | None) -> NotDue | None:
        """Return why nothing is to be done yet; None if it is due."""
        if when is None or (self.last is None and self.champion is None):
            return None
        asked: dict[str, float] = {}

        def ask(name: str) -> float:
            others = {"age": self._age, "drift": self._drift}
            asked[name] = others[name]() if name in others else self._changed(CHANGED[name])
            return asked[name]

        values = {name: partial(ask, name) for name in NAMES}
        if Trigger(when).holds(values):
            say(f"Due by '{when}': {_in_words(asked)}.")
            return None
        seen = self._seen_changes if asked.keys() & CHANGED.keys() else None
        return NotDue(f"{_in_words(asked)}, and it is due by '{when}'", seen)

    def _drift(self) -> float:
        """Return 1 if the newest check of what the champion has seen in use has found drift, else 0.

        A check before the last retraining has led to it, and to no other one.
        """
        if self.champion is None:
            return 0.0
        experiment = self.tracking.experiment or self.data.dataset_name()
        since = 0 if self.last is None else self.last.ended or 0
        return float(last_check_rings(self.tracking.uri, experiment, self.champion.tags.get(BUNDLE_DIGEST, ""), since))

    def _age(self) -> float:
        """Return the seconds since the last retraining was decided, or the champion trained."""
        moment = self._last_moment()
        if moment is None:
            return float("inf")
        if (age := time.time() - moment / 1000) < 0:
            warn(
                f"The last retraining ended {-age / 3600:,.1f} hours from now, a clock was set back: this one is due "
                "by age."
            )
            return float("inf")
        return age

    def _last_moment(self) -> int | None:
        """Return when the last retraining was decided, or the champion registered, in ms since 1970."""
        if self.last is not None:
            return self.last.ended
        return None if self.champion is None else self.retrainings.registered_at(self.model, self.champion.version)

    def _changed(self, what: str) -> float:
        value: Any = 0 if self._seen_changes is None else getattr(self._seen_changes, what)
        return float(len(value) if isinstance(value, Sequence) else value)

    @cached_property
    def _seen_changes(self) -> Changes | None:
        if self._before is None:
            return None
        return Changes.to_images(self._before, self._seen.images, self._seen.class_names)


def _in_words(values: Mapping[str, float]) -> str:
    """Name values as a condition does.

    >>> _in_words({"age": 3 * 86_400.0, "new_images": 12.0})
    'age is 3.0d, new_images is 12'
    """
    return ", ".join(
        f"{name} is " + (f"{value / 86_400:.1f}d" if name == "age" else f"{value:,.0f}")
        for name, value in values.items()
    )


def require_images(data: Ingest, *, allow_shrink: bool) -> None:
    """Make sure that there is something where the images are to be.

    Args:
        data: says where.
        allow_shrink: whether images may be gone; all of them may not, since nothing could be trained on.

    Raises:
        UserError: the folder or file is not there, or cannot be read, or the folder is empty, as that of a disk that is
            not mounted.
    """
    if data.path is None or find_url(data.path) is not None:  # what is listed there says whether there is anything
        return
    if (what := _find_fault(Path(data.path).expanduser())) is not None:
        but = "; RetrainOptions.allow_shrink lets images be fewer, but these are none" if allow_shrink else ""
        raise UserError(
            f"Ingest.path={data.path} {what}: nothing is trained, and no image counts as removed. See that it is "
            f"mounted{but}."
        )


def _find_fault(source: Path) -> str | None:
    """Return in words why there is nothing where the images are to be; None where there is something."""
    try:
        source.stat()  # `exists` hides other errors from Python 3.14 on
        return "is empty" if source.is_dir() and not any(source.iterdir()) else None
    except (FileNotFoundError, NotADirectoryError):
        return "is not there"
    except OSError as error:  # as of a network folder whose other end is gone
        return f"cannot be read ({error.strerror})"
