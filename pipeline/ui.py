"""Start MLflow's user interface on a database, and say where the runs of each experiment are compared."""

import os
import sys
from collections.abc import Sequence

from graftline.console import say
from graftline.errors import UserError
from graftline.pipeline.cli.arguments import read
from graftline.pipeline.cli.errors import EXIT_MISTAKE, report_error
from graftline.pipeline.cli.hydra_conf import expand_home
from graftline.tracking.tracking import Tracking
from graftline.tracking.uri import absolute_uri, sqlite_file, store_name
from graftline.tracking.views import missing_tags, view_links


def show_links(tracking: Tracking, address: str) -> None:
    """Print the links to the ready-made views of each experiment that has runs; those that lack them get them.

    Raises:
        UserError: there is no such database, and it is not the default one, which the first run makes.
    """
    from graftline.tracking.client import connect_checked

    uri = absolute_uri(tracking.uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        if tracking.uri != Tracking.uri:
            raise UserError(f"There is no {store_name(uri)}: correct tracking.uri.")
        return
    client, experiments = connect_checked(uri, lambda client: client.search_experiments())
    for experiment in experiments:
        if not client.search_runs([experiment.experiment_id], max_results=1):
            continue
        for key, value in missing_tags(experiment.tags).items():
            client.set_experiment_tag(experiment.experiment_id, key, value)
        for name, link in view_links(address, experiment.experiment_id).items():
            say(f"{experiment.name}, {name}: {link}")


def choose(words: Sequence[str]) -> tuple[str, Tracking]:
    """Return the port and the database that were typed.

    Raises:
        UserError: something else was typed.
    """
    given = {"port": "5000", "tracking.uri": Tracking.uri}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given:
            raise UserError(f"make ui takes port=5050 and tracking.uri=sqlite:///FILE, not {word}.")
        given[key] = expand_home(value)
    port, uri = given.values()
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"port is {port}, it must be a number from 1 to 65535.")
    if not uri.startswith("sqlite:///"):
        raise UserError(
            f"tracking.uri is {uri}, but make ui shows a database such as sqlite:///mlflow.db: open a server's own "
            "address in the browser."
        )
    return port, Tracking(uri)


def main() -> int:
    """Print the links, and become the server; returns the exit code where that fails."""
    try:
        port, tracking = choose(read(["ui", *sys.argv[1:]]).overrides)
        _serve(port, tracking)
    except UserError as error:
        report_error(error)
    return EXIT_MISTAKE


def _serve(port: str, tracking: Tracking) -> None:
    show_links(tracking, f"http://127.0.0.1:{port}")
    say(f"MLflow will be at http://127.0.0.1:{port} in some seconds; Ctrl-C stops it.")
    sys.stdout.flush()
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking.uri, "--host", "127.0.0.1"]
    os.execve(sys.executable, [*command, "--port", port, "--workers", "1"], {**os.environ, **quiet})  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
