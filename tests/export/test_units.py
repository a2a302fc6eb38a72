import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.export.units import graph_workloads, unit_graph, unit_model
from bnas.profiles.errors import InputError
from bnas.profiles.workload import FIXED, Workload

ACTIVATIONS = [(), ("relu",), ("prelu",), ("rprelu",)]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    kind = draw(st.sampled_from(["binary_conv", "conv", "downsample", "duplicate", "average", "head"]))
    channels, size = draw(st.sampled_from([1, 3, 8, 33])), (draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    times, groups = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    if kind in ("binary_conv", "conv"):
        geometry = {
            "kernel": draw(st.sampled_from([1, 3, 5, 7])),
            "stride": draw(st.sampled_from([1, 2])),
            "dilation": draw(st.sampled_from([1, 2])),
            "groups": groups,
        }
        epilogue = draw(st.sampled_from(ACTIVATIONS if kind == "binary_conv" else ACTIVATIONS[:3]))
        if kind == "binary_conv" and draw(st.booleans()):
            epilogue = ("residual", *epilogue)
        out = groups * draw(st.sampled_from([1, 3, 8]))
        bits = 1 if kind == "binary_conv" else 32
        return Workload(kind, bits, channels * groups, out, *size, **geometry, epilogue=epilogue)
    if kind == "downsample":
        return Workload(kind, 32, channels, channels * draw(st.integers(1, 3)), *size, kernel=2, stride=2)
    if kind == "average":
        return Workload(kind, 32, channels * times, channels, *size)
    return Workload(kind, 32, channels, channels * times, *size)


@settings(max_examples=80, deadline=None)
@given(workloads())
def test_a_workload_is_found_again_in_its_graph_and_runs(workload: Workload) -> None:
    graph = unit_graph(workload)
    assert graph_workloads(graph) == (workload,)
    model = unit_model(workload)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {name: np.ones((2, *shape), np.float32) for name, shape in graph.inputs}
    (result,) = session.run(None, inputs)
    pixels = () if workload.kind == "head" else (workload.out_height, workload.out_width)
    assert result.shape == (2, workload.out_channels, *pixels)
    assert np.isfinite(result).all()


def test_the_fixed_cost_is_one_operator() -> None:
    assert graph_workloads(unit_graph(FIXED)) == (FIXED,)
    assert [node.op_type for node in unit_model(FIXED).graph.node] == ["Relu"]


def test_one_seed_gives_one_file() -> None:
    workload = Workload("binary_conv", 1, 8, 8, 4, 4, 3, epilogue=("residual", "rprelu"))
    assert unit_model(workload).SerializeToString() == unit_model(workload).SerializeToString()
    assert unit_model(workload).SerializeToString() != unit_model(workload, seed=1).SerializeToString()


def test_a_residual_is_the_input_where_the_shapes_are_equal() -> None:
    same = Workload("binary_conv", 1, 8, 8, 4, 4, 3, epilogue=("residual",))
    wider = Workload("binary_conv", 1, 8, 16, 4, 4, 3, epilogue=("residual",))
    assert [name for name, _ in unit_graph(same).inputs] == ["x"]
    assert unit_graph(wider).inputs == (("x", (8, 4, 4)), ("residual", (16, 4, 4)))


@pytest.mark.parametrize(
    "workload",
    [
        Workload("conv", 8, 3, 8, 4, 4, 3),
        Workload("binary_conv", 1, 8, 8, 4, 4, 3, input_format="bits"),
        Workload("conv", 32, 3, 8, 4, 4, 3, epilogue=("rprelu",)),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(workload: Workload) -> None:
    with pytest.raises(InputError, match=workload.key.replace("+", r"\+")):
        unit_graph(workload)
