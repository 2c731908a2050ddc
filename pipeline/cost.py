"""Cost: what networks cost, counted and measured; several of them side by side."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from timm.models import get_pretrained_cfg

from graftline.backbones.backbone import Backbone
from graftline.backbones.cost import NetworkCost, count, measure
from graftline.console import progress, say, warn
from graftline.errors import UserError
from graftline.files import write_json
from graftline.pipeline.stage import StageResult
from graftline.report.cost_tables import (
    print_comparison,
    print_stages,
    print_times,
    short_number,
    to_json,
    write_layers,
    write_networks,
    write_stages,
)

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class CostResult(StageResult):
    """What the networks cost.

    Attributes:
        networks: in the order in which they were given.
    """

    networks: tuple[NetworkCost, ...]


@dataclass(frozen=True)
class CostStage:
    """The stage ``cost`` (Hydra target of conf/cost.yaml).

    Attributes:
        backbones: the networks; their weights are random, as a forward pass takes the same time with any.
        batch_size: images of the second measurement (the first has one), and of the activation memory.
        seconds: of measuring per network, about; a slow one takes longer.
        measure: whether forward passes are timed; False: networks are only counted, which takes a second.
        onnx_up_to_gmacs: of several networks, those with more multiply-adds, in 10^9, are not timed with ONNX Runtime;
            None: all are.
        by_stage: whether the stages of each of several networks are printed; the command line sets it where the user
            has named them.
    """

    backbones: Sequence[Backbone]
    batch_size: int = 8
    seconds: float = 2.0
    measure: bool = True
    onnx_up_to_gmacs: float | None = None
    by_stage: bool = False

    def __post_init__(self) -> None:
        for key in ("batch_size", "seconds"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)}, but must be above 0.")

    def run(self, directory: Path) -> CostResult:
        """Count and measure the networks, print the tables and put them into files."""
        if self.measure:
            _warn_if_busy()
        backbones = [replace(backbone, weights="none", file=None) for backbone in self.backbones]
        for backbone in backbones:
            backbone.check()  # a mistake in the last is to be found before the others are measured
        networks = tuple(self._count_all(backbones))
        self._print(networks)
        table = self._write(networks, directory)
        facts = {"networks": {network.name: _totals(network) for network in networks}}
        return CostResult(networks=networks, facts=facts, table=table)

    @property
    def _batch_sizes(self) -> list[int]:
        """The batch sizes that are measured."""
        return sorted({1, self.batch_size})

    def _count_all(self, backbones: Sequence[Backbone]) -> Iterator[NetworkCost]:
        names = _labels(backbones)
        with progress("Counting and measuring" if self.measure else "Counting", total=len(names)) as bar:
            for name, backbone in zip(names, backbones, strict=True):
                bar.update(bar.task_ids[0], description=name)
                yield self._count_and_measure(name, backbone)
                bar.advance(bar.task_ids[0])

    def _count_and_measure(self, name: str, backbone: Backbone) -> NetworkCost:
        """Count and measure one network, with as many classes as its weights have."""
        config = get_pretrained_cfg(backbone.name)
        num_classes = config.num_classes if config is not None else IMAGENET_CLASSES
        graft = backbone.build(num_classes)
        size, channels = graft.preprocessing.image_size, graft.preprocessing.channels
        cost = count(graft.network, size, channels, name)
        if not self.measure:
            return NetworkCost(name, cost)
        onnx = len(self.backbones) == 1 or self.onnx_up_to_gmacs is None or cost.macs <= 1e9 * self.onnx_up_to_gmacs
        timing = measure(graft.network, size, channels, self._batch_sizes, self.seconds, onnx)
        if not onnx:
            note = f"not timed with ONNX Runtime, as it has more than {self.onnx_up_to_gmacs:g} G multiply-adds"
            timing = replace(timing, notes=(*timing.notes, f"{note} (onnx_up_to_gmacs)"))
        return NetworkCost(name, cost, timing)

    def _print(self, networks: Sequence[NetworkCost]) -> None:
        for network in networks if self.by_stage or len(networks) == 1 else ():
            print_stages(network, self.batch_size)
        if len(networks) > 1:
            print_comparison(networks, self.batch_size)
        if self.measure:
            print_times(networks, self._batch_sizes)
        for network in networks:
            _print_notes(network)

    def _write(self, networks: Sequence[NetworkCost], directory: Path) -> list[tuple[str, str]]:
        """Write tables and figure; returns the rows of the short table, which say where they are."""
        for network in networks:
            write_stages(network, directory / "stages" / f"{network.name}.csv")
            write_layers(network, directory / "layers" / f"{network.name}.csv")
        write_networks(networks, directory / "cost.csv", self._batch_sizes)
        write_json(directory / "cost.json", [to_json(network) for network in networks])
        folder = os.path.relpath(directory)
        files = [("networks", f"{folder}/cost.csv"), ("stages, layers", f"{folder}/stages, {folder}/layers")]
        if self.measure and len(networks) > 1:
            from graftline.report.cost_figure import cost_figure  # matplotlib takes a second
            from graftline.report.style import save

            figure = cost_figure(networks, batch_size=1)
            if figure is not None:
                files.append(("picture", os.path.relpath(save(figure, directory / "cost.png"))))
        return files


def _warn_if_busy() -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        warn(f"This machine is busy (load {load:.1f} on {cores} cores): times will be too long; counts are exact.")


def _labels(backbones: Sequence[Backbone]) -> list[str]:
    """Return a short name for each backbone, with the arguments by which those of one name differ.

    >>> _labels([Backbone("resnet50.tv_in1k"), Backbone("nin", image_size=192), Backbone("nin", image_size=224)])
    ['resnet50', 'nin image_size=192', 'nin image_size=224']
    >>> _labels([Backbone("resnet50.tv_in1k"), Backbone("resnet50.a1_in1k")])
    ['resnet50.tv_in1k', 'resnet50.a1_in1k']
    """
    labels = []
    architectures = [backbone.name.partition(".")[0] for backbone in backbones]
    for architecture, backbone in zip(architectures, backbones, strict=True):
        own = _arguments(backbone)
        same_name = [_arguments(b) for name, b in zip(architectures, backbones, strict=True) if name == architecture]
        differing = [key for key in own if any(other.get(key) != own[key] for other in same_name)]
        name = backbone.name if "name" in differing else architecture
        labels.append(
            " ".join([name, *(f"{key}={own[key]}" for key in differing if key not in ("name", "weights_dir"))])
        )
    return labels


def _arguments(backbone: Backbone) -> dict[str, object]:
    return {**vars(backbone), **backbone.options, "options": None}


def _print_notes(network: NetworkCost) -> None:
    idle = [layer for layer in network.cost.layers if layer.is_idle]
    if idle:
        parameters = short_number(sum(layer.parameters for layer in idle))
        say(f"{network.name}: {parameters} of its parameters lie in layers that evaluation leaves out.")
    for note in network.timing.notes if network.timing is not None else ():
        warn(f"{network.name}: {note}.")


def _totals(network: NetworkCost) -> dict[str, object]:
    """Return the totals of a network, for result.json."""
    return {key: value for key, value in to_json(network).items() if key not in ("network", "stages", "layers")}
