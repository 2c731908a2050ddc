"""The cost of networks in words: tables for the terminal, JSON and CSV for machines."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftline.backbones.cost import NetworkCost
from graftline.backbones.cost.counter import KINDS, Cost, LayerKind, StageCost
from graftline.backbones.cost.timing import ENGINES, TimedEngine
from graftline.console import print_table
from graftline.files import atomic_file

TIMES = "×"  # noqa: RUF001 - the sign of multiplication is meant, not the letter
MACS = "multi-\nply-\nadds"  # titles are broken so that a table fits into 80 columns with all digits
TITLES: dict[LayerKind, str] = {
    "conv_1x1": f"1{TIMES}1",
    "depthwise": "depth-\nwise",
    "conv": "other\nconv",
    "fully_connected": "full",
    "matmul": "atten-\ntion",
}
NOT_MEASURED = "-"


def print_stages(network: NetworkCost, batch_size: int) -> None:
    """Print what each stage of a network costs, and the sum."""
    cost = network.cost
    kinds = _kinds([cost])
    columns = ("stage", "param-\neters", MACS, "%", "act.\nMB", *(TITLES[kind] for kind in kinds))
    rows = [
        (
            stage.name,
            f"{stage.parameters:,}",
            f"{stage.macs:,}",
            _per_cent(stage.macs / cost.macs if cost.macs else 0),
            _megabytes(stage, batch_size),
            *(_per_cent(stage.share(kind)) for kind in kinds),
        )
        for stage in (*cost.stages, StageCost("total", cost.layers))
    ]
    print_table(f"{network.name}, {_pixels(cost)} px; {_legend(batch_size)}", columns, rows)


def print_comparison(networks: Sequence[NetworkCost], batch_size: int) -> None:
    """Print what several networks cost, the cheapest first."""
    ordered = sorted(networks, key=lambda network: network.cost.macs)
    kinds = _kinds([network.cost for network in networks])
    columns = ("network", "px", "param-\neters", MACS, "act.\nMB", *(TITLES[kind] for kind in kinds))
    rows = [
        (
            network.name,
            _pixels(network.cost),
            f"{network.cost.parameters:,}",
            short_number(network.cost.macs),
            _megabytes(network.cost, batch_size),
            *(_per_cent(network.cost.share(kind)) for kind in kinds),
        )
        for network in ordered
    ]
    print_table(f"{len(rows)} networks; {_legend(batch_size)}", columns, rows)


def print_times(networks: Sequence[NetworkCost], batch_sizes: Sequence[int]) -> None:
    """Print how long several networks take, those with the fewest multiply-adds first."""
    pairs = [(engine, size) for engine in ENGINES for size in batch_sizes]
    columns = (
        "network",
        MACS,
        *(f"{ENGINES[engine]} {TIMES}{size}".replace(" ", "\n") for engine, size in pairs),
        "GMAC/s",
    )
    rows = [
        (
            network.name,
            short_number(network.cost.macs),
            *(_milliseconds(network.milliseconds(engine, size)) for engine, size in pairs),
            _speed(network, pairs),
        )
        for network in sorted(networks, key=lambda network: network.cost.macs)
    ]
    print_table(
        f"Measured here: ms per image in a batch of ({TIMES}), and the best rate",
        columns,
        rows,
    )


def to_json(network: NetworkCost) -> dict[str, Any]:
    """Return all that is known of a network's cost; bytes and multiply-adds are per image, in float32."""
    cost, timing = network.cost, network.timing
    return {
        "network": network.name,
        "image_size": list(cost.image_size),
        "channels": cost.channels,
        **_sums(cost),
        "milliseconds_per_image": [asdict(each) for each in timing.timings] if timing else [],
        "notes": list(timing.notes) if timing else [],
        "stages": [{"stage": stage.name, **_sums(stage)} for stage in cost.stages],
        "layers": [asdict(layer) for layer in cost.layers],
    }


def write_layers(network: NetworkCost, path: Path) -> None:
    """Write a network's layers as CSV, one a row."""
    _write_csv(path, [asdict(layer) for layer in network.cost.layers])


def write_stages(network: NetworkCost, path: Path) -> None:
    """Write a network's stages as CSV, one a row."""
    _write_csv(path, [{"stage": stage.name, **_flat(stage)} for stage in network.cost.stages])


def write_networks(networks: Sequence[NetworkCost], path: Path, batch_sizes: Sequence[int]) -> None:
    """Write a CSV with a network a row."""
    rows = []
    for network in networks:
        height, width = network.cost.image_size
        times = {
            f"{engine}_milliseconds_batch_{size}": network.milliseconds(engine, size)
            for engine in ENGINES
            for size in batch_sizes
        }
        sizes = {"height": height, "width": width, "channels": network.cost.channels}
        rows.append({"network": network.name, **sizes, **_flat(network.cost), **times})
    _write_csv(path, rows)


def short_number(number: float) -> str:
    """Write a number with three digits and a unit.

    >>> short_number(15_470_264_320), short_number(568_740_352), short_number(416_520), short_number(0)
    ('15.5 G', '569 M', '417 k', '0')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))}f}{unit}"
    return f"{number:.0f}"


def _sums(stage: StageCost) -> dict[str, Any]:
    return {
        "parameters": stage.parameters,
        "macs": stage.macs,
        "activation_bytes": stage.activation_bytes,
        "macs_by_kind": {kind: stage.macs_of(kind) for kind in KINDS},
        "parameters_by_kind": {kind: stage.parameters_of(kind) for kind in KINDS},
    }


def _flat(stage: StageCost) -> dict[str, Any]:
    sums = {"parameters": stage.parameters, "macs": stage.macs, "activation_bytes": stage.activation_bytes}
    return {**sums, **{f"macs_{kind}": stage.macs_of(kind) for kind in KINDS}}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _legend(batch_size: int) -> str:
    return f"multiply-adds per image, % of them by kind of layer; activations of {batch_size}"


def _kinds(costs: Sequence[Cost]) -> list[LayerKind]:
    """Return the kinds of layers that there are, so that a table has no empty column."""
    return [kind for kind in KINDS if any(cost.macs_of(kind) for cost in costs)]


def _pixels(cost: Cost) -> str:
    height, width = cost.image_size
    return f"{height}" if height == width else f"{height}{TIMES}{width}"


def _per_cent(share: float) -> str:
    """Return a share in per cent, with two digits that say something.

    >>> _per_cent(0.9486), _per_cent(0.0018), _per_cent(0), _per_cent(1)
    ('94.9', '0.18', '', '100')
    """
    if share == 0:
        return ""
    per_cent = 100 * share
    return f"{per_cent:.0f}" if per_cent > 99.95 else f"{per_cent:.1f}" if per_cent >= 0.95 else f"{per_cent:.2f}"


def _megabytes(stage: StageCost, batch_size: int) -> str:
    return f"{batch_size * stage.activation_bytes / 1e6:,.1f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _speed(network: NetworkCost, pairs: Sequence[tuple[TimedEngine, int]]) -> str:
    times = [time for engine, size in pairs if (time := network.milliseconds(engine, size)) is not None]
    return f"{network.cost.macs / 1e6 / min(times):,.0f}" if times else NOT_MEASURED
