"""The description is complete, printable, and fits a profile's device."""

import json
import os

from bnas.profiles.schema import Device
from bnas.runtime_bench import machine


def test_the_description_fits_a_profile() -> None:
    here = machine.describe()
    assert json.loads(json.dumps(here)) == here
    assert here["cores"] == os.cpu_count() and here["processor"] and here["python"]
    device = Device.model_validate({k: v for k, v in here.items() if k in Device.model_fields} | {"name": "local"})
    assert device.processor == machine.processor()


def test_the_fingerprint_is_of_the_hardware(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    before = machine.fingerprint()
    assert before == machine.fingerprint() and len(before) == 12
    monkeypatch.setattr(machine, "processor", lambda: "another")
    assert machine.fingerprint() != before


def test_unreadable_values_are_none(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "_read", lambda path: None)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    here = machine.describe()
    assert here["governor"] is here["clock_mhz"] is here["temperature_c"] is None
    assert here["processor"] == "?"


def test_usable_cores_are_at_most_all() -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
