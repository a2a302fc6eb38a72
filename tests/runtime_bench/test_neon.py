"""The machine code of the NEON kernel, as benchmarks/neon_report.py reads it. What it computes is tested under qemu."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "neon_report.py"

# A register-only loop, a loop with more popcounts that a call interrupts, and the one to find.
DISASSEMBLY = """
0000000000000000 <bound>:
       0:	eor	v1.16b, v1.16b, v0.16b
       4:	cnt	v1.16b, v1.16b
       8:	cnt	v2.16b, v1.16b
       c:	cnt	v3.16b, v1.16b
      10:	subs	x0, x0, #0x1
      14:	b.ne	0 <bound>  // b.any
      18:	ret
0000000000000020 <count>:
      20:	ldr	q0, [x0], #16
      24:	cnt	v1.16b, v0.16b
      28:	cnt	v2.16b, v0.16b
      2c:	cnt	v3.16b, v0.16b
      30:	bl	0 <bound>
      34:	cmp	x0, x1
      38:	b.ne	20 <count>  // b.any
      3c:	ldp	q0, q1, [x0], #32
      40:	eor	v0.16b, v0.16b, v2.16b
      44:	cnt	v0.16b, v0.16b
      48:	cnt	v1.8b, v1.8b
      4c:	str	q0, [sp, #16]
      50:	add	x2, x2, #0x1
      54:	cbnz	x2, 3c <count+0x1c>
      58:	b	20 <count>
"""


@pytest.fixture(scope="module")
def neon_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neon_report", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["neon_report"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def need(neon_report: ModuleType, *tools: tuple[str, str]) -> None:
    for tool, package in tools:
        try:
            neon_report.tool(tool, package)
        except neon_report.NothingToReport as error:
            missing = pytest.fail if os.environ.get("BNAS_REQUIRE_ALL") == "1" else pytest.skip
            missing(str(error))


COMPILER = ("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


def test_report_reaches_what_is_claimed(neon_report: ModuleType, tmp_path: Path) -> None:
    need(neon_report, COMPILER, ("llvm-mca", "llvm"))
    file = tmp_path / "report.json"
    done = subprocess.run([sys.executable, SCRIPT, "--json", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["binary_macs_per_vector_instruction"] >= 38.4
    assert found["processors"]["cortex-a72"]["binary_macs_per_cycle"] >= 70
    assert found["stack_accesses"] == 0
    assert found["kind"] == "static analysis, not a measurement"
    for said in (found["llvm"], found["compiler"], "none of this is a measurement"):
        assert said in done.stdout


def test_nothing_but_the_table_is_exported(neon_report: ModuleType, tmp_path: Path) -> None:
    """A function that another file may take over would run where its instructions are unknown."""
    need(neon_report, COMPILER)
    compiled = tmp_path / "isa_neon.o"
    source = ROOT / "runtime_bench" / "native" / "isa_neon.cpp"
    subprocess.run([neon_report.COMPILER, *neon_report.FLAGS, "-c", str(source), "-o", str(compiled)], check=True)
    command = ["aarch64-linux-gnu-nm", "-C", "--defined-only", "--extern-only", "--format=just-symbols", str(compiled)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["bnas::kNeon"]


def test_the_counting_loop_is_found_by_its_form(neon_report: ModuleType) -> None:
    loop = neon_report.counting_loop(DISASSEMBLY)
    assert loop.instructions[0] == "ldp q0, q1, [x0], #32" and loop.instructions[-1] == "cbnz x2,"
    assert (loop.binary_macs, loop.vector_arithmetic, loop.loads, loop.stack_accesses) == (128 + 64, 3, 1, 1)


def test_code_without_a_counting_loop_is_an_error(neon_report: ModuleType) -> None:
    without = "\n".join(line for line in DISASSEMBLY.splitlines() if "ld" not in line)
    with pytest.raises(neon_report.NothingToReport, match="no loop with cnt"):
        neon_report.counting_loop(without)


def test_a_missing_tool_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run([sys.executable, SCRIPT], env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("neon_report: aarch64-linux-gnu-g++ is missing; install it")
    assert done.stderr.count("\n") == 1
