"""What a comparison is told to compare: a run, a registered model or a directory, and the predictions that it has."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from graftline.console import say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.evaluation.comparison import require_same_classes
from graftline.evaluation.predictions import ALL, Predictions, predict_split
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundles.source import REGISTERED, RUN, open_bundle
from graftline.pipeline.dataset_versions.trained_on import logged_dataset, run_of_bundle, trained_on
from graftline.pipeline.evaluating.scoring import PREDICTIONS_FILE
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.tracking.names import BUNDLE_DIGEST
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class Contender:
    """A model that was tested.

    Attributes:
        name: for people.
        reference: what was typed; leads to its bundle.
        file: what it gave for its test images; None if it has left nothing.
        run_id: of its run in MLflow; None if it is a directory.
    """

    name: str
    reference: str
    file: Path | None
    run_id: str | None = None

    def predictions(self) -> Predictions | None:
        """Read what it gave for its test images.

        Raises:
            UserError: that cannot be read.
        """
        return None if self.file is None else Predictions.load(self.file)


def find_contender(reference: str, tracking: Tracking) -> Contender:
    """Return what a reference leads to.

    Args:
        reference: a run's id, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the output directory of a run.
        tracking: knows the runs and the models.

    Raises:
        UserError: it leads nowhere, or to an evaluation on images that trained the model.
    """
    if not reference.startswith(REGISTERED) and RUN.fullmatch(reference) is None:
        return _in_directory(reference)
    registry = tracking.registry()
    run, name = registry.tested_run(reference), None
    _refuse_seen(run.name, run.seen_in_training)
    is_of_run = True
    if reference.startswith(REGISTERED):
        version = registry.version(reference)
        name = f"{run.name} ({reference.removeprefix(REGISTERED)})"
        is_of_run = version.tags.get(BUNDLE_DIGEST) in (None, run.bundle_digest)  # a run that went on has another model
    file = registry.predictions(run) if is_of_run else None
    return Contender(name or run.name, reference, file, run.id)


def _in_directory(reference: str) -> Contender:
    """Return the contender of an output directory of a training or an evaluation, or of a bundle."""
    directory = Path(reference).expanduser()
    if not directory.is_dir():
        raise UserError(
            f"{reference} is no model to compare: give a run's id or output directory, models:/NAME@ALIAS, latest or "
            "best:5."
        )
    of_run = run_of_bundle(directory)
    files = [RunDirectory(of_run).test / PREDICTIONS_FILE, of_run / PREDICTIONS_FILE]
    file = next((file for file in files if file.is_file()), None)
    known = RunDirectory(of_run).read_result()
    name = known.get("run_name", of_run.name)
    _refuse_seen(name, known.get("seen_in_training", 0))
    return Contender(name, reference, file)


def _refuse_seen(name: str, number: int) -> None:
    """Make sure that an evaluation is a test: that none of its images have trained the model."""
    if number > 0:
        raise UserError(
            f"{name} was evaluated on {number:,} images that trained its model, or chose its epoch: name runs that "
            "were tested on other images."
        )


def with_own_names(contenders: Sequence[Contender]) -> list[Contender]:
    """Return the contenders, those of one name with what tells them apart behind it.

    That is the run's id or the directory's name, and the whole reference where others share that, too.
    """
    short = [one.run_id[:8] if one.run_id else Path(one.reference).name for one in contenders]
    found = list(contenders)
    for told in (short, [one.reference for one in contenders]):
        counts = Counter(one.name for one in found)
        found = [
            replace(now, name=f"{one.name} ({more})") if counts[now.name] > 1 else now
            for one, now, more in zip(contenders, found, told, strict=True)
        ]
    return found


@dataclass(frozen=True, eq=False)
class CommonTest(Mapping[str, Predictions]):
    """By a contender's name, what it gave for the images that all are compared on: those that one was tested on.

    What a run has left is read whenever it is asked for, as that of several may not fit the memory.

    Attributes:
        contenders: each with a name of its own.
        holder: the contender that was tested on the images.
        tracking: knows the runs and the models.
        accelerator: where bundles are run.
        classified: what models gave that were tested on others, by name.
    """

    contenders: Mapping[str, Contender]
    holder: Contender
    tracking: Tracking
    accelerator: Accelerator = "auto"
    classified: dict[str, Predictions] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.contenders)

    def __iter__(self) -> Iterator[str]:
        return iter(self.contenders)

    def __getitem__(self, name: str) -> Predictions:
        """Return what a contender gave for the images, or gives now if its bundle and the images are here.

        Raises:
            UserError: it was tested on others, or not at all, and cannot be tested on these now.
        """
        if name in self.classified:
            return self.classified[name]
        contender, test = self.contenders[name], self._test
        found = test if contender is self.holder else contender.predictions()
        if found is not None and found.split_digest == test.split_digest:
            return found
        why = f"{contender.name} has no logged predictions"
        if found is not None:
            why = (
                f"{contender.name} was tested on other images (digest {found.split_digest}) than {self.holder.name} "
                f"(digest {test.split_digest})"
            )
        try:
            version = self._version()
            execution = Execution.local(self.accelerator)
            predictor, bundle = open_bundle(contender.reference, self.tracking, "onnx", execution)
            self._refuse_seen_images(contender, predictor.card, version)
        except UserError as error:
            raise UserError(f"{why}, and it cannot be tested on those now: {first_line(error)}.") from error
        require_same_classes(contender.name, predictor.class_names, self.holder.name, test.class_names)
        say(f"{why}: {bundle} classifies those now.")
        found = predict_split(replace(predictor, decoding=version.decoding), version, self._split)
        self.classified[name] = replace(found, split=test.split)
        return self.classified[name]

    @cached_property
    def _test(self) -> Predictions:
        test = self.holder.predictions()
        if test is None:
            raise UserError(
                f"{self.holder.name} has no logged predictions to compare others with: "
                f"`{program()} evaluate bundle={self.holder.reference}` tests it, in a run that has them."
            )
        return test

    @property
    def _split(self) -> str:
        """The split of the dataset version that has the images."""
        return "test" if self._test.split == ALL else self._test.split

    def _version(self) -> DatasetVersion:
        """Return the dataset version that has the images."""
        folder = logged_dataset(self.holder.reference, self.tracking)
        if folder is None:
            raise UserError(f"{self.holder.reference} names no dataset version")
        version = DatasetVersion.load(folder)
        if version.split_digests.get(self._split) != self._test.split_digest:
            raise UserError(f"{version.directory} has other {self._split} images")
        return version

    def _refuse_seen_images(self, contender: Contender, card: Mapping[str, Any], version: DatasetVersion) -> None:
        """Make sure that none of the images trained a model, where that can be known."""
        try:
            before = trained_on(card, contender.reference, self.tracking)
        except UserError:
            warn(f"What {contender.name} was trained on is not known: make sure that it was none of these images.")
            return
        if number := int(before.seen_in_training(version.samples(self._split).sha256).sum()):
            raise UserError(f"{number:,} of them trained it, or chose its epoch")
