"""The checks for drift, as MLflow has them: a run each, whose tags say of which model, and what came of it."""

from typing import TYPE_CHECKING

from graftline.tracking.names import STAGE

if TYPE_CHECKING:
    from mlflow import MlflowClient

DRIFT, DRIFT_MODEL = "graftline.drift", "graftline.drift.bundle_digest"  # tags
RINGS, SILENT = "drift", "no drift"


def drift_tags(bundle_digest: str, *, rings: bool) -> dict[str, str]:
    """Return the tags of a check of a model."""
    return {STAGE: "drift", DRIFT: RINGS if rings else SILENT, DRIFT_MODEL: bundle_digest}


def last_check_rings(uri: str, experiment: str, bundle_digest: str) -> bool:
    """Tell whether the newest check of a model has found drift; false where there was none.

    Args:
        uri: of MLflow.
        experiment: name of the data set's; it need not exist.
        bundle_digest: of the model.

    Raises:
        UserError: MLflow does not answer.
    """
    from graftline.tracking.client import absolute_uri, connect_checked

    which = f"attributes.status = 'FINISHED' and tags.`{DRIFT_MODEL}` = '{bundle_digest}'"

    def ask(client: "MlflowClient") -> bool:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return False
        newest = ["attributes.start_time DESC"]
        runs = client.search_runs([found.experiment_id], which, max_results=1, order_by=newest)
        return bool(runs) and runs[0].data.tags.get(DRIFT) == RINGS

    return connect_checked(absolute_uri(uri), ask)[1]
