"""The table of quick searches names what breaks a rule, and nothing else."""

import pytest
import smoke

ROW = {
    "strategy": "spos", "space": "tiny", "threads": 1, "wall_s": 70.0, "processor_s": 20.0, "test_accuracy": 0.9,
    "predicted_ms": 1.0, "limit_ms": 1.0, "initial_hash": "a", "state_hash": "b",
}  # fmt: skip
OTHER = ROW | {"strategy": "fairnas", "state_hash": "c"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"processor_s": 61.0}, "spos on tiny takes 61 s"),
        ({"threads": 2}, "spos on tiny takes 70 s"),
        ({"predicted_ms": 1.1}, "spos on tiny is over the limit"),
        ({"state_hash": "a"}, "spos on tiny learned nothing"),
        ({"state_hash": "c"}, "fairnas and spos learned the same"),
    ],
)
def test_what_breaks_a_rule_is_named(change: dict, said: str | None) -> None:
    assert smoke.problems([ROW | change, OTHER]) == ([] if said is None else [said])


def test_a_row_is_what_the_command_prints() -> None:
    row = smoke.run("random", "tiny", 1)
    assert row["predicted_ms"] <= row["limit_ms"] and row["initial_hash"] != row["state_hash"]
    assert row["processor_s"] > 0 and row["steps"] > 0 and row["test_accuracy"] > 0.5
    document = {"machine": {"processor": "x", "cores": 1}, "rows": [row]}
    assert "| random | " in smoke.markdown(document) and "No row breaks a rule." in smoke.markdown(document)
