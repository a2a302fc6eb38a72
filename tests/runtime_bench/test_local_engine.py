"""What this machine says would run a file, for the key of a profile, is what does run one."""

from collections.abc import Callable

import numpy as np
import pytest

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo
from bnas.runtime_bench import engines, litert_engine, native_library
from bnas.runtime_bench.devices.local import LocalTarget

from .native.conftest import missing
from .native.litert_files import Conv, conv_case


@pytest.fixture
def file() -> bytes:
    """One binary convolution with Larq's operators."""
    return conv_case(Conv(), np.random.default_rng(0)).network.file()


def opened(file: bytes) -> EngineInfo:
    session = LocalTarget().open(file)
    return EngineInfo(name=session.name, runtime=session.runtime, version=session.version, operators=session.operators)


def test_litert_on_every_path(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    if litert_engine.find_host() is None or native_library.litert_library() is None:
        missing("needs LiteRT and the delegate, which is built with the native kernels")
    from bnas.runtime_bench.native import _native

    for path in _native.paths():
        monkeypatch.setenv("BNAS_ISA", path)
        found = LocalTarget().engine("tflite")
        assert found == opened(file) and found.name == f"litert-native-{path}"


def test_larq_where_the_delegate_was_not_built(
    file: bytes, require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("larq_compute_engine")
    monkeypatch.setattr(native_library, "litert_library", lambda: None)
    found = LocalTarget().engine("tflite")
    assert found == opened(file) and found.name in ("lce", "lce-portable") and found.operators is None


def test_nothing_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nothing here runs .tflite files: pip install 'bnas\[litert\]'"):
        LocalTarget().engine("tflite")
