"""How long and how hard to train: plain values, one per budget."""

from dataclasses import asdict, dataclass

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
    supernet.
    """

    supernet: Recipe
    evaluations: int
    population: int
    calibration_images: int
    training: Recipe
    relaxed: Recipe | None = None

    def to_dict(self) -> dict:
        return asdict(self)


BUDGETS = {
    "smoke": Budget(Recipe(6, 128), 24, 8, 512, Recipe(8), Recipe(1, 32)),
    "default": Budget(Recipe(40, 128), 64, 16, 1024, Recipe(40), Recipe(25, 64)),
    # SPOS as published: 120 and 240 epochs of batch 1,024; 20 generations of 50; 25,600 calibration images.
    # DARTS as published: 50 epochs of batch 64.
    "paper": Budget(Recipe(120, 1024), 1000, 50, 25_600, Recipe(240, 1024), Recipe(50, 64)),
}


def budget(name: str) -> Budget:
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return BUDGETS[name]
