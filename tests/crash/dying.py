"""Forks processes that kill themselves at their n-th point; run in a process of its own.

Told what to do line by line on standard input, in JSON: ``role`` and ``arguments``, ``points`` of
which kind (`core`, those of faults.h; `lines`, the lines of our Python) and ``at`` which of them.
It answers with what became of the child when that is gone. The modules that a child needs are
loaded before, so a child costs milliseconds and thousands are affordable.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import shmbatch
from shmbatch.protocol import _core
from tests.crash import roles

PACKAGE = Path(shmbatch.__file__).parent
# What runs in a producer, or in an executor once its name is its own.
FOLDERS = tuple(
    f"{PACKAGE / name}{os.sep}"
    for name in ("protocol", "contract", "client", "executor", "supervisor", "app")
)

_PASSES = 2  # of one line that are points: a third is no different from the second
_SITE_NBYTES = 256
_SEEN = 24  # where the flags of sites begin in a page
_PR_SET_PDEATHSIG = 1


class _Site(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p),
        ("what", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("function", ctypes.c_char_p),
    ]


class Core:
    """The fault points of the core that this process has loaded, see faults.h."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_core.__file__)
        self._library = library
        library.fault_site_count.restype = ctypes.c_size_t
        library.fault_site_at.restype = ctypes.POINTER(_Site)
        library.fault_site_at.argtypes = [ctypes.c_size_t]
        library.fault_arm.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._sites = [self._site(i) for i in range(library.fault_site_count())]
        assert _SEEN + len(self._sites) <= mmap.PAGESIZE

    def _site(self, number: int) -> str:
        site = self._library.fault_site_at(number).contents
        where = f"{Path(site.file.decode()).name}:{site.line}"
        return f"{where} {site.function.decode()}, {site.what.decode()}"

    def sites(self) -> list[str]:
        return sorted(set(self._sites))

    def arm(self, at: int) -> None:
        self._library.fault_arm(self._address, at)

    def disarm(self) -> None:
        self._library.fault_disarm()

    def read(self) -> tuple[int, str | None]:
        """How many points were passed, and where the process was killed, since `reset`."""
        passed, site, after = struct.unpack_from("3Q", self._page)
        if site == 0:
            return passed, None
        return passed, f"{self._sites[site - 1]}{'' if after else ' not done'}"

    def seen(self) -> list[str]:
        """The sites that were passed since `reset`."""
        flags = self._page[_SEEN:]
        return sorted({site for site, flag in zip(self._sites, flags, strict=False) if flag})

    def reset(self) -> None:
        self._page[:] = bytes(mmap.PAGESIZE)


class Lines:
    """Every line of our Python is a point, passed just before it runs, the first times it does."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def sites(self) -> list[str]:
        return []

    def arm(self, at: int) -> None:
        numbers = itertools.count(1)
        passed: Counter[tuple[CodeType, int]] = Counter()
        page = self._page

        def line(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            where = (frame.f_code, frame.f_lineno)
            if event == "line" and passed[where] < _PASSES:
                passed[where] += 1
                number = next(numbers)
                # Of several processes, each with a count of its own, the one that got farthest.
                struct.pack_into("Q", page, 0, max(number, *struct.unpack_from("Q", page)))
                if number == at and not page[8]:  # in a fork, where another one was
                    file = frame.f_code.co_filename.removeprefix(f"{PACKAGE}{os.sep}")
                    text = f"{file}:{frame.f_lineno}".encode()[:_SITE_NBYTES]
                    page[8 : 8 + len(text)] = text
                    os.kill(os.getpid(), signal.SIGKILL)
            return line

        def call(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
            return line if frame.f_code.co_filename.startswith(FOLDERS) else None

        threading.settrace(call)
        sys.settrace(call)

    def disarm(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def read(self) -> tuple[int, str | None]:
        (passed,) = struct.unpack_from("Q", self._page)
        site = self._page[8 : 8 + _SITE_NBYTES].rstrip(b"\0").decode()
        return passed, site or None

    def seen(self) -> list[str]:
        return []

    def reset(self) -> None:
        self._page[: 8 + _SITE_NBYTES] = bytes(8 + _SITE_NBYTES)


def main() -> None:
    end_with_parent()
    points: dict[str, Core | Lines] = {"core": Core(), "lines": Lines()}
    roles.preload()
    gc.collect()
    gc.freeze()
    say({"sites": points["core"].sites()})
    for text in sys.stdin:
        order = json.loads(text)
        chosen = points[order["points"]]
        chosen.reset()
        ready_out, roles.ready_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ready_out)
            live(order, chosen)
        os.close(roles.ready_fd)
        with os.fdopen(ready_out, "rb") as pipe:
            report = pipe.readline()
        if report:
            os.write(1, report)
        else:  # as whoever has started an executor does that does not become ready
            os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        passed, site = chosen.read()
        ended = {"status": os.waitstatus_to_exitcode(status), "passed": passed, "site": site}
        say(ended | ({} if order["at"] else {"seen": chosen.seen()}))


def live(order: dict[str, Any], points: Core | Lines) -> None:
    """Be the child; never returns."""
    status = 1
    end_with_parent()
    try:
        role = getattr(roles, order["role"])
        if inspect.isgeneratorfunction(role):  # what comes before it yields is no point
            going = role(*order["arguments"])
            next(going)
            points.arm(order["at"])
            next(going, None)
        else:
            points.arm(order["at"])
            role(*order["arguments"])
        points.disarm()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        points.disarm()
        traceback.print_exc()
    finally:
        os._exit(status)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")
