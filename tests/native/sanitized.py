"""Runs tests over a core that has sanitizers, in a Python of its own.

Memory of Python objects comes straight from malloc there, so that the sanitizer sees where each
of them ends.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.native.compiling import (
    ADDRESS,
    LOAD,
    PROTOCOL,
    REPOSITORY,
    compile_core,
    path_of,
    unavailable,
)

SECONDS = 200  # that no such run takes

# Runs tests with the core that it is told.
TESTED = f"""{LOAD}
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


def build(folder: Path, compiler: str = "gcc", planted: tuple[str, str] | None = None) -> Path:
    """Compile the core; *planted* replaces a text that one of its files has."""
    sources = sorted(PROTOCOL.glob("*.c"))
    if planted is not None:
        assert sum(planted[0] in source.read_text() for source in sources) == 1
        copies = [folder / source.name for source in sources]
        for source, copy in zip(sources, copies, strict=True):
            copy.write_text(source.read_text().replace(*planted))
        sources = copies
    return compile_core(folder, (*ADDRESS, *RUNTIMES[compiler][1]), sources, compiler)


def run(core: Path, *arguments: object, compiler: str = "gcc") -> subprocess.CompletedProcess[str]:
    """Have pytest run with *arguments* over that core."""
    return subprocess.run(
        [sys.executable, "-c", TESTED, str(core), *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ
        | {
            "LD_PRELOAD": _runtime(compiler),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    )


def _runtime(compiler: str) -> str:
    """Return where the sanitizers' library is."""
    name, _ = RUNTIMES[compiler]
    done = subprocess.run(
        [path_of(compiler), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(done.stdout.strip())
    if not path.is_absolute() or not path.exists():
        unavailable(f"{compiler} has no address sanitizer", compiler)
    return str(path)
