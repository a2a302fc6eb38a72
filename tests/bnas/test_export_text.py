"""What `bnas export` prints of its report."""

import pytest

from bnas.commands.export import _show

GATE = {"max_abs_diff": 1e-6, "argmax_agreement": 0.998, "sign_flips": 5, "step_flips": 0}
REPORT = {
    "path": "model.onnx", "bytes": 12_345, "run": "runs/a", "images": 512, "kernels": None, **GATE,
    "convolutions": [{"name": "stem0", "kind": "8-bit", "reason": None}],
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    _show(REPORT | changes)
    return " ".join(capsys.readouterr().out.split())


def test_eight_bit_units_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    eight_bit = {"convolutions": 17, "linear_layers": 1, "kept_in_float": 4}
    text = printed(capsys, eight_bit=eight_bit, step_flips=919, kernels={"engine": "native-avx2", **GATE})
    assert "convolutions: 17, linear layers: 1; of these computed in float: 4" in text
    assert "919 values of 8 bits a step apart" in text.partition("native-avx2")[0]
    assert "0 values of 8 bits a step apart" in text.partition("native-avx2")[2]


def test_a_network_without_them_has_no_such_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, eight_bit={"convolutions": 0, "linear_layers": 0, "kept_in_float": 0})
    assert "linear layers" not in text and "5 flipped signs" in text
