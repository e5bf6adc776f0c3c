"""Affinity and cgroup quotas both limit how many CPUs may be kept busy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shmbatch.protocol import cgroups, cpus

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend that 8 CPUs are allowed and the cgroup files are those given."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")

    def write(membership: str, files: dict[str, str] | None = None) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in (files or {}).items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def version_1(group: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    folder = f"cpu/{group}"
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


def test_this_machine_has_between_one_and_all_the_cpus_of_the_mask() -> None:
    assert 1 <= cpus.usable_cpus() <= len(os.sched_getaffinity(0))


def test_the_affinity_mask_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})

    assert cpus.usable_cpus() == 2


def test_without_cgroup_files_only_the_mask_counts(machine: Machine) -> None:
    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize(
    ("cpu_max", "usable"),
    [
        ("max 100000\n", 8),
        ("300000 100000\n", 3),
        ("150000 100000\n", 2),
        ("100001 100000\n", 2),
        ("100000 100000\n", 1),
        ("20000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("50000 25000\n", 2),
    ],
)
def test_a_quota_limits_and_is_rounded_up(machine: Machine, cpu_max: str, usable: int) -> None:
    machine("0::/app\n", {"app/cpu.max": cpu_max})

    assert cpus.usable_cpus() == usable


def test_every_ancestor_limits(machine: Machine) -> None:
    machine("0::/a/b/c\n", {"a/cpu.max": "200000 100000", "a/b/c/cpu.max": "300000 100000"})

    assert cpus.usable_cpus() == 2


def test_the_own_cgroup_limits_more_than_its_ancestors(machine: Machine) -> None:
    machine("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "100000 100000"})

    assert cpus.usable_cpus() == 1


def test_other_cgroups_do_not_limit(machine: Machine) -> None:
    machine("0::/a\n", {"b/cpu.max": "100000 100000", "a/c/cpu.max": "100000 100000"})

    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("path", ["/", "/docker/f00", "/../../other", "/../cpu"])
def test_the_root_of_a_container_limits_whatever_the_host_calls_it(
    machine: Machine, path: str
) -> None:
    machine(f"0::{path}\n", {"cpu.max": "200000 100000"})

    assert cpus.usable_cpus() == 2


def test_a_path_that_leads_out_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    machine("0::/../outside\n", {"../outside/cpu.max": "100000 100000", "cpu.stat": ""})
    assert (tmp_path / "cgroup" / ".." / "outside" / "cpu.max").exists()

    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1_limits_too(machine: Machine, controllers: str) -> None:
    machine(
        f"9:name=systemd:/\n4:{controllers}:/docker/f00\n0::/\n",
        version_1("docker/f00", "250000\n"),
    )

    assert cpus.usable_cpus() == 3


def test_the_root_of_a_container_limits_in_version_1(machine: Machine) -> None:
    machine("4:cpu,cpuacct:/docker/f00\n", version_1("", "100000\n", "50000\n"))

    assert cpus.usable_cpus() == 2


@pytest.mark.parametrize("controllers", ["cpuset", "cpuacct", "name=cpu"])
def test_other_controllers_of_version_1_do_not_limit(machine: Machine, controllers: str) -> None:
    machine(f"4:{controllers}:/a\n", version_1("a", "100000\n"))

    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("quota", ["-1\n", "0\n", "", "many\n"])
def test_no_quota_in_version_1_is_no_limit(machine: Machine, quota: str) -> None:
    machine("4:cpu:/a\n", version_1("a", quota))

    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("cpu_max", ["", "0 100000", "100000 0", "-5 -5", "1 2 3", "a b", "max"])
def test_what_makes_no_sense_is_no_limit(machine: Machine, cpu_max: str) -> None:
    machine("0::/a\n", {"a/cpu.max": cpu_max})

    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("membership", ["", "nonsense", "0:", "::\n\n", ":cpu:"])
def test_a_strange_membership_is_survived(machine: Machine, membership: str) -> None:
    machine(membership)

    assert cpus.usable_cpus() == 8


def test_a_colon_in_the_name_of_a_cgroup_is_part_of_it(machine: Machine) -> None:
    machine("0::/a:b\n", {"a:b/cpu.max": "100000 100000"})

    assert cpus.usable_cpus() == 1


def test_files_that_cannot_be_read_are_no_limit(machine: Machine, tmp_path: Path) -> None:
    machine("0::/a\n")
    (tmp_path / "cgroup" / "a" / "cpu.max").mkdir(parents=True)
    (tmp_path / "cgroup" / "cpu.max").write_bytes(b"\xff\xfe")

    assert cpus.usable_cpus() == 8
