"""`bnas run`: images through an exported file, as PyTorch sees them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bnas import cli
from bnas.search.data import load_images
from bnas.search.training.from_scratch import load_network

COUNT = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Test digits as PNG files with awkward names."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number} [x] $(y).png" for number in range(COUNT)]
    for path, pixels in zip(paths, load_images("digits").test.images, strict=False):
        Image.fromarray(pixels[0]).save(path)
    return paths


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.run(["run", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capfd.readouterr().out))


def test_classes_are_those_of_pytorch(finished: Path, pictures: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    document = run(capfd, finished / "model.onnx", *pictures, "--top", 10)
    network, _ = load_network(finished / "model.safetensors")
    digits = load_images("digits")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (digits.mean, digits.std))
    x = (torch.from_numpy(digits.test.images[:COUNT]).float() / 255 - mean) / std
    with torch.no_grad():
        expected = network(x).softmax(1).numpy()
    assert [Path(row["image"]) for row in document["results"]] == pictures
    for row, odds in zip(document["results"], expected, strict=True):
        said = {int(entry["class"]): entry["probability"] for entry in row["top"]}
        np.testing.assert_allclose([said[c] for c in range(10)], odds, atol=1e-4)
        assert [e["probability"] for e in row["top"]] == sorted(said.values(), reverse=True)
        assert math.isclose(sum(said.values()), 1)


def test_colours_and_sizes_are_fitted_and_a_run_is_as_good_as_its_file(
    finished: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Image.open(pictures[0]) as image:
        large = image.convert("RGB").resize((8 * 32, 8 * 32), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (400, 256))
    wide.paste(large, (72, 0))
    wide.save(tmp_path / "wide.jpg", quality=100)
    document = run(capfd, finished, pictures[0], tmp_path / "wide.jpg", "--top", 1)
    small, fitted = (row["top"] for row in document["results"])
    assert len(small) == 1 and small[0]["class"] == fitted[0]["class"]


def test_mistakes(finished: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no image")
    model = finished / "model.onnx"
    for arguments, words in (
        ((model, tmp_path / "none.png"), "none.png is not there"),
        ((model, tmp_path), "is a directory; name image files"),
        ((model, tmp_path / "text.png"), "text.png: not an image"),
        ((tmp_path / "none.onnx", pictures[0]), "does not exist"),
        ((model, pictures[0], "--top", 0), "--top 0 must be at least 1"),
        ((model, pictures[0], "--threads", 10_000), "--threads 10000 must be from 1"),
    ):
        assert cli.run(["run", *map(str, arguments)]) == 2
        error = capfd.readouterr().err
        assert words in error and error.count("\n") == 1
