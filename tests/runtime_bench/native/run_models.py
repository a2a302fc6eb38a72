"""Run models with the operator library in this Python. Needs onnxruntime and numpy only.

    PYTHON run_models.py LIBRARY FOLDER

For every NAME.onnx in FOLDER, the inputs in NAME.npz are fed, and the outputs written to NAME.out.npz, or the error to
NAME.error. FOLDER/peak_kb gets the most memory that this process ever had. Prints the runtime's version.
"""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime

library, folder = sys.argv[1], Path(sys.argv[2])
for model in sorted(folder.glob("*.onnx")):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library)
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        values = session.run(None, dict(np.load(model.with_suffix(".npz"))))
    except Exception as error:
        model.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        continue
    np.savez(model.with_suffix(".out.npz"), *values)
# Not ru_maxrss, which counts what the process that started this one held.
(folder / "peak_kb").write_text(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(onnxruntime.__version__)
