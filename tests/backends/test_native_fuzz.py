"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on random and on damaged weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_library import NATIVE, compiler

WEIGHTS = 200
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels compiled under the sanitizers."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    command = [compiler(), "-std=c11", "-g", *SANITIZERS]
    tried = subprocess.run([*command, "empty.c", "-o", "empty"], cwd=folder, check=False, capture_output=True)
    if tried.returncode or subprocess.run([folder / "empty"], check=False, capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    command += ["-Werror", "-Wall", "-Wextra", "-c", *map(str, sorted(NATIVE.glob("*.c")))]
    built = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("program", ["native_fuzz.c", "native_fuzz_planes.c"])
def test_random_and_damaged_weights_touch_no_foreign_memory_and_give_the_numbers_of_a_slow_twin(kernels, program):
    command = [compiler(), "-std=c11", "-g", *SANITIZERS, "-Werror", "-Wall", "-Wextra", f"-I{NATIVE}"]
    sources = [Path(__file__).parent / program, *sorted(kernels.glob("*.o"))]
    command += [*map(str, sources), "-o", "fuzz", "-lm", "-pthread"]
    built = subprocess.run(command, cwd=kernels, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([kernels / "fuzz", "7", str(WEIGHTS)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{WEIGHTS} weights\n"), done.stderr
