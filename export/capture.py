"""A PyTorch module as a flat graph of ATen operators whose constants are folded, and a way to run any part of it."""

import copy
import logging
import warnings
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from bnas.profiles.errors import InputError

INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True, eq=False)
class Captured:
    """What the module computes in eval mode on the CPU.

    nodes: the operators between input and output, in order. names: the name of each node's value (the image is
    "image", the result "logits"). constants: the values of nodes that do not depend on the image.
    """

    nodes: tuple[Node, ...]
    names: dict[Node, str]
    constants: dict[Node, Any]
    input_shape: tuple[int, int, int]
    output: Node

    def run(self, values: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """The `wanted` values from the given ones. Only what lies between is computed, and kept while it is needed.

        Raises KeyError if a wanted value needs an image that is not given.
        """
        by_name = {name: node for node, name in self.names.items()}
        found: dict[Node, Any] = {by_name[name]: value for name, value in values.items()}
        needed = self._between(found, [by_name[name] for name in wanted])
        last_reader = {source: node for node in needed for source in node.all_input_nodes}
        keep = {by_name[name] for name in wanted}
        known = ChainMap(found, self.constants)
        with torch.no_grad():
            for node in needed:
                found[node] = _evaluate(node, known)
                for source in node.all_input_nodes:
                    if last_reader[source] is node and source not in keep:
                        found.pop(source, None)
        return {name: found[by_name[name]] for name in wanted}

    def _between(self, given: dict[Node, Any], wanted: list[Node]) -> list[Node]:
        """The nodes to compute, in order."""
        needed, pending = set(), list(wanted)
        while pending:
            node = pending.pop()
            if node in needed or node in given or node in self.constants:
                continue
            if node.op == "placeholder":
                raise KeyError(f"value {self.names[node]!r} is needed and not given")
            needed.add(node)
            pending.extend(node.all_input_nodes)
        return [node for node in self.nodes if node in needed]


def capture(module: nn.Module, example: Tensor) -> Captured:
    """Capture `module` with an example of its input, [N, C, H, W] with N >= 2; any other N works afterwards.

    The module itself is not changed. Raises InputError where torch.export cannot follow it.
    """
    _teach_shapes()
    module = copy.deepcopy(module).cpu().eval()
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, (example.cpu(),), dynamic_shapes=({0: batch},), strict=False)
            program = program.run_decompositions({})
    except Exception as error:
        raise InputError(
            f"torch.export cannot capture {type(module).__name__}: {_first_line(error)}; its forward must take one "
            "image batch of any size and must not branch on values"
        ) from error
    return _fold(program, tuple(example.shape[1:]))


_FAKE_QUANTIZERS = (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
)


@cache
def _teach_shapes() -> torch.library.Library:
    """torch.export needs the shapes of what an operator gives; torch does not say them for fake quantisation.

    The registration lasts as long as the returned object.
    """
    library = torch.library.Library("aten", "IMPL")
    for name in _FAKE_QUANTIZERS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, lambda x, *_: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)), "Meta")
    return library


def _fold(program: torch.export.ExportedProgram, input_shape: tuple[int, int, int]) -> Captured:
    stored = {**program.state_dict, **program.constants}
    constants: dict[Node, Any] = {}
    placeholders = program.graph.find_nodes(op="placeholder")
    image = None
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            image = node
        else:
            constants[node] = stored[spec.target].detach()
    (result,) = program.graph.output_node().args[0:1]
    if not isinstance(result, tuple | list) or len(result) != 1 or not isinstance(result[0], Node):
        raise InputError("a network that is exported must return one tensor")
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "call_function" and _is_constant(node, constants):
                constants[node] = _evaluate(node, constants)
    output = result[0]
    live = _ancestors(output, constants)
    if image is None or image not in live:
        raise InputError("the output of the network does not depend on its image")
    nodes = tuple(n for n in program.graph.nodes if n in live and n.op == "call_function")
    read = {source for node in nodes for source in node.all_input_nodes}
    names = {node: node.name for node in nodes} | {output: OUTPUT, image: INPUT}
    return Captured(nodes, names, {n: v for n, v in constants.items() if n in read}, input_shape, output)


def _is_constant(node: Node, constants: dict[Node, Any]) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and all(source in constants for source in node.all_input_nodes)


def _ancestors(output: Node, constants: dict[Node, Any]) -> set[Node]:
    found: set[Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node not in found and node not in constants:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _evaluate(node: Node, values: Mapping[Node, Any]) -> Any:
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    assert callable(node.target)
    return node.target(*arguments[0], **arguments[1])


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns about its own deprecations and logs what it raises anyway."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
