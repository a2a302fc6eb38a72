"""Run a .onnx file on the arrays of a .npz and compare with its "expected". Needs onnxruntime and numpy only.

    PYTHON old_runtime.py MODEL.onnx ARRAYS.npz

Prints the runtime's version and the largest difference relative to the largest expected value.
"""

import sys

import numpy as np
import onnxruntime

model, arrays = sys.argv[1:]
values = dict(np.load(arrays))
expected = values.pop("expected")
result = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, values)[0]
print(onnxruntime.__version__, np.abs(result - expected).max() / np.abs(expected).max())
