"""The connection with a Ray cluster: starting or finding one, a look at its nodes, and what its tasks return."""

import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from graftline.errors import UserError, find_cause, first_line

R = TypeVar("R")

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 10.0  # for the cluster's address
SECONDS_TO_LOOK = 45.0  # for a look at each of its nodes
SECONDS_TO_IMPORT = 180.0  # for one that imports torch first
OBJECT_STORE_BYTES = 200_000_000  # of a Ray of this machine's own, which keeps on the disk what does not fit
# Environment variables by which tasks reach images and MLflow: a node has those of its own `ray start`. They are not
# handed on, as Ray shows all users of a cluster what it is to give a task.
VARIABLES = (
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_S3_ENDPOINT_URL"),
    *("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN", "GRAFTLINE_REMOTE_GB", "XDG_CACHE_HOME"),
)


def tell_lightning(found: str) -> str:
    """Return what is wrong where a package lightning of a version is beside pytorch-lightning, and the way out."""
    return (
        f"{found} is beside pytorch-lightning, and Ray takes it instead, whose Trainer knows none of our callbacks: "
        "pip uninstall lightning"
    )


def check_lightning() -> None:
    """Make sure that Ray can find no other Lightning than the one that we train with.

    Raises:
        UserError: a package lightning is installed.
    """
    with suppress(PackageNotFoundError):
        raise UserError(f"The package lightning {tell_lightning(version('lightning'))}.")


class LostError(UserError):
    """The worker or the node of a task was lost, and what the task would have returned with it."""


class Node(NamedTuple):
    """What a node of the cluster has."""

    host: str
    version: str | None  # of graftline; None: it has none
    unseen: list[str]  # those of some paths that it does not see
    lacking: list[str]  # names of variables that it does not have


def living_nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of each node that lives."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def look_at_nodes(paths: Sequence[Path] = ()) -> list[Node]:
    """Return what each node with a core has.

    Args:
        paths: that they may see.

    Raises:
        UserError: one does not answer, or has another graftline than we have.
    """
    texts = [str(path.absolute()) for path in paths]
    names = [name for name in VARIABLES if os.environ.get(name)]
    found = [Node(*look) for _, look in ask_nodes(_make_look(), texts, names, seconds=SECONDS_TO_LOOK)]
    for host, theirs, *_ in found:
        if theirs != version("graftline"):
            has = "no graftline" if theirs is None else f"graftline {theirs}"
            raise UserError(f"Node {host} of the Ray cluster has {has}, here is {version('graftline')}: install it.")
    return found


def ask_nodes(
    function: Callable[..., R], *arguments: Any, seconds: float, options: Mapping[str, Any] | None = None
) -> list[tuple[str, R]]:
    """Return the host of each node with a core, and what a function returns there.

    Args:
        function: as that of a task.
        arguments: of it.
        seconds: that a node may take.
        options: what Ray is to give it; None: nothing.

    Raises:
        UserError: a node does not answer; else what the function raises.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in living_nodes() if node["Resources"].get("CPU", 0) > 0]
    asked: list[Any] = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        task: Any = ray.remote(**{**(options or {}), "num_cpus": 0, "scheduling_strategy": there})(function)
        asked.append(task.remote(*arguments))
    _, late = ray.wait(asked, num_returns=len(asked), timeout=seconds)
    if late:
        raise UserError(
            f"{len(late)} of {len(nodes)} nodes of the Ray cluster did not answer within {seconds:.0f} s: look at them "
            "with ray status, and take away those that hang."
        )
    return [(node["NodeManagerHostname"], get_result(one)) for node, one in zip(nodes, asked, strict=True)]


def _make_look() -> Callable[[list[str], list[str]], tuple[str, str | None, list[str], list[str]]]:
    """Return what looks at a node; a function of its own, as graftline itself may be missing there."""

    def look(paths: list[str], names: list[str]) -> tuple[str, str | None, list[str], list[str]]:
        import importlib.metadata
        import os
        import socket

        try:
            theirs = importlib.metadata.version("graftline")
        except importlib.metadata.PackageNotFoundError:
            theirs = None
        unseen = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 - as they are sent
        return socket.gethostname(), theirs, unseen, [name for name in names if not os.environ.get(name)]

    return look


def check_seen(paths: Sequence[Path]) -> None:
    """Make sure that all nodes see some files.

    Raises:
        UserError: one does not.
    """
    for host, _, unseen, _ in look_at_nodes(paths):
        if unseen:
            raise UserError(
                f"Node {host} of the Ray cluster does not see {unseen[0]}: all nodes need the images at the same "
                "place, by a file system that they share."
            )


def find_apart(folder: Path) -> list[str]:
    """Return the hosts of the nodes that do not see what is written to a folder here, which is made if need be."""
    mark = folder / f".graftline-{uuid4().hex}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return [node.host for node in look_at_nodes([mark]) if node.unseen]
    finally:
        mark.unlink(missing_ok=True)


def warn_of_variables(nodes: Sequence[Node]) -> None:
    """Warn of variables that are set here and not on a node: what runs there may reach neither images nor MLflow."""
    hosts = [node.host for node in nodes if node.lacking]
    names = dict.fromkeys(name for node in nodes for name in node.lacking)
    if hosts:
        more = "" if len(hosts) == 1 else f", nor on {len(hosts) - 1} more"
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        logger.warning(
            f"{', '.join(names)} {are} set here, but not on node {hosts[0]} of the Ray cluster{more}: where a task "
            f"needs {them}, set {them} there before ray start."
        )


def knock(address: str) -> None:
    """Raise a UserError if nobody listens there: Ray itself would ask for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    try:
        if not (host and port.isdigit()):
            raise UserError(f"RayCluster.address is {address!r}: give HOST:PORT, as ray start prints it, or auto.")
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise UserError(
            f"RayCluster.address={address} does not answer ({first_line(error)}): start the cluster with ray start "
            "--head, or leave the address out for a Ray of this machine's own."
        ) from error


def start(address: str | None, num_workers: int | None) -> None:
    """Connect with a cluster, or start a Ray of this machine's own, where the address is None.

    Raises:
        UserError: it cannot be reached, or is of other versions.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells how its own cluster is protected
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        settings |= {
            "num_cpus": num_workers if (num_workers or 0) > (os.cpu_count() or 1) else None,
            "include_dashboard": False,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address="local" if address is None else address, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise UserError(
                f"The Ray cluster at {address} runs another Python or Ray than this process, which has Python "
                f"{platform.python_version()} and Ray {ray.__version__}: all nodes need the same."
            ) from error
        raise UserError(f"Ray cannot be reached ({first_line(error)}): look at RayCluster.address.") from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)  # Ray would make a SystemExit of it


def get_result(result: Any) -> Any:
    """Return what a task returns; what it raises is raised as it was.

    Raises:
        UserError: the task raised it.
        LostError: the task was lost for good.
    """
    import ray

    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        mistake = find_cause(error, UserError) or getattr(error, "cause", None)
        raise (mistake or error) from None
    except ray.exceptions.RayError as error:
        raise LostError(
            f"The Ray cluster lost a task for good ({first_line(error)}): look at ray status, and whether its nodes "
            "have enough memory."
        ) from error
