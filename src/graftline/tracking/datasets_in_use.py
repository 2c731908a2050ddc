"""Which dataset versions are needed by what MLflow has: registered versions, runs that go on, and retrainings."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftline.tracking.names import DATASET_DIGEST
from graftline.tracking.paging import find_all
from graftline.tracking.registry import Registry
from graftline.tracking.retrainings import find_needed
from graftline.tracking.tested_runs import all_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_used_datasets(uri: str) -> set[str]:
    """Return the digests of the dataset versions that are in use.

    These are those that registered versions were trained and tested on, those of runs that are running, of each model
    that of its last retraining, and those of retrainings that can be gone on with here.

    Raises:
        UserError: there is no such database, or MLflow does not answer.
    """
    return Registry(uri).ask(lambda client: {*_of_models(client), *_of_runs(client)})


def _of_models(client: "MlflowClient") -> Iterator[str]:
    from graftline.tracking.client import known_run

    for version in find_all(client.search_model_versions):
        run = None if DATASET_DIGEST in version.tags or not version.run_id else known_run(client, version.run_id)
        tags = version.tags if run is None else run.data.tags
        if DATASET_DIGEST in tags:
            yield tags[DATASET_DIGEST]


def _of_runs(client: "MlflowClient") -> Iterator[str]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    if not experiments:
        return
    running = all_runs(client, experiments, "attributes.status = 'RUNNING'")
    found = [run.data.tags.get(DATASET_DIGEST) for run in running]
    found += [retraining.dataset_digest for retraining in find_needed(client, experiments)]
    yield from (digest for digest in found if digest is not None)
