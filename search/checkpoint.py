"""Checkpoints: tensors and a JSON header in one safetensors file, written in one step; never a pickle."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

FORMAT = 1


def save(path: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Replace `path`; a kill at any moment leaves the old file or the new one."""
    from safetensors.torch import save as serialize

    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    atomic.write_bytes(path, serialize(content, metadata={"bnas": json.dumps({"format": FORMAT, **header})}))


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors, header). Raises InputError naming the file if it is missing, truncated or of another format."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["bnas"])
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        why = _line(error)
        raise InputError(f"checkpoint {path} is truncated or corrupt ({why}); delete it to redo that stage") from None
    if header.pop("format", None) != FORMAT:
        raise InputError(f"checkpoint {path} has another format than {FORMAT}; delete it to redo that stage")
    return tensors, header


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a training step changes, as one flat dictionary."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()})
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Undo `pack`. Raises InputError naming `path` if the checkpoint belongs to another network."""
    unpack_model(tensors, model, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def unpack_model(tensors: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """The part of `unpack` that no training needs."""
    try:
        model.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise InputError(f"checkpoint {path} belongs to another network ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
