"""Name things in MLflow: our tags and artifacts, and metrics and models as MLflow accepts them."""

import hashlib
import posixpath
import re

MAX_KEY_LENGTH = 250  # of a metric, parameter or tag (mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"  # aliases of a registered model
SCHEDULER = "GRAFTLINE_SCHEDULER"  # environment variable: what started the job, for the ledger

# tags of a run
STAGE = "graftline.stage"
PARENT_RUN = "mlflow.parentRunId"  # MLflow's own: the run that groups it
USER = "mlflow.user"  # likewise: whose process began it
OUTPUT_DIRECTORY = "graftline.output_dir"
HOST = "graftline.host"
ERROR = "graftline.error"  # the kind of the one that it ended with and what it says; empty if it goes on
DATASET = "graftline.dataset"
DATASET_DIGEST, TEST_DIGEST = "graftline.dataset_digest", "graftline.test_digest"  # of its registered models too
VALIDATION_DIGEST = "graftline.validation_digest"
BUNDLE_DIGEST = "graftline.bundle_digest"  # of runs that have a model, and of registered models
SEEN_IN_TRAINING = "graftline.seen_in_training"  # of an evaluation: how many of its images trained the model
FROZEN_DIGEST = "graftline.frozen_digest"  # of a run whose freeze check has held
# tag of a registered model: see `graftline.files.digest_directory`
BUNDLE_FILES = "graftline.bundle_files"
# likewise: the version that was champion when it was registered; it has none where there was no champion
PARENT_VERSION = "graftline.parent_version"
DECISION = "graftline.decision"  # likewise: what was decided on it last, as "refused (line 7)"

# folders of a run's artifacts, and the file in them with what its model gave for those images
TEST, VALIDATION, PREDICTIONS = "test", "validation", "predictions.parquet"
MAX_DESCRIPTION = 5000  # characters of a version's (SqlModelVersion in mlflow.store.model_registry.dbmodels.models)
VALIDATION_LOSS, VALIDATION_ACCURACY = (
    "validation/log_loss",
    "validation/accuracy",
)  # metrics, of the epoch that is kept
LEARNING_RATE = "lr/"  # metrics of a phase's first step begin so
DATA = "data"  # folder of a run's artifacts that holds the files of its dataset version
BUNDLE = "artifacts/bundle"  # folder of a model that holds its bundle
LEASE = ".retraining"  # behind the name of a model: what `graftline.tracking.lease` holds

_NOT_IN_KEYS = re.compile(r"[^/\w.\- :]")
_NOT_IN_MODEL_NAMES = re.compile(r"[^\w.\-]+")


def key(name: str) -> str:
    """Return ``name`` as MLflow accepts it for metrics and parameters.

    What MLflow refuses becomes an underscore, and four hex digits keep such names different.

    >>> key("precision/cat")
    'precision/cat'
    >>> key("precision/C++"), key("precision/C#")
    ('precision/C__-329e', 'precision/C_-5151')
    """
    clean = posixpath.normpath(_NOT_IN_KEYS.sub("_", name).strip()).lstrip("./")
    if clean == name and len(name) <= MAX_KEY_LENGTH:
        return name
    suffix = "-" + hashlib.sha256(name.encode()).hexdigest()[:4]
    return clean[: MAX_KEY_LENGTH - len(suffix)] + suffix


def registered_name(name: str) -> str:
    """Return the name under which models of the data set ``name`` are registered; it can stand in ``models:/NAME/1``.

    >>> registered_name("Solar cells: mono/poly")
    'Solar-cells-mono-poly'
    >>> registered_name("cats.retraining")  # which is the lease of "cats"
    'cats-retraining'
    """
    return _NOT_IN_MODEL_NAMES.sub("-", name).strip("-.").replace(LEASE, LEASE.replace(".", "-")) or "model"
