"""The runs that were tested, as MLflow has them: which is the newest, which are the best, what they were tested on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.tracking.names import BUNDLE_DIGEST, DATASET, TEST_DIGEST

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
        scores: of the test, by name.
        artifacts: URI of its files.
    """

    __test__ = False  # pytest takes it for a test

    id: str
    name: str
    experiment: str
    dataset: str
    test_digest: str | None
    bundle_digest: str | None
    scores: Mapping[str, float]
    artifacts: str


def describe(run: "MlflowRun", experiment: str) -> TestedRun:
    """Return what is known of a run."""
    tags, metrics = run.data.tags, run.data.metrics
    return TestedRun(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        dataset=tags.get(DATASET, experiment),
        test_digest=tags.get(TEST_DIGEST) if BUNDLE_DIGEST in tags else None,
        bundle_digest=tags.get(BUNDLE_DIGEST),
        scores={name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")},
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


def find_all(
    client: "MlflowClient", experiment: str, store: str, score: str, *, lower_is_better: bool
) -> list[TestedRun]:
    """Return the tested runs of an experiment, the best first; of the same model on the same images, the oldest.

    Args:
        client: where to look.
        experiment: name of the experiment.
        store: name of where ``client`` looks, for the message.
        score: name of the score, without ``test/``.
        lower_is_better: whether a lower one is better.

    Raises:
        UserError: there is no such experiment, or no run in it with such a score.
    """
    names = _experiments(client, experiment, store)
    order = [f"metrics.`test/{score}` {'ASC' if lower_is_better else 'DESC'}", "attributes.start_time ASC"]
    page = client.search_runs(list(names), _TESTED, max_results=_PAGE, order_by=order)
    runs: Sequence[MlflowRun] = page
    while page.token:
        page = client.search_runs(list(names), _TESTED, max_results=_PAGE, order_by=order, page_token=page.token)
        runs = [*runs, *page]
    found: dict[tuple[str | None, str | None], TestedRun] = {}
    for run in (describe(one, experiment) for one in runs):
        if score in run.scores:
            found.setdefault((run.bundle_digest, run.test_digest), run)
    if not found:
        raise UserError(f"No run of the experiment '{experiment}' has logged test/{score}: take another score.")
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
