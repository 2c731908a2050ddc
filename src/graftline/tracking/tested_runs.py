"""The runs with a model, as MLflow has them: which is the newest, which were trained, what they were tested on.

The newest one is the one that ended last. A member that an ensemble has trained is part of that and never the newest
model, though it may be the best training; trials of a search have no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.tracking.names import (
    BUNDLE_DIGEST,
    DATASET,
    OUTPUT_DIRECTORY,
    PARENT_RUN,
    SEEN_IN_TRAINING,
    STAGE,
    TEST_DIGEST,
    VALIDATION_DIGEST,
    VALIDATION_LOSS,
)
from graftline.tracking.paging import find_all

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_PAGE, _FEW = 500, 20  # runs per question, and where one of the first is enough
_TEST_SCORE = "test/accuracy"
# an evaluation scores the model of another run, or an average that nobody can load; a filter of tags knows no IN
_TESTED = f"attributes.status = 'FINISHED' and metrics.`{_TEST_SCORE}` >= 0 and tags.`{STAGE}` != 'evaluate'"
_TRAINED = f"attributes.status = 'FINISHED' and tags.`{STAGE}` = 'train'"
_ENSEMBLES = f"tags.`{STAGE}` = 'ensemble'"
_NEWEST_FIRST = ("attributes.end_time DESC",)


@dataclass(frozen=True)
class TestedRun:
    """A run that has a model, which was tested or may be.

    Attributes:
        id: MLflow's id.
        name: in MLflow's user interface.
        experiment: name of its experiment.
        dataset: name of the data set.
        validation_digest: of the images and labels that chose its epoch; None if an earlier graftline logged it.
        test_digest: of the images and labels that it was or would be tested on; None if it was made by others.
        is_tested: whether it has test scores.
        bundle_digest: of the model; None if there is none.
        validation_loss: log loss on the validation images, nats; None if none was logged.
        directory: its output directory, on the machine that it ran on.
        artifacts: URI of its files.
        seen_in_training: how many of the images that it was evaluated on have trained the model.
    """

    __test__ = False  # pytest takes it for a test

    id: str
    name: str
    experiment: str
    dataset: str
    validation_digest: str | None
    test_digest: str | None
    is_tested: bool
    bundle_digest: str | None
    validation_loss: float | None
    directory: Path | None
    artifacts: str
    seen_in_training: int = 0

    @property
    def images(self) -> dict[str, str]:
        """The digests of its validation and test images, where they are known, by tag."""
        digests = {VALIDATION_DIGEST: self.validation_digest, TEST_DIGEST: self.test_digest}
        return {tag: digest for tag, digest in digests.items() if digest is not None}


def describe(run: "MlflowRun", experiment: str) -> TestedRun:
    """Return what is known of a run."""
    tags, metrics = run.data.tags, run.data.metrics
    return TestedRun(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        dataset=tags.get(DATASET, experiment),
        validation_digest=tags.get(VALIDATION_DIGEST),
        test_digest=tags.get(TEST_DIGEST),
        is_tested=_TEST_SCORE in metrics,
        bundle_digest=tags.get(BUNDLE_DIGEST),
        validation_loss=metrics.get(VALIDATION_LOSS),
        directory=Path(tags[OUTPUT_DIRECTORY]) if OUTPUT_DIRECTORY in tags else None,
        artifacts=str(run.info.artifact_uri),
        seen_in_training=int(tags.get(SEEN_IN_TRAINING, 0)),
    )


def find_newest(client: "MlflowClient", experiment: str | None, store: str, skip: str | None = None) -> TestedRun:
    """Return the newest run that made a model and tested it, a training or an ensemble, of an experiment or of all.

    Args:
        client: where to look.
        experiment: name of an experiment, or None.
        store: name of where ``client`` looks, for the message.
        skip: digest of a model that is not meant.

    Raises:
        UserError: there is no such experiment, or no such run.
    """
    names = _experiments(client, experiment, store)
    others = "" if skip is None else f" and tags.`{BUNDLE_DIGEST}` != '{skip}'"
    found = _first_of_its_own(client, list(names), _TESTED + others)
    if found is None:
        where = f"The experiment '{experiment}'" if experiment is not None else f"The {store}"
        beside = " beside the champion" if skip else ""
        raise UserError(f"{where} has no training or ensemble that was tested{beside}: train a model.")
    return describe(found, names[found.info.experiment_id])


def find_newest_training(
    client: "MlflowClient", experiment: str | None, store: str, *, members: bool = False
) -> TestedRun:
    """Return the newest training that came to its end, of an experiment or of all; arguments as for the newest run.

    Args:
        client: where to look.
        experiment: name of an experiment, or None.
        store: name of where ``client`` looks, for the message.
        members: whether one that an ensemble has trained may be meant.

    Raises:
        UserError: there is no such experiment, or no such run.
    """
    names = _experiments(client, experiment, store)
    if members:
        found = next(all_runs(client, list(names), _TRAINED, _NEWEST_FIRST, size=1), None)
    else:
        found = _first_of_its_own(client, list(names), _TRAINED)
    if found is None:
        where = f"experiment '{experiment}'" if experiment is not None else store
        beside = "" if members else " beside members of ensembles"
        raise UserError(f"The {where} has no finished training{beside}: train first, or name a run.")
    return describe(found, names[found.info.experiment_id])


def find_best_trainings(
    client: "MlflowClient", experiment: str, store: str, images: Mapping[str, str], most: int | None = None
) -> list[TestedRun]:
    """Return the finished trainings of an experiment on the same images, the lowest validation log loss first.

    Args:
        client: where to look.
        experiment: its name.
        store: name of where ``client`` looks, for the message.
        images: digests of the validation and the test images, by tag.
        most: how many are enough; None: all.

    Raises:
        UserError: there is no such experiment.
    """
    (place,) = _experiments(client, experiment, store)
    same = [f"tags.`{tag}` = '{value}'" for tag, value in images.items()]
    filter_string = " and ".join([_TRAINED, f"metrics.`{VALIDATION_LOSS}` >= 0", *same])
    order = [f"metrics.`{VALIDATION_LOSS}` ASC", "attributes.start_time ASC"]
    runs = all_runs(client, [place], filter_string, order, size=min(most or _PAGE, _PAGE))
    return [describe(run, experiment) for run in islice(runs, most)]


def find_runs_of_model(client: "MlflowClient", bundle_digest: str, test_digest: str, most: int) -> list[TestedRun]:
    """Return the finished runs that made or evaluated a model, where the test images were the same, the newest first.

    Args:
        client: where to look.
        bundle_digest: of the model.
        test_digest: of the test images of the dataset version.
        most: how many are enough.
    """
    names = {one.experiment_id: one.name for one in client.search_experiments()}
    of_model = f"tags.`{BUNDLE_DIGEST}` = '{bundle_digest}' and tags.`{TEST_DIGEST}` = '{test_digest}'"
    runs = all_runs(client, list(names), f"attributes.status = 'FINISHED' and {of_model}", _NEWEST_FIRST, size=most)
    return [describe(run, names[run.info.experiment_id]) for run in islice(runs, most)]


def _first_of_its_own(client: "MlflowClient", experiments: Sequence[str], filter_string: str) -> "MlflowRun | None":
    """Return the run that ended last of those that no ensemble has trained as its member; None: there is none."""
    runs = all_runs(client, experiments, filter_string, _NEWEST_FIRST, size=_FEW)
    ensembles: set[str] | None = None  # asked for once a run has a parent
    for run in runs:
        parent = run.data.tags.get(PARENT_RUN)
        if parent is None:
            return run
        if ensembles is None:
            ensembles = {one.info.run_id for one in all_runs(client, experiments, _ENSEMBLES)}
        if parent not in ensembles:
            return run
    return None


def all_runs(
    client: "MlflowClient",
    experiments: Sequence[str],
    filter_string: str,
    order: Sequence[str] = (),
    size: int = _PAGE,
) -> "Iterator[MlflowRun]":
    """Return the runs that a filter leaves, asked for so many at a time."""
    search = partial(client.search_runs, list(experiments), filter_string, max_results=size, order_by=list(order))
    return find_all(search)


def _experiments(client: "MlflowClient", name: str | None, store: str) -> dict[str, str]:
    """Return the names of experiments by their ids: of one, or of all."""
    if name is None:
        return {one.experiment_id: one.name for one in client.search_experiments()}
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        others = [one.name for one in client.search_experiments(max_results=10) if one.name != "Default"]
        raise UserError(f"There is no experiment '{name}' in the {store}: there are {', '.join(others) or 'none'}.")
    return {experiment.experiment_id: name}
