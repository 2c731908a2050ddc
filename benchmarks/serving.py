"""Measure the server beside a bare ONNX Runtime loop and MLflow's server: JPEGs of 500 x 500, asked for by wrk.

    python benchmarks/serving.py BUNDLE            needs wrk (Debian: wrk) and about 3 minutes of idle cores
    taskset -c 1 python benchmarks/serving.py BUNDLE --seconds 5 --clients 1 16
    python benchmarks/serving.py BUNDLE --requests 20000        the server's memory alone, early and at the end

All of it shares the cores that this process may use, wrk included. CPU is the processor time of a server and its
children for each image, which other programs on the machine change less than the rates.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from graftline.bundle.engines import onnx_engine
from graftline.bundle.layout import LOGITS
from graftline.bundle.predictor import Predictor
from graftline.data.decode import decode_rgb
from graftline.execution import Execution
from graftline.serving.package import save_model

CLIENTS = (1, 4, 16, 64)
SIDE = 500  # px
BATCH = 16
NUM_PHOTOS = 8
MEMORY_CLIENTS = 16
FIRST = 2500  # requests, after which a server has all that it keeps
SCRIPT = """
local bodies, number = {{}}, 0
for index = 0, {count} - 1 do
    local file = io.open("{folder}/" .. index, "rb")
    bodies[index] = file:read("*all")
    file:close()
end
local headers = {{["Content-Type"] = "{kind}"}}
request = function()
    number = (number + 1) % {count}
    return wrk.format("POST", nil, headers, bodies[number])
end
done = function(summary, latency)
    io.write(string.format("found %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
        latency:percentile(99), summary.errors.status + summary.errors.connect + summary.errors.read
        + summary.errors.write + summary.errors.timeout))
end
"""


class Rate(NamedTuple):
    """Images a second, milliseconds of a request and of processor time for an image, and failed requests."""

    images: float
    p50: float
    p99: float
    cpu: float
    failed: int


def photos() -> list[bytes]:
    """Return JPEGs of a photograph's detail: smooth color with grain."""
    files = []
    for seed in range(NUM_PHOTOS):
        generator = np.random.default_rng(seed)
        smooth = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(smooth) + generator.normal(0, 8, (SIDE, SIDE, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def bare(bundle: Path, files: Sequence[bytes], seconds: float) -> Rate:
    """Decode, prepare and classify in batches, in this process, without a server."""
    predictor = Predictor.from_directory(bundle)
    execution = Execution.local("cpu")
    engine = onnx_engine(bundle, execution)

    def prepare(number: int) -> np.ndarray:
        return predictor.preprocessing(decode_rgb(files[number % len(files)], predictor.decoding))

    with ThreadPoolExecutor(execution.num_threads) as pool:
        done, start, process = 0, 0.0, time.process_time()
        for turn in range(1_000_000):
            if turn == 2:  # warm
                done, start, process = 0, time.perf_counter(), time.process_time()
            if turn > 2 and time.perf_counter() - start > seconds:
                break
            engine(np.stack(list(pool.map(prepare, range(BATCH)))), [LOGITS])
            done += BATCH
        took = time.perf_counter() - start
    return Rate(done / took, float("nan"), float("nan"), 1000 * (time.process_time() - process) / done, 0)


def parts(bundle: Path, files: Sequence[bytes]) -> dict[str, float]:
    """Return the milliseconds of processor time of each part of an answer, for an image, without a server."""
    predictor, engine = Predictor.from_directory(bundle), onnx_engine(bundle, Execution.local("cpu"))
    way, pixels = predictor.preprocessing, [decode_rgb(file, predictor.decoding) for file in files]
    frames = [way.frame(one) for one in pixels]
    batch = np.stack([way.normalize(frame) for frame in frames * (BATCH // len(frames))])
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "decode": (lambda: [decode_rgb(file, predictor.decoding) for file in files], len(files)),
        "resize": (lambda: [way.frame(one) for one in pixels], len(files)),
        "normalize": (lambda: [way.normalize(frame) for frame in frames], len(files)),
        "network, one image": (lambda: engine(batch[:1], [LOGITS]), 1),
        f"network, {BATCH} images": (lambda: engine(batch, [LOGITS]), BATCH),
    }
    found = {}
    for name, (step, images) in steps.items():
        step()
        taken = []
        for _ in range(20):
            start = time.process_time()
            step()
            taken.append(1000 * (time.process_time() - start) / images)
        found[name] = float(np.median(taken))
    return found


def resident(process: psutil.Process) -> str:
    """Return the memory of a process and its children in words."""
    return f"{sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e6:.0f} MB"


def memory(url: str, files: Sequence[bytes], requests: int, clients: int, process: psutil.Process) -> None:
    """Ask a server so many times, and print its memory after the first 2,500 requests and at the end."""

    def ask(number: int) -> None:
        body = files[number % len(files)]
        request = urllib.request.Request(url, body, {"Content-Type": "image/jpeg"})  # noqa: S310 - this machine's
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 - likewise; raises unless it is answered

    done = 0
    with ThreadPoolExecutor(clients) as pool:
        for count in (min(FIRST, requests), max(0, requests - FIRST)):
            for _ in pool.map(ask, range(count)):
                done += 1
            print(f"{done:7,} requests of {clients} clients: {resident(process)}", flush=True)


@contextmanager
def running(command: Sequence[str], port: int, folder: Path) -> Iterator[psutil.Process]:
    """Run a server until the block ends."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a bundle until the block ends; yields the address that classifies, and the server."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [sys.executable, "-m", "graftline.pipeline", "serve", f"model={bundle}", f"port={port}"]
        with running([*command, "accelerator=cpu"], port, Path(folder)) as process:
            yield f"http://127.0.0.1:{port}/predict", process


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def load(url: str, kind: str, bodies: Sequence[bytes], clients: int, seconds: float, process: psutil.Process) -> Rate:
    """Let wrk ask with so many clients at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, body in enumerate(bodies):
            (folder / str(number)).write_bytes(body)
        script = folder / "script.lua"
        script.write_text(SCRIPT.format(count=len(bodies), folder=folder, kind=kind))
        before = processor_seconds(process)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = processor_seconds(process) - before
    found = re.search(r"found (\d+) (\d+) (\d+) (\d+) (\d+)", output)
    assert found is not None, output
    requests, microseconds, p50, p99, failed = map(int, found.groups())
    return Rate(requests / microseconds * 1e6, p50 / 1000, p99 / 1000, 1000 * used / max(1, requests), failed)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--requests", type=int, help="measure the server's memory alone, over so many")
    asked = parser.parse_args()
    files, bundle = photos(), asked.bundle.resolve()
    if asked.requests is not None:
        with serving(bundle) as (url, process):
            memory(url, files, asked.requests, MEMORY_CLIENTS, process)
        return
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    print(f"{len(os.sched_getaffinity(0))} cores; JPEGs of {sum(map(len, files)) / len(files) / 1000:.0f} kB")
    told = ", ".join(f"{name} {value:.1f}" for name, value in parts(bundle, files).items())
    print(f"CPU ms an image: {told}")
    show("bare loop", 0, bare(bundle, files, asked.seconds))
    with serving(bundle) as (url, process):
        for clients in asked.clients:
            load(url, "image/jpeg", files, clients, asked.seconds // 2, process)  # warm
            show("graftline", clients, load(url, "image/jpeg", files, clients, asked.seconds, process))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        save_model(bundle, folder / "model", files[0])
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri"]
        texts = [base64.b64encode(file).decode() for file in files]
        bodies = [json.dumps({"dataframe_records": [{"image": one}]}).encode() for one in texts]
        with running([*command, str(folder / "model"), "--port", str(port)], port, folder) as process:
            for clients in asked.clients:
                url = f"http://127.0.0.1:{port}/invocations"
                load(url, "application/json", bodies, clients, asked.seconds // 2, process)
                show("mlflow", clients, load(url, "application/json", bodies, clients, asked.seconds, process))


def show(name: str, clients: int, rate: Rate) -> None:
    """Print a line."""
    told = f"{rate.images:7.1f} images/s   CPU {rate.cpu:6.1f} ms an image"
    if clients:
        told += f"   p50 {rate.p50:7.0f} ms   p99 {rate.p99:7.0f} ms   {rate.failed} failed"
    print(f"{name:10}{clients or '':>3} {told}", flush=True)


if __name__ == "__main__":
    main()
