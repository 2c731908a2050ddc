"""Processes of a launch that do not find each other."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from graftline.errors import UserError
from graftline.training import ranks
from graftline.training.launch import Launch

# Two processes that train together, but leave the group as those of NCCL may: never, as long as one of them is lost.
TOGETHER = """
import os, sys, time
from pathlib import Path
import torch
from graftline.training import ranks
from graftline.training.launch import Launch

ranks.SECONDS_BETWEEN_SIGNS, ranks.SECONDS_UNTIL_LOST, ranks.SECONDS_TO_END = 0.1, 3.0, 1.0
torch.distributed.destroy_process_group = lambda: time.sleep(600)
launch = Launch("torchrun", int(sys.argv[1]), 2, int(sys.argv[1]), 2)
if launch.rank == 0:
    training = ranks.FirstRank(launch).training(Path.cwd(), "cpu")
else:
    other = ranks.FurtherRank(launch)
    other.next_order()
    training = other.training("cpu")
with training:
    torch.distributed.barrier()
    if sys.argv[1:] == ["1", "fails"]:
        raise ValueError("a mistake")
    os.write(1, b"together\\n")  # at once, whatever a thread says meanwhile
    while True:
        time.sleep(0.1)
"""

# A process that comes when it is told to, and then waits for all to meet.
COMES = """
import sys
from graftline.training import ranks
from graftline.training.launch import Launch

ranks.SECONDS_BETWEEN_SIGNS, ranks.SECONDS_UNTIL_LOST = 0.1, 1.0
launch = Launch("torchrun", int(sys.argv[1]), 3, 0, 1)
sys.stdin.readline()
if launch.rank == 0:
    ranks.FirstRank(launch).end()
else:
    other = ranks.FurtherRank(launch)
    print("here", flush=True)
    assert other.next_order().directory is None
"""


@pytest.mark.slow
@pytest.mark.long
def test_processes_may_come_one_after_the_other(tmp_path: Path) -> None:
    """As where rank 0 looks up the run that is to be resumed: who is there before it does not take it for lost."""
    store = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)  # as torchrun keeps it
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{store.port}", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMES, f"{rank}"],
            cwd=tmp_path,
            env={**os.environ, **names},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank in (1, 0, 2):
            pipe, told = processes[rank].stdin, processes[rank].stdout
            assert pipe is not None
            assert told is not None
            pipe.write("\n")
            pipe.flush()
            if rank == 1:
                assert told.readline() == "here\n"
            else:
                while not store.check([f"member/{rank}"]):
                    assert processes[1].poll() is None, processes[1].communicate()[0]
                    time.sleep(0.05)
            time.sleep(3)  # longer than a process may be without a sign of life
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["is killed", "fails"])
@pytest.mark.long
def test_rank_0_ends_though_it_cannot_leave_the_group(how: str, tmp_path: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}", "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, f"{rank}", how],
            cwd=tmp_path,
            env={**os.environ, **address},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "together\n"
        if how == "is killed":
            second.send_signal(signal.SIGKILL)
        told, _ = first.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert told.startswith(f"Rank 1 on {socket.gethostname()} has ended")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("rank", "told"),
    [(0, "torchrun announced 2 processes, but not all of them came to rank 0"), (1, "Rank 1 on .* could not reach")],
)
def test_who_is_alone_says_so(rank: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", f"{free_port()}")
    monkeypatch.setattr(ranks, "SECONDS_TO_MEET", 1.0)
    with pytest.raises(UserError, match=told):
        ranks._connect(Launch("torchrun", rank, 2, 0, 1))
