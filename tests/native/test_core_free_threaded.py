"""Decides whether the core builds and runs where CPython has no limited API, and perhaps no GIL.

A free-threaded interpreter has no limited API, and turns the GIL on when it imports a module that
does not say that it can do without; the core relies on that. Few machines have such an
interpreter, so the core is also built here as for one, for the interpreter that runs the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.native.compiling import PROTOCOL, path_of
from tests.native.sanitized import REPOSITORY, TESTED
from tests.processes import environment

CORE_TESTS = REPOSITORY / "tests" / "protocol" / "test_core.py"
NAMES = ("python3.14t", "python3.13t")
SECONDS = 100

# Runs setup.py as an interpreter without a GIL would.
BUILD = """
import runpy, sys, sysconfig
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[2]]
runpy.run_path("setup.py", run_name="__main__")
"""

INCLUDE = "import sysconfig; print(sysconfig.get_path('include'))"

# Imports the core that it is told; says whether there was a GIL before, is one now, and what was
# warned of.
IMPORT = """
import sys, warnings
from importlib.util import module_from_spec, spec_from_file_location
before = sys._is_gil_enabled()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    spec = spec_from_file_location("shmbatch.protocol._core", sys.argv[1])
    core = module_from_spec(spec)
    spec.loader.exec_module(core)
print(before, sys._is_gil_enabled(), [each.category.__name__ for each in caught])
"""

pytestmark = pytest.mark.slow  # the core is compiled, and its tests are run once more


def output(*command: str) -> str:
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def free_threaded() -> str:
    """Return an interpreter that can do without the GIL; skip where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no free-threaded interpreter, such as {NAMES[0]}")
    return found


@pytest.mark.timeout(3 * SECONDS)
def test_the_core_passes_its_tests_without_the_limited_api(tmp_path: Path) -> None:
    output(sys.executable, "-c", BUILD, str(tmp_path / "lib"), str(tmp_path / "temp"))
    (core,) = tmp_path.rglob("_core.*.so")
    assert "abi3" not in core.name
    quick = "not Lockstep and not without_the_gil"
    assert " passed" in output(
        sys.executable, "-c", TESTED, str(core), str(CORE_TESTS), "-k", quick
    )


@pytest.mark.timeout(3 * SECONDS)
def test_a_free_threaded_interpreter_turns_the_gil_on(tmp_path: Path) -> None:
    python = free_threaded()
    include = output(python, "-c", INCLUDE).strip()
    core = tmp_path / "_core.so"
    sources = map(str, sorted(PROTOCOL.glob("*.c")))
    includes = (f"-I{include}", f"-I{np.get_include()}", f"-I{PROTOCOL}")
    flags = ("-std=gnu11", "-O2", "-shared", "-fPIC", *includes)
    output(path_of("gcc"), *flags, *sources, "-o", str(core))
    assert output(python, "-c", IMPORT, str(core)).strip() == "False True ['RuntimeWarning']"


@pytest.mark.timeout(3 * SECONDS)
def test_the_core_passes_its_tests_in_a_free_threaded_interpreter(tmp_path: Path) -> None:
    """Where that has what the tests need."""
    python = free_threaded()
    has_tools = "import hypothesis, numpy, pytest, setuptools"
    if subprocess.run([python, "-c", has_tools], capture_output=True).returncode != 0:
        pytest.skip(f"{python} lacks pytest, hypothesis, numpy or setuptools")
    setup = ("setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"))
    output(python, *setup, "--build-temp", str(tmp_path / "temp"))
    (core,) = tmp_path.rglob("_core.*.so")
    arguments = (str(core), str(CORE_TESTS), "-W", "ignore:The global interpreter lock")
    assert " passed" in output(python, "-c", TESTED, *arguments)
