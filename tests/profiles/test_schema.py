"""Profiles round-trip, shipped ones load, and every bad file gives one line with the value and the remedy."""

import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.errors import InputError
from bnas.profiles.schema import (
    Calibration,
    Device,
    EngineInfo,
    Profile,
    Row,
    list_profiles,
    load_profile,
    parse_profile,
    save_profile,
    to_yaml,
)
from bnas.profiles.workload import FIXED, Workload

CONV = Workload("binary_conv", 1, 64, 64, 8, 8, 3, epilogue=("residual", "rprelu"))


def profile(**changes: object) -> Profile:
    values: dict[str, object] = {
        "name": "kitchen",
        "source": "measured",
        "description": "a test",
        "created": datetime.date(2026, 11, 22),
        "device": Device(name="board", processor="CPU: with a colon", fingerprint="0123456789ab"),
        "engine": EngineInfo(name="function-float", runtime="onnxruntime", version="1.31.1"),
        "threads": 1,
        "precision": "1-bit",
        "error": 0.06,
        "error_source": "5-fold over 24 networks",
        "rows": (Row(workload=FIXED.key, p10_ms=0.009, p50_ms=0.01, p90_ms=0.011, count=30),),
    }
    return Profile.model_validate(values | changes)


def text(**changes: object) -> str:
    """The YAML of `profile()` with top-level keys replaced, or removed where the value is None."""
    data = yaml.safe_load(to_yaml(profile())) | changes
    return yaml.safe_dump({key: value for key, value in data.items() if value is not None})


def refusal(document: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_profile(document, where="kitchen.yaml")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("kitchen.yaml")
    return message


def test_shipped_profiles_load_and_say_where_they_come_from() -> None:
    assert list_profiles() == ["pixel1", "rpi4b", "rtx3080"]
    for name in list_profiles():
        shipped = load_profile(name)
        assert shipped.name == name
        assert shipped.source in ("analytic", "published")
        assert shipped.sources and shipped.error > 0 and shipped.error_source


@pytest.mark.parametrize("name", ["pixel1", "rpi4b", "rtx3080", "rtx3080:b1-tensor"])
def test_shipped_profiles_round_trip(name: str, tmp_path: Path) -> None:
    shipped = load_profile(name)
    save_profile(shipped, tmp_path / "copy.yaml")
    copy = load_profile(tmp_path / "copy.yaml")
    assert copy == shipped and copy.hash == shipped.hash
    assert load_profile(str(tmp_path / "copy.yaml")) == shipped


milliseconds = st.floats(min_value=1e-4, max_value=1e5)


@settings(deadline=None)
@given(
    times=st.tuples(milliseconds, milliseconds, milliseconds).map(sorted),
    description=st.text(max_size=40),
    channels=st.integers(1, 2048),
)
def test_any_profile_round_trips(times: list[float], description: str, channels: int) -> None:
    workload = Workload("conv", 32, channels, 2 * channels, 7, 9, 3)
    row = Row(workload=workload.key, p10_ms=times[0], p50_ms=times[1], p90_ms=times[2], count=30)
    fit = Calibration(a_ms=0.1, b=0.9, nets=24, kfold_error=0.05, within_10pct=0.9)
    written = profile(description=description, rows=(row,), calibration=fit)
    assert parse_profile(to_yaml(written), where="memory") == written


def test_the_hash_follows_the_content_and_not_the_layout() -> None:
    document = to_yaml(profile())
    again = parse_profile("# a comment\n" + yaml.safe_dump(yaml.safe_load(document)), where="memory")
    assert again.hash == profile().hash
    assert profile(threads=2).hash != profile().hash
    assert len(profile().hash) == 12


def test_a_row_is_one_line() -> None:
    assert sum(FIXED.key in line and "p90_ms" in line for line in to_yaml(profile()).splitlines()) == 1


def test_a_compute_path_can_be_chosen() -> None:
    default, chosen = load_profile("rtx3080"), load_profile("rtx3080:b1-tensor")
    assert default.cost_model is not None and default.cost_model.note == ""
    assert chosen.cost_model is not None and chosen.cost_model.note == "hypothetical path b1-tensor"
    assert default.hash != chosen.hash


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx308", "unknown profile 'rtx308'; did you mean 'rtx3080'? choose from: pixel1, rpi4b, rtx3080"),
        ("rtx3080:b1", "unknown compute path of rtx3080 'b1'; choose from: b1-tensor, fp16-emulated, int8, popcount"),
        ("rtx3080:popcnt", "did you mean 'popcount'?"),
        ("rpi4b:int8", "profile 'rpi4b' has no compute paths, got 'int8'; use --profile rpi4b"),
        ("absent.yaml", "profile file 'absent.yaml' does not exist; see: bnas profiles list"),
        ("some/where", "profile file 'some/where' does not exist; see: bnas profiles list"),
        ("", "unknown profile ''"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_profile(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_directory_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory; name a"):
        load_profile(tmp_path)
    (tmp_path / "bits.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not text"):
        load_profile(tmp_path / "bits.yaml")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("format: 1\nname: [kitchen\nsource: measured\n", "line 3: not valid YAML"),
        ("format: 1\nname: !!python/object:os.system x\n", "line 2: not valid YAML"),
        ("format: 1\nname: \x07\n", "line 2: not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("created: 2026-99-99\n", "not valid YAML"),
        ("- a\n- list\n", "a profile is a mapping of keys, this is ['a', 'list']"),
        ("", "a profile is a mapping of keys, this is None"),
        (text(format=2), "profile format 2 is not supported, expected 1"),
        (text(format=None), "profile format None is not supported, expected 1"),
        (text(format=True), "profile format True is not supported, expected 1"),
        (text(format=[1]), "profile format [1] is not supported, expected 1"),
        (text(treads=1), "unknown key 'treads'; did you mean 'threads'?"),
        (text(device={"name": "x", "proccessor": "y"}), "device: unknown key 'proccessor'; did you mean 'processor'?"),
        (text(threads=0), "threads: input should be greater than or equal to 1, got 0"),
        (text(engine=None), "engine: is missing"),
        (text(rows=[]), "a profile needs rows or a cost_model"),
        (text(device={"name": "x"}), "a measured profile needs engine.version and device.fingerprint"),
        (text(batch=8), "batch: input should be 1, got 8"),
        (text(source="guessed"), "source: input should be 'measured', 'transferred', 'published' or 'analytic'"),
        (text(error=float("nan")), "error: "),
        (text(cost_model={"kind": "magic"}), "cost_model: "),
    ],
)
def test_bad_documents_get_one_line(document: str, said: str) -> None:
    assert said in refusal(document)


def row(**changes: object) -> dict[str, object]:
    return {"workload": CONV.key, "p10_ms": 0.1, "p50_ms": 0.2, "p90_ms": 0.3, "count": 30} | changes


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(p10_ms=-1.0)], "rows.0.p10_ms: input should be greater than 0, got -1.0"),
        ([row(), row(p50_ms=float("nan"))], "rows.1.p50_ms: "),
        ([row(p90_ms=float("inf"))], "rows.0.p90_ms: input should be a finite number, got inf"),
        ([row(p50_ms=0)], "rows.0.p50_ms: input should be greater than 0, got 0"),
        ([row(p50_ms=0.4)], "rows.0: percentiles must rise: p10 0.1, p50 0.4, p90 0.3"),
        ([row(count=0)], "rows.0.count: "),
        ([row(), row()], f"two rows for {CONV.key}; keep one"),
        ([row(workload="conv-3x3")], "rows.0.workload: 'conv-3x3' is not a workload key"),
        ([row(workload=CONV.key.replace("-1b-", "-7b-"))], "workload bits must be 1, 8 or 32, got 7"),
        ([row(workload=7)], "rows.0.workload: input should be a valid string, got 7"),
        ([row(ms=1)], "rows.0: unknown key 'ms'"),
        ([3], "rows.0: "),
    ],
)
def test_bad_rows_get_one_line(rows: list[object], said: str) -> None:
    assert said in refusal(text(rows=rows))


def test_unwritable_places_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for place, said in [
        (tmp_path / "absent" / "a.yaml", "does not exist; create it first"),
        (tmp_path, "must end in .yaml"),
        (tmp_path / "a.json", "must end in .yaml"),
    ]:
        with pytest.raises(InputError, match=said):
            save_profile(profile(), place)
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        save_profile(profile(), tmp_path / "d.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.yaml"]
