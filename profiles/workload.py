"""`Workload`: one fused unit at a concrete shape; the word that search, cost, latency and export share."""

import re
from dataclasses import dataclass

from .errors import InputError

KINDS = {
    "binary_conv": "act(conv(sign(x - shift), W) * scale + bias + residual), weights and activations 1 bit",
    "conv": "convolution with folded batch-norm and activation; 8 bits: integer weights, inputs and result",
    "downsample": "2x2 average pool with stride 2, channels repeated out_channels/in_channels times",
    "duplicate": "channels repeated out_channels/in_channels times",
    "average": "mean over in_channels/out_channels groups of channels",
    "max_pool": "maximum over the part of a window that is inside of the image",
    "avg_pool": "mean over the part of a window that is inside of the image",
    "relu": "max(x, 0) alone",
    "norm": "x * scale + bias per channel alone",
    "quantize": "values rounded to 8 bits",
    "add": "sum of two values, in_channels counts both",
    "concat": "two or more values behind each other, in_channels counts all",
    "even_channels": "channels 0, 2, 4, ...: one half of a channel shuffle",
    "odd_channels": "channels 1, 3, 5, ...: the other half",
    "head": "global average pool and linear classifier; 8 bits: integer weights and means, a float result",
    "fixed": "a graph with no work in it: what one call of the runtime costs",
}
EPILOGUES = ("residual", "relu", "prelu", "rprelu")
FORMATS = ("float", "bits")


@dataclass(frozen=True, order=True)
class Workload:
    """One fused unit at batch 1.

    height, width: *input* pixels; channels and pixels are counts. `epilogue` names what is fused behind the
    convolution, in order ("residual", then one activation). `bits` is 1, 8 or 32 for weights and activations
    alike. Spatial padding is TensorFlow SAME, so the output has ceil(height / stride) x ceil(width / stride) pixels
    ("head" has 1 x 1). `input_format`/`output_format`: "float" or packed "bits".
    """

    kind: str
    bits: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    epilogue: tuple[str, ...] = ()
    input_format: str = "float"
    output_format: str = "float"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"workload kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.bits not in (1, 8, 32):
            raise ValueError(f"workload bits must be 1, 8 or 32, got {self.bits}")
        if bad := [e for e in self.epilogue if e not in EPILOGUES]:
            raise ValueError(f"workload epilogue {bad[0]!r} is not one of {', '.join(EPILOGUES)}")
        if self.input_format not in FORMATS or self.output_format not in FORMATS:
            raise ValueError(f"workload formats must be float or bits, got {self.input_format}, {self.output_format}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"groups {self.groups} must divide {self.in_channels} and {self.out_channels} channels")

    @property
    def out_height(self) -> int:
        return 1 if self.kind == "head" else -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return 1 if self.kind == "head" else -(-self.width // self.stride)

    @property
    def key(self) -> str:
        """The row name in a latency table, e.g. `binary_conv-1b-64x64-8x8-k3-s1-d1-g1-residual+rprelu-float-float`."""
        return (
            f"{self.kind}-{self.bits}b-{self.in_channels}x{self.out_channels}-{self.height}x{self.width}"
            f"-k{self.kernel}-s{self.stride}-d{self.dilation}-g{self.groups}"
            f"-{'+'.join(self.epilogue) or 'plain'}-{self.input_format}-{self.output_format}"
        )

    @classmethod
    def from_key(cls, key: str) -> "Workload":
        """The workload of a row name. Raises InputError if the name is not one `key` writes."""
        match = _KEY.fullmatch(key)
        if not match:
            raise InputError(f"{key!r} is not a workload key, e.g. {FIXED.key}")
        kind, epilogue, source, target = match["kind"], match["epilogue"], match["source"], match["target"]
        numbers = {name: int(match[name]) for name in _NUMBERS}
        try:
            return cls(
                kind=kind,
                **numbers,
                epilogue=() if epilogue == "plain" else tuple(epilogue.split("+")),
                input_format=source,
                output_format=target,
            )
        except ValueError as error:
            raise InputError(f"{key!r} is not a workload key: {error}") from None


_NUMBERS = ("bits", "in_channels", "out_channels", "height", "width", "kernel", "stride", "dilation", "groups")
_KEY = re.compile(
    r"(?P<kind>\w+)-(?P<bits>\d+)b-(?P<in_channels>\d+)x(?P<out_channels>\d+)-(?P<height>\d+)x(?P<width>\d+)"
    r"-k(?P<kernel>\d+)-s(?P<stride>\d+)-d(?P<dilation>\d+)-g(?P<groups>\d+)"
    r"-(?P<epilogue>[\w+]+)-(?P<source>\w+)-(?P<target>\w+)"
)
FIXED = Workload("fixed", 32, 1, 1, 1, 1)
