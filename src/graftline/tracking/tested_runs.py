"""The runs that were tested, as MLflow has them: which is the newest, which are the best, what they were tested on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.tracking.names import BUNDLE_DIGEST, DATASET, TEST_DIGEST, VALIDATION_LOSS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_PAGE = 500  # runs per question
_TESTED = "attributes.status = 'FINISHED' and metrics.`test/accuracy` >= 0"


@dataclass(frozen=True)
class TestedRun:
    """A run whose model was tested.

    Attributes:
        id: MLflow's id.
        name: in MLflow's user interface.
        experiment: name of its experiment.
        dataset: name of the data set.
        test_digest: of the images and labels that it was tested on; None if it was not.
        bundle_digest: of the model; None if it was not tested.
        artifacts: URI of its files.
    """

    __test__ = False  # pytest takes it for a test

    id: str
    name: str
    experiment: str
    dataset: str
    test_digest: str | None
    bundle_digest: str | None
    artifacts: str


def describe(run: "MlflowRun", experiment: str) -> TestedRun:
    """Return what is known of a run."""
    tags = run.data.tags
    return TestedRun(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        dataset=tags.get(DATASET, experiment),
        test_digest=tags.get(TEST_DIGEST) if BUNDLE_DIGEST in tags else None,
        bundle_digest=tags.get(BUNDLE_DIGEST),
        artifacts=str(run.info.artifact_uri),
    )


def find_newest(client: "MlflowClient", experiment: str | None, store: str, skip: str | None = None) -> TestedRun:
    """Return the newest run that was tested, of an experiment or of all.

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
    found = client.search_runs(list(names), _TESTED + others, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        where = f"The experiment '{experiment}'" if experiment is not None else f"The {store}"
        raise UserError(f"{where} has no run that was tested{' beside the champion' if skip else ''}: train a model.")
    return describe(found[0], names[found[0].info.experiment_id])


def find_best(client: "MlflowClient", experiment: str, store: str) -> list[TestedRun]:
    """Return the tested runs of an experiment, the lowest log loss on validation images first.

    Of the same model on the same test images, the oldest is there.

    Args:
        client: where to look.
        experiment: name of the experiment.
        store: name of where ``client`` looks, for the message.

    Raises:
        UserError: there is no such experiment, or no run in it with a validation log loss.
    """
    names = _experiments(client, experiment, store)
    order = [f"metrics.`{VALIDATION_LOSS}` ASC", "attributes.start_time ASC"]
    filter_string = f"{_TESTED} and metrics.`{VALIDATION_LOSS}` >= 0"
    page = client.search_runs(list(names), filter_string, max_results=_PAGE, order_by=order)
    runs: list[MlflowRun] = [*page]
    while page.token:
        page = client.search_runs(list(names), filter_string, max_results=_PAGE, order_by=order, page_token=page.token)
        runs += page
    if not runs:
        raise UserError(
            f"No run of the experiment '{experiment}' has logged {VALIDATION_LOSS}, by which the best would be chosen: "
            "name the runs."
        )
    found: dict[tuple[str | None, str | None], TestedRun] = {}
    for run in (describe(one, experiment) for one in runs):
        found.setdefault((run.bundle_digest, run.test_digest), run)
    return list(found.values())


def _experiments(client: "MlflowClient", name: str | None, store: str) -> dict[str, str]:
    """Return the names of experiments by their ids: of one, or of all."""
    if name is None:
        return {one.experiment_id: one.name for one in client.search_experiments()}
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        others = [one.name for one in client.search_experiments(max_results=10) if one.name != "Default"]
        raise UserError(f"There is no experiment '{name}' in the {store}: there are {', '.join(others) or 'none'}.")
    return {experiment.experiment_id: name}
