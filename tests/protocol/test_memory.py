"""The machine and every cgroup above a process limit how much memory it may take."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from shmbatch.protocol import cgroups, memory

Machine = Callable[..., None]

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend that 1000 of 4000 MiB are available, and the cgroup files are those given."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        f"MemTotal: {4000 << 10} kB\nMemFree: 0 kB\nMemAvailable: {1000 << 10} kB\n"
    )
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")

    def write(membership: str, files: dict[str, int | str] | None = None) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in (files or {}).items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


def mib() -> tuple[int, int]:
    return memory.total_nbytes() // MIB, memory.available_nbytes() // MIB


def version_2(group: str, limit: int | str, used: int, idle: int = 0) -> dict[str, int | str]:
    return {
        f"{group}/memory.max": limit,
        f"{group}/memory.current": used,
        f"{group}/memory.stat": f"anon 1\ninactive_file {idle}\nslab 7",
    }


def test_without_a_cgroup_the_machine_counts(machine: Machine) -> None:
    machine("")
    assert mib() == (4000, 1000)


def test_a_cgroup_leaves_what_is_not_in_use(machine: Machine) -> None:
    machine("0::/a\n", version_2("a", 300 * MIB, 100 * MIB))
    assert mib() == (300, 200)


def test_what_the_kernel_would_give_back_is_not_in_use(machine: Machine) -> None:
    machine("0::/a\n", version_2("a", 300 * MIB, 290 * MIB, idle=240 * MIB))
    assert mib() == (300, 250)


def test_the_group_that_has_the_least_left_counts(machine: Machine) -> None:
    own, parent = version_2("a/b", 900 * MIB, 0), version_2("a", 950 * MIB, 930 * MIB)
    machine("0::/a/b\n", own | parent)
    assert mib() == (900, 20)


def test_a_group_that_is_over_its_limit_leaves_nothing(machine: Machine) -> None:
    machine("0::/a\n", version_2("a", 300 * MIB, 310 * MIB))
    assert mib() == (300, 0)


@pytest.mark.parametrize("limit", ["max", "", "-", 2**63 - 4096])
def test_a_group_without_a_limit_does_not_count(machine: Machine, limit: int | str) -> None:
    machine("0::/a\n", version_2("a", limit, 100 * MIB))
    assert mib() == (4000, 1000)


def test_version_1_has_other_names_for_the_same(machine: Machine) -> None:
    machine(
        "4:memory:/a\n3:cpu:/b\n",
        {
            "memory/a/memory.limit_in_bytes": 300 * MIB,
            "memory/a/memory.usage_in_bytes": 200 * MIB,
            "memory/a/memory.stat": f"inactive_file 5\ntotal_inactive_file {50 * MIB}",
        },
    )
    assert mib() == (300, 150)


def test_nothing_is_read_twice_nor_what_a_group_without_a_limit_uses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever attaches waits for it, and the kernel may have to add up for ``memory.stat``."""
    machine(
        "0::/a\n4:memory:/b\n",
        {**version_2("a", 900 * MIB, 0), "memory/b/memory.limit_in_bytes": 2**63 - 4096},
    )
    files: list[str] = []
    read = cgroups.read

    def noted(path: Path) -> str:
        files.append("/".join(path.parts[-2:]))
        return read(path)

    monkeypatch.setattr(cgroups, "read", noted)
    memory.check_memory(1)
    assert len(files) == len(set(files))
    assert {"a/memory.stat", "b/memory.limit_in_bytes"} <= set(files)
    assert not {"b/memory.usage_in_bytes", "b/memory.stat"} & set(files)


def test_a_segment_that_does_not_fit_is_refused_before_it_is_made(machine: Machine) -> None:
    """So that an eighth is left for functions to run in."""
    machine("0::/a\n", version_2("a", 320 * MIB, 100 * MIB))
    memory.check_memory(180 * MIB)
    with pytest.raises(OSError, match="Cannot allocate memory") as refused:
        memory.check_memory(180 * MIB + 1)
    assert refused.value.errno == errno.ENOMEM


def test_of_a_large_machine_less_than_an_eighth_is_left(machine: Machine) -> None:
    machine("")
    memory.check_memory(744 * MIB)  # 256 MiB of 1000 that are available, of 4000
    with pytest.raises(OSError, match="Cannot allocate memory"):
        memory.check_memory(744 * MIB + 1)


def test_a_kernel_that_does_not_say_limits_nothing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    machine("")
    memory.check_memory(1 << 50)
