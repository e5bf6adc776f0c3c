"""Decides whether the binding reads or writes where it must not, by running its tests sanitized.

The core is compiled once more, with the address and undefined-behaviour sanitizers, and takes
the place of the installed one in a Python of its own. Memory of Python objects comes straight
from malloc there, so that the sanitizer sees where each of them ends. The planted bug proves
that a wrong access would have been reported.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import pytest

from tests.native.test_ring_stress import ADDRESS, PROTOCOL, path_of, unavailable

REPOSITORY = PROTOCOL.parents[1]
BATCHES = REPOSITORY / "tests" / "protocol" / "test_core_batches.py"
MOVING = BATCHES.with_name("test_core_moving.py")
# What each compiler's core is tested with: the sanitizers of both find much the same.
TESTS = {
    "gcc": (BATCHES.with_name("test_core_values.py"), BATCHES, MOVING),
    "clang": (MOVING,),
}
WATCHDOG_SECONDS = 200

# Loads the core that it is told, under the name of the installed one, before anything else does.
RUN = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("shmbatch.protocol._core", sys.argv[1])
sys.modules[spec.name] = core = module_from_spec(spec)
spec.loader.exec_module(core)
import shmbatch.protocol
shmbatch.protocol._core = core
import pytest
options = ["-q", "-x", "-s", "--noconftest", "-p", "no:cacheprovider"]
# The package's own pytest plugin would have its modules rewritten, and they are imported already.
options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
sys.exit(pytest.main([*options, *sys.argv[2:]]))
"""


# The sanitizers' library, which must be loaded before all others, and how to link with it.
RUNTIMES = {
    "gcc": ("libasan.so", ()),
    "clang": (f"libclang_rt.asan-{platform.machine()}.so", ("-shared-libasan",)),
}

both_compilers = pytest.mark.parametrize("compiler", RUNTIMES)


def runtime(compiler: str) -> str:
    """Return where the sanitizers' library is."""
    name, _ = RUNTIMES[compiler]
    done = subprocess.run(
        [path_of(compiler), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(done.stdout.strip())
    if not path.is_absolute() or not path.exists():
        lacking(compiler, f"{compiler} has no address sanitizer")
    return str(path)


def lacking(compiler: str, reason: str) -> NoReturn:
    if compiler == "clang":
        pytest.skip(reason)  # its runtimes are packages of their own
    unavailable(reason)


def build(folder: Path, compiler: str, planted: tuple[str, str] | None = None) -> Path:
    """Compile the core; *planted* replaces a text that one of its files has."""
    sources = sorted(PROTOCOL.glob("*.c"))
    if planted is not None:
        copies = [folder / source.name for source in sources]
        for source, copy in zip(sources, copies, strict=True):
            copy.write_text(source.read_text().replace(*planted))
        assert sum(planted[0] in source.read_text() for source in sources) == 1
        sources = copies
    core = folder / "_core.abi3.so"
    done = subprocess.run(
        [
            *(path_of(compiler), "-std=gnu11", "-shared", "-fPIC", *ADDRESS),
            *("-DPy_LIMITED_API=0x030B0000", *RUNTIMES[compiler][1]),
            *(f"-I{sysconfig.get_path('include')}", f"-I{PROTOCOL}", *map(str, sources)),
            *("-o", str(core)),
        ],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
    )
    if "cannot find -l" in done.stderr:
        lacking(compiler, f"{compiler} cannot link with {ADDRESS[-2]}")
    assert done.returncode == 0, done.stderr
    return core


def run(core: Path, compiler: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(core), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS,
        env=os.environ
        | {
            "LD_PRELOAD": runtime(compiler),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    )


pytestmark = pytest.mark.slow  # an interpreter under a sanitizer is


@both_compilers
@pytest.mark.timeout(2 * WATCHDOG_SECONDS)
def test_the_core_passes_its_tests_under_the_sanitizers(compiler: str, tmp_path: Path) -> None:
    """All but those that count what Python allocated, or let threads fight for the GIL."""
    slow = "not nothing_is_left and not without_the_gil and not at_once and not Lockstep"
    done = run(build(tmp_path, compiler), compiler, *map(str, TESTS[compiler]), "-k", slow)
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
    done = run(build(tmp_path, compiler, planted), compiler, str(BATCHES), "-k", "never_ran")
    assert done.returncode != 0, done.stdout
    assert report in done.stdout + done.stderr
