"""Compiles what tests run of C: programs and libraries over ring.h, and the core once more."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

PROTOCOL = Path(__file__).parents[2] / "shmbatch" / "protocol"
REPOSITORY = PROTOCOL.parents[1]
SECONDS = 100  # that nothing here takes, unless it is told otherwise

PLAIN = ("-O2",)
THREAD = ("-O1", "-g", "-fsanitize=thread")
ADDRESS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=0",  # needs ptrace, which containers may forbid
    "UBSAN_OPTIONS": "print_stacktrace=1",
}

# A free-threaded interpreter has no limited API: as in setup.py.
_LIMITED = () if sysconfig.get_config_var("Py_GIL_DISABLED") else ("-DPy_LIMITED_API=0x030B0000",)

# Loads the core that it is told, under the name of the installed one, before anything else does.
LOAD = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("shmbatch.protocol._core", sys.argv[1])
sys.modules[spec.name] = core = module_from_spec(spec)
spec.loader.exec_module(core)
import shmbatch.protocol
shmbatch.protocol._core = core
"""


def unavailable(reason: str, compiler: str = "gcc") -> NoReturn:
    """Skip, but not where nobody would notice; of clang much is in packages of its own."""
    if os.environ.get("CI") and compiler != "clang":
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
        unavailable(f"there is no {compiler}", compiler)
    return found


def compile_c(source: Path, program: Path, flags: tuple[str, ...], compiler: str = "gcc") -> str:
    """Return the compiler's complaints, empty if there are none."""
    command = [path_of(compiler), "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread", *flags]
    done = subprocess.run(
        [*command, f"-I{PROTOCOL}", str(source), "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.stderr if done.returncode != 0 else ""


def run(
    program: Path, *arguments: object, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a program that may have been sanitized."""
    command = [str(program), *map(str, arguments)]
    done = _run_once(command, seconds)
    if done.returncode != 0 and "unexpected memory mapping" in done.stderr:
        # The sanitizer's runtime cannot live with this kernel's address randomization.
        done = _run_once(["setarch", platform.machine(), "-R", *command], seconds)
    return done


def _run_once(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=os.environ | OPTIONS
    )


def require(flags: tuple[str, ...], folder: Path, compiler: str = "gcc") -> None:
    """Skip where nothing compiled with these flags can be linked and started."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    complaints = compile_c(source, program, flags, compiler)
    if complaints:
        reason = f"{compiler} cannot link with {flags[-1]}: {complaints.splitlines()[-1]}"
        unavailable(reason, compiler)
    done = run(program)
    if done.returncode != 0:
        unavailable(f"a program built with {flags[-1]} does not start: {done.stderr.strip()}")


def compile_core(
    folder: Path, flags: tuple[str, ...], sources: Iterable[Path] = (), compiler: str = "gcc"
) -> Path:
    """Compile the core anew, of other *sources* than its own if there are any."""
    core = folder / "_core.abi3.so"
    done = subprocess.run(
        [
            *(path_of(compiler), "-std=gnu11", "-shared", "-fPIC", *_LIMITED, *flags),
            *(f"-I{sysconfig.get_path('include')}", f"-I{np.get_include()}", f"-I{PROTOCOL}"),
            *(*map(str, sources or PROTOCOL.glob("*.c")), "-o", str(core)),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if "cannot find -l" in done.stderr:
        unavailable(f"{compiler} cannot link with {flags}", compiler)
    assert done.returncode == 0, done.stderr
    return core
