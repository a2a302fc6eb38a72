"""onnxruntime's profile of a session: what each node took."""

import json
from collections import defaultdict
from statistics import median
from typing import Any

_ENDING = "_kernel_time"
UNTIMED = 2  # runs that warm up before those that count


def node_times(trace: bytes, runs: int) -> list[dict[str, Any]]:
    """[{"name", "op", "ms"}] in order of execution, the median over the last `runs` runs of each node.

    The format: a JSON list of events in microseconds, as Chrome's trace viewer reads them; those of category `Node`
    whose name ends in `_kernel_time` are the executions of a node.
    """
    taken: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, str] = {}
    for event in json.loads(trace):
        if event.get("cat") == "Node" and event["name"].endswith(_ENDING):
            name = event["name"].removesuffix(_ENDING)
            taken[name].append(event["dur"] / 1000)
            operators[name] = event["args"]["op_name"]
    return [{"name": name, "op": operators[name], "ms": median(times[-runs:])} for name, times in taken.items()]
