"""The base install: what a Raspberry Pi gets, which only times networks that were made elsewhere."""

import json
import os
import subprocess
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest

from ..runtime_bench.native.litert_files import Around, Conv, unit_case

ROOT = Path(__file__).parents[2]
NO_NETWORK = ("Temporary failure in name resolution", "Failed to establish a new connection", "Network is unreachable")
EXTRAS = ("torch", "tensorflow", "larq_compute_engine", "optuna", "sklearn", "pyarrow", "PIL", "plotly", "datasets")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds `pip install .` and nothing else."""
    return install(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where no compiler works."""
    return install(tmp_path_factory.mktemp("bare"), CC="/bin/false", CXX="/bin/false")


@pytest.fixture(scope="module")
def with_litert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of `pip install '.[litert]'`, with numpy 2."""
    return install(tmp_path_factory.mktemp("litert"), f"{ROOT}[litert]", "numpy>=2")


def install(folder: Path, *what: object, **env: str) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip(python, "install", "-v", *(what or (ROOT,)), log=folder / "log.txt", **env)
    return python


def pip(python: Path, *arguments: object, log: Path, **env: str) -> None:
    command = [python, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    if any(reason in done.stderr for reason in NO_NETWORK):
        missing = pytest.fail if os.environ.get("BNAS_REQUIRE_ALL") == "1" else pytest.skip
        missing("needs a network to install from")
    assert done.returncode == 0, done.stderr
    log.write_text(done.stdout + done.stderr)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one of our operators, made by this environment."""
    from bnas.export.units import unit_model
    from bnas.profiles.workload import Workload

    workload = Workload("binary_conv", 1, 64, 64, 8, 8, kernel=3, epilogue=("residual", "prelu"))
    path = tmp_path / "model.onnx"
    path.write_bytes(unit_model(workload).SerializeToString())
    return path


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([python, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True)


def test_brings_neither_torch_nor_tensorflow(python: Path, tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print([m for m in {EXTRAS} if find_spec(m)])"
    assert run(python, "-c", code, cwd=tmp_path).stdout == "[]\n"
    assert run(python, "-m", "pip", "check", cwd=tmp_path).returncode == 0


def test_times_a_network(python: Path, model: Path, tmp_path: Path) -> None:
    assert "Example: bnas search" in run(python, "-m", "bnas", "--help", cwd=tmp_path).stdout
    done = subprocess.run(
        [python.with_name("bnas"), "bench", model, "--seconds", "0.2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "native-" in done.stdout, done.stderr
    done = run(python, "-m", "bnas", "bench", "model.onnx", "--threads", 1, "--seconds", 0.2, "--json", cwd=tmp_path)
    (row,) = json.loads(done.stdout)["results"]
    assert row["engine"].startswith("native-") and row["p50_ms"] > 0 and row["bytes"] == model.stat().st_size


def test_times_a_tflite_without_tensorflow_and_larq(with_litert: Path, tmp_path: Path) -> None:
    case = unit_case(Conv(size=(16, 16)), Around(activation="prelu"), np.random.default_rng(0))
    (tmp_path / "net.tflite").write_bytes(case.network.file())
    code = f"from importlib.util import find_spec; print([m for m in {EXTRAS} if find_spec(m)])"
    assert run(with_litert, "-c", code, cwd=tmp_path).stdout == "[]\n"
    done = run(
        with_litert, "-m", "bnas", "bench", "net.tflite", "--threads", 1, "--seconds", 0.2, "--json", cwd=tmp_path
    )
    (row,) = json.loads(done.stdout)["results"]
    assert row["engine"].startswith("litert-native-") and row["runtime"] == "ai-edge-litert" and row["p50_ms"] > 0


def test_holds_the_kernels_and_not_their_sources(python: Path, tmp_path: Path) -> None:
    code = "import bnas; print(bnas.ops_library_path())"
    library = Path(run(python, "-c", code, cwd=tmp_path).stdout.strip())
    assert {"libbnas_ort.so", "libbnas_litert.so", "bnas-runner"} <= {path.name for path in library.parent.iterdir()}
    assert library.is_relative_to(python.parents[1])
    sources = {".cpp", ".h", ".cmake", ".txt"}
    assert not [path for path in library.parents[1].rglob("*") if path.suffix in sources]
    assert run(python, ROOT / ".ci" / "check_wheel.py", cwd=tmp_path).returncode == 0


def test_works_without_a_compiler_and_says_so(without_compiler: Path, model: Path, tmp_path: Path) -> None:
    log = (without_compiler.parents[1] / "log.txt").read_text()
    assert "bnas is installed without its native kernels" in log and "py3-none-any.whl" in log
    done = run(without_compiler, "-m", "bnas", "bench", model, "--threads", 1, "--seconds", 0.2, cwd=tmp_path)
    assert done.returncode == 0 and "function-float" in done.stdout, done.stderr
    assert "no speed-up is claimed" in done.stderr or "no speed-up is claimed" in done.stdout
    done = run(without_compiler, "-c", "import bnas; bnas.ops_library_path()", cwd=tmp_path)
    assert done.returncode == 1 and "install a C++17 compiler" in done.stderr.splitlines()[-1]


def test_the_source_distribution_holds_what_the_kernels_are_built_from(python: Path, tmp_path: Path) -> None:
    pip(python, "install", "--target", tmp_path / "build", "scikit-build-core", log=tmp_path / "log.txt")
    code = f"import sys; from scikit_build_core.build import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "build")}
    done = subprocess.run([python, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("bnas-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        f"runtime_bench/native/{path.name}" for path in (ROOT / "runtime_bench/native").glob("*.*") if path.is_file()
    }
    assert wanted <= names and "runtime_bench/native/CMakeLists.txt" in names


def test_reads_profiles(python: Path, tmp_path: Path) -> None:
    assert json.loads(run(python, "-m", "bnas", "profiles", "list", "--json", cwd=tmp_path).stdout)["profiles"]


def test_names_what_a_command_lacks(python: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    for arguments in (("search", "--profile", "rtx3080"), ("bench", "net.tflite")):
        done = run(python, "-m", "bnas", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ") and "pip install 'bnas[" in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()
