"""How long and how hard to train: plain values, one per budget."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from bnas.profiles.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """One training run with Adam, which beats SGD for 1-bit networks (ReActNet); decay spares 1-bit weights."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    warmup: float = 0.05  # share of the steps

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """What a search spends. evaluations: architectures scored; calibration_images: to rebuild batch-norm statistics.

    relaxed: for supernets in which all candidates run at once, a step of which costs that of as many paths; None: as
    supernet. equal_cost: single-path methods with several passes in a step take as many fewer epochs.
    """

    supernet: Recipe
    evaluations: int
    population: int
    calibration_images: int
    training: Recipe
    relaxed: Recipe | None = None
    equal_cost: bool = True

    @classmethod
    def from_dict(cls, content: dict) -> "Budget":
        """Of what `to_dict` gives."""
        recipes = {name: Recipe(**value) for name, value in content.items() if isinstance(value, dict)}
        return cls(**{**content, **recipes})

    def to_dict(self) -> dict:
        return asdict(self)


BUDGETS = {
    "smoke": Budget(Recipe(6, 128), 24, 8, 512, Recipe(8), Recipe(1, 32)),
    "default": Budget(Recipe(40, 128), 64, 16, 1024, Recipe(40), Recipe(25, 64)),
    # SPOS and DARTS, for methods that are not in PAPER. 20 generations of 50.
    "paper": Budget(Recipe(120, 1024), 1000, 50, 25_600, Recipe(240, 1024), Recipe(50, 64)),
}

# The epochs, batches and evaluations that methods were published with. Optimizers and rates are those of 1-bit nets.
# Each half of the images has a batch, so GDAS's 256 are 128 here; ProxylessNAS's first 40 of 160 epochs are of weights
# alone; P-DARTS's three stages have half of 50 epochs each. DI-NAS says 80 and 100 epochs for two spaces. The
# epochs of FairNAS and DI-NAS are of steps with all their passes. One-Shot does not say how long it trains: as SPOS.
_CELLS = Recipe(600, 96)  # of the network found, in DARTS and its successors
PAPER: dict[str, dict[str, Any]] = {
    "one-shot": {"evaluations": 20_000, "relaxed": None},
    "spos": {"supernet": Recipe(120, 1024), "training": Recipe(240, 1024)},
    "fairnas": {"supernet": Recipe(150, 256), "evaluations": 12_800, "population": 64, "equal_cost": False},
    "bn-nas": {"supernet": Recipe(10, 512), "training": Recipe(240, 1024)},
    "di-nas": {"supernet": Recipe(100, 1024), "training": Recipe(240, 1024), "equal_cost": False},
    "darts": {"relaxed": Recipe(50, 64), "training": _CELLS},
    "darts-second": {"relaxed": Recipe(50, 64), "training": _CELLS},
    "amended-darts": {"relaxed": Recipe(100, 64), "training": _CELLS},
    "darts-plus": {"relaxed": Recipe(50, 64), "training": _CELLS},
    "pc-darts": {"relaxed": Recipe(50, 256), "training": _CELLS},
    "p-darts": {"relaxed": Recipe(50, 96), "training": _CELLS},
    "gdas": {"relaxed": Recipe(250, 128), "training": _CELLS},
    "snas": {"relaxed": Recipe(150, 64), "training": _CELLS},
    "proxyless": {"relaxed": Recipe(160, 256), "training": Recipe(300, 256)},
    "bnas-div": {"relaxed": Recipe(50, 64), "training": _CELLS},
    "cp-nas": {"supernet": Recipe(105, 64), "equal_cost": False},  # an epoch for each draw in cells; its batch unknown
    "dcp-nas": {"relaxed": Recipe(50, 64)},
}


def budget(name: str, strategy: str = "") -> Budget:
    """The budget by its name; `paper` is that of the strategy's publication."""
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return replace(BUDGETS[name], **(PAPER.get(strategy, {}) if name == "paper" else {}))
