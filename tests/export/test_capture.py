import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnas.export.capture import capture
from bnas.profiles.errors import InputError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("offset", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.where(self.conv.weight < 0, -1.0, 1.0) * 2
        y = F.dropout(self.norm(F.conv2d(x, weight)), 0.5, self.training)
        return (y + self.offset).flatten(1)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_runs_with_any_batch(batch: int) -> None:
    module, x = Small().eval(), torch.randn(batch, 2, 5, 6)
    captured = capture(module, torch.randn(2, 2, 5, 6))
    assert torch.equal(captured.run({"image": x}, ["logits"])["logits"], module(x))


def test_what_depends_on_parameters_only_is_folded() -> None:
    module = Small()
    captured = capture(module, torch.randn(2, 2, 5, 6))
    operators = {str(node.target).split(".")[1] for node in captured.nodes if "aten" in str(node.target)}
    assert "conv2d" in operators and not operators & {"where", "lt", "mul"}
    weights = [value for value in captured.constants.values() if tuple(value.shape) == (4, 2, 3, 3)]
    assert len(weights) == 1 and set(weights[0].unique().tolist()) <= {-2.0, 2.0}
    assert module.training, "the module itself is left as it was"


def test_a_part_runs_from_values_in_the_middle() -> None:
    module, x = Small().eval(), torch.randn(3, 2, 5, 6)
    captured = capture(module, x)
    names = {
        str(node.target).split(".")[1]: captured.names[node] for node in captured.nodes if "aten" in str(node.target)
    }
    values = captured.run({"image": x}, [names["conv2d"], names["add"]])
    end = captured.run({names["conv2d"]: values[names["conv2d"]]}, [names["add"]])[names["add"]]
    assert torch.equal(end, values[names["add"]]) and torch.equal(end.flatten(1), module(x))
    with pytest.raises(KeyError, match="image"):
        captured.run({}, ["logits"])


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 2)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x


@pytest.mark.parametrize(
    ("module", "problem"),
    [(Branching(), "cannot capture Branching"), (Constant(), "does not depend"), (Pair(), "one tensor")],
)
def test_what_cannot_be_captured_is_one_clear_line(module: nn.Module, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        capture(module, torch.randn(2, 1, 4, 4))
    assert "\n" not in str(caught.value)
