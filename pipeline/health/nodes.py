"""Whether several machines can train together: typed on each of them, before anything is started that would hang.

They meet as a training's processes do, at one address in torch's store
(https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.TCPStore), tell what they have, and each says
what differs.
"""

import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graftline.errors import UserError, first_line
from graftline.execution import available_cores
from graftline.pipeline.health.finding import Finding, broken, ok
from graftline.pipeline.program import program

SECONDS_TO_MEET = 50.0  # from the start of one node until all have come
SECONDS_TO_END = 5.0  # that the one which keeps the store waits for the others to read it
SECONDS_OF_SLEEP = 0.1
VERSIONS = ("graftline", "torch", "pytorch-lightning", "timm")  # that have to be the same


@dataclass(frozen=True)
class Nodes:
    """What is planned.

    Attributes:
        number: of machines.
        devices: of each of them that train, a process on each; None: all GPUs, or one process where there is none.
        head: ``HOST:PORT``, the name of one of them and a free port.
        images: the folder or file, or its URL, that all of them have to see; None: only the working directory is looked
            at.
    """

    number: int
    devices: int | None
    head: str
    images: str | None

    def __post_init__(self) -> None:
        host, _, port = self.head.rpartition(":")
        if not (host and port.isdigit()):
            raise UserError(f"Doctor.head is {self.head!r}: give HOST:PORT, the name of one node and a free port.")
        if self.number < 2:
            raise UserError(f"Doctor.nodes is {self.number}, it must be at least 2: one machine needs no others.")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.head.rpartition(":")
        return host, int(port)


@dataclass(frozen=True)
class Node:
    """What one machine has."""

    host: str
    versions: dict[str, str]
    gpus: int
    cores: int
    folder: str
    sees_images: bool

    @classmethod
    def here(cls, planned: Nodes) -> "Node":
        """Return this one."""
        import torch

        versions = {"Python": platform.python_version(), **{name: version(name) for name in VERSIONS}}
        sees = planned.images is None or _sees(planned.images)
        return cls(socket.gethostname(), versions, torch.cuda.device_count(), available_cores(), str(Path.cwd()), sees)


def _sees(images: str) -> bool:
    """Tell whether there is a folder or file, here or at a URL."""
    from graftline.data.references import find_url
    from graftline.data.remote import remote_status

    if (url := find_url(images)) is None:
        return Path(images).expanduser().exists()
    try:
        remote_status(url)
    except (OSError, UserError):
        return False
    return True


def check_nodes(planned: Nodes) -> Iterator[Finding]:
    """Meet the other nodes, and say what is wrong between them; typed on each of them, it ends within a minute."""
    deadline = time.monotonic() + SECONDS_TO_MEET
    try:
        store, keeps = _meet(planned, deadline)
        number = store.add("came", 1) - 1
        mark = Path.cwd() / f".graftline-{uuid.uuid4().hex}"
        if number == 0:
            with suppress(OSError):  # it will not see it itself, which tells that it cannot write
                mark.touch()
            store.set("mark", str(mark))
        try:
            yield from _compare(planned, store, number, deadline)
            store.add("read", 1)
            end = time.monotonic() + SECONDS_TO_END
            while keeps and store.add("read", 0) < planned.number and time.monotonic() < end:
                time.sleep(SECONDS_OF_SLEEP)  # the store ends with this process
        finally:
            if number == 0:
                with suppress(OSError):
                    mark.unlink()
    except (RuntimeError, OSError) as error:
        yield broken("rendezvous", f"the nodes lost each other at {planned.head} ({first_line(error)}): try again")


def _meet(planned: Nodes, deadline: float) -> tuple[Any, bool]:
    """Return the store, and whether this process keeps it: the first at the head's address does.

    Raises:
        UserError: nobody answers there.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch lists no exports

    host, port = planned.address
    wait = timedelta(seconds=SECONDS_TO_MEET)
    with suppress(OSError, RuntimeError):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a look a minute ago
            listener.bind((host, port))  # fails where the address is another machine's, or taken
        return TCPStore(host, port, is_master=True, timeout=wait, wait_for_workers=False), True
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{socket.gethostname()} cannot reach {planned.head} ({first_line(error)}): type {program()} "
                    "doctor there too, and look whether the name is right and a firewall is between the nodes."
                ) from error
            time.sleep(SECONDS_OF_SLEEP)
        else:
            return TCPStore(host, port, is_master=False, timeout=wait), False


def _compare(planned: Nodes, store: Any, number: int, deadline: float) -> Iterator[Finding]:
    """Tell the others what this node has, and yield what differs between all."""
    began = time.monotonic()
    store.set(f"node/{number}", json.dumps(asdict(Node.here(planned))))
    came = _wait(store, "node", planned.number, deadline)
    if len(came) < planned.number:
        told = ", ".join(json.loads(store.get(key))["host"] for key in came)
        yield broken(
            "rendezvous",
            f"{len(came)} of {planned.number} nodes came to {planned.head} within {SECONDS_TO_MEET:.0f} s ({told}): "
            f"type {program()} doctor with the same keys on all nodes, and look whether a firewall is between them",
        )
        return
    nodes = [Node(**json.loads(store.get(key))) for key in came]
    seconds = time.monotonic() - began
    yield ok("rendezvous", f"{planned.number} nodes met at {planned.head} within {seconds:.1f} s")
    store.set(f"sees/{number}", str(int(os.path.exists(store.get("mark").decode()))))  # noqa: PTH110 - of the head
    seen = [store.get(key) == b"1" for key in _wait(store, "sees", planned.number, deadline + SECONDS_TO_END)]
    yield _versions(nodes)
    yield _devices(planned, nodes)
    yield _folder(planned, nodes, seen)


def _wait(store: Any, name: str, number: int, deadline: float) -> list[str]:
    """Return the keys that are there, as soon as all are or it is too late."""
    keys = [f"{name}/{one}" for one in range(number)]
    while not all(store.check([key]) for key in keys) and time.monotonic() < deadline:
        time.sleep(SECONDS_OF_SLEEP)
    return [key for key in keys if store.check([key])]


def _versions(nodes: Sequence[Node]) -> Finding:
    first = nodes[0]
    for node in nodes[1:]:
        for name, theirs in node.versions.items():
            if theirs != first.versions[name]:
                return broken(
                    "versions",
                    f"{node.host} has {name} {theirs}, {first.host} has {first.versions[name]}: "
                    "install the same on all",
                )
    shown = ", ".join(f"{name} {first.versions[name]}" for name in ("Python", "graftline", "torch"))
    return ok("versions", f"{shown} on all nodes")


def _devices(planned: Nodes, nodes: Sequence[Node]) -> Finding:
    """Tell whether each node has what is planned: a process without a device is one that the others wait for."""
    devices = planned.devices if planned.devices is not None else max(1, *(node.gpus for node in nodes))
    for node in nodes:
        there = node.gpus if any(one.gpus for one in nodes) else node.cores
        if there < devices:
            what = "GPUs" if any(one.gpus for one in nodes) else "cores"
            return broken(
                "devices",
                f"{node.host} has {there} {what}, {devices} processes are planned on each node, and the others would "
                f"wait for those that cannot start: start at most {there} on each",
            )
    kind = "GPU" if nodes[0].gpus else "process on the CPU"
    return ok("devices", f"{len(nodes)} nodes x {devices}: {len(nodes) * devices} processes, each a {kind}")


def _folder(planned: Nodes, nodes: Sequence[Node], seen: Sequence[bool]) -> Finding:
    """Tell whether all work in one directory that they share and can write to, and see the images."""
    if not seen[0]:
        return broken(
            "files", f"{nodes[0].host} cannot write to {nodes[0].folder}: allow it, or take another directory"
        )
    for node, sees in zip(nodes, seen, strict=False):
        if not sees or node.folder != nodes[0].folder:
            where = (
                f"works in {node.folder}" if node.folder != nodes[0].folder else "does not see what others write there"
            )
            return broken(
                "files",
                f"{nodes[0].host} works in {nodes[0].folder}, {node.host} {where}: all nodes need the same directory, "
                "on a file system that they share",
            )
        if not node.sees_images:
            return broken(
                "files", f"{node.host} does not see {planned.images}: all nodes need the images at the same place"
            )
    return ok(
        "files", f"all nodes see {nodes[0].folder}" + ("" if planned.images is None else f" and {planned.images}")
    )
