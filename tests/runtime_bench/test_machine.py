"""The description is complete, printable, and fits a profile's device."""

import dataclasses
import json
import os

from bnas.profiles.schema import Device
from bnas.runtime_bench import machine


def test_the_description_fits_a_profile() -> None:
    here = machine.describe()
    assert json.loads(json.dumps(here)) == here
    assert here["cores"] == os.cpu_count() and here["processor"] and here["python"]
    assert here["cpus"] and here["memory_mb"] and here["memory_mb"] > 0
    device = Device.model_validate({k: v for k, v in here.items() if k in Device.model_fields} | {"name": "local"})
    assert device.processor == machine.processor()


def test_the_fingerprint_is_of_the_hardware() -> None:
    here = machine.here()
    assert here.fingerprint == machine.fingerprint() and len(here.fingerprint) == 12
    for other in ({"arch": "another"}, {"cores": 999}, {"files": {machine.CPUINFO: "model name : another"}}):
        assert dataclasses.replace(here, **other).fingerprint != here.fingerprint  # type: ignore[arg-type]
    for same in ({"system": "another"}, {"cpus": (0,)}, {"glibc": "2.99"}):
        assert dataclasses.replace(here, **same).fingerprint == here.fingerprint  # type: ignore[arg-type]


def test_unreadable_values_are_none(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "_read", lambda path: None)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    here = machine.describe()
    assert here["governor"] is here["clock_mhz"] is here["temperature_c"] is None
    assert here["processor"] == "?"


def test_usable_cores_are_at_most_all() -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
