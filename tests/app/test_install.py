from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is needed to build the package, and nothing that was built before."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "shmbatch", tmp_path / "shmbatch", ignore=ignored)
    return tmp_path


def built(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel with what is installed here, without looking for anything elsewhere."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    return subprocess.run(
        [*command, "--wheel-dir", str(checkout / "wheels"), str(checkout)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=110,
    )


@pytest.mark.parametrize("compiler", ["/nonexistent", "/bin/false"])
def test_installing_without_a_compiler_says_so_in_one_line(checkout: Path, compiler: str) -> None:
    result = built(checkout, CC=compiler)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    said = [line.strip() for line in output.splitlines() if "C11 compiler" in line]
    assert len(said) == 1, output
    assert said[0].startswith(
        "shmbatch needs a C11 compiler and Python's headers to build its core "
        "(on Debian: apt-get install gcc libc6-dev python3-dev): "
    )
    assert "Traceback" not in output


@pytest.mark.slow
def test_one_wheel_serves_every_python_from_3_11_on(checkout: Path) -> None:
    result = built(checkout)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (checkout / "wheels").iterdir()
    assert wheel.name.startswith("shmbatch-")
    assert "-cp311-abi3-linux_" in wheel.name
