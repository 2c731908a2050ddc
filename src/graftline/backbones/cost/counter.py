"""Count a network's parameters, multiply-adds and activation memory, layer by layer.

It rests on torch's own FLOP counter, of which two are one multiply-add. Nothing is computed: the network is copied to
the meta device, where tensors have a shape and no content, so that the largest takes about a second.

Letters: B batch, C channels, H height, W width.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # what torch's own counter takes outputs apart with
from torch.utils.flop_counter import FlopCounterMode

from graftline.backbones.layers import BODY, HEAD, body_groups, group_names, head_parameters

FLOAT_BYTES = 4  # of a float32

LayerKind = Literal["conv_1x1", "depthwise", "conv", "fully_connected", "matmul"]
KINDS: tuple[LayerKind, ...] = get_args(LayerKind)


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        name: of the module, dotted; empty for what the network does outside of its modules.
        stage: the layer group that it belongs to.
        kind: None: no convolution, matrix product or attention, so that it has no multiply-adds.
        parameters: how many it has.
        macs: multiply-adds per image.
        activation_bytes: of its output in float32, per image; 0 where it overwrites its input.
    """

    name: str
    stage: str
    kind: LayerKind | None
    parameters: int
    macs: int
    activation_bytes: int
    is_idle: bool = False  # the forward pass does not call it: an auxiliary head, which only training uses


@dataclass(frozen=True)
class StageCost:
    """What several layers cost together."""

    name: str
    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """How many parameters the layers have."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the layers' outputs in float32, per image."""
        return sum(layer.activation_bytes for layer in self.layers)

    def macs_of(self, kind: LayerKind) -> int:
        """Return the multiply-adds per image in layers of a kind."""
        return sum(layer.macs for layer in self.layers if layer.kind == kind)

    def parameters_of(self, kind: LayerKind) -> int:
        """Return the number of parameters in layers of a kind."""
        return sum(layer.parameters for layer in self.layers if layer.kind == kind)

    def share(self, kind: LayerKind) -> float:
        """Return the share of the multiply-adds in layers of a kind, 0 to 1."""
        return self.macs_of(kind) / self.macs if self.macs else 0.0


@dataclass(frozen=True)
class Cost(StageCost):
    """What a whole network costs, for one image size.

    Attributes:
        image_size: (H, W) in pixels.
        channels: C of the images.
    """

    image_size: tuple[int, int]
    channels: int

    @property
    def stages(self) -> tuple[StageCost, ...]:
        """The layers by stage, from the input upwards."""
        names = dict.fromkeys(layer.stage for layer in self.layers)
        return tuple(StageCost(name, tuple(layer for layer in self.layers if layer.stage == name)) for name in names)


def count(network: nn.Module, image_size: tuple[int, int], channels: int, name: str = "") -> Cost:
    """Count what a forward pass in eval mode costs, on the meta device; the network itself is left as it is.

    Multiply-adds are those of convolutions, fully connected layers and matrix products, attention included. Activation
    memory is that of the modules' outputs, each piece of memory once: an activation function that overwrites its input
    adds nothing, and neither do intermediate results inside of a module.

    Args:
        network: a timm model.
        image_size: (H, W) in pixels.
        channels: C.
        name: for `Cost.name`.
    """
    layers = _follow(network, image_size, channels).layers(network)
    usual = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[1:]
    if min(usual) > min(image_size):
        small = _names_of_1x1(network, usual, channels)
        layers = tuple(replace(layer, kind="conv_1x1") if layer.name in small else layer for layer in layers)
    return Cost(name, layers, image_size, channels)


def _names_of_1x1(network: nn.Module, image_size: tuple[int, int], channels: int) -> set[str]:
    """Return the layers that are 1x1 convolutions for images of the network's usual size.

    Small images may shrink to maps of one pixel long before the global pooling, where a 1x1 convolution looks like a
    fully connected layer.
    """
    try:
        traces = _follow(network, image_size, channels).traces
    except Exception:  # any kind: a network that was built for images of another size refuses these as it likes
        return set()
    return {name for name, trace in traces.items() if trace.kind == "conv_1x1"}


def _follow(network: nn.Module, image_size: tuple[int, int], channels: int) -> "_ForwardTrace":
    """Return the trace of a forward pass on the meta device."""
    twin = _on_meta(network).eval()
    counter = FlopCounterMode(display=False)
    trace = _ForwardTrace(counter, _stages(network))
    images = torch.empty(1, channels, *image_size, device="meta")
    trace.watch(twin, images)
    with torch.no_grad(), counter:
        twin(images)
    return trace


def _on_meta(network: nn.Module) -> nn.Module:
    """Copy a network without its numbers."""
    tensors = [*network.parameters(), *network.buffers()]
    twins = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for parameter in network.parameters():
        twins[id(parameter)] = nn.Parameter(twins[id(parameter)], requires_grad=False)
    with torch.device("meta"):
        return copy.deepcopy(network, memo=twins)


def _stages(network: nn.Module) -> dict[str, str]:
    """Return the stage of each parameter, by its name, in the order of the stages."""
    groups = zip(group_names(network), body_groups(network), strict=True)
    stages = {parameter: stage for stage, parameters in groups for parameter in parameters}
    return {**stages, **dict.fromkeys(sorted(head_parameters(network)), HEAD)}


@dataclass
class _Call:
    """A module's forward pass that has begun."""

    flops_before: int
    flops_inside: int = 0  # of the modules that it has called


@dataclass
class _LayerTrace:
    """What a module's calls have added so far."""

    stage: str
    kind: LayerKind | None = None
    flops: int = 0
    bytes: int = 0


@dataclass
class _ForwardTrace:
    """Follow a forward pass through the modules, and note what each of them adds itself."""

    counter: FlopCounterMode
    stages: dict[str, str]  # of each parameter
    traces: dict[str, _LayerTrace] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    open_calls: list[_Call] = field(default_factory=list)
    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)  # kept, so that no id comes twice

    def watch(self, network: nn.Module, images: Tensor) -> None:
        """Hook into the calls of all modules of a network; ``images``, its input, are no output of theirs."""
        self._num_new_bytes([images])
        self.stage = next(iter(self.stages.values()), BODY)  # where the forward pass is
        for name, module in network.named_modules():
            own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
            stage = next((self.stages[key] for key in own if key in self.stages), None)
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(lambda *call, name=name, stage=stage: self._leave(name, stage, *call))

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002  # a hook's signature
        self.open_calls.append(_Call(self.counter.get_total_flops()))

    def _leave(self, name: str, stage: str | None, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = self.open_calls.pop()
        flops = self.counter.get_total_flops() - call.flops_before
        if self.open_calls:
            self.open_calls[-1].flops_inside += flops
        self.stage = stage if stage is not None and name else self.stage
        trace = self.traces.setdefault(name, _LayerTrace(stage or self.stage))
        self.calls[name] += 1
        trace.flops += flops - call.flops_inside
        trace.bytes += self._num_new_bytes(tree_leaves(output))
        trace.kind = _kind(module, inputs, output) if trace.flops else None

    def _num_new_bytes(self, outputs: Iterable[Any]) -> int:
        total = 0
        for tensor in outputs:
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.storages:
                self.storages[id(storage)] = storage
                total += tensor.numel() * FLOAT_BYTES
        return total

    def layers(self, network: nn.Module) -> tuple[LayerCost, ...]:
        """Return the layers, stage by stage, each in the order of the forward pass; last those that it left out."""
        parameters: Counter[str] = Counter()
        for name, parameter in network.named_parameters():  # one that two modules share is the first one's
            owner = name.rpartition(".")[0]
            parameters[owner] += parameter.numel()
            self.traces.setdefault(owner, _LayerTrace(self.stages[name]))
        order = list(dict.fromkeys(self.stages.values())) or [BODY]
        return tuple(
            LayerCost(
                name,
                trace.stage,
                trace.kind,
                parameters[name],
                trace.flops // 2,
                trace.bytes,
                is_idle=not self._is_called(name),
            )
            for name, trace in sorted(self.traces.items(), key=lambda item: order.index(item[1].stage))
            if trace.flops or trace.bytes or parameters[name]
        )

    def _is_called(self, name: str) -> bool:
        """Return whether a module or one around it was called: multi-head attention uses its parts itself."""
        words = name.split(".")
        return any(self.calls[".".join(words[: length + 1])] for length in range(len(words)))


def _kind(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> LayerKind:
    """Return the kind of a layer that multiplies.

    A convolution whose kernel covers the whole map is a fully connected layer, written otherwise: timm's VGG has such,
    and squeeze-and-excitation. ``count`` corrects those of 1x1 that only small images make so.
    """
    if isinstance(module, nn.Linear):
        return "fully_connected"
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "matmul"
    kernel = tuple(module.kernel_size)
    if module.groups == module.in_channels > 1:
        return "depthwise"
    if inputs[0].shape[-len(kernel) :] == kernel and output.shape[-len(kernel) :].numel() == 1:
        return "fully_connected"
    return "conv_1x1" if set(kernel) == {1} else "conv"
