"""How instructions are counted: a Python program under valgrind, cut in pieces by itself.

valgrind's callgrind executes every instruction of a process itself, and counts it: neither load
nor the processor's speed changes the count. It writes down and resets its counter whenever the
program calls ``os.getppid``, which nothing else does; so start-up, imports and warming up are
pieces of their own, and cancel. What the kernel does is not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 300.0  # a program under valgrind takes 50 times as long
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


def is_here() -> bool:
    return shutil.which("valgrind") is not None


def version() -> str:
    said = subprocess.run(
        ["valgrind", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    return said.stdout.strip().removeprefix("valgrind-")


def counting(counts: Path) -> list[str]:
    """Return the beginning of a command whose instructions are to be counted in that folder."""
    return [
        "valgrind",
        "--tool=callgrind",
        "--dump-before=getppid",
        f"--callgrind-out-file={counts / 'count'}",
        f"--log-file={counts / 'log'}",
    ]


def pieces(counts: Path) -> list[int]:
    """Return the instructions from each mark to the next, of all threads together.

    The last piece is the one that the program's end finished.
    """
    files = [
        (int(each.suffix[1:]), each)
        for each in counts.glob("count.*")
        if each.suffix[1:].isdecimal()
    ]
    counted = []
    rest = counts / "count"
    for file in [*[file for _, file in sorted(files)][1:], rest]:  # the first one is the start
        found = _TOTAL.search(file.read_text(errors="replace"))
        assert found is not None, f"{file} has no total"
        counted.append(int(found[1]))
    return counted


class Program:
    """A process, in a context manager that leaves none behind.

    Args:
        environment: what is added to this process's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        # Threads of a BLAS, and another order of dictionaries, would be noise.
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._environment = {**os.environ, **fixed, **environment}

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, *, beside: Program | None = None, told: bool = False) -> None:
        """Wait until the program is over.

        Args:
            beside: what has to run as long; if it ends before, there is no point in waiting.
            told: the program ends when told so, by a signal, which it is now.
        """
        if told:
            self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            if beside is not None and beside._process.poll() is not None:
                raise RuntimeError(beside._account())
            if time.monotonic() > deadline:
                raise TimeoutError(f"{' '.join(self._command)} has run for {PATIENCE_S:.0f} s")
            time.sleep(0.05)
        if self._process.returncode:
            raise RuntimeError(self._account())

    def _account(self) -> str:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        return f"{' '.join(self._command)} ended with {self._process.returncode}:\n{said}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._said.close()
