"""Image sets of every source: exact splits, exact pixels, and one line for each kind of bad input."""

import builtins
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bnas.profiles.errors import InputError
from bnas.search.data import SOURCES, ImageSet, Split, hub, load_images, source_of
from bnas.search.data import pictures as pictures_module
from bnas.search.data.image_set import channel_statistics
from bnas.search.data.splitting import quotas, stratified

CIFAR10 = Path(os.environ.get("BNAS_CIFAR10", Path(__file__).parents[3] / "shared/data/cifar10"))
needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10 / "train.parquet").is_file(), reason="needs the CIFAR-10 parquet files; set BNAS_CIFAR10"
)


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A random image; size is (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, count: int, *, seed: int = 0, **kind: Any) -> None:
    """`count` random PNG files in a new folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        picture(1000 * seed + index, **kind).save(folder / f"{index:03}.png")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of 60 images in three classes of unequal size."""
    for seed, (name, count) in enumerate({"cat": 30, "dog": 20, "newt": 10}.items()):
        fill(tmp_path / "pets" / name, count, seed=seed)
    return tmp_path / "pets"


def complaint(run: Callable[[], object]) -> str:
    """The message of the `InputError` that `run` raises: one line, not too long."""
    with pytest.raises(InputError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 400
    return message


def splits(images: ImageSet) -> tuple[Split, Split, Split]:
    return images.train, images.validation, images.test


# splitting


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 2**32),
)
def test_stratified_parts(sizes: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    count = round(share * (len(labels) - len(sizes)))
    rest, part = stratified(labels, count, seed)
    assert len(part) == count
    assert sorted([*rest, *part]) == list(range(len(labels)))  # disjoint and complete
    assert set(labels[rest]) == set(labels)  # no class is lost
    again = stratified(labels, count, seed)
    np.testing.assert_array_equal(rest, again[0])
    np.testing.assert_array_equal(part, again[1])


@given(sizes=st.lists(st.integers(10, 60), min_size=2, max_size=8), tenths=st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_every_class_gives_its_share(sizes: list[int], tenths: int) -> None:
    count = sum(sizes) * tenths // 10
    shares = quotas(np.array(sizes), count)
    assert shares.sum() == count
    assert (np.abs(shares - np.array(sizes) * count / sum(sizes)) < 1).all()


def test_too_few_images_to_split() -> None:
    assert "too few images" in complaint(lambda: stratified(np.array([0, 0, 1]), 2, 0))


# digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_images("digits")
    assert [len(split) for split in splits(digits)] == [1077, 360, 360]
    assert digits.shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    for split in splits(digits):
        assert np.abs(np.bincount(split.labels) / len(split) - 0.1).max() < 0.004

    # every image of the source is in exactly one split, with its label
    source = load_digits()
    expected = [(image.tobytes(), label) for image, label in zip(source.images, source.target, strict=True)]
    found = [
        (np.rint(image[0] / 255 * 16).astype(float).tobytes(), label)
        for split in splits(digits)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert digits.train.images.max() == 255


def test_digits_are_always_the_same() -> None:
    assert load_images("digits").fingerprint == load_images("digits", seed=7, validation=0.3).fingerprint


def test_digits_need_no_network_and_no_home(tmp_path: Path) -> None:
    """In a fresh interpreter without a home; nothing is written into the current folder either."""
    code = (
        "import socket\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from bnas.search.data import load_images; print(len(load_images('digits').train))"
    )
    environment = {**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "1077" and list(tmp_path.iterdir()) == []


# the values


def test_statistics_equal_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 3, 4, 4), dtype=np.uint8)
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], (images[:, :2] / 255).std((0, 2, 3)), rtol=1e-12)
    assert std[2] == 1 / 255  # no contrast, but no division by zero


def test_fingerprint_sees_every_kind_of_change() -> None:
    images = np.zeros((6, 1, 2, 2), dtype=np.uint8)
    labels = np.array([0, 1] * 3)

    def fingerprint(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], cut: int = 2) -> str:
        first, last = Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:])
        return ImageSet.of("any", classes, first, last, last).fingerprint

    changed = images.copy()
    changed[0, 0, 1, 1] = 1
    prints = [
        fingerprint(images, labels, ("a", "b")),
        fingerprint(changed, labels, ("a", "b")),
        fingerprint(images, labels[::-1], ("a", "b")),
        fingerprint(images, labels, ("a", "c")),
        fingerprint(images, labels, ("a", "b"), cut=4),
    ]
    assert len(set(prints)) == 5
    assert prints[0] == fingerprint(images.copy(), labels, ("a", "b")) and len(prints[0]) == 16


def test_to_dict_is_json() -> None:
    digits = load_images("digits")
    stored = json.loads(json.dumps(digits.to_dict()))
    assert stored["images"] == {"train": 1077, "validation": 360, "test": 360}
    assert stored["fingerprint"] == digits.fingerprint and stored["shape"] == [1, 8, 8]


def test_a_split_checks_itself() -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        Split(np.zeros((1, 1, 2, 2)), np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match="labels must be int64"):
        Split(np.zeros((1, 1, 2, 2), dtype=np.uint8), np.zeros(2, dtype=np.int64))


# folders


def test_folder_is_split_by_classes(pets: Path) -> None:
    images = load_images(str(pets))
    assert images.name == "pets" and images.classes == ("cat", "dog", "newt")
    assert [np.bincount(split.labels).tolist() for split in splits(images)] == [
        [24, 16, 8],
        [3, 2, 1],
        [3, 2, 1],
    ]
    # the pixels of every file are somewhere, once
    files = sorted(np.asarray(Image.open(path)).tobytes() for path in pets.glob("*/*.png"))
    found = [image.transpose(1, 2, 0).tobytes() for split in splits(images) for image in split.images]
    assert sorted(found) == files


def test_folder_splits_follow_the_seed(pets: Path) -> None:
    prints = {seed: load_images(str(pets), seed=seed).fingerprint for seed in (0, 1)}
    assert prints[0] != prints[1] and prints[0] == load_images(str(pets), seed=0).fingerprint


def test_folder_with_its_own_splits(tmp_path: Path) -> None:
    for split, count in {"train": 10, "val": 4, "Test": 3}.items():
        for seed, name in enumerate(("cat", "dog")):
            fill(tmp_path / split / name, count, seed=seed)
    images = load_images(str(tmp_path))
    assert [len(split) for split in splits(images)] == [20, 8, 6]
    np.testing.assert_array_equal(images.test.labels, [0, 0, 0, 1, 1, 1])
    first = np.asarray(Image.open(tmp_path / "Test" / "dog" / "000.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.test.images[3], first)


def test_test_folder_is_untouched_when_validation_is_cut(tmp_path: Path) -> None:
    for split, count in {"train": 20, "test": 5}.items():
        for seed, name in enumerate(("cat", "dog")):
            fill(tmp_path / split / name, count, seed=seed)
    images = load_images(str(tmp_path), validation=0.25)
    assert [len(split) for split in splits(images)] == [30, 10, 10]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "ship"):
        fill(tmp_path / name, 10)
    assert load_images(str(tmp_path)).classes == ("ship", "train")


def test_other_files_and_links_are_ignored(pets: Path, tmp_path: Path) -> None:
    before = load_images(str(pets)).fingerprint
    (pets / "cat" / "notes.txt").write_text("not an image")
    (pets / "cat" / ".hidden.png").write_bytes(b"not an image")
    (pets / ".git").mkdir()
    (pets / "empty").mkdir()
    (pets / "cat" / "link.png").symlink_to(pets / "dog" / "000.png")
    (pets / "linked").symlink_to(pets / "dog")
    assert load_images(str(pets)).fingerprint == before


def test_images_of_any_size_are_cropped_and_resized(tmp_path: Path) -> None:
    fill(tmp_path / "a", 10, size=(8, 8))
    fill(tmp_path / "b", 10, size=(40, 20))
    wide = Image.open(tmp_path / "b" / "000.png")
    half_size_then_cut = wide.resize((20, 10), Image.Resampling.BILINEAR).crop((5, 0, 15, 10))
    assert load_images(str(tmp_path)).shape == (3, 32, 32)
    small = load_images(str(tmp_path), image_size=10)
    assert small.shape == (3, 10, 10)
    expected = np.asarray(half_size_then_cut).transpose(2, 0, 1)
    assert sum(np.array_equal(image, expected) for split in splits(small) for image in split.images) == 1


def test_equal_but_oblong_images_become_32(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, 10, size=(16, 12))
    assert load_images(str(tmp_path)).shape == (3, 32, 32)


@pytest.mark.parametrize("colour", ["first", "last", "none"])
def test_grey_stays_one_channel_only_if_all_are_grey(tmp_path: Path, colour: str) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, 10, mode="L")
    odd = {"first": "a/000.png", "last": "b/009.png", "none": None}[colour]
    if odd:
        picture(0).save(tmp_path / odd)
    assert load_images(str(tmp_path)).shape[0] == (3 if odd else 1)


def test_progress_reaches_the_end(pets: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_images(str(pets), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (60, 60)


def test_helper_processes_give_the_same_images(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "BATCH", 7)
    here = load_images(str(pets)).fingerprint
    monkeypatch.setattr(pictures_module, "HELPERS_ABOVE_PX", 0)
    assert load_images(str(pets)).fingerprint == here
    picture(0, size=(9, 9)).save(pets / "newt" / "009.png")  # the form changes within a helper
    assert load_images(str(pets)).shape == (3, 32, 32)
    broken = pets / "newt" / "004.png"
    broken.write_bytes(b"nothing")
    assert complaint(lambda: load_images(str(pets))).startswith(f"{broken}: not an image")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.write_bytes(b"no image"), "not an image"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:120]), "cannot be decoded"),
        (lambda path: Image.new("I;16", (8, 8), 4000).save(path), "more than 8 bits per pixel"),
    ],
)
def test_an_unreadable_image_is_named(pets: Path, damage: Callable[[Path], None], expected: str) -> None:
    path = pets / "dog" / "013.png"
    damage(path)
    message = complaint(lambda: load_images(str(pets)))
    assert message.startswith(f"{path}: {expected}")


def test_folders_that_are_no_image_set(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images found; expected <folder>/<class>/<image>" in complaint(lambda: load_images(str(empty)))

    fill(tmp_path / "flat", 3)
    assert "one sub-folder per class" in complaint(lambda: load_images(str(tmp_path / "flat")))

    fill(tmp_path / "single" / "cat", 20)
    assert "only one class (cat)" in complaint(lambda: load_images(str(tmp_path / "single")))

    fill(tmp_path / "deep" / "a" / "b", 3)
    assert "holds folders instead of images" in complaint(lambda: load_images(str(tmp_path / "deep")))

    for name in ("cat", "dog"):
        fill(tmp_path / "few" / name, 1)
    assert "too few images" in complaint(lambda: load_images(str(tmp_path / "few")))

    for name in ("cat", "dog"):
        fill(tmp_path / "trainless" / "test" / name, 5)
    assert "no train split" in complaint(lambda: load_images(str(tmp_path / "trainless")))

    fill(tmp_path / "unlabelled" / "train" / "cat", 5)
    fill(tmp_path / "unlabelled" / "train" / "dog", 5)
    fill(tmp_path / "unlabelled" / "test", 5)
    assert "images without a class" in complaint(lambda: load_images(str(tmp_path / "unlabelled")))

    for name in ("cat", "dog"):
        fill(tmp_path / "strange" / "train" / name, 5)
    fill(tmp_path / "strange" / "test" / "newt", 5)
    assert "class 'newt' has no train images" in complaint(lambda: load_images(str(tmp_path / "strange")))


# parquet


def write_parquet(
    path: Path,
    labels: list[Any],
    *,
    image: str = "image",
    label: str = "label",
    struct: bool = True,
    contents: list[bytes | None] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = contents or [encoded(picture(row)) for row in range(len(labels))]
    images: pa.Array = pa.array(contents, pa.binary())
    if struct:
        rows = [{"bytes": content, "path": None} for content in contents]
        images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({image: images, label: pa.array(labels)})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=16)
    return path


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("image", "fine_label")])
def test_parquet_file(tmp_path: Path, struct: bool, image: str, label: str) -> None:
    path = write_parquet(tmp_path / "pets.parquet", [5, 9] * 20, image=image, label=label, struct=struct)
    images = load_images(str(path))
    assert images.name == "pets" and images.classes == ("5", "9")
    assert [np.bincount(split.labels).tolist() for split in splits(images)] == [[16, 16], [2, 2], [2, 2]]
    by_pixels = {
        image.transpose(1, 2, 0).tobytes(): label
        for split in splits(images)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert by_pixels == {np.asarray(picture(row)).tobytes(): row % 2 for row in range(40)}


def test_parquet_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ["b", "a"] * 8)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ["a", "c"] * 12)
    write_parquet(tmp_path / "validation.parquet", ["a", "b", "c"])
    write_parquet(tmp_path / "my_test.parquet", ["c", "b"])
    (tmp_path / "README.md").write_text("ignored")
    images = load_images(str(tmp_path))
    assert images.classes == ("a", "b", "c")
    assert [len(split) for split in splits(images)] == [40, 3, 2]
    assert images.train.labels[:2].tolist() == [0, 2] and images.test.labels.tolist() == [2, 1]


def test_parquet_class_names_from_metadata(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog", "newt"], "_type": "ClassLabel"}}}}
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 10, metadata=names)
    assert load_images(str(path)).classes == ("cat", "dog", "newt")
    path = write_parquet(tmp_path / "b.parquet", [0, 3] * 10, metadata=names)
    assert "row 1: label 3 is none of the 3 classes" in complaint(lambda: load_images(str(path)))


def test_parquet_integers_sort_as_numbers(tmp_path: Path) -> None:
    assert load_images(str(write_parquet(tmp_path / "a.parquet", [10, 9] * 10))).classes == ("9", "10")


def test_parquet_columns_by_name(tmp_path: Path) -> None:
    path = str(write_parquet(tmp_path / "a.parquet", ["x", "y"] * 10, image="photo", label="kind"))
    assert "no image column (img or image) among photo, kind; name it with --image-column" in complaint(
        lambda: load_images(path)
    )
    assert "--label-column" in complaint(lambda: load_images(path, image_column="photo"))
    assert "'foto'; did you mean 'photo'?" in complaint(lambda: load_images(path, image_column="foto"))
    assert load_images(path, image_column="photo", label_column="kind").classes == ("x", "y")
    swapped = complaint(lambda: load_images(path, image_column="kind", label_column="kind"))
    assert "row 0: kind holds no encoded image (type string)" in swapped
    assert "not a class number or name" in complaint(
        lambda: load_images(path, image_column="photo", label_column="photo")
    )


def test_parquet_damage_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 20)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1" + bytes(100)):
        path.write_bytes(damaged)
        assert complaint(lambda: load_images(str(path))).startswith(f"{path}: not readable as parquet")

    contents: list[bytes | None] = [encoded(picture(row)) for row in range(40)]
    contents[33] = contents[33][:60] if contents[33] else None
    path = write_parquet(tmp_path / "b.parquet", [0, 1] * 20, contents=contents)
    assert complaint(lambda: load_images(str(path))).startswith(f"{path} row 33: cannot be decoded")

    contents[33] = None
    path = write_parquet(tmp_path / "c.parquet", [0, 1] * 20, contents=contents)
    assert complaint(lambda: load_images(str(path))).startswith(f"{path} row 33: image holds no encoded")


def test_parquet_labels_that_cannot_be(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, None] * 10)
    assert "row 2: label is None" in complaint(lambda: load_images(str(path)))
    path = write_parquet(tmp_path / "b.parquet", [0.5, 1.5] * 10)
    assert "row 0: label is 0.5" in complaint(lambda: load_images(str(path)))
    path = write_parquet(tmp_path / "c.parquet", ["a"] * 10)
    assert "only one class (a)" in complaint(lambda: load_images(str(path)))


def test_parquet_folder_names_and_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10)
    extra = write_parquet(tmp_path / "more.parquet", [0, 1] * 10)
    assert f"{extra}: the name says no split" in complaint(lambda: load_images(str(tmp_path)))
    extra.rename(tmp_path / "test.parquet")
    write_parquet(tmp_path / "test.parquet", [0, 1] * 10, label="labels")
    assert "no column 'label', which" in complaint(lambda: load_images(str(tmp_path)))
    write_parquet(tmp_path / "test.parquet", [0, 2])
    assert "row 1: label 2 is none of the 2 classes" in complaint(lambda: load_images(str(tmp_path)))
    write_parquet(tmp_path / "test.parquet", [])
    (tmp_path / "test.parquet").unlink()
    write_parquet(tmp_path / "train.parquet", [0, 1] * 0)
    assert "the train split holds no images" in complaint(lambda: load_images(str(tmp_path)))


@needs_cifar10
def test_cifar10_loads_quickly_and_right() -> None:
    before = os.times()
    images = load_images(str(CIFAR10))
    after = os.times()
    busy_seconds = sum(after[:4]) - sum(before[:4])  # of this process and its helpers
    assert busy_seconds / 2 < 10  # on two cores; the wall clock would depend on what else the machine does
    assert [np.bincount(split.labels).tolist() for split in splits(images)] == [
        [4500] * 10,
        [500] * 10,
        [1000] * 10,
    ]
    assert images.shape == (3, 32, 32)
    np.testing.assert_allclose(images.mean, (0.4914, 0.4822, 0.4465), atol=0.002)


# the hub


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[[str], Any]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra hub", exc_type=ImportError)

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    file = tmp_path / "one.png"
    picture(0).save(file)

    def rows(count: int) -> Any:
        images = [{"bytes": encoded(picture(row)), "path": None} for row in range(count)]
        images[0] = {"bytes": None, "path": str(file)}
        return datasets.Dataset.from_dict(
            {"image": images, "label": [row % 2 for row in range(count)]}, features=features
        )

    found = datasets.DatasetDict({"train": rows(600), "test": rows(10), "extra": rows(4)})
    fake_datasets(monkeypatch, lambda name: found)
    images = load_images("someone/pets", label_column="label")
    assert images.name == "someone/pets" and images.classes == ("cat", "dog")
    assert [len(split) for split in splits(images)] == [540, 60, 10]
    np.testing.assert_array_equal(images.test.images[7], np.asarray(picture(7)).transpose(2, 0, 1))
    np.testing.assert_array_equal(images.test.images[0], np.asarray(picture(0)).transpose(2, 0, 1))


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_datasets(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    message = complaint(lambda: load_images("someone/pets"))
    assert "'someone/pets' is no file or folder" in message and "pip install 'bnas[hub]'" in message
    assert "did you mean 'mnist'?" in complaint(lambda: load_images("mnits"))


def test_hub_offline_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nwith a long\nstory")

    fake_datasets(monkeypatch, offline)
    message = complaint(lambda: load_images("someone/pets"))
    assert "not available from the hub; Couldn't reach 'someone/pets' on the Hub" in message
    assert "did you mean" not in complaint(lambda: load_images("someone/cifar10"))
    assert "did you mean 'cifar10'?" in complaint(lambda: load_images("cifar-10"))


@pytest.mark.parametrize("data", ["digit", "digts", "didgits", "Digits"])
def test_misspelled_digits_never_ask_the_hub(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, lambda name: pytest.fail("asked the hub"))
    assert f"unknown data {data!r}; did you mean 'digits'?" in complaint(lambda: load_images(data))


def test_without_a_network_only_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(host: str, port: int) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub.socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(hub, "getproxies", dict)
    fake_datasets(monkeypatch, lambda name: pytest.fail(f"offline is {os.environ.get('HF_HUB_OFFLINE')}"))
    with pytest.raises(pytest.fail.Exception, match="offline is 1"):
        load_images("someone/pets")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    with pytest.raises(pytest.fail.Exception, match="offline is None"):
        load_images("someone/pets")


def test_hub_set_without_train(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, lambda name: {"all": None})
    assert "no train split, only all" in complaint(lambda: load_images("someone/pets"))


def test_hub_uses_a_temporary_cache_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file, so no folder can be made below it")
    monkeypatch.setenv("HF_HOME", str(blocked / "cache"))
    seen: list[str] = []

    def record(name: str) -> None:
        seen.append(os.environ["HF_HOME"])
        raise ConnectionError("offline")

    fake_datasets(monkeypatch, record)
    complaint(lambda: load_images("someone/pets"))
    assert "bnas-hub-" in seen[0] and Path(seen[0]).is_dir()


# which source


def test_source_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.parquet").write_bytes(b"")
    expected = {
        "digits": "digits",
        "mnist": "folder",
        "./mnist": "folder",
        "tables": "parquet",
        "tables/train.parquet": "parquet",
        "cifar10": "hub",
        "uoft-cs/cifar10": "hub",
    }
    assert {data: source_of(data) for data in expected} == expected
    assert set(expected.values()) == set(SOURCES)


@pytest.mark.parametrize(
    "data", ["/no/such/folder", "./images", "../up", "no.parquet", "~nobody/a", "a/b/c", "mnist/train", ""]
)
def test_a_path_that_does_not_exist(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert f"data {data!r} does not exist" in complaint(lambda: load_images(data))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "neither a folder nor a .parquet file" in complaint(lambda: load_images(str(tmp_path / "images.zip")))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "image size 0 px is not possible"),
        ({"validation": 0.0}, "validation share 0.0 is not possible"),
        ({"validation": 1.5}, "validation share 1.5 is not possible"),
        ({"seed": -1}, "seed -1 is not possible"),
    ],
)
def test_options_are_checked(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint(lambda: load_images("digits", **options))
