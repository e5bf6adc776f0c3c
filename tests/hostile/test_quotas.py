"""How many producers an executor lets in, and how much memory it gives them."""

from __future__ import annotations

import mmap
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.cli.admission import Admission, Nbytes
from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.executor import room as module
from shmbatch.executor.room import Quotas, Room
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.devices import Cpu
from tests import processes, programs, rings
from tests.executor.talking import NAME, Executor, Raw, serving, shut
from tests.processes import Program


@pytest.fixture
def executor(transport: str, caplog: pytest.LogCaptureFixture) -> Iterator[Executor]:
    with serving() as executor:
        yield executor
    for when in ("setup", "call"):
        caplog.get_records(when).clear()


def told(executor: Executor) -> dict[str, int]:
    admission: dict[str, int] = shmbatch.statistics(NAME)["admission"]
    return admission


def refused(executor: Executor) -> str:
    with pytest.raises(errors.HandshakeError) as caught:
        shmbatch.connect(f"{NAME}.add", timeout=0)
    return str(caught.value)


# ---- over real connections ---------------------------------------------------------------------


def test_one_producer_too_many_hears_the_limit_and_comes_when_one_has_left(
    executor: Executor,
) -> None:
    executor.control._room = Room(Quotas(producers=2), NAME)
    with Raw() as first, Raw() as second:
        for raw in (first, second):
            shut(raw.attach()[1])
        assert refused(executor) == (
            "the executor of 'control' has 2 producers and lets in 2; "
            "have some leave, or start it with a larger --max-producers"
        )
        assert told(executor)["producers"] == 2
        assert told(executor)["refused"] == 1
        assert first.producers() == 2  # they are as they were
    processes.wait_until(lambda: told(executor)["producers"] == 0, "they have left")
    executor.serves()
    assert (told(executor)["producers"], told(executor)["producers_max"]) == (1, 2)


def test_a_segment_too_many_is_refused_with_the_numbers(executor: Executor) -> None:
    nbytes = executor.function.layout.nbytes
    executor.control._room = Room(Quotas(nbytes=2 * nbytes + 1), NAME)
    with Raw() as first, Raw() as second:
        for raw in (first, second):
            shut(raw.attach()[1])
        assert told(executor)["nbytes"] == 2 * nbytes
        assert refused(executor) == (
            f"the executor of 'control' has given {2 * nbytes} bytes to 2 producers and gives "
            f"{2 * nbytes + 1}; one more of 'control.add' takes {nbytes}: give the function fewer "
            f"slots with slots=, or start it with a larger --max-memory"
        )
    processes.wait_until(lambda: told(executor)["nbytes"] == 0, "their memory is free")
    executor.serves()


def test_who_says_nothing_makes_room_when_many_come(executor: Executor) -> None:
    executor.serves()
    executor.control._room.strangers_max = 3
    silent = [Raw() for _ in range(3)]
    latest = []
    for first in silent:
        latest.append(Raw())
        assert first.hear()[0]["message"] == "said nothing while many others came; connect again"
        first.is_hung_up_on()
    executor.serves()
    for raw in (*silent, *latest):
        raw.sock.close()


def test_who_is_about_to_take_its_welcome_is_no_stranger_any_more(executor: Executor) -> None:
    executor.control._room.strangers_max = 3
    welcomed = []
    for _ in range(5):
        welcomed.append(Raw())
        shut(welcomed[-1].attach()[1])
    executor.serves()
    with Raw() as stranger:
        stranger.producers()
    assert all(raw.producers() >= 5 for raw in welcomed)  # they are answered, and all are there
    for raw in welcomed:
        raw.sock.close()


@pytest.mark.slow
def test_a_storm_of_forks_is_turned_away_and_others_are_served(
    transport: str, module_gate: processes.Gate
) -> None:
    storm = """
import os, shmbatch
shmbatch.connect("stormed.triple").remote(1)  # so that all is imported
children = []
for _ in range(30):
    child = os.fork()
    if not child:
        try:
            os._exit(shmbatch.connect("stormed.double", timeout=5).remote(2) != 4)
        except shmbatch.errors.HandshakeError as error:
            os._exit(7 if "--max-producers" in str(error) else 8)
        except BaseException:
            os._exit(9)
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(statuses.count(0), statuses.count(7), len(statuses), flush=True)
"""
    options = ("--max-producers", "4", "--max-memory", "1G")
    with processes.served("crash.py", "stormed", *options) as executor:
        double = executor.connect("double")
        assert double.remote(1) == 2
        with Program(storm) as program:
            done, turned_away, all_of_them = map(int, program.line().split())
        assert done + turned_away == all_of_them
        assert done > 0
        assert double.remote(3) == 6
        processes.wait_until(
            lambda: shmbatch.statistics("stormed")["admission"]["producers"] == 1, "they are gone"
        )
        admission = shmbatch.statistics("stormed")["admission"]
        assert (admission["producers_max"], admission["nbytes_max"]) == (4, 1 << 30)
        assert admission["refused"] == turned_away


# ---- what is counted ---------------------------------------------------------------------------


def test_memory_counts_until_its_last_use_is_over_and_a_producer_until_it_is_closed() -> None:
    room = Room(Quotas(), "sums")
    memory = mmap.mmap(-1, 4096)
    in_a_batch = memoryview(memory)
    room.taken("producer", memory, 4096)
    assert (room.producers, room.nbytes) == (1, 4096)
    del memory
    room.left("producer")
    room.left("producer")
    assert (room.producers, room.nbytes) == (0, 4096)
    del in_a_batch
    assert room.nbytes == 0


def test_more_producers_than_there_are_descriptors_for_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    assert Room(Quotas(), "sums").producers_max == 384
    assert Room(Quotas(producers=384), "sums").producers_max == 384
    with pytest.raises(errors.ConfigError, match=r"385 needs 1026 .* may open 1024; raise `ul"):
        Room(Quotas(producers=385), "sums")


def test_no_producer_waits_while_the_table_of_descriptors_grows() -> None:
    with processes.served("crash.py", "wide", "--max-producers", "300") as executor:
        status = Path(f"/proc/{executor.pid}/status").read_text()
    (size,) = re.findall(r"FDSize:\s+(\d+)", status)
    assert int(size) >= 2 * 300


def served(slots: int | None, nbytes: int | None) -> ServedFunction:
    definition = Definition("add", max, rings.ADD, BatchParameters(4, 0), slots)
    return ServedFunction(definition, "sums.add", Cpu(), None, 1 << 17, producer_nbytes=nbytes)


def test_a_producer_gets_as_many_slots_as_fit() -> None:
    whole = served(None, None)
    for nbytes in (whole.layout.nbytes, 100_000, 20_000, served(1, None).layout.nbytes):
        fitted = served(None, nbytes)
        assert fitted.layout.nbytes <= nbytes
        assert 1 <= fitted.capacity <= whole.capacity
    assert served(None, whole.layout.nbytes).capacity == whole.capacity


@pytest.mark.parametrize(("slots", "nbytes"), [(None, 1000), (64, 20_000)])
def test_a_function_of_which_no_segment_fits_is_refused(slots: int | None, nbytes: int) -> None:
    with pytest.raises(
        errors.ConfigError,
        match=r"^a producer of 'sums.add' takes \d+ bytes with \d+ slots, and --max-memory-per-p",
    ):
        served(slots, nbytes)


def test_half_of_what_there_is_is_the_limit_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "total_nbytes", lambda: 1_000_000)
    assert Room(Quotas(), "sums").nbytes_max == 500_000
    assert Room(Quotas(nbytes=700_000), "sums").nbytes_max == 700_000


# ---- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("7B", 7), ("512M", 512 << 20), ("2GiB", 2 << 30), ("4KB", 4096), ("1T", 1 << 40)],
)
def test_bytes_may_have_a_unit(text: str, nbytes: int) -> None:
    assert Nbytes().convert(text, None, None) == nbytes


@pytest.mark.parametrize(
    "text", ["", "0", "0M", "5iB", "-1", "1.5G", "M", "5 M", "\u0665M", "9" * 20]
)
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no number of bytes, such as 800000, 512M"):
        Nbytes().convert(text, None, None)


def test_what_was_said_is_passed_on_as_it_was() -> None:
    said = Admission(("7", "8"), ("9",), 3, 4096, None)
    assert said.arguments() == [
        *("--allow-uid", "7", "--allow-uid", "8", "--allow-gid", "9"),
        *("--max-producers", "3", "--max-memory-per-producer", "4096"),
    ]
    assert said.quotas() == Quotas(3, 4096, None)


@pytest.mark.no_transport
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--restart",)], ids=["alone", "supervised"])
def test_an_executor_in_the_background_has_what_was_said(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    file = programs.written(tmp_path, "limited.py", programs.SERVED)
    options = ("--max-producers", "3", "--max-memory", "1M", "--max-memory-per-producer", "40000")
    log = ("--log", str(tmp_path / "log"))
    result = programs.ran("start", file, "--detach", "--name", "limited", *log, *options, *more)
    assert (result.stderr, result.returncode) == ("", 0)
    counted = shmbatch.statistics("limited")
    assert counted["admission"]["producers_max"] == 3
    assert counted["admission"]["nbytes_max"] == 1 << 20
    assert all(each["segment_nbytes"] <= 40_000 for each in counted["functions"].values())
    shown = programs.ran("stats", "limited").stdout
    assert "producers: 0 of at most 3, with 0.0 KiB of at most 1.0 MiB\n" in shown
    assert programs.ran("stop", "limited").returncode == 0
