"""TensorFlow Lite's benchmark program: its options and the lines it prints, with a program that prints the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench.devices import DeviceError, kit, open_device
from bnas.runtime_bench.devices.benchmark_binary import Timings, parse

from .conftest import NEAR

# In the form of TensorFlow 2.3 to 2.11, of 2.16 (lines begin with INFO:), and of 2.19 (percentiles).
PRINTED = {
    "2.11": """STARTING!
Log parameter values verbosely: [0]
Graph: [model.tflite]
Loaded model model.tflite
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
""",
    "2.16": """INFO: Initialized session in 12.75ms.
INFO: count=37 first=14744 curr=15520 min=13164 max=18295 avg=13764.3 std=967

INFO: count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470

INFO: Inference timings in us: Init: 12750, First inference: 14744, Warmup (avg): 13764.3, Inference (avg): 13520.2
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=55.4961
""",
    "2.19": """INFO: count=1 curr=87112 p5=87112 median=87112 p95=87112

INFO: count=9 first=52162 curr=49785 min=49088 max=686105 avg=6.37433e+04 std=60716 p5=49620 median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 87112, Inference (avg): 6.37433e+04
""",
    "one run": """INFO: count=1 curr=3000
INFO: Inference timings in us: Init: 100, First inference: 0, Warmup (avg): 0, Inference (avg): 3000
""",
}
READ = {
    "2.11": Timings(0.855, 33_209_400, 50),
    "2.16": Timings(12.75, 13_520_200, 74),
    "2.19": Timings(119.515, 63_743_300, 9),
    "one run": Timings(0.1, 3_000_000, 1),
}
PLAIN, BINARY = b"\0\0\0\0TFL3 a network", b"\0\0\0\0TFL3 a network with LceBconv2d"


@pytest.mark.parametrize("name", PRINTED)
def test_what_is_printed_is_understood(name: str) -> None:
    assert parse(PRINTED[name]) == READ[name]


@pytest.mark.parametrize("text", ["", "ERROR: Failed to load", PRINTED["2.11"].replace("Inference", "x")])
def test_anything_else_is_not(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """A program that writes down its arguments and prints the lines for as many runs as it is asked for."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.write_text(f"""#!/bin/sh
for word do
case $word in --graph=*) [ -s "${{word#--graph=}}" ] || exit 3;; --num_runs=*) n=${{word#--num_runs=}};; esac
printf '"%s", ' "${{word%%/model.tflite}}" >> '{tmp_path}/{name}.asked'; done
echo >> '{tmp_path}/{name}.asked'
echo "INFO: count=3 first=9 curr=9 min=9 max=9 avg=9 std=0"
echo "INFO: count=$n first=2100 curr=2000 min=1900 max=2100 avg=2000.5 std=5"
echo "INFO: Inference timings in us: Init: 1500, First inference: 2500, Warmup (avg): 9, Inference (avg): 2000.5"
""")
        return path

    return make


@pytest.mark.parametrize("url", NEAR, indirect=True)
def test_on_a_device(url: str, program: Callable[[str], Path], tmp_path: Path, device_folder: Path) -> None:
    plain, larq = program("benchmark_model"), program("lce benchmark; model")
    with open_device(url, tflite_benchmark=plain, lce_benchmark=larq) as target:
        session = target.open(PLAIN, 2)
        assert (session.name, session.runtime, session.threads, session.operators) == ("tflite", "tflite", 2, None)
        assert session.version.startswith("sha256:") and session.load_ms == 1.5
        assert session.timed(4, 17) == [2_000_500] and session.means_of == 17
        binary = target.open(BINARY)
        assert binary.name == ("lce" if kit.machine_arch() == "aarch64" else "lce-portable")
        assert binary.runtime == "larq-compute-engine"
        assert target.memory(PLAIN, 1) is None and target.unit_profile(PLAIN, 1, 2) == []
        for ask in (lambda: session.infer, lambda: session.input_shape):
            with pytest.raises(InputError, match=r"use \.onnx"):
                ask()(None)  # type: ignore[operator, arg-type]
        session.close()
    asked = [
        json.loads(f"[{line.rstrip(', ')}]") for line in (tmp_path / "benchmark_model.asked").read_text().splitlines()
    ]
    assert len(asked) == 2 and asked[1][1:] == [
        "--num_threads=2", "--num_runs=17", "--min_secs=0", "--warmup_runs=4", "--warmup_min_secs=0",
    ]  # fmt: skip
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_what_is_missing_is_named(url: str, program: Callable[[str], Path], tmp_path: Path) -> None:
    with open_device(url) as target:
        with pytest.raises(InputError, match="add --tflite-benchmark benchmark_model"):
            target.open(PLAIN)
        with pytest.raises(InputError, match="add --lce-benchmark lce_benchmark_model"):
            target.open(BINARY)
    with pytest.raises(InputError, match="is not there"), open_device(url, lce_benchmark=tmp_path / "absent"):
        pass
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'ERROR: Failed to load' >&2\nexit 1\n")
    with open_device(url, tflite_benchmark=broken) as target:
        with pytest.raises(DeviceError, match="the program of --tflite-benchmark fails: ERROR: Failed to load"):
            target.open(PLAIN)
        words = "Larq Compute Engine, which the program of --tflite-benchmark does not know; .* add --lce-benchmark"
        for model in (BINARY, BINARY.replace(b"LceBconv2d", b"LceQuantize")):
            with pytest.raises(InputError, match=words):
                target.open(model)
    with (
        open_device(url, lce_benchmark=broken) as target,
        pytest.raises(DeviceError, match="the program of --lce-benchmark fails"),
    ):
        target.open(PLAIN)
    with open_device(url, lce_benchmark=program("lce_benchmark_model")) as target:
        assert target.open(PLAIN).timed(0, 3), "Larq's program has TensorFlow Lite's operators, too"


def test_here_python_runs_them(program: Callable[[str], Path]) -> None:
    words = "--tflite-benchmark and --lce-benchmark are for other devices"
    with pytest.raises(InputError, match=words), open_device("local", tflite_benchmark=program("benchmark_model")):
        pass
