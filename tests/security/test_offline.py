"""Training, prediction and serving with every connection denied that leaves the machine: none is tried."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from http_server import photo
from workplace import TINY, Workplace

# Read by Python before anything else. The hook sees every connection and every look-up of a name, of any Python library
# in this process and in those that it starts; it writes down those that leave the machine, and lets them fail.
GUARD = """
import ipaddress, os, socket, sys

def _is_here(host):
    if host in (None, "", b"", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False

def _deny(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1] if len(arguments) > 1 else None
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
        if isinstance(host, tuple):
            host = host[0]
    else:
        return
    if not _is_here(host):
        with open(os.environ["GRAFTLINE_TEST_TRIED"], "a") as file:
            file.write(f"{event} {host} by {sys.argv}\\n")
        raise PermissionError(f"{event} {host} is denied")

sys.addaudithook(_deny)
"""

# In one process, as it takes seconds to import.
ONE_AFTER_ANOTHER = """
import json, sys
from graftline.pipeline.__main__ import main

for arguments in json.loads(sys.argv[1]):
    if (code := main(arguments)) != 0:
        break
sys.exit(code)
"""


class Guarded(Workplace):
    """A workplace whose processes reach this machine alone."""

    def environment(self) -> dict[str, str]:
        found = super().environment()
        del found["HF_HUB_OFFLINE"]  # nobody is told that there is no network
        path = os.pathsep.join([str(self.root / "guard"), found["PYTHONPATH"]])
        return found | {"PYTHONPATH": path, "GRAFTLINE_TEST_TRIED": str(self.root / "tried.txt")}


def test_nothing_leaves_this_machine(tmp_path: Path, color_folder: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    place = Guarded(tmp_path)
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    done = subprocess.run(
        [sys.executable, "-c", probe], env=place.environment(), capture_output=True, text=True, check=False
    )
    assert "is denied" in done.stderr  # the guard works
    (tmp_path / "tried.txt").unlink()

    data = ["data=folder", f"data.path={color_folder}"]
    stages = [
        ["train", *TINY, "trainer.max_epochs=1", *data, "hydra.run.dir=trained"],
        ["predict", "model=trained/bundle", f"images={color_folder}", "accelerator=cpu"],
        ["serve", "model=trained/bundle", "port=0", "accelerator=cpu"],
    ]
    server = subprocess.Popen(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(stages)],
        cwd=place.root,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    printed = ""
    deadline = time.monotonic() + 300
    while (found := re.search(r"^(http://\S+)/ +drop", printed, re.MULTILINE)) is None:
        assert time.monotonic() < deadline
        printed += server.stdout.readline()
        assert server.poll() is None, printed
    with urllib.request.urlopen(
        urllib.request.Request(f"{found[1]}/predict", photo(0), {"Content-Type": "image/jpeg"})
    ) as answer:
        assert json.load(answer)["predictions"]
    server.terminate()
    assert server.wait(60) == 0
    tried = tmp_path / "tried.txt"
    assert not tried.exists(), tried.read_text()
