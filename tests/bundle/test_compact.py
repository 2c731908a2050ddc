"""A network in whole numbers of 8 bits."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from timm.layers import create_conv2d

from graftline.bundle.compact import quantize
from graftline.bundle.layout import INPUT


def test_sizes_are_not_rounded(tmp_path: Path) -> None:
    """TensorFlow's padding, of 1 px before and 2 px behind a kernel of 5, is computed within the network."""
    torch.manual_seed(0)
    conv, images = create_conv2d(3, 4, 5, stride=2, padding="same"), torch.rand(8, 3, 32, 32)
    file, axes = tmp_path / "conv.onnx", {INPUT: {0: "batch"}}
    torch.onnx.export(conv, (images,), file, input_names=[INPUT], dynamic_axes=axes, dynamo=False)
    network = onnx.load(file)
    assert "Pad" in {node.op_type for node in network.graph.node}
    small = quantize(network, [image[None].numpy() for image in images], tmp_path)
    found = onnxruntime.InferenceSession(small).run(None, {INPUT: images.numpy()})[0]
    expected = conv(images).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
