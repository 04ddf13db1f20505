"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on random and on damaged weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_library import NATIVE, compiler

WEIGHTS = 200
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize("program", ["native_fuzz.c", "native_fuzz_planes.c"])
def test_random_and_damaged_weights_touch_no_foreign_memory_and_give_the_numbers_of_a_slow_twin(tmp_path, program):
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    command = [compiler(), "-std=c11", "-g", *SANITIZERS]
    tried = subprocess.run([*command, "empty.c", "-o", "empty"], cwd=tmp_path, check=False, capture_output=True)
    if tried.returncode or subprocess.run([tmp_path / "empty"], check=False, capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    sources = [Path(__file__).parent / program, *sorted(NATIVE.glob("*.c"))]
    command += ["-Werror", "-Wall", "-Wextra", f"-I{NATIVE}", *map(str, sources), "-o", "fuzz", "-lm", "-pthread"]
    built = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "fuzz", "7", str(WEIGHTS)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{WEIGHTS} weights\n"), done.stderr
