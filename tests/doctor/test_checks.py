"""Each check, told what a machine could be like."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmbatch.doctor import machine, names, packages, resources, system
from shmbatch.doctor.examination import examine
from shmbatch.doctor.finding import Finding, nbytes
from shmbatch.doctor.names import Executor

MIB, GIB = 1 << 20, 1 << 30

# A check of a machine that has nothing wrong; for each below, one thing is different.
SOUND: dict[str, tuple[Callable[..., Finding], dict[str, Any]]] = {
    "kernel": (system.kernel, {"release": "6.8.0", "missing": [], "peer_pidfd": True}),
    "core": (system.core, {"error": None}),
    "clock": (system.clock, {"current": "tsc"}),
    "huge pages": (system.huge_pages, {"shmem_enabled": "always within_size [never] deny"}),
    "overcommit": (system.overcommit, {"mode": 0, "limit": GIB, "committed": 2 * GIB}),
    "queue": (system.queue, {"somaxconn": 4096}),
    "descriptors": (
        resources.descriptors,
        {"soft": 4096, "hard": 4096, "producers": 1728, "wanted": 4096},
    ),
    "cpus": (resources.cpus, {"usable": 8, "affinity": 8, "online": 8}),
    "memory": (
        resources.memory,
        {"available": 4 * GIB, "total": 8 * GIB, "machine": 8 * GIB},
    ),
    "shm": (resources.shm, {"transport": "posix", "room": (GIB, GIB)}),
    "gpu": (packages.gpu, {"torch": "2.13.0", "driver": "550.54", "device": "auto"}),
    "directory": (
        names.directory,
        {
            "path": "/run/user/1000/shmbatch",
            "error": None,
            "filesystem": "tmpfs",
            "free": GIB,
            "writable": True,
            "room": 78,
        },
    ),
    "left": (names.left, {"what": [], "removed": None}),
    "logs": (names.logs, {"path": "/home/me/.local/state/shmbatch", "error": None}),
    "setting": (names.setting, {"error": None, "chosen": "transport linux"}),
}


def found(check: str, **different: Any) -> Finding:
    function, told = SOUND[check]
    assert different.keys() <= told.keys()
    return function(**(told | different))


@pytest.mark.parametrize("check", SOUND)
def test_a_sound_machine_is_ok_and_needs_no_remedy(check: str) -> None:
    finding = found(check)
    assert (finding.level, finding.remedy) == ("ok", "")
    assert finding.found


@pytest.mark.parametrize(
    ("check", "different", "level", "says", "remedy"),
    [
        ("kernel", {"missing": ["pidfd_open (x)"]}, "problem", "no pidfd_open", "Linux 5.3"),
        ("kernel", {"peer_pidfd": False}, "warning", "6.8.0", "Linux 6.5"),
        ("core", {"error": "no such file"}, "problem", "no such file", "compiler"),
        ("clock", {"current": "hpet"}, "warning", "'hpet'", "clocksource"),
        ("huge pages", {"shmem_enabled": "[always] never"}, "warning", "2 MiB", "advise"),
        ("overcommit", {"mode": 2}, "warning", "0 KiB of 1.0 GiB", "vm.overcommit_memory=0"),
        ("queue", {"somaxconn": 16}, "warning", "is 16", "somaxconn=512"),
        ("descriptors", {"soft": 1024, "producers": 128}, "warning", "128 producers", "-n 4096"),
        ("descriptors", {"soft": 256, "producers": 48}, "problem", "48 producers", "-n 4096"),
        (
            "descriptors",
            {"soft": 256, "producers": 48, "hard": 256},
            "problem",
            "is 256",
            "hard limit raised, which is 256",
        ),
        ("cpus", {"usable": 1}, "warning", "quota of a cgroup leaves 1", "two CPUs"),
        ("cpus", {"usable": 1, "affinity": 1}, "warning", "mask leaves 1", "two CPUs"),
        ("memory", {"available": 10 * MIB}, "problem", "10.0 MiB of 8.0 GiB", "free some"),
        ("memory", {"available": 300 * MIB}, "warning", "300 MiB", "slots="),
        (
            "memory",
            {"available": MIB, "total": GIB},
            "problem",
            "its cgroup allows",
            "allow the cgroup more",
        ),
        ("shm", {"room": (MIB // 2, 64 * MIB)}, "problem", "512 KiB of 64.0", "--shm-size"),
        ("shm", {"room": (60 * MIB, 64 * MIB)}, "warning", "60.0 MiB of 64.0", "--shm-size"),
        ("shm", {"room": None}, "problem", "is not there", "transport linux"),
        ("gpu", {"torch": "2.13.0+cpu"}, "warning", "for the CPU alone", "for CUDA"),
        ("gpu", {"driver": None, "device": "cuda:0"}, "warning", "cuda:0", "SHMBATCH_DEVICE"),
        ("directory", {"error": "it is a link; remove it"}, "problem", "is a link", "remove it"),
        ("directory", {"writable": False}, "problem", "written to", "SHMBATCH_DIR"),
        ("directory", {"filesystem": "nfs4"}, "problem", "on nfs4", "SHMBATCH_DIR"),
        ("directory", {"free": 0}, "problem", "full tmpfs", "SHMBATCH_DIR"),
        ("directory", {"room": 0}, "problem", "too long", "shorter"),
        ("directory", {"room": 20}, "warning", "20 characters", "20 shorter"),
        ("left", {"what": ["name a", "b"]}, "warning", "name a, b", "fix"),
        ("left", {"what": ["name a"], "removed": ["b"]}, "warning", "be removed: name a", "owns"),
        ("logs", {"error": "no"}, "warning", "shmbatch': no", "--log FILE"),
        ("setting", {"error": "wait is 'x'; use y"}, "problem", "wait is 'x'", "use y"),
    ],
)
def test_what_is_wrong_is_said_with_a_number_and_a_remedy(
    check: str, different: dict[str, Any], level: str, says: str, remedy: str
) -> None:
    finding = found(check, **different)
    assert finding.level == level
    assert says in finding.found
    assert remedy in finding.remedy
    assert "\n" not in finding.found + finding.remedy


@pytest.mark.parametrize(
    ("check", "different"),
    [
        ("shm", {"transport": "linux", "room": (0, 64 * MIB)}),
        ("shm", {"transport": "linux", "room": None}),
        ("gpu", {"driver": None}),
        ("gpu", {"torch": None}),
        ("left", {"removed": ["name a"]}),
        ("left", {"removed": []}),
        ("huge pages", {"shmem_enabled": ""}),
        ("cpus", {"usable": 2, "affinity": 2}),
    ],
)
def test_what_does_not_matter_is_ok(check: str, different: dict[str, Any]) -> None:
    assert found(check, **different).level == "ok"


def test_of_much_that_is_left_some_is_shown() -> None:
    finding = found("left", what=[f"name name-{n}" for n in range(9)])
    assert finding.found.endswith("name name-4 and 4 more")


def test_every_executor_is_told_of() -> None:
    assert [each.found for each in names.executors([])] == ["none"]
    well = Executor("well", 1, "serving")
    findings = names.executors(
        [
            well,
            well._replace(name="deaf", error="gives no answer"),
            well._replace(name="old", error="speaks 3.1", other_version=True),
        ]
    )
    assert [each.level for each in findings] == ["ok", "warning", "problem"]
    assert "shmbatch stop deaf --now" in findings[1].remedy
    assert "shmbatch stop old" in findings[2].remedy


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0 KiB"),
        (MIB - 1, "1023 KiB"),
        (MIB, "1.0 MiB"),
        (150 * MIB, "150 MiB"),
        (GIB, "1.0 GiB"),
        (1000 * GIB, "1000 GiB"),
    ],
)
def test_memory_is_told_in_a_unit_that_fits(amount: int, shown: str) -> None:
    assert nbytes(amount) == shown


# ---- what is read ----------------------------------------------------------------------------


def test_this_machine_can_run_the_tests() -> None:
    assert machine.missing_calls() == []
    assert machine.core_error() is None
    assert {"shmbatch", "numpy", "posix-ipc"} <= machine.installed().keys()
    findings = {each.subject: each for each in examine(fix=False)}
    assert len(findings) == 17
    assert findings["native core"].level == "ok"
    assert findings["directory of sockets"].level == "ok"


def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(machine, "_MOUNTS", mounts)
    inside = tmp_path / "with späce"
    inside.mkdir()
    escaped = str(inside).replace(" ", "\\040")
    mounts.write_text(
        "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"23 22 0:21 / {escaped} rw - nfs4 server:/x rw\n"
        f"24 22 0:22 / {tmp_path}/other rw - tmpfs tmpfs rw\n"
    )
    assert machine.filesystem(inside) == "nfs4"
    assert machine.filesystem(inside / "below") == "nfs4"
    assert machine.filesystem(tmp_path) == "ext4"


def test_what_is_not_there_yet_is_judged_by_what_is_above_it(tmp_path: Path) -> None:
    assert machine.existing(tmp_path / "a" / "b") == tmp_path
    assert machine.existing(Path("/")) == Path("/")


def test_only_the_dead_have_left_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    dead = 2**22 + 1  # more than any pid may be
    for name in (f"shmbatch-{dead}-ab12", f"sem.shmbatch-{dead}-ab12_0", "shmbatch-1-ab12"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "psm_other").touch()
    (tmp_path / f"shmbatch-{dead}-young").touch()  # a handshake of another namespace, perhaps
    assert machine.shared_memory_of_the_dead() == {
        str(dead): [f"sem.shmbatch-{dead}-ab12_0", f"shmbatch-{dead}-ab12"]
    }


def test_a_driver_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    assert machine.driver() is None
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build",
    ):
        (tmp_path / "version").write_text(line)
        assert machine.driver() == "550.54.15"


def test_a_kernel_without_peers_pidfds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SO_PEERPIDFD", 9999)
    assert not machine.has_peer_pidfd()
