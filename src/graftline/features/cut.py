"""Cutting a network into a frozen trunk and a trained tail: ``tail(trunk(x)) == network(x)``.

The trunk is all that depends on nothing that is trained; its outputs never change and are worth keeping. Where several
places would do, the cut goes where the fewest numbers cross it: behind a pooling rather than before it.

Letters: B batch, C channels, H height, W width, F numbers per image that cross the boundary, K classes.
"""

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from graftline.backbones.layers import head_parameters
from graftline.backbones.zoo.stages import StagesHead
from graftline.errors import first_line
from graftline.features.trace import Values, main_logits, mode_kept, trace

TOLERANCE = 1e-5  # on logits in float32, absolute, or relative where they exceed 1

Shape = tuple[int, ...]  # of one image's tensor, without B


class UncuttableError(Exception):
    """The network cannot be cut there; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class Cut:
    """A network in two parts, which share its modules: training the tail trains the network.

    Attributes:
        trunk: images (B, C, H, W) → activations (B, F); the tensors that cross the boundary, flat, side by side.
        tail: activations (B, F) → logits (B, K), or what else the network returns in training.
        shapes: of each tensor that crosses, for one image.
        code: what the trunk computes, in words that differ wherever that does.
        note: how it was cut, if otherwise than by tracing; a part of a sentence.
    """

    trunk: nn.Module
    tail: fx.GraphModule
    shapes: tuple[Shape, ...]
    code: str
    note: str = ""

    @property
    def width(self) -> int:
        """F, how many numbers per image cross the boundary."""
        return sum(math.prod(shape) for shape in self.shapes)


def cut(network: nn.Module, trainable: Collection[str], image_size: tuple[int, int], channels: int = 3) -> Cut:
    """Cut a network between what is frozen and what is trained.

    Args:
        network: a timm network to which its freeze plan is applied, in training mode.
        trainable: names of the parameters that are trained.
        image_size: (H, W) in pixels.
        channels: C.

    Raises:
        UncuttableError: nothing can be computed ahead, the network's code cannot be traced (where the head alone is
            trained, timm's own division is tried then), or the parts together do not give what the network gives.
    """

    def make_images(batch: int) -> Tensor:
        return torch.randn(batch, channels, *image_size, generator=torch.Generator().manual_seed(0))

    try:
        division = _Division(*trace(network, trainable, make_images), trainable)
        trunk = division.trunk()
        parts = Cut(trunk, division.tail(), division.shapes, trunk.code)
        _verify(parts, network, make_images(2))
    except UncuttableError:
        raise
    except Exception as error:  # whatever a network's own code raises when it is traced
        why = f"its code cannot be traced ({first_line(error)})"
        if set(trainable) != head_parameters(network):
            raise UncuttableError(why) from error
        parts = _cut_by_head(network, make_images(2), why)
    return parts


class _HeadTrunk(nn.Module):
    """All below the classifier, by timm's own division of a network: images (B, C, H, W) → features (B, F).

    It shares the network's parameters, but has no classifier: that is random when a training begins, and whatever names
    or exports the trunk would differ with it.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
        self.network = copy.deepcopy(network, {**shared, id(network.get_classifier()): nn.Identity()})

    def forward(self, images: Tensor) -> Tensor:
        """Return what the classifier is given."""
        features: Tensor = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return features


def _cut_by_head(network: Any, images: Tensor, why: str) -> Cut:
    """Cut a network below its classifier, with timm's ``forward_features`` and ``forward_head``.

    Raises:
        UncuttableError: it has two classifiers, or is not just one on top of features.
    """
    classifier = network.get_classifier()
    name = next((name for name, module in network.named_modules() if module is classifier), None)
    if name is None:
        raise UncuttableError(why)
    graph = fx.Graph()
    dropped = graph.call_module("dropout", (graph.placeholder("activations"),))
    graph.output(graph.call_module(name, (dropped,)))
    dropout = network.stages_drop if isinstance(network, StagesHead) else nn.Dropout(getattr(network, "drop_rate", 0.0))
    tail = fx.GraphModule({"dropout": dropout, name: classifier}, graph, "Tail")
    try:
        trunk = _HeadTrunk(network)
        with torch.inference_mode():
            features = trunk.eval()(images)
        parts = Cut(trunk, tail, (tuple(features.shape[1:]),), "forward_features, forward_head", why)
        _verify(parts, network, images)
    except UncuttableError:
        raise
    except Exception as error:  # a network whose head takes apart what its features are not
        raise UncuttableError(why) from error
    return parts


class _Division:
    """Decides which nodes of a graph are the trunk's, and builds both parts."""

    def __init__(self, traced: fx.GraphModule, given: Values, trainable: Collection[str]) -> None:
        self._traced = traced
        self._given = given
        (self._images,) = traced.graph.find_nodes(op="placeholder")
        (self._output,) = traced.graph.find_nodes(op="output")
        self._of_images = _descendants([self._images])
        self._sizes = {n for n in self._of_images if not _tensors(given.get(n))}  # made anew wherever they are needed
        prefix = self._of_images - self._sizes - _descendants(n for n in traced.graph.nodes if self._uses(n, trainable))
        prefix.discard(self._output)
        needed = _ancestors(n for n in prefix if self._parameters(n)) & prefix
        if not needed:
            raise UncuttableError("no layer comes before the first that is trained")
        self._trunk_nodes = self._best(needed, prefix)
        self._live = self._crossing(self._trunk_nodes)
        self.shapes = tuple(tuple(given[n].shape[1:]) for n in self._live)

    def trunk(self) -> fx.GraphModule:
        """Build the part from the images to the flat activations."""
        graph = fx.Graph()
        copies = {self._images: graph.placeholder("images")}
        self._copy(graph, copies, self._live)
        graph.output(graph.call_function(pack, tuple(copies[node] for node in self._live)))
        return fx.GraphModule(self._traced, graph, "Trunk")

    def tail(self) -> fx.GraphModule:
        """Build the part from the flat activations to what the network returns."""
        graph = fx.Graph()
        activations = graph.placeholder("activations")
        copies, start = {self._images: activations}, 0
        for node, shape in zip(self._live, self.shapes, strict=True):
            copies[node] = graph.call_function(unpack, (activations, start, shape))
            start += math.prod(shape)
        self._copy(graph, copies, [self._output])
        return fx.GraphModule(self._traced, graph, "Tail")

    def _copy(self, graph: fx.Graph, copies: dict[fx.Node, fx.Node], wanted: Iterable[fx.Node]) -> None:
        """Copy what leads from the nodes that are there already to those wanted."""
        missing = _ancestors(wanted, stop=copies)
        for node in self._traced.graph.nodes:
            if node in missing and node not in copies:
                copies[node] = graph.node_copy(node, lambda n: copies[n])

    def _best(self, needed: set[fx.Node], prefix: set[fx.Node]) -> set[fx.Node]:
        """Return ``needed`` with those of the free nodes after it that make the fewest numbers cross; ties: more."""
        random = _descendants(n for n in prefix - needed if self._is_random(n))
        chosen, best, fewest = set(needed), set(needed), self._width(needed)
        for node in self._traced.graph.nodes:
            if node in prefix and node not in needed and node not in random:
                chosen.add(node)
                if (width := self._width(chosen)) <= fewest:
                    best, fewest = set(chosen), width
        if math.isinf(fewest):
            raise UncuttableError("what crosses the boundary is not a tensor per image")
        return best

    def _width(self, nodes: set[fx.Node]) -> float:
        return sum((self._numbers(node) for node in self._crossing(nodes)), 0.0)

    def _numbers(self, node: fx.Node) -> float:
        value = self._given[node]
        images = self._given[self._images]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != images.shape[:1]:
            return math.inf
        return float(math.prod(value.shape[1:]))

    def _crossing(self, nodes: set[fx.Node]) -> list[fx.Node]:
        """Return those of the trunk's nodes that what comes after it reads, in the graph's order."""
        outside = self._of_images - nodes - self._sizes
        return [n for n in self._traced.graph.nodes if n in nodes and any(user in outside for user in n.users)]

    def _parameters(self, node: fx.Node) -> list[str]:
        """Return the names of the parameters that a node itself uses."""
        if node.op == "get_attr":
            return [str(node.target)]
        if node.op != "call_module":
            return []
        module = self._traced.get_submodule(str(node.target))
        return [f"{node.target}.{name}" for name, _ in module.named_parameters()]

    def _uses(self, node: fx.Node, names: Collection[str]) -> bool:
        return any(name in names for name in self._parameters(node))

    def _is_random(self, node: fx.Node) -> bool:
        """Tell whether a node draws lots in training: what it gives cannot be computed ahead."""
        module = self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _DropoutNd):
            return module.p > 0
        return isinstance(module, DropPath | PatchDropout)


def pack(*tensors: Tensor) -> Tensor:
    """Return tensors (B, …) flat and side by side, (B, F)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def unpack(activations: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """Return the tensor (B, *shape) that ``pack`` put at ``start`` of activations (B, F)."""
    return activations[:, start : start + math.prod(shape)].reshape(-1, *shape)


def _descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes and all that depends on them."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def _ancestors(nodes: Iterable[fx.Node], stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Return the nodes and all that they depend on, not further than ``stop``."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting.extend(() if node in stop else node.all_input_nodes)
    return found


def _tensors(value: Any) -> bool:
    """Tell whether there is a tensor in what a node gives."""
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_tensors, value)))


def _verify(parts: Cut, network: nn.Module, images: Tensor) -> None:
    with mode_kept(network), mode_kept(parts.trunk), mode_kept(parts.tail), torch.inference_mode():
        expected = network.eval()(images)
        actual = main_logits(parts.tail.eval()(parts.trunk.eval()(images)))
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not difference <= TOLERANCE:  # also catches NaN
        raise UncuttableError(f"its parts give something else than the whole (by {difference:.1e})")
