"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on random and on damaged weights.

Those for ARM are compiled by a cross compiler and run in QEMU, where both are installed (on Debian:
gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from missing_tools import missing
from native_library import NATIVE, compiler

WEIGHTS = 200
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow",  # AddressSanitizer tells of these too, at the access
    "-fno-sanitize-recover=all",
)
WARNINGS = ("-Werror", "-Wall", "-Wextra")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


@dataclass(frozen=True, kw_only=True)
class Processor:
    """How programs for a processor are compiled and run, and what must be among the instruction sets they find."""

    compiler: str
    emulator: tuple[str, ...] = ()
    instruction_set: str = "portable"

    def compile(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.compiler, "-std=c11", "-O1", "-g1", *SANITIZERS, *arguments]
        return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)

    def run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.emulator, str(program), *arguments]
        no_leaks = {"ASAN_OPTIONS": "detect_leaks=0"} if self.emulator else {}  # there they cannot be looked for
        return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | no_leaks)


def arm() -> Processor:
    """ARM with 64 bits, in an emulator; without one, the test is skipped."""
    cross, emulator = shutil.which(ARM_COMPILER), shutil.which(ARM_EMULATOR)
    if cross is None or emulator is None:
        pytest.skip(f"no {ARM_COMPILER}, or no {ARM_EMULATOR}")
    asked = subprocess.run([cross, "-print-file-name=libc.so.6"], check=True, capture_output=True, text=True)
    libraries = Path(asked.stdout.strip()).resolve().parents[1]
    return Processor(compiler=cross, emulator=(emulator, "-L", str(libraries)), instruction_set="neon")


@pytest.fixture(scope="module", params=["own", "arm"])
def processor(request, tmp_path_factory) -> Processor:
    """A processor whose compiler has sanitizers."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    found = Processor(compiler=compiler()) if request.param == "own" else arm()
    if found.compile(folder, "empty.c", "-o", "empty").returncode or found.run(folder / "empty").returncode:
        missing("the compiler has no sanitizers")
    return found


@pytest.fixture(scope="module")
def kernels(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels compiled under the sanitizers."""
    folder = tmp_path_factory.mktemp("kernels")
    built = processor.compile(folder, *WARNINGS, "-c", *map(str, sorted(NATIVE.glob("*.c"))))
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("program", ["native_fuzz.c", "native_fuzz_planes.c"])
def test_random_and_damaged_weights_touch_no_foreign_memory_and_give_the_numbers_of_a_slow_twin(
    processor, kernels, program
):
    sources = [Path(__file__).parent / program, *sorted(kernels.glob("*.o"))]
    libraries = ("-o", "fuzz", "-lm", "-pthread")
    built = processor.compile(kernels, *WARNINGS, f"-I{NATIVE}", *map(str, sources), *libraries)
    assert built.returncode == 0, built.stderr
    done = processor.run(kernels / "fuzz", "7", str(WEIGHTS))
    assert done.returncode == 0, done.stderr
    counted, sets = done.stdout.split(" by ")
    assert counted == f"{WEIGHTS} weights"
    assert processor.instruction_set in sets.split()
