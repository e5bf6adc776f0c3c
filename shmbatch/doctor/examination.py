"""Which checks there are, in which order, and what each is told."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

from ..app.detaching import default_log
from ..contract.device import device_name
from ..errors import ConfigError
from ..executor.room import producers_within
from ..protocol import cpus, leftovers, memory, ownership
from ..protocol import directory as sockets
from ..protocol.cgroups import read
from ..protocol.spinning import wait_mode
from ..protocol.transport import transport_name
from . import machine, names, packages, resources, system
from .finding import Finding

_DESCRIPTORS_WANTED = 4096
_ROOM_LEFT = len("/.sock")


def examine(*, fix: bool) -> list[Finding]:
    """Look at everything; takes a second where an executor does not answer.

    Args:
        fix: remove what dead executors have left.
    """
    return [*_system(), *_resources(), *_packages(), *_names(fix)]


def _system() -> list[Finding]:
    limit, committed = machine.committed()
    folder = Path("/sys/devices/system/clocksource/clocksource0")
    pages = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return [
        system.kernel(
            os.uname().release, machine.missing_calls(), peer_pidfd=machine.has_peer_pidfd()
        ),
        system.core(machine.core_error()),
        system.clock(read(folder / "current_clocksource").strip()),
        system.huge_pages(read(pages)),
        system.overcommit(machine.number("vm/overcommit_memory", 0), limit, committed),
        system.queue(machine.number("net/core/somaxconn", _DESCRIPTORS_WANTED)),
    ]


def _resources() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (1 << 30 if each == resource.RLIM_INFINITY else each for each in (soft, hard))
    affinity = len(os.sched_getaffinity(0))
    online = os.cpu_count() or affinity
    try:
        transport = transport_name(None)
    except ConfigError:
        transport = "linux"  # of the setting we tell elsewhere
    total = memory.total_nbytes()
    return [
        resources.descriptors(soft, hard, producers_within(soft), _DESCRIPTORS_WANTED),
        resources.cpus(cpus.usable_cpus(), affinity, online),
        resources.memory(memory.available_nbytes(), total, memory.machine_nbytes()),
        resources.shm(transport, machine.room(machine.SHARED_MEMORY)),
    ]


def _packages() -> list[Finding]:
    installed = machine.installed()
    device = os.environ.get("SHMBATCH_DEVICE", "auto")
    return [
        packages.versions(platform.python_version(), installed),
        packages.gpu(installed.get("torch"), machine.driver(), device),
    ]


def _names(fix: bool) -> list[Finding]:
    directory = _directory()
    found = [_settings(), _logs(), directory]
    if directory.level == "problem":
        return found  # nobody can have served anything there
    left, removed = _left(), None
    if fix:
        before = left
        ownership.sweep()
        for pid in machine.shared_memory_of_the_dead():
            leftovers.remove(pid)
        still = _left()
        left = [each for each in before if each in still]  # not what is old enough only now
        removed = [each for each in before if each not in still]
    return [*found, names.left(left, removed), *names.executors(machine.living())]


def _left() -> list[str]:
    """Return what executors have left that were killed."""
    shared = machine.shared_memory_of_the_dead().values()
    return [
        *(f"name {each}" for each in machine.stale_names()),
        *(f"/dev/shm/{each}" for entries in shared for each in entries),
    ]


def _settings() -> Finding:
    try:
        chosen = f"transport {transport_name(None)}, waiting {wait_mode(None)}, device "
        return names.setting(None, chosen + device_name(None))
    except ConfigError as error:
        return names.setting(str(error), "")


def _logs() -> Finding:
    try:
        folder = default_log("name").parent
    except ConfigError as error:
        return names.logs("~/.local/state/shmbatch", str(error).partition(";")[0])
    there = machine.existing(folder)
    if not there.is_dir():
        return names.logs(str(folder), f"'{there}' is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        return names.logs(str(folder), f"'{there}' cannot be written to")
    return names.logs(str(folder), None)


def _directory() -> Finding:
    try:
        path = sockets.directory(create=False)
    except ConfigError as error:
        return names.directory("", str(error), filesystem="", free=0, writable=False, room=0)
    there = machine.existing(path)
    free, _ = machine.room(there) or (0, 0)
    return names.directory(
        str(path),
        None,
        filesystem=machine.filesystem(there),
        free=free,
        writable=there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        room=sockets.SOCKET_PATH_LIMIT - len(os.fsencode(path)) - _ROOM_LEFT,
    )
