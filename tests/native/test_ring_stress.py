"""Decides whether ring.h is right when real threads use it, by sanitizers and by its own checks.

Each test compiles ring_stress.c, which describes what it does. The planted bugs prove that what
is not reported elsewhere would have been: without them a quiet sanitizer proves nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.compiling import ADDRESS, PLAIN, THREAD, compile_c, require, run

SOURCE = Path(__file__).with_name("ring_stress.c")
CALLERS = 4
CALLS = 30_000


def build(folder: Path, compiler: str, flags: tuple[str, ...], *planted: str) -> Path:
    if flags != PLAIN:
        require(flags, folder, compiler)
    program = folder / "ring_stress"
    complaints = compile_c(SOURCE, program, (*flags, *planted), compiler)
    assert not complaints, complaints
    return program


both_compilers = pytest.mark.parametrize(
    "compiler", ["gcc", pytest.param("clang", marks=pytest.mark.slow)]
)


@pytest.mark.parametrize(
    ("compiler", "seed"),
    [
        ("gcc", 1),
        pytest.param("gcc", 2, marks=pytest.mark.slow),
        pytest.param("clang", 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(ADDRESS, id="address and undefined"),
        pytest.param(THREAD, id="thread"),
    ],
)
def test_every_result_reaches_its_call_and_every_slot_comes_back(
    flags: tuple[str, ...], compiler: str, seed: int, tmp_path: Path
) -> None:
    done = run(build(tmp_path, compiler, flags), seed, CALLS)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {
        name: int(value) for name, value in (pair.split("=") for pair in done.stdout.split())
    }
    # Conservation: each call has one outcome, and each cancelled one is met once by the executor.
    assert counts["done"] + counts["cancelled"] + counts["abandoned"] == CALLERS * CALLS
    assert counts["completed"] == counts["done"] + counts["abandoned"]
    assert counts["swept"] + counts["skipped"] == counts["cancelled"]
    assert min(counts.values()) > 0, f"something was never exercised: {counts}"


@both_compilers
@pytest.mark.parametrize(
    ("planted", "where"),
    [
        pytest.param(
            "-DRING_PUBLISH_ORDER=memory_order_relaxed",
            "checked_input",
            id="publish does not release",
        ),
        # Not relaxed: gcc then takes the strongest order, because that of failure is acquire.
        pytest.param(
            "-DRING_COMPLETE_ORDER=memory_order_acquire",
            "check_result",
            id="complete does not release",
        ),
    ],
)
def test_a_missing_release_is_reported_as_a_data_race(
    planted: str, where: str, compiler: str, tmp_path: Path
) -> None:
    done = run(build(tmp_path, compiler, THREAD, planted), 1, CALLS)
    assert done.returncode != 0, done.stdout
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert f" {where} " in done.stderr


@both_compilers
@pytest.mark.parametrize(
    "flags", [pytest.param(PLAIN, id="plain"), pytest.param(THREAD, id="thread")]
)
def test_a_slot_reused_before_it_is_free_is_noticed(
    flags: tuple[str, ...], compiler: str, tmp_path: Path
) -> None:
    done = run(build(tmp_path, compiler, flags, "-DREUSE_AT_ONCE"), 1, CALLS)
    assert done.returncode != 0, done.stdout
    noticed = "FAILED: " in done.stdout
    assert noticed or (flags == THREAD and "ThreadSanitizer: data race" in done.stderr)
