"""Nodes that are to train together: two processes on the loopback that meet, and what is wrong between them."""

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import serve
from workplace import Workplace

from graftline.errors import UserError
from graftline.pipeline.health import nodes
from graftline.pipeline.health.finding import Finding
from graftline.pipeline.health.nodes import Node, Nodes, check_nodes

NODE = Node("a", {"Python": "3.11.7", "graftline": "1", "torch": "2.14.1"}, 4, 16, "/work", sees_images=True)
PLANNED = Nodes(2, None, "a:29500", "/images")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_two_nodes_meet(workplace: Workplace) -> None:
    head = f"127.0.0.1:{free_port()}"
    words = ["nodes=2", "devices=1", f"head={head}", f"images={Path(__file__).parent}"]
    started = [workplace.start("doctor", *words) for _ in range(2)]
    for process in started:
        process.wait(240)
        told = process.output
        assert f"2 nodes met at {head}" in told, told
        assert f"Python {sys.version.split()[0]}" in told.partition("Nodes")[2]
        assert "2 nodes x 1: 2 processes, each a process on the CPU" in told
        assert "all nodes see" in told
    assert not list(workplace.root.glob(".graftline-*"))


def test_the_address_of_a_look_a_moment_ago_is_free() -> None:
    """Linux keeps it for a minute where the head has closed the connection first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    with socket.socket() as second, pytest.raises(OSError, match="in use"):
        second.bind(("127.0.0.1", port))
    _, keeps = nodes._meet(Nodes(2, 1, f"127.0.0.1:{port}", None), time.monotonic() + 1)
    assert keeps


@pytest.mark.long
def test_a_node_that_does_not_come_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "SECONDS_TO_MEET", 0.5)
    planned = Nodes(2, 1, f"127.0.0.1:{free_port()}", None)
    (found,) = check_nodes(planned)
    assert found.state == "broken"
    assert found.text.startswith(f"1 of 2 nodes came to {planned.head} within")


def test_a_head_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SECONDS_TO_MEET", 0.5)
    planned = Nodes(2, 1, "no-such-node.invalid:29500", None)
    with pytest.raises(UserError, match=r"cannot reach no-such-node\.invalid:29500 .*: type graftline doctor there"):
        list(check_nodes(planned))


def test_a_directory_that_cannot_be_written_to_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "file" / "below")
    planned = Nodes(2, 1, f"127.0.0.1:{free_port()}", None)
    with ThreadPoolExecutor(2) as pool:
        for told in pool.map(lambda _: list(check_nodes(planned)), range(2)):
            assert [one.name for one in told if one.state == "broken"] == ["files"]
            assert f"cannot write to {tmp_path}/file/below: allow it" in told[-1].text


def test_images_are_seen_at_home_and_at_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    with serve(tmp_path) as url:
        for images, sees in [("~/photos", True), ("~/none", False), (f"{url}/photos", True), (f"{url}/none", False)]:
            assert Node.here(replace(PLANNED, images=images)).sees_images == sees


@pytest.mark.parametrize(("head", "number"), [("", 2), ("node1", 2), ("node1:29500", 1)])
def test_what_cannot_be_is_refused(head: str, number: int) -> None:
    with pytest.raises(UserError, match=r"Doctor\.(head|nodes) is"):
        Nodes(number, None, head, None)


def found(planned: Nodes, *two: Node, seen: bool = True) -> dict[str, Finding]:
    findings = [nodes._versions(two), nodes._devices(planned, two), nodes._folder(planned, two, [True, seen])]
    return {one.name: one for one in findings}


@pytest.mark.parametrize(
    ("other", "seen", "name", "text"),
    [
        (replace(NODE, host="b"), True, "", ""),
        (replace(NODE, host="b", gpus=2), True, "devices", "b has 2 GPUs, 4 processes are planned on each node"),
        (
            replace(NODE, host="b", versions={**NODE.versions, "torch": "2.13"}),
            True,
            "versions",
            "b has torch 2.13, a has",
        ),
        (replace(NODE, host="b", folder="/home"), True, "files", "a works in /work, b works in /home"),
        (replace(NODE, host="b"), False, "files", "b does not see what others write there"),
        (replace(NODE, host="b", sees_images=False), True, "files", "b does not see /images"),
    ],
)
def test_what_differs_is_said(other: Node, seen: bool, name: str, text: str) -> None:
    findings = found(PLANNED, NODE, other, seen=seen)
    assert [one.name for one in findings.values() if one.state == "broken"] == ([name] if name else [])
    assert not name or text in findings[name].text
