"""The kernels as plain C++ programs: under sanitizers, and for instruction sets that this CPU has besides its best."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from gnomon.jax_engine.kernels import native

CHECKS = Path(__file__).with_name("sanitized")  # a file an operation
SANITIZERS = ("address,undefined", "thread")
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86-64 alone")
AVX2 = Path("/proc/cpuinfo").exists() and {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split())

COMPILER = next((name for name in native.COMPILERS if shutil.which(name)), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


def run(tmp_path: Path, *flags: str) -> None:
    """Builds all checks with the flags of the library, but for these, and runs them."""
    program, sources = tmp_path / "checks", sorted(map(str, CHECKS.glob("*.cc")))
    assert COMPILER is not None
    ours = [flag for flag in native.COMPILER_FLAGS if flag not in ("-fPIC", "-shared", "-O3")]
    command = [COMPILER, *ours, "-g", f"-I{native.SOURCES}", *flags, "-o", str(program), *sources]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([program], capture_output=True, text=True, timeout=600, env=environment)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "all at once"
    assert len(done.stdout.splitlines()) == len(sources)  # a line a check, and the last


@pytest.mark.weekly
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_sanitizer_finds_nothing_in_the_kernels(tmp_path: Path, sanitizer: str) -> None:
    run(tmp_path, "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")


@pytest.mark.slow
@X86
@pytest.mark.parametrize(
    "instructions",
    ["x86-64", pytest.param("haswell", marks=pytest.mark.skipif(not AVX2, reason="this CPU has no AVX2"))],
)
def test_the_kernels_compute_the_same_sums_with_other_instructions(tmp_path: Path, instructions: str) -> None:
    run(tmp_path, "-O2", f"-march={instructions}")
