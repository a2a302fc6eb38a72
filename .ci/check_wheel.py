"""Run in an environment that holds a wheel of bnas: are the kernels in it, and do they load and agree here?"""

import os
import platform

import numpy as np
import onnxruntime

import bnas
from bnas.runtime_bench import native_library
from bnas.runtime_bench.native import _native

library = bnas.ops_library_path()
onnxruntime.SessionOptions().register_custom_ops_library(library)
assert os.access(native_library.path_of(native_library.RUNNER), os.X_OK)
assert native_library.version() == _native.version == bnas.__version__

paths = _native.paths()
assert {"reference", "portable", *(["neon"] if platform.machine() == "aarch64" else [])} <= set(paths), paths
assert native_library.engine_name() == native_library.PREFIX + _native.selected()
x = np.random.default_rng(0).standard_normal((1, 33, 7, 5), np.float32)
weights = np.random.default_rng(1).integers(0, 256, (9, 3, 3, 5), np.uint8)
results = [_native.conv(path, x, weights, pads=(1, 1, 1, 1)) for path in paths]
assert all(np.array_equal(results[0], result) for result in results)
print(library, native_library.engine_name(), paths)
