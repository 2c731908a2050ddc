"""The bundle that a run has logged, for a machine that does not have the run's output directory."""

from pathlib import Path
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.files import cache_directory, digest_directory
from graftline.tracking.download import local_folder
from graftline.tracking.names import BUNDLE, HOST, OUTPUT_DIRECTORY
from graftline.tracking.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient


def bundle_of_run(registry: Registry, run_id: str, directory: Path | None = None) -> Path:
    """Return the folder of the bundle that a run has logged last, checked against the digest that was logged with it.

    Args:
        registry: knows the run.
        run_id: the run's id.
        directory: where downloads are kept; None: the user's cache.

    Raises:
        UserError: there is no such run, it has logged no model, MLflow does not answer, the download fails, or the
            files are not those that were logged.
    """

    def find(client: "MlflowClient") -> tuple[str, str]:
        from graftline.tracking.client import find_run
        from graftline.tracking.models import files_digest

        run = find_run(client, run_id, registry.store)
        logged = [client.get_logged_model(one.model_id) for one in (run.outputs.model_outputs if run.outputs else ())]
        if not logged:
            tags = run.data.tags
            raise UserError(
                f"Run {run_id} has its output in {tags.get(OUTPUT_DIRECTORY)} on {tags.get(HOST)}: its bundle is "
                f"neither here nor in the {registry.store}."
            )
        newest = max(logged, key=lambda model: int(model.creation_timestamp))  # a run that was resumed may have two
        return str(newest.artifact_location), files_digest(newest)

    source, logged = registry.ask(find)
    download = (directory or cache_directory()) / "models" / f"run-{run_id}" / logged
    path = local_folder(registry.uri, f"{source}/{BUNDLE}", download)
    if digest_directory(path) != logged:
        raise UserError(f"{path} is not the bundle that run {run_id} has logged: remove that folder, and run it again.")
    return path
