"""Decides whether ring.h is right when real threads use it, by sanitizers and by its own checks.

Each test compiles ring_stress.c, which describes what it does. The planted bugs prove that what
is not reported elsewhere would have been: without them a quiet sanitizer proves nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

SOURCE = Path(__file__).with_name("ring_stress.c")
PROTOCOL = Path(__file__).parents[2] / "shmbatch" / "protocol"
WATCHDOG_SECONDS = 100
CALLERS = 4
CALLS = 30_000

PLAIN = ("-O2",)
THREAD = ("-O1", "-g", "-fsanitize=thread")
ADDRESS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=0",  # needs ptrace, which containers may forbid
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def unavailable(reason: str) -> NoReturn:
    """Skip, but not where nobody would notice."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI this must run")
    pytest.skip(reason)


def path_of(compiler: str) -> str:
    """Return where a compiler is, of clang any version; skip where it is not."""
    found = shutil.which(compiler)
    if found is None and compiler == "clang":
        folders = map(Path, os.environ.get("PATH", "").split(os.pathsep))
        others = sorted(each for folder in folders for each in folder.glob("clang-[0-9]*"))
        found = str(others[-1]) if others else None
        if found is None:
            pytest.skip("there is no clang: gcc is what the core is built with")
    if found is None:
        unavailable(f"there is no {compiler}")
    return found


def compile_c(source: Path, program: Path, flags: tuple[str, ...], compiler: str = "gcc") -> str:
    """Return the compiler's complaints, empty if there are none."""
    command = [path_of(compiler), "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread", *flags]
    done = subprocess.run(
        [*command, f"-I{PROTOCOL}", str(source), "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
    )
    return done.stderr if done.returncode != 0 else ""


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    done = run_once(command)
    if done.returncode != 0 and "unexpected memory mapping" in done.stderr:
        # The sanitizer's runtime cannot live with this kernel's address randomization.
        done = run_once(["setarch", platform.machine(), "-R", *command])
    return done


def run_once(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
        env=os.environ | OPTIONS,
    )


def require(flags: tuple[str, ...], folder: Path, compiler: str) -> None:
    """Skip where nothing compiled with these flags can be linked and started."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    complaints = compile_c(source, program, flags, compiler)
    if complaints:
        reason = f"{compiler} cannot link with {flags[-1]}: {complaints.splitlines()[-1]}"
        if compiler == "clang":
            pytest.skip(reason)  # its runtimes are packages of their own
        unavailable(reason)
    done = run(program)
    if done.returncode != 0:
        unavailable(f"a program built with {flags[-1]} does not start: {done.stderr.strip()}")


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
    done = run(build(tmp_path, compiler, flags), str(seed), str(CALLS))
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
    done = run(build(tmp_path, compiler, THREAD, planted), "1", str(CALLS))
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
    done = run(build(tmp_path, compiler, flags, "-DREUSE_AT_ONCE"), "1", str(CALLS))
    assert done.returncode != 0, done.stdout
    noticed = "FAILED: " in done.stdout
    assert noticed or (flags == THREAD and "ThreadSanitizer: data race" in done.stderr)
