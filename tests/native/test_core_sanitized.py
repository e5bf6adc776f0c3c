"""Decides whether the binding reads or writes where it must not, by running its tests sanitized.

The core is compiled once more, with the address and undefined-behaviour sanitizers, and takes
the place of the installed one in a Python of its own. The planted bug proves that a wrong access
would have been reported.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.sanitized import REPOSITORY, RUNTIMES, SECONDS, build, run

BATCHES = REPOSITORY / "tests" / "protocol" / "test_core_batches.py"
MOVING = BATCHES.with_name("test_core_moving.py")
LENDING = BATCHES.with_name("test_core_lending.py")
# What each compiler's core is tested with: the sanitizers of both find much the same.
TESTS = {
    "gcc": (BATCHES.with_name("test_core_values.py"), BATCHES, LENDING, MOVING),
    "clang": (LENDING, MOVING),
}

both_compilers = pytest.mark.parametrize("compiler", RUNTIMES)
pytestmark = pytest.mark.slow  # an interpreter under a sanitizer is


@both_compilers
@pytest.mark.timeout(2 * SECONDS)
def test_the_core_passes_its_tests_under_the_sanitizers(compiler: str, tmp_path: Path) -> None:
    """All but those that count what Python allocated, or let threads fight for the GIL."""
    slow = "not nothing_is_left and not without_the_gil and not at_once and not Lockstep"
    done = run(build(tmp_path, compiler), *TESTS[compiler], "-k", slow, compiler=compiler)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("compiler", "planted", "report"),
    [
        pytest.param(
            "gcc",
            ("self->rows = PyMem_Calloc(capacity,", "self->rows = PyMem_Calloc(1,"),
            "AddressSanitizer: heap-buffer-overflow",
            id="gcc, too little memory",
        ),
        pytest.param(
            "gcc",
            ("59u - (unsigned)__builtin_clzll(ns)", "259u - (unsigned)__builtin_clzll(ns)"),
            "runtime error: ",
            id="gcc, shift too far",
        ),
        pytest.param(
            "clang",
            ("59u - (unsigned)__builtin_clzll(ns)", "259u - (unsigned)__builtin_clzll(ns)"),
            "runtime error: ",
            id="clang, shift too far",
        ),
    ],
)
def test_control_a_planted_bug_is_reported(
    compiler: str, planted: tuple[str, str], report: str, tmp_path: Path
) -> None:
    core = build(tmp_path, compiler, planted)
    done = run(core, BATCHES, "-k", "never_ran", compiler=compiler)
    assert done.returncode != 0, done.stdout
    assert report in done.stdout + done.stderr
