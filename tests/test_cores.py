"""How many cores a process may use: a container's limit is a quota of time, which the affinity does not show."""

import math
import os
from pathlib import Path

import pytest

from graftline.execution import CORES, available_cores, cpu_quota


def make(root: Path, **files: str) -> Path:
    """Write files of a made-up system below ``root``, "/" in their names as "__"."""
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n", encoding="utf-8")
    return root


OWN = {"proc__self__cgroup": "0::/"}
SERVICE = {"proc__self__cgroup": "0::/system.slice/serve.service"}
FIRST = {"proc__self__cgroup": "3:cpuset:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        (OWN, math.inf),
        (OWN | {"sys__fs__cgroup__cpu.max": "max 100000"}, math.inf),
        (OWN | {"sys__fs__cgroup__cpu.max": "150000 100000"}, 1.5),
        (SERVICE | {"sys__fs__cgroup__system.slice__serve.service__cpu.max": "20000 100000"}, 0.2),
        (
            SERVICE
            | {
                "sys__fs__cgroup__system.slice__serve.service__cpu.max": "max 100000",
                "sys__fs__cgroup__system.slice__cpu.max": "300000 100000",
                "sys__fs__cgroup__cpu.max": "800000 100000",
            },
            3,
        ),
        (FIRST | {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1"}, math.inf),
        (
            FIRST  # as a container of Docker sees it: the path is the host's
            | {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "400000", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            FIRST
            | {
                "sys__fs__cgroup__cpu__docker__ab__cpu.cfs_quota_us": "50000",
                "sys__fs__cgroup__cpu__docker__ab__cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
    ],
)
def test_the_quota_of_control_groups(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert cpu_quota(make(tmp_path, **files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.5, 2), (3, 3), (math.inf, 4)])
def test_a_part_of_a_core_counts_as_one(quota: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr("graftline.execution.cpu_quota", lambda: quota)
    assert available_cores() == expected


@pytest.mark.parametrize(("given", "expected"), [("1", 1), ("3", 3), ("8", 4)])
def test_a_task_on_ray_keeps_to_its_slot(given: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr("graftline.execution.cpu_quota", lambda: math.inf)
    monkeypatch.setenv(CORES, given)
    assert available_cores() == expected
