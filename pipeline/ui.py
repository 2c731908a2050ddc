"""Start MLflow's user interface on the local database, and say where the runs of each experiment are compared."""

import os
import sys

from graftline.console import say
from graftline.tracking.tracking import Tracking
from graftline.tracking.views import missing_tags, view_links


def show_links(tracking: Tracking, address: str) -> None:
    """Print the links to the ready-made views of each experiment that has runs; those that lack them get them."""
    from graftline.tracking.client import absolute_uri, connect_checked, sqlite_file

    uri = absolute_uri(tracking.uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return
    client, experiments = connect_checked(uri, lambda client: client.search_experiments())
    for experiment in experiments:
        if not client.search_runs([experiment.experiment_id], max_results=1):
            continue
        for key, value in missing_tags(experiment.tags).items():
            client.set_experiment_tag(experiment.experiment_id, key, value)
        for name, link in view_links(address, experiment.experiment_id).items():
            say(f"{experiment.name}, {name}: {link}")


def main(port: str) -> None:
    """Print the links, and become the server."""
    tracking = Tracking()
    show_links(tracking, f"http://127.0.0.1:{port}")
    say(f"MLflow will be at http://127.0.0.1:{port} in some seconds; Ctrl-C stops it.")
    sys.stdout.flush()
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking.uri, "--host", "127.0.0.1"]
    os.execve(sys.executable, [*command, "--port", port, "--workers", "1"], {**os.environ, **quiet})  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1])
