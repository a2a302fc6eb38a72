"""The float Parent of a 1-bit Child: the same network without signs, so that decisions and candidates agree."""

from torch import Tensor, nn
from torch.nn import functional as F

from .binary.layers import BinaryConv2d, same_padding


class FloatConv2d(nn.Conv2d):
    """conv(x, weight) with the sizes of a 1-bit convolution: zero-padding in TensorFlow SAME order; no bias.

    x: [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]. It starts with the latent weights.
    """

    def __init__(self, binary: BinaryConv2d) -> None:
        out_channels, per_group, kernel, _ = binary.weight.shape
        sizes = (binary.groups * per_group, out_channels, kernel, binary.stride)
        super().__init__(*sizes, dilation=binary.dilation, groups=binary.groups, bias=False)
        self.weight = nn.Parameter(binary.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        top, bottom = same_padding(x.shape[2], kernel, stride, dilation)
        left, right = same_padding(x.shape[3], kernel, stride, dilation)
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)


def without_signs(model: nn.Module) -> nn.Module:
    """`model` itself, with every 1-bit convolution replaced by the float one of the same shape.

    Batch-norms, activations and shortcuts stay, and so do 8-bit and float units.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, BinaryConv2d):
            place, _, name = path.rpartition(".")
            setattr(model.get_submodule(place), name, FloatConv2d(module))
    return model
