"""The float Parent: the same candidates without signs."""

import numpy as np
import torch
from torch.nn import functional as F

from bnas.search.binary.layers import BinaryConv2d, Style
from bnas.search.parent import FloatConv2d, without_signs
from bnas.search.spaces import SearchSpace
from bnas.search.supernet import Supernet


def test_a_parent_has_the_decisions_and_shapes_of_its_child_and_no_sign(micro: SearchSpace) -> None:
    torch.manual_seed(0)
    child, parent = Supernet(micro), without_signs(Supernet(micro))
    assert not any(isinstance(module, BinaryConv2d) for module in parent.modules())
    binary = {name for name, module in child.named_modules() if isinstance(module, BinaryConv2d)}
    assert binary == {name for name, module in parent.named_modules() if isinstance(module, FloatConv2d)}
    mine = {name: p.shape for name, p in child.named_parameters() if not name.endswith(("shift", "beta"))}
    assert mine == {name: p.shape for name, p in parent.named_parameters()}
    gates = [torch.full((len(d.candidates),), 1 / len(d.candidates)) for d in micro.decisions]
    x = torch.randn(2, *micro.shape)
    assert parent(x, gates).shape == child(x, gates).shape == (2, micro.classes)


def test_outputs_follow_the_size_of_the_input_and_of_the_weights() -> None:
    """The convolution is linear; that of the Child would give the same for all."""
    binary = BinaryConv2d(4, 6, 3, 2, groups=2, style=Style())
    layer = FloatConv2d(binary)
    x = torch.randn(2, 4, 8, 6)
    y = layer(x)
    torch.testing.assert_close(layer(3 * x), 3 * y)
    with torch.no_grad():
        layer.weight *= 2
    torch.testing.assert_close(layer(x), 2 * y)


def test_the_float_convolution_lies_where_the_1_bit_one_lies() -> None:
    """On +1/-1 weights and inputs the two agree away from the border, where one pads with 0 and the other with +1."""
    for size, kernel, stride, dilation in ((9, 3, 1, 1), (8, 3, 2, 1), (15, 5, 2, 1), (12, 3, 2, 2), (19, 5, 1, 2)):
        torch.manual_seed(0)
        binary = BinaryConv2d(3, 5, kernel, stride, dilation, style=Style())
        with torch.no_grad():
            binary.weight.copy_(torch.where(binary.weight < 0, -1.0, 1.0))
        x = torch.where(torch.randn(2, 3, size, size) < 0, -1.0, 1.0)
        expected, found = binary(x), FloatConv2d(binary)(x)
        reach = -(-dilation * (kernel - 1) // stride)
        inner = slice(reach, expected.shape[2] - reach)
        assert expected[:, :, inner, inner].numel() > 0, (size, kernel, stride, dilation)
        np.testing.assert_array_equal(found[:, :, inner, inner].detach(), expected[:, :, inner, inner].detach())
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        padded = F.pad(x, (total // 2, total - total // 2) * 2)  # zeros, TensorFlow SAME
        torch.testing.assert_close(found, F.conv2d(padded, binary.weight, stride=stride, dilation=dilation))
