"""Small network files, made here with onnx and tensorflow and not with our own writers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def onnx_model(
    nodes: list, shapes: dict[str, list], output: str, constants: dict[str, np.ndarray], **more: object
) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(  # every one of these networks keeps the shape of x
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes["x"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.bnas", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)
    helper.set_model_props(model, {"classes": '["a", "b"]'})
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def identity() -> bytes:
    from onnx import helper

    return onnx_model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1, 1, 1, 1]}, "y", {})


@pytest.fixture(scope="session")
def conv() -> Callable[..., bytes]:
    """conv(channels, pixels, layers=1, batch=1): a chain of 3x3 convolutions of ones, padded; values named y0, y1..."""
    from onnx import helper

    def make(channels: int, pixels: int, layers: int = 1, batch: int | str = 1) -> bytes:
        nodes = [
            helper.make_node("Conv", [f"y{i - 1}" if i else "x", f"w{i}"], [f"y{i}"], pads=[1, 1, 1, 1])
            for i in range(layers)
        ]
        ones = np.ones((channels, channels, 3, 3), np.float32)
        weights = {f"w{i}": ones for i in range(layers)}
        return onnx_model(nodes, {"x": [batch, channels, pixels, pixels]}, f"y{layers - 1}", weights)

    return make


@pytest.fixture(scope="session")
def sum_of_two() -> bytes:
    from onnx import helper

    shape = [1, 2, 3, 3]
    return onnx_model([helper.make_node("Add", ["x", "r"], ["y"])], {"x": shape, "r": shape}, "y", {})


@pytest.fixture(scope="session")
def with_our_operator() -> bytes:
    """y = 2x by a node of domain ai.bnas that has a function body."""
    from onnx import helper

    body = helper.make_function(
        "ai.bnas", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="ai.bnas")
    return onnx_model([node], {"x": [1, 3, 4, 5]}, "y", {}, functions=[body])


@pytest.fixture(scope="session")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2 relu(x) on [1, 4, 5, 3] with a `bnas` metadata buffer {"classes": ["a", "b"]}."""
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("larq_compute_engine")
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    class Network(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 4, 5, 3], tf.float32)])
        def __call__(self, x: object) -> object:
            return tf.nn.relu(x) * 2.0

    network = Network()
    function = network.__call__.get_concrete_function()
    model = schema.ModelT.InitFromPackedBuf(
        tf.lite.TFLiteConverter.from_concrete_functions([function], network).convert(), 0
    )
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(json.dumps({"classes": ["a", "b"]}).encode())
    model.buffers.append(buffer)
    entry.name, entry.buffer = "bnas", len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path_factory.mktemp("tflite") / "small.tflite"
    path.write_bytes(bytes(builder.Output()))
    return path
