"""The checks for drift, as MLflow has them: a run each, whose tags say of which model, and what came of it."""

from typing import TYPE_CHECKING

from graftline.tracking.names import STAGE
from graftline.tracking.uri import absolute_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

# tags: what came of it, of which model, and of which images
DRIFT, DRIFT_MODEL, DRIFT_IMAGES = "graftline.drift", "graftline.drift.bundle_digest", "graftline.drift.images"
RINGS, SILENT = "drift", "no drift"
MONITORED, CHOSEN = "monitored", "chosen"


def drift_tags(bundle_digest: str, *, rings: bool, monitored: bool) -> dict[str, str]:
    """Return the tags of a check.

    Args:
        bundle_digest: of the model.
        rings: whether it has found drift.
        monitored: whether it looked at what servers and predictions have seen, and not at images that somebody chose.
    """
    images = MONITORED if monitored else CHOSEN
    return {STAGE: "drift", DRIFT: RINGS if rings else SILENT, DRIFT_MODEL: bundle_digest, DRIFT_IMAGES: images}


def last_check_rings(uri: str, experiment: str, bundle_digest: str, since: int = 0) -> bool:
    """Tell whether the newest check of what a model has seen in use has found drift; false where there was none.

    Checks of images that somebody chose do not count: they say nothing of what comes in.

    Args:
        uri: of MLflow.
        experiment: name of the data set's; it need not exist.
        bundle_digest: of the model.
        since: ms since 1970; checks that began earlier do not count.

    Raises:
        UserError: MLflow does not answer.
    """
    from graftline.tracking.client import connect_checked

    tags = f"tags.`{DRIFT_MODEL}` = '{bundle_digest}' and tags.`{DRIFT_IMAGES}` = '{MONITORED}'"
    which = f"attributes.status = 'FINISHED' and attributes.start_time > {since} and {tags}"

    def ask(client: "MlflowClient") -> bool:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return False
        newest = ["attributes.start_time DESC"]
        runs = client.search_runs([found.experiment_id], which, max_results=1, order_by=newest)
        return bool(runs) and runs[0].data.tags.get(DRIFT) == RINGS

    return connect_checked(absolute_uri(uri), ask)[1]
