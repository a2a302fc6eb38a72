"""What the NEON kernel should cost, read from its machine code: `python benchmarks/neon_report.py [--json FILE]`.

Compiles isa_neon.cpp for 64-bit ARM, takes the innermost loop of the counting kernel out of the disassembly, counts its
instructions and lets llvm-mca predict its cycles, with all loads hitting the first-level cache. That is static
analysis: nothing runs, nothing is measured. Besides the loop, each chunk of at most 31 steps ends with two widening
instructions for each register of sums.

llvm-mca knows a processor as well as LLVM's authors described it; LLVM 14 has one description, that of Cortex-A57, for
both of the processors asked for here.

Needs the Debian packages g++-aarch64-linux-gnu and llvm. Exits with 1 if a threshold is missed, with 2 if there is
nothing to report.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "runtime_bench" / "native"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden")  # as in CMakeLists.txt
PROCESSORS = ("cortex-a72", "cortex-a76")
ITERATIONS = 1000

# Counted on cortex-a72, the first processor. 3 instructions (xor, popcount, add) do 128 binary MACs, so 42.7 is the
# most that one instruction can do, and 85.3 the most in a cycle with two vector pipes.
LEAST_PER_INSTRUCTION = 38.4
LEAST_PER_CYCLE = 70.0

_INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
_BRANCH = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s(?:.*\s)?([0-9a-f]+)$")
_LEAVES = re.compile(r"(?:b|b\.\w+|bl|blr|br|ret|cbn?z|tbn?z)(?:\s|$)")
_MEMORY = re.compile(r"(?:ld|st|prfm)\w*\s")
_VECTOR_OPERAND = re.compile(r"[\s,{](?:v\d+\.|[bhsdq]\d+\b)")
_COUNT_BITS = re.compile(r"cnt\s+v\d+\.(8|16)b")


class NothingToReport(Exception):
    """One line: what is missing and what to do."""


@dataclass(frozen=True)
class Loop:
    """`instructions` of one iteration, the branch back last, without the address it goes to."""

    instructions: tuple[str, ...]

    @property
    def binary_macs(self) -> int:
        """A popcount of a register stands for as many binary multiply-accumulates as it has bits."""
        return sum(8 * int(found[1]) for found in map(_COUNT_BITS.match, self.instructions) if found)

    @property
    def vector_arithmetic(self) -> int:
        """Instructions on vector registers, moves and broadcasts among them, that do not access memory."""
        return sum(bool(_VECTOR_OPERAND.search(i)) and not _MEMORY.match(i) for i in self.instructions)

    @property
    def loads(self) -> int:
        """Load instructions, but for those from the stack."""
        return sum(i.startswith("ld") and "[sp" not in i for i in self.instructions)

    @property
    def stack_accesses(self) -> int:
        """Loads and stores of registers that the compiler ran out of."""
        return sum(bool(_MEMORY.match(i)) and "[sp" in i for i in self.instructions)


def inner_loops(disassembly: str) -> list[Loop]:
    """The loops that hold no other branch, from `objdump -d --no-show-raw-insn`."""
    addresses: list[int] = []
    texts: list[str] = []
    for line in disassembly.splitlines():
        if found := _INSTRUCTION.match(line):
            addresses.append(int(found[1], 16))
            texts.append(re.sub(r"\s+", " ", re.sub(r"\s*(//|<).*", "", found[2])).strip())
    index = {address: i for i, address in enumerate(addresses)}
    loops = []
    for i, text in enumerate(texts):
        branch = _BRANCH.match(text)
        start = index.get(int(branch[1], 16)) if branch else None
        if branch and start is not None and start <= i and not any(map(_LEAVES.match, texts[start:i])):
            loops.append(Loop((*texts[start:i], text.removesuffix(branch[1]).strip())))
    return loops


def counting_loop(disassembly: str) -> Loop:
    """Of the loops that read memory, the one that counts most bits; the register-only loop of the bound reads none.

    Raises NothingToReport if no loop counts bits.
    """
    loops = [loop for loop in inner_loops(disassembly) if loop.loads and loop.binary_macs]
    if not loops:
        raise NothingToReport("found no loop with cnt instructions and loads; was isa_neon.cpp compiled without -O3?")
    return max(loops, key=lambda loop: (loop.binary_macs, -len(loop.instructions)))


def tool(name: str, package: str) -> str:
    """Where `name` or the newest `name`-VERSION lies. Raises NothingToReport."""
    versioned = (f"{name}-{version}" for version in range(30, 10, -1))
    for candidate in (name, *versioned):
        if found := shutil.which(candidate):
            return found
    raise NothingToReport(f"{name} is missing; install it (Debian: apt install {package})")


def output_of(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise NothingToReport(f"{Path(command[0]).name} failed: {last}")
    return done.stdout


def disassembly(source: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "isa_neon.o"
        output_of([tool(COMPILER, "g++-aarch64-linux-gnu"), *FLAGS, "-c", str(source), "-o", str(compiled)])
        objdump = tool("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu")
        return output_of([objdump, "-d", "--no-show-raw-insn", str(compiled)])


def predicted_cycles(loop: Loop, processor: str) -> float:
    """Cycles of an iteration by llvm-mca, which knows nothing of cache misses."""
    text = "\n".join(("loop:", *loop.instructions[:-1], f"{loop.instructions[-1]} loop", ""))
    options = ["-mtriple=aarch64", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    printed = output_of([tool("llvm-mca", "llvm"), *options], text)
    found = re.search(r"Total Cycles:\s+(\d+)", printed)
    if not found:
        raise NothingToReport("llvm-mca printed no total of cycles")
    return int(found[1]) / ITERATIONS


@dataclass(frozen=True)
class Report:
    compiler: str  # version of g++
    llvm: str
    loop: Loop
    cycles: dict[str, float]  # of an iteration, by processor

    @property
    def per_instruction(self) -> float:
        return self.loop.binary_macs / self.loop.vector_arithmetic

    def per_cycle(self, processor: str) -> float:
        return self.loop.binary_macs / self.cycles[processor]

    def missed(self) -> list[str]:
        """The thresholds that are not reached, in words."""
        missed = []
        if self.per_instruction < LEAST_PER_INSTRUCTION:
            missed.append(f"fewer than {LEAST_PER_INSTRUCTION} binary MACs per vector arithmetic instruction")
        if self.per_cycle(PROCESSORS[0]) < LEAST_PER_CYCLE:
            missed.append(f"fewer than {LEAST_PER_CYCLE} predicted binary MACs per cycle on {PROCESSORS[0]}")
        return missed

    def document(self) -> dict[str, object]:
        return {
            "kind": "static analysis, not a measurement",
            "compiler": f"g++ {self.compiler}",
            "flags": " ".join(FLAGS),
            "llvm": self.llvm,
            "instructions": len(self.loop.instructions),
            "vector_arithmetic_instructions": self.loop.vector_arithmetic,
            "load_instructions": self.loop.loads,
            "stack_accesses": self.loop.stack_accesses,
            "binary_macs": self.loop.binary_macs,
            "binary_macs_per_vector_instruction": round(self.per_instruction, 2),
            "processors": {
                name: {"predicted_cycles": round(cycles, 2), "binary_macs_per_cycle": round(self.per_cycle(name), 2)}
                for name, cycles in self.cycles.items()
            },
            "loop": list(self.loop.instructions),
        }

    def text(self) -> str:
        loop = self.loop
        lines = [
            f"Inner loop of the NEON kernel, compiled by g++ {self.compiler} {' '.join(FLAGS)}:",
            f"  {loop.binary_macs} binary MACs by {loop.vector_arithmetic} vector arithmetic instructions, "
            f"{self.per_instruction:.2f} each (at least {LEAST_PER_INSTRUCTION} wanted)",
            f"  {loop.loads} load instructions, {loop.stack_accesses} stack accesses by spilled registers",
            f"Predicted by llvm-mca of LLVM {self.llvm}, loads included, all from the first-level cache:",
        ]
        for name in self.cycles:
            wanted = f" (at least {LEAST_PER_CYCLE} wanted)" if name == PROCESSORS[0] else ""
            lines.append(f"  {name}: {self.per_cycle(name):.2f} binary MACs per cycle{wanted}")
        lines.append("Static analysis of machine code: nothing was run, so none of this is a measurement.")
        return "\n".join([*lines, *(f"MISSED: {missed}" for missed in self.missed())])


def report() -> Report:
    """Raises NothingToReport."""
    loop = counting_loop(disassembly(NATIVE / "isa_neon.cpp"))
    llvm = re.search(r"LLVM version (\S+)", output_of([tool("llvm-mca", "llvm"), "--version"]))
    return Report(
        compiler=output_of([tool(COMPILER, "g++-aarch64-linux-gnu"), "-dumpfullversion"]).strip(),
        llvm=llvm[1] if llvm else "of unknown version",
        loop=loop,
        cycles={processor: predicted_cycles(loop, processor) for processor in PROCESSORS},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report, with the loop, as JSON")
    options = parser.parse_args(arguments)
    try:
        found = report()
    except NothingToReport as error:
        print(f"neon_report: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found.document(), indent=1) + "\n")
    print(found.text())
    return 1 if found.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
