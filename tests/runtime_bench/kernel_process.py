"""The native kernels of another process, driven through its standard input and output.

`KernelProcess` has the functions of the module `bnas.runtime_bench.native._native` with the same arguments, so a test
written for one runs on the other. The program is `bnas-kernels`; the form of the messages is described in
runtime_bench/native/grid_server.cpp.
"""

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_TYPES: list[np.dtype[Any]] = [np.dtype("<f4"), np.dtype("u1"), np.dtype("<u4"), np.dtype("<i4"), np.dtype("i1")]
_NOTHING = np.empty(0, np.float32)


class KernelProcess:
    """`command` starts bnas-kernels, perhaps behind an emulator: ["qemu-aarch64", "-L", ROOT, "bnas-kernels"].

    Pads are top, left, bottom, right; `isa` is a name from paths(), or "" for the fastest. Every function raises
    ValueError if the program refuses the request, and RuntimeError, with what it printed, if it has died.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, a file because nobody would read a pipe
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def __enter__(self) -> "KernelProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the program; RuntimeError if that is not how it ended (a leak check speaks at the end)."""
        if not self._errors.closed:
            self._process.communicate()
            failure = self._failure() if self._process.returncode else None
            self._errors.close()
            if failure:
                raise failure

    def paths(self) -> list[str]:
        return self._request("paths", "", [], [])[0]

    def conv(
        self,
        isa: str,
        x: Array,
        w_packed: Array,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
        shift: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        residual: Array | None = None,
        slope: Array | None = None,
        act_shift_in: Array | None = None,
        act_shift_out: Array | None = None,
    ) -> Array:
        """BinaryConv2d: x float32 [N, C, H, W], w_packed uint8 [O, kh, kw, ceil(C / groups / 8)] -> float32."""
        optional = (shift, scale, bias, residual, slope, act_shift_in, act_shift_out)
        arrays = [x, w_packed, *(_NOTHING if array is None else array for array in optional)]
        return self._result("conv", isa, [*strides, *pads, *dilations, groups], arrays)

    def conv_from_bits(
        self,
        isa: str,
        x: Array,
        channels: int,
        w_packed: Array,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
        scale: Array | None = None,
        bias: Array | None = None,
        residual: Array | None = None,
        slope: Array | None = None,
        act_shift_in: Array | None = None,
        act_shift_out: Array | None = None,
    ) -> Array:
        """BinaryConv2dFromBits: as conv, with x uint32 [N, ceil(channels / 32), H, W] -> float32."""
        optional = (scale, bias, residual, slope, act_shift_in, act_shift_out)
        arrays = [x, w_packed, *(_NOTHING if array is None else array for array in optional)]
        return self._result("conv_from_bits", isa, [channels, *strides, *pads, *dilations, groups], arrays)

    def conv_bits(
        self,
        isa: str,
        x: Array,
        channels: int,
        w_packed: Array,
        threshold: Array,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> Array:
        """BinaryConv2dBits: x uint32 [N, ceil(channels / 32), H, W], threshold int32 [O] -> uint32."""
        integers = [channels, *strides, *pads, *dilations, groups]
        return self._result("conv_bits", isa, integers, [x, w_packed, threshold])

    def byte_conv(
        self,
        isa: str,
        x: Array,
        w: Array,
        x_scale: float,
        x_zero: int,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
        scale: Array | None = None,
        bias: Array | None = None,
        slope: Array | None = None,
        act_shift_out: Array | None = None,
        y_scale: float = 0.0,
        y_zero: int = 0,
    ) -> Array:
        """ByteConv2d: x float32 [N, C, H, W], w int8 [O, C / groups, kh, kw] -> float32. y_scale 0: not rounded."""
        optional = (_NOTHING if array is None else array for array in (scale, bias, slope, act_shift_out))
        scales = (np.array([value], np.float32) for value in (x_scale, y_scale))
        integers = [*strides, *pads, *dilations, groups, x_zero, y_zero]
        return self._result("byte_conv", isa, integers, [x, w, *optional, *scales])

    def image_conv(
        self,
        isa: str,
        x: Array,
        w: Array,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        pool_kernel: Sequence[int] = (1, 1),
        pool_strides: Sequence[int] = (1, 1),
        pool_pads: Sequence[int] = (0, 0, 0, 0),
        bias: Array | None = None,
        slope: Array | None = None,
        act_shift_out: Array | None = None,
    ) -> Array:
        """ImageConv2d: x float32 [N, C, H, W], w float32 [O, C, kh, kw] -> float32. A pool of 1x1: none."""
        optional = (_NOTHING if array is None else array for array in (bias, slope, act_shift_out))
        integers = [*strides, *pads, *pool_kernel, *pool_strides, *pool_pads]
        return self._result("image_conv", isa, integers, [x, w, *optional])

    def pack_signs(self, isa: str, x: Array, shift: Array | None = None) -> Array:
        """PackSigns: x float32 [N, C, H, W] -> uint32 [N, ceil(C / 32), H, W]."""
        return self._result("pack_signs", isa, [], [x, _NOTHING if shift is None else shift])

    def max_pool_bits(
        self, x: Array, kernel: Sequence[int], *, strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0)
    ) -> Array:
        """BinaryMaxPool2d: x uint32 [N, words, H, W] -> uint32 [N, words, Ho, Wo]."""
        return self._result("max_pool_bits", "", [*kernel, *strides, *pads], [x])

    def _result(self, operator: str, isa: str, integers: list[int], arrays: list[Array]) -> Array:
        return self._request(operator, isa, integers, arrays)[1][0]

    def _request(
        self, operator: str, isa: str, integers: list[int], arrays: list[Array]
    ) -> tuple[list[str], list[Array]]:
        message = _encode([operator, isa], integers, arrays)
        assert self._process.stdin
        try:
            self._process.stdin.write(struct.pack("<I", len(message)) + message)
            self._process.stdin.flush()
            texts, results = _decode(self._read(struct.unpack("<I", self._read(4))[0]))
        except (BrokenPipeError, EOFError):
            self._process.wait()
            raise self._failure() from None
        if texts[0] == "error":
            raise ValueError(texts[1])
        return texts[1:], results

    def _read(self, size: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _failure(self) -> RuntimeError:
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").strip()
        return RuntimeError(f"{self._process.args!r} ended with exit code {self._process.returncode}: {printed}")


def _encode(texts: list[str], integers: list[int], arrays: list[Array]) -> bytes:
    parts = [struct.pack("<I", len(texts))]
    for text in texts:
        parts += [struct.pack("<I", len(text.encode())), text.encode()]
    parts.append(struct.pack(f"<I{len(integers)}q", len(integers), *integers))
    parts.append(struct.pack("<I", len(arrays)))
    for array in arrays:
        if array.dtype not in _TYPES:
            raise ValueError(f"an array of {array.dtype}; the kernels know {', '.join(map(str, _TYPES))}")
        parts.append(struct.pack(f"<BI{array.ndim}q", _TYPES.index(array.dtype), array.ndim, *array.shape))
        parts.append(array.tobytes())
    return b"".join(parts)


def _decode(message: bytes) -> tuple[list[str], list[Array]]:
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        position += size
        return message[position - size : position]

    def numbers(form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, take(struct.calcsize("<" + form)))

    def array() -> Array:
        kind, rank = numbers("BI")
        shape = numbers(f"{rank}q")
        data = take(_TYPES[kind].itemsize * int(np.prod(shape, dtype=np.int64)))
        return np.frombuffer(data, _TYPES[kind]).reshape(shape)

    texts = [take(numbers("I")[0]).decode() for _ in range(numbers("I")[0])]
    numbers(f"{numbers('I')[0]}q")  # answers have none
    return texts, [array() for _ in range(numbers("I")[0])]
