"""Build the graph of an ONNX file node by node."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graftline.bundle.layout import INPUT, LOGITS
from graftline.errors import UserError


class Graph:
    """Nodes of a graph in the order in which they run.

    Attributes:
        nodes: the nodes.
        initializers: constants.
        opsets: version by domain.
        ir_version: of the file.
        functions: of the networks' own.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opsets: dict[str, int] = {}
        self.ir_version = 0
        self.functions: list[onnx.FunctionProto] = []
        self._numbers = itertools.count()

    def branch(self) -> "Graph":
        """Return a graph for a part that runs at times only; its constants are those of this one."""
        branch = Graph()
        branch.initializers, branch._numbers = self.initializers, self._numbers
        return branch

    def as_graph(self, output: str) -> onnx.GraphProto:
        """Return a branch as what a node takes."""
        made: onnx.GraphProto = helper.make_graph(self.nodes, "branch", [], [onnx.ValueInfoProto(name=output)])
        return made

    def __call__(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output and return that one's name."""
        output = output or f"graftline/{operation.lower()}{next(self._numbers)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, kind: Any) -> str:
        """Add a constant and return its name."""
        name = f"graftline/constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype=kind), name))
        return name

    def cast(self, value: str, kind: int) -> str:
        """Change the type of a value."""
        return self("Cast", value, to=kind)

    def network(self, file: Path, images: str, prefix: str) -> str:
        """Add a bundle's network, all of whose names get a prefix, and return the name of its logits."""
        network = onnx.compose.add_prefix(onnx.load(file), prefix)
        for one in network.opset_import:
            if self.opsets.setdefault(one.domain, one.version) != one.version:
                raise UserError(f"{file} has another version of ONNX's operators than the other members: train anew.")
        self.ir_version = max(self.ir_version, network.ir_version)
        self.functions += network.functions
        self("Identity", images, output=f"{prefix}{INPUT}")
        self.nodes += network.graph.node
        self.initializers += network.graph.initializer
        return f"{prefix}{LOGITS}"
