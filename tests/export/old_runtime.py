"""Run .onnx files on the arrays of .npz files and compare with their "expected". Needs onnxruntime and numpy only.

    PYTHON old_runtime.py MODEL.onnx ARRAYS.npz [MODEL.onnx ARRAYS.npz ...]

Prints the runtime's version and the largest difference relative to the largest expected value of its file.
"""

import sys

import numpy as np
import onnxruntime

worst = 0.0
for model, arrays in zip(sys.argv[1::2], sys.argv[2::2]):  # noqa: B905 (equal lengths)
    values = dict(np.load(arrays))
    expected = values.pop("expected").astype(np.float64)
    result = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, values)[0]
    if result.shape != expected.shape:
        sys.exit(f"{model}: shape {result.shape}, expected {expected.shape}")
    worst = max(worst, np.abs(result - expected).max() / max(np.abs(expected).max(), 1e-30))
print(onnxruntime.__version__, worst)
