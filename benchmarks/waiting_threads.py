"""Training while threads that wait spin, or sleep: `python benchmarks/waiting_threads.py --busy 2`.

Each turn is a process of its own, as OpenMP reads its policy when torch is loaded: the whole of EfficientNet-Lite0,
without pretrained weights, batches of 32 at 224 px, channels_last, on made-up images. Without `--busy` nothing else
should run.
"""

import argparse
import os
import statistics
import subprocess
import sys

POLICIES = {"spinning": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}}
STEPS = """
import sys, time, timm, torch
from graftline.training.allocator import freed_memory_kept
torch.manual_seed(0)
network = timm.create_model("tf_efficientnet_lite0", num_classes=2).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
images = torch.randn(32, 3, 224, 224).contiguous(memory_format=torch.channels_last)
labels = torch.randint(2, (32,))
def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
with freed_memory_kept():
    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < float(sys.argv[1]):
        step()
        steps += 1
    print(32 * steps / (time.perf_counter() - start))
"""


def main() -> None:
    """Print the images per second of each policy: the median of the turns, and their range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, help="processes that use a core each meanwhile")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each turn")
    given = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    speeds: dict[str, list[float]] = {name: [] for name in POLICIES}
    try:
        for _ in range(given.turns):
            for name, policy in POLICIES.items():
                speeds[name].append(measure(policy, given.seconds))
    finally:
        for process in busy:
            process.kill()
    for name, values in speeds.items():
        print(f"{name}: {statistics.median(values):.1f} images/s ({min(values):.1f} to {max(values):.1f})")


def measure(policy: dict[str, str], seconds: float) -> float:
    """Return the images per second of one process."""
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [
        sys.executable,
        "-c",
        "import torch" + STEPS,
        str(seconds),
    ]  # torch first: graftline would set the policy
    done = subprocess.run(command, env={**others, **policy}, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
