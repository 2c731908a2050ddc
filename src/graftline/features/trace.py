"""A network as a graph of its layers (torch.fx), for one size of image and any number of them.

Letters: B batch, C channels, H height, W width.
"""

import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

Values = dict[fx.Node, Any]  # what each node gives


class _LayerTracer(fx.Tracer):
    """Traces as little as possible: a module stays whole, unless the cut may have to go through it.

    What stays whole keeps its own ``train()`` and ``eval()``, and may have any control flow inside. Traced is what
    holds both trained and frozen parameters, and what holds the classifier, since pooling stands right before it.
    """

    def __init__(self, network: Any, trainable: Collection[str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._through = {""}
        classifier = network.get_classifier()
        heads = set(map(id, classifier if isinstance(classifier, tuple) else (classifier,)))
        for name, module in network.named_modules():
            kinds = {f"{name}.{key}" in trainable for key, _ in module.named_parameters()}
            if len(kinds) == 2 or any(id(child) in heads for child in module.modules() if child is not module):
                self._through.add(name)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module stays whole."""
        if isinstance(m, tuple(get_notrace_modules())) or super().is_leaf_module(m, module_qualified_name):
            return True
        return module_qualified_name not in self._through


@contextmanager
def mode_kept(network: nn.Module) -> Iterator[None]:
    """Put every module back into the mode, training or evaluation, that it was in before the block."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def main_logits(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the logits of a network's own head, which come first where auxiliary heads give some, too."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


@contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """Put back what modules note of themselves in the block, such as positions that they compute once (ConViT).

    What a network without content computes has no content either, and would be used ever after.
    """
    before = [(module, vars(module) | {"_buffers": dict(module._buffers)}) for module in network.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def trace(
    network: nn.Module, trainable: Collection[str], make_images: Callable[[int], torch.Tensor]
) -> tuple[fx.GraphModule, Values]:
    """Return the network as a graph whose sizes are numbers, but for the number of images.

    Args:
        network: in the mode in which it will be trained; it shares its modules with the result.
        trainable: names of the parameters that are trained.
        make_images: B → images (B, C, H, W).

    Returns:
        The graph, and what each of its nodes gives for two images: tensors without content.

    Raises:
        Exception: of any kind: the network's own code does something that cannot be traced.
    """
    _, *others = inspect.signature(network.forward).parameters.values()
    with _attributes_kept(network):
        graph = _LayerTracer(network, trainable).trace(network, {other.name: other.default for other in others})
    for check in (torch._assert, fx._symbolic_trace._assert_is_none):
        for node in graph.find_nodes(op="call_function", target=check):
            graph.erase_node(node)  # what it asserts has held just now
    _prune(graph)  # and with it the placeholders of what was given just now
    traced = fx.GraphModule(network, graph)
    _give_dropout_its_mode(traced)
    given = _values(traced, make_images(2))
    if any(isinstance(value, int) for value in given.values()):
        _number_sizes(graph, given, _values(traced, make_images(3)))
    traced.recompile()
    return traced, given


def _values(traced: fx.GraphModule, images: torch.Tensor) -> Values:
    """Return what each node gives for ``images`` in evaluation: tensors without content, and numbers."""
    recorded: Values = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            recorded[n] = super().run_node(n)
            return recorded[n]

    with _attributes_kept(traced), FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        traced.eval()
        Recorder(traced).run(fake.from_tensor(images))
    return recorded


def _give_dropout_its_mode(traced: fx.GraphModule) -> None:
    """Replace ``F.dropout``, whose mode tracing has frozen, by a module, which ``train()`` and ``eval()`` reach."""
    for number, node in enumerate(traced.graph.find_nodes(op="call_function", target=F.dropout)):
        rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        traced.add_module(f"dropout_{number}", nn.Dropout(rate))
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.call_module(f"dropout_{number}", (node.args[0],)))
        traced.graph.erase_node(node)


def _number_sizes(graph: fx.Graph, twos: Values, threes: Values) -> None:
    """Replace each size that the graph computes by its number, or by a multiple of the number of images.

    Args:
        graph: is changed.
        twos: what each node gives for two images.
        threes: what each node gives for three.
    """
    (images,) = graph.find_nodes(op="placeholder")
    with graph.inserting_after(images):
        size = graph.call_method("size", (images, 0))
    for node in list(graph.nodes):
        two, three = twos.get(node), threes.get(node)
        if not isinstance(two, int) or not isinstance(three, int):  # bool is an int
            continue
        number: Any = two
        if two != three:
            assert 3 * two == 2 * three, "a size that is no multiple of the number of images"
            with graph.inserting_before(node):
                number = size if two == 2 else graph.call_function(operator.mul, (size, two // 2))
        _replace(node, number)
    _prune(graph)


def _replace(node: fx.Node, number: Any) -> None:
    """Let those that read a node have a number, or another node, instead."""

    def other(read: fx.Node) -> Any:
        return number if read is node else read

    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, other)
        user.kwargs = fx.node.map_arg(user.kwargs, other)


def _prune(graph: fx.Graph) -> None:
    """Remove what nothing depends on."""
    images = graph.find_nodes(op="placeholder")[0]
    graph.eliminate_dead_code(is_impure_node=lambda node: node is images or node.op == "output")
