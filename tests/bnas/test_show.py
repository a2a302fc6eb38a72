"""`bnas show`: the right network with the right numbers, whatever it was named by, and a drawing where it says."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from bnas import cli, runs
from bnas.commands.show import Shown, describe, find, rows
from bnas.drawing import parts
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.profiles.workload import Workload
from bnas.search.spaces import SPACES, Architecture, make_space, references
from bnas.search.spaces.cells import from_genotype

Fails = Callable[..., str]
HEAVY = {"torch", "tensorflow", "onnx", "onnxruntime", "optuna", "sklearn", "pyarrow", "plotly"}
NETWORKS: dict[str, tuple[str, ...]] = {  # what is typed -> the network
    **{name: (name,) for name in references.REFERENCES},
    **{f"{space}:{i}": (f"{space}:{i}", "--random", "5") for space in SPACES for i in ("micro", "cifar", "imagenet")},
    "mixed": ("mobilenet:cifar:bits=1+8", "--random", "1", "--image", "3x48x48", "--classes", "7"),
    "by id": ("tiny:micro:1x12x16:4", "--random", "0"),
}
DARTS_V1 = """
DARTS_V1 = Genotype(
  normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0),
          ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5],
  reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0),
          ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"""


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """shown(*arguments) -> the document that `bnas show` prints in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> dict:
        capfd.readouterr()
        assert cli.run(["show", *map(str, arguments), "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return call


def multiplications(unit: dict) -> int:
    """Of one unit, from its fields: for each value of the result, one for each value that it is made of."""
    if unit["kind"] not in ("conv", "binary_conv", "head"):
        return 0
    if unit["kind"] == "head":
        return unit["in_channels"] * unit["out_channels"]
    side = [-(-unit[key] // unit["stride"]) for key in ("height", "width")]
    made_of = unit["in_channels"] // unit["groups"] * unit["kernel"] ** 2
    return side[0] * side[1] * unit["out_channels"] * made_of


def largest(unit: dict) -> int:
    """Bytes of float values that one unit reads and writes."""
    out = 1 if unit["kind"] == "head" else -(-unit["height"] // unit["stride"]) * -(-unit["width"] // unit["stride"])
    halves = unit["kind"] in ("even_channels", "odd_channels")  # they read the half that they pass on
    read = (unit["out_channels"] if halves else unit["in_channels"]) * unit["height"] * unit["width"]
    written = unit["out_channels"] * out * (2 if "residual" in unit["epilogue"] else 1)
    return 4 * (read + written)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_document_adds_up(name: str, shown: Callable[..., dict], tmp_path: Path) -> None:
    document = shown(*NETWORKS[name])
    units = document["workloads"]
    assert document["macs"] == sum(map(multiplications, units))
    assert document["binary_macs"] == sum(multiplications(u) for u in units if u["bits"] == 1)
    assert document["activation_bytes"] == max(map(largest, units))
    assert document["params"] > 0 and document["model_bytes"] > 0
    for unit in units:
        fields = {key: value for key, value in unit.items() if key not in ("key", "name", "inputs")}
        assert Workload(**{**fields, "epilogue": tuple(fields["epilogue"])}) == Workload.from_key(unit["key"])
    names = [unit["name"] for unit in units]
    assert len(set(names)) == len(names)
    for number, unit in enumerate(units):  # each reads what is there already
        assert set(unit["inputs"]) <= {"image", *names[:number]}
    assert Architecture.from_dict(document["architecture"]).space == document["space"]
    assert ("genotype" in document) == document["space"].startswith("cells:")
    assert [path.name for path in tmp_path.iterdir()] == [document["svg"]]
    assert ET.parse(document["svg"]).getroot().tag.endswith("svg")


PUBLISHED = {  # name -> what its paper or its authors' code counts: (key, number, share it may be off)
    "mobilenetv2": [("params", 3_504_872, 0.0), ("macs", 300e6, 0.01)],
    "shufflenetv2": [("params", 2.3e6, 0.02), ("macs", 146e6, 0.02)],
    "spos": [("params", 3.5e6, 0.02), ("macs", 323e6, 0.02)],
    "bireal18": [("binary_macs", 1.68e9, 0.02)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_references_have_the_published_costs(name: str, shown: Callable[..., dict]) -> None:
    document = shown(name)
    for key, number, off in PUBLISHED[name]:
        assert abs(document[key] / number - 1) <= off, key


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_counts_every_unit_once(name: str) -> None:
    first, *rest = NETWORKS[name]
    options = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
    network = find(first, **{key: value if key == "image" else int(value) for key, value in options.items()})
    table = list(rows(parts(network.space, network.arch)))
    counted: Counter[Workload] = Counter()
    for row in table:
        counted[row.workload] += row.times
    assert counted == Counter(network.space.workloads(network.arch))
    starts = [number for number, row in enumerate(table) if row.part] + [len(table)]
    blocks = [[(row.unit, row.workload) for row in table[a:b]] for a, b in pairwise(starts)]
    assert starts[0] == 0 and all(a != b for a, b in pairwise(blocks))  # those that are equal are one
    if name == "darts_v2":
        assert len(table) < 120 < len(network.space.workloads(network.arch)) / 4


def test_equal_blocks_are_folded_and_only_those() -> None:
    """Bi-Real-18: in each of four stages the blocks that follow the first are alike; in the first, all four are."""
    network = find("bireal18")
    folded = [(r.part, r.times) for r in rows(parts(network.space, network.arch)) if r.workload.kind == "binary_conv"]
    assert [times for _, times in folded] == [4, 1, 3, 1, 3, 1, 3]
    assert [part for part, times in folded if times > 1] == [
        "blocks.0 to 3",
        "blocks.5 to 7",
        "blocks.9 to 11",
        "blocks.13 to 15",
    ]
    cell = make_space("cells:micro:bits=32", (1, 8, 8), 10)
    shown = Shown("cell", cell, from_genotype(cell, DARTS_V1), Path("x.svg"))
    normal = {r.unit: r.times for r in rows(parts(shown.space, shown.arch))}
    assert normal["edges.*.sep_conv_3x3.depth*"] == 10  # five separable convolutions of two halves
    assert normal["edges.*.max_pool_3x3.pool"] == 4


@pytest.mark.parametrize("profile", ["rpi4b"])
def test_latency_by_a_profile(profile: str, shown: Callable[..., dict], tmp_path: Path) -> None:
    """rpi4b prices operations only, so what it predicts follows from the counts."""
    document = shown("bireal18", "--profile", profile)
    price = load_profile(profile).cost_model
    assert price is not None and price.kind == "mac-linear"
    units = document["workloads"]
    for unit in units:
        per_gmac = price.binary_ms_per_gmac if unit["bits"] == 1 else price.float_ms_per_gmac
        assert unit["latency_ms"] == pytest.approx(per_gmac * multiplications(unit) / 1e9)
    whole = document["latency"]
    assert whole["ms"] == pytest.approx(sum(unit["latency_ms"] for unit in units))
    assert (whole["error"], whole["source"], whole["profile"]) == (0.178, "published", "rpi4b")
    assert "±17.8 % (published) by rpi4b" in (tmp_path / "bireal18.svg").read_text()


def test_a_measured_profile_adds_what_the_runtime_costs(tmp_path: Path) -> None:
    """A table with rows for every unit of a network and one for the runtime itself."""
    network = find("tiny:micro", random=0)
    keys = {w.key for w in network.space.workloads(network.arch)} | {"fixed-32b-1x1-1x1-k1-s1-d1-g1-plain-float-float"}
    rows = [{"workload": key, "p10_ms": 0.25, "p50_ms": 0.25, "p90_ms": 0.25, "count": 9} for key in sorted(keys)]
    known = load_profile("rpi4b").model_dump(mode="json")
    known["device"]["fingerprint"], known["engine"]["version"] = "another machine", "1.0"
    known |= {"source": "measured", "cost_model": None, "name": "mine", "rows": rows}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(known))
    document = describe(network, LatencyTable(load_profile(tmp_path / "mine.yaml")))
    assert all(unit["latency_ms"] == 0.25 for unit in document["workloads"])
    assert document["latency"]["ms"] == pytest.approx(0.25 * (len(document["workloads"]) + 1))


def a_run(folder: Path, arch: Architecture) -> None:
    """What is left of a run by a search."""
    runs.start({"space": arch.space}, "name", out=folder, restart=False)
    (folder / "search.json").write_text(json.dumps({"run": str(folder)}))
    (folder / "architecture.yaml").write_text(arch.to_yaml())


@pytest.mark.parametrize("text", ["tiny:micro", "cells:cifar:bits=1+8,layers=3"])
def test_one_network_by_all_its_names(text: str, shown: Callable[..., dict], tmp_path: Path) -> None:
    random = shown(text, "--random", 3)
    assert random == shown("--space", text, "--random", 3) and random != shown(text, "--random", 4)
    arch = Architecture.from_dict(random["architecture"])
    a_run(tmp_path / "runs" / "mine", arch)
    (tmp_path / "net.v2.yaml").write_text(arch.to_yaml())
    names = {
        (): "runs/mine/architecture.svg",
        ("mine",): "runs/mine/architecture.svg",
        ("runs/mine",): "runs/mine/architecture.svg",
        ("net.v2.yaml",): "net.v2.svg",
        (tmp_path / "net.v2.yaml", "--svg", "other.svg"): "other.svg",
        (tmp_path / "runs/mine/architecture.yaml",): "architecture.svg",
    }
    if "genotype" in random:
        (tmp_path / "found.txt").write_text(random["genotype"])
        names[text, "--genotype", random["genotype"]] = names[text, "--genotype", "found.txt"] = shown(
            text, "--genotype", "found.txt"
        )["svg"]
    for arguments, svg in names.items():
        (tmp_path / svg).unlink(missing_ok=True)
        document = shown(*arguments)
        assert document["svg"] == svg and (tmp_path / svg).is_file()
        assert {**document, "name": "", "svg": ""} == {**random, "name": "", "svg": ""}


def test_a_genotype_is_read_and_printed(shown: Callable[..., dict]) -> None:
    """The space is `cells` unless told; a 1-bit space takes the 1-bit forms of the operations."""
    document = shown("--genotype", DARTS_V1, "--space", "cells:cifar:bits=32,layers=20,channels=36")
    assert document["genotype"].startswith(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0)"
    )
    assert 3.0e6 < document["params"] < 3.4e6  # DARTS, table 1: 3.3 M; its first order network has 3.2 M in its code
    assert document["binary_macs"] == 0
    binary = shown("--genotype", DARTS_V1)
    assert binary["space"] == "cells:imagenet:3x224x224:1000" and binary["binary_macs"] > 0.7 * binary["macs"]
    assert binary["genotype"].count("'bin_conv_3x3'") == DARTS_V1.count("'sep_conv_3x3'")


def test_people_get_a_table_with_every_unit_and_the_totals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    svg = tmp_path / "x.svg"
    assert cli.run(["show", "mobilenetv2", "--profile", "rpi4b", "--svg", str(svg)]) == 0
    out, err = capsys.readouterr()
    assert err == f"drawing: {svg}\n"
    for text in ("layers.9 to 11", "k3e6", "3.5 M" if "3.5 M" in out else "3,504,872", "3×3 /2 g96", "121 ms ±17.8 %"):
        assert text in out
    lines = out.splitlines()
    spatial = next(line for line in lines if "layers.9 to 11" in line)
    assert spatial.split()[:6] == ["layers.9", "to", "11", "k3e6", "expand", "3×"]
    names = ("stem", "first", "last", "final", "head")
    assert [line.split()[0] for line in lines if line.strip().startswith(names)] == list(names)


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # what is typed, and what the error must say: the value and the remedy
    "nothing there": ((), ("runs/", "bnas search")),
    "name": (("bireal",), ("'bireal'", "did you mean 'bireal18'?", "mobilenetv2")),
    "missing file": (("gone.yaml",), ("gone.yaml does not exist", "architecture.yaml")),
    "folder": (("empty",), ("empty", "no run.yaml")),
    "space alone": (("cells:cifar",), ("'cells:cifar'", "--random SEED")),
    "space option alone": (("--space", "tiny"), ("'tiny'", "--random SEED")),
    "space": (("tini", "--random", "1"), ("'tini'", "did you mean 'tiny'?")),
    "instance": (("tiny:mikro", "--random", "1"), ("'mikro'", "did you mean 'micro'?")),
    "option": (("cells:bit=1", "--random", "1"), ("'bit'", "did you mean 'bits'?")),
    "option value": (("cells:bits=2", "--random", "1"), ("'2'", "1+8")),
    "id": (("tiny:micro:1x8x8:ten", "--random", "1"), ("tiny:micro:1x8x8:ten", "expected")),
    "id and image": (("tiny:micro:1x8x8:10", "--random", "1", "--classes", "3"), ("1x8x8:10", "leave out")),
    "two spaces": (("tiny", "--space", "cells", "--random", "1"), ("'tiny'", "'cells'", "give one")),
    "two networks": (("cells", "--random", "1", "--genotype", DARTS_V1), ("give one",)),
    "seed": (("tiny", "--random", "-1"), ("-1", "0 or more")),
    "seed text": (("tiny", "--random", "one"), ("'one'", "--help")),
    "image": (("bireal18", "--image", "224"), ("'224'", "3x32x32")),
    "image size": (("tiny:cifar", "--random", "1", "--image", "3x30x30"), ("30x30", "divisible by 8", "with --image")),
    "image channels": (("tiny", "--random", "1", "--image", "4x32x32"), ("4", "1 or 3 channels")),
    "classes": (("bireal18", "--classes", "0"), ("at least 2", "0")),
    "image of a file": (("good.yaml", "--image", "3x32x32"), ("--image", "reference network")),
    "genotype of a chain": (("tiny", "--genotype", DARTS_V1), ("tiny:", "cells")),
    "genotype file": (("cells", "--genotype", "gone.txt"), ("'gone.txt'", "Genotype(")),
    "genotype text": (("cells", "--genotype", "Genotype(normal=1)"), ("expected Genotype(",)),
    "genotype operation": (("--genotype", DARTS_V1.replace("avg_pool", "avg_pol")), ("avg_pol_3x3", "node 5")),
    "genotype binary": (("cells", "--genotype", "noise.yaml"), ("noise.yaml", "not a text")),
    "profile": (("bireal18", "--profile", "rpi4"), ("'rpi4'", "did you mean 'rpi4b'?")),
    "svg suffix": (("bireal18", "--svg", "a.png"), ("a.png", "end with .svg")),
    "svg folder": (("bireal18", "--svg", "no/a.svg"), ("no/a.svg", "make it first")),
    "svg is a folder": (("bireal18", "--svg", "folder.svg"), ("folder.svg", "choose another path")),
    "svg unwritable": (("bireal18", "--svg", "/proc/a.svg"), ("/proc/a.svg", "choose another path")),
    "yaml": (("bad.yaml",), ("bad.yaml", "not valid YAML")),
    "yaml of another kind": (("list.yaml",), ("list.yaml", "format, space and choices")),
    "yaml of noise": (("noise.yaml",), ("noise.yaml", "not a text")),
    "yaml too deep": (("deep.yaml",), ("deep.yaml", "not")),
    "yaml with a date": (("date.yaml",), ("date.yaml", "not")),
    "format": (("format.yaml",), ("format.yaml", "format 9")),
    "a choice that is none": (("choice.yaml",), ("k9e9", "is not a point of")),
    "another file": (("model.onnx",), ("model.onnx", "not a text")),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(mistake: str, fails: Fails, tmp_path: Path) -> None:
    good = make_space("tiny:micro", (1, 8, 8), 10).random(np.random.default_rng(0)).to_dict()
    files = {
        "good.yaml": yaml.safe_dump(good).encode(),
        "choice.yaml": yaml.safe_dump({**good, "choices": ["k9e9", *good["choices"][1:]]}).encode(),
        "format.yaml": yaml.safe_dump({**good, "format": 9}).encode(),
        "bad.yaml": b"a: [", "list.yaml": b"- 1", "deep.yaml": b"[" * 9_999, "date.yaml": b"a: 2001-99-99",
        "noise.yaml": b"\xff\xfe\x00\x81", "model.onnx": b"\x08\x08\x81",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for folder in ("empty", "folder.svg"):
        (tmp_path / folder).mkdir()
    arguments, said = MISTAKES[mistake]
    line = fails("show", *arguments)
    assert all(part in line for part in said), line


def test_a_search_that_has_not_finished_is_not_drawn(fails: Fails, tmp_path: Path) -> None:
    space = make_space("tiny:micro", (1, 8, 8), 10)
    a_run(tmp_path / "runs" / "mine", space.random(np.random.default_rng(0)))
    (tmp_path / "runs" / "mine" / "search.json").unlink()
    assert "has not finished" in fails("show", "mine")


def test_an_old_drawing_stays_if_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bireal18.svg").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert cli.run(["show", "bireal18"]) == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"bireal18.svg": "old"}


@pytest.mark.parametrize("command", ["show", "spaces"])
def test_help_has_an_example_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    out, err = capsys.readouterr()
    text = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[\d;]*m", "", out))
    assert f"Example: bnas {command}" in text and "--json" in text and err == ""


@pytest.mark.parametrize(
    "arguments", [["show", "darts_v2"], ["show", "cells", "--random", "1", "--profile", "rpi4b"], ["spaces"]], ids=str
)
def test_looking_needs_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys, bnas.cli; code = bnas.cli.run({arguments}); print(code, sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
