"""Methods of classes over real executors: one object for all of them, and its life."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import classes
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.protocol import owners
from tests import processes
from tests.processes import PATIENCE_S, Gate, Program, Served
from tests.programs import Watched, ran, written

# For type checkers a class stays what it was, without its parameters.
Policy: Any = classes.Policy
Needing: Any = classes.Needing


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    """One executor for the tests that let it live."""
    with processes.served("classes.py", "classes") as executor:
        yield executor


def run_owners() -> list[owners.Owner]:
    """Who serves something under a run; not the executor that tests share."""
    return [owner for owner in owners.owners() if owner.app.startswith("run-")]


def served(pid: int, watched: ExitStack) -> Watched:
    return watched.enter_context(Watched(pid))


# ---- one object ----------------------------------------------------------------------------


def test_one_object_in_one_process_serves_all_methods(executor: Served) -> None:
    policy = Policy()
    pid, number, history = policy.told.remote()
    assert (pid, history[:3]) == (executor.pid, ["made with 0", "load", "warm"])
    assert policy.where.remote(0)[:2] == (pid, number)
    assert list(policy.act.map(range(50))) == list(range(50))
    assert list(policy.act_later.map(range(50))) == list(range(50))
    assert classes.double.remote(21) == 42


def test_connect_reaches_batched_and_plain_methods_by_address(executor: Served) -> None:
    assert executor.connect("Policy.act").remote(7) == 7
    assert executor.connect("Policy.refresh").remote(1, times=2) == "refreshedrefreshed"
    with pytest.raises(errors.UnknownFunction, match=r"has no function 'Policy.helper'"):
        executor.connect("Policy.helper")
    with pytest.raises(errors.UnknownFunction, match=r"has no function 'Needing.plus'"):
        executor.connect("Needing.plus")


def test_plain_methods_take_positions_names_and_defaults(executor: Served) -> None:
    for refresh in (Policy().refresh, executor.connect("Policy.refresh")):
        assert refresh.remote(1) == "refreshed"
        assert refresh.remote(1, "x", 3) == "xxx"
        assert refresh.remote(times=2, by=1, name="y") == "yy"
        assert refresh.spawn(1, times=2).get(PATIENCE_S) == "refreshedrefreshed"
        assert list(refresh.map([1, 2], ["a", "b"])) == ["a", "b"]
        assert list(refresh.starmap([(1,), (2, "b")])) == ["refreshed", "b"]
        assert asyncio.run(refresh.remote.aio(1, name="z")) == "z"
        with pytest.raises(errors.InputTypeError, match="missing 'by'; its signature is"):
            refresh.remote()
        with pytest.raises(errors.InputTypeError, match="takes 3 arguments, 4 were given"):
            refresh.remote(1, "x", 1, 1)
        with pytest.raises(errors.InputTypeError, match="parameter 'by'"):
            refresh.remote("1")


def test_what_a_plain_method_raises_is_its_callers(executor: Served) -> None:
    with pytest.raises(KeyError, match="3"):
        Policy().fails.remote(3)
    assert Policy().act.remote(1) == 1


def test_a_plain_method_without_parameters_is_called_many_times_at_once(executor: Served) -> None:
    calls = [Policy().told.spawn() for _ in range(200)]
    assert {tuple(call.get(PATIENCE_S)[:2]) for call in calls} == {
        tuple(Policy().told.remote()[:2])
    }


def test_a_plain_method_runs_between_the_batches_of_an_async_one(
    executor: Served, module_gate: Gate
) -> None:
    policy = Policy()
    first = policy.gated.spawn(1)
    assert module_gate.arrived() == [1]
    refresh = policy.refresh.spawn(5)
    seen(executor, "Policy.refresh")
    later = policy.noted.spawn(2)
    seen(executor, "Policy.noted")
    assert [classes.double.remote(x) for x in range(20)] == list(range(0, 40, 2))
    assert not refresh.done()
    assert not later.done()
    module_gate.open()
    assert (first.get(PATIENCE_S), refresh.get(PATIENCE_S)) == (1, "refreshed")
    assert later.get(PATIENCE_S) == 2
    assert policy.told.remote()[2][-4:] == [
        "gated [1]",
        "ungated [1]",
        "refresh 5 refreshed 1",
        "noted [2]",
    ]


def seen(executor: Served, function: str) -> None:
    """Wait until the executor has seen that a call of *function* waits."""
    processes.wait_until(lambda: executor.statistics(function)["calls_waiting"], function)


def test_without_a_run_an_instance_is_nobodys_to_start(executor: Served) -> None:
    told = r"^no executor serves 'classes-Policy-\w+'; start one with `shmbatch start FILE::Policy"
    with pytest.raises(errors.ExecutorNotFound, match=told):
        Policy(seed=3).act.remote(1)


def test_calling_its_own_executor_is_refused_in_a_class_too(executor: Served) -> None:
    with pytest.raises(errors.ConfigError, match="is called inside its own executor"):
        Policy().asks.remote(0)


# ---- its life ------------------------------------------------------------------------------


def test_a_drain_finishes_calls_and_then_exits(tmp_path: Path, gate: Gate) -> None:
    note = tmp_path / "exit"
    with processes.served("classes.py", "mortal", CLASSES_EXIT=str(note)) as executor:
        call = executor.connect("Policy.gated").spawn(1)
        assert gate.arrived() == [1]
        after = executor.connect("Policy.noted").spawn(2)
        executor.signal(signal.SIGTERM)
        assert after.get(PATIENCE_S) == 2
        assert not note.exists()
        gate.open()
        assert call.get(PATIENCE_S) == 1
        assert executor.wait() == 0
    assert note.read_text().splitlines()[-3:] == ["noted [2]", "ungated [1]", "close"]


@pytest.mark.no_transport
def test_a_signal_while_the_exit_hook_runs_does_not_disturb_it(tmp_path: Path, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        executor = Served("classes.py", "mortal", CLASSES_EXIT_GATED="1")
        stopping = pool.submit(shmbatch.stop, "mortal")
        assert gate.arrived() == ["exit"]
        executor.signal(signal.SIGTERM)  # the first one: it was asked to stop over its socket
        executor.signal(signal.SIGHUP)
        gate.open()
        assert executor.wait() == 0
        stopping.result(PATIENCE_S)
        executor.stop()


BROKEN = """
    import shmbatch

    app = shmbatch.App()

    @app.cls()
    class Model:
        bad: bool = shmbatch.parameter(default=True)

        @shmbatch.enter()
        def load(self) -> None:
            if self.bad:
                raise OSError("no weights")

        @shmbatch.method()
        def told(self) -> bool:
            return self.bad

    @app.local_entrypoint()
    def main() -> None:
        raise AssertionError("nothing has started")
"""


@pytest.mark.slow
@pytest.mark.no_transport
def test_an_enter_hook_that_raises_is_said_by_start_and_run(tmp_path: Path) -> None:
    file = written(tmp_path, "broken.py", BROKEN)
    message = "Model.load of Model(bad=True) raises OSError: no weights"
    for verb in (["start", file], ["start", f"{file}::Model"], ["run", file]):
        result = ran(*verb)
        assert (result.stdout, result.returncode) == ("", 1)
        assert result.stderr.endswith(f"error: {message}\n")
    with Program(f"import shmbatch.app.load as load, pathlib\n{RAISES}", file) as program:
        assert program.line() == message
        assert program.wait() == 0
    assert run_owners() == []


RAISES = """
import sys
app = load.find_app(load.load_file(pathlib.Path(sys.argv[1])))
try:
    with app.run():
        print("it runs", flush=True)
except load.LoadError as error:
    print(error, flush=True)
"""


# ---- instances with executors of their own -------------------------------------------------


def test_an_instance_is_started_on_first_use_and_gone_with_the_run(tmp_path: Path) -> None:
    before = processes.descriptors()
    with ExitStack() as watched:
        with classes.app.run() as running:
            assert {owner.pid for owner in run_owners()} == {running.pid}
            policy = Policy(seed=3)
            assert policy.act.remote(1) == 4
            pid, _, history = policy.told.remote()
            assert pid not in (running.pid, os.getpid())
            assert history == ["made with 3", "load", "warm"]
            assert list(policy.act.map(range(20))) == list(range(3, 23))
            assert Policy(name="é x=1", seed=3).told.remote()[0] not in (pid, running.pid)
            assert Policy().told.remote()[0] == running.pid
            assert Needing(seed=5).plus.remote(1) == 6
            found = [served(each.pid, watched) for each in run_owners() if each.pid]
            assert len(found) == 4
        assert all(each.gone(0) for each in found)
    assert processes.descriptors() == before, "not even a connection to what is gone is left"
    assert run_owners() == []


@pytest.mark.no_transport
def test_many_processes_and_threads_that_use_it_first_start_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")

    def child(pipe: Any) -> None:
        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(lambda _: Policy(seed=8).told.remote()[0], range(4)))
        pipe.send(set(told))

    with classes.app.run() as running:
        pipes, children = [], []
        for _ in range(8):
            here, there = context.Pipe()
            children.append(context.Process(target=child, args=(there,)))
            pipes.append(here)
            children[-1].start()
            there.close()
        pids = set[int]()
        for pipe in pipes:
            assert pipe.poll(PATIENCE_S)
            pids |= pipe.recv()
            pipe.close()
        for each in children:
            each.join(PATIENCE_S)
            each.close()
        (pid,) = pids
        assert pid != running.pid
        assert Policy(seed=8).told.remote()[0] == pid, "it outlives who has started it"
        with Watched(pid) as instance:
            running.__exit__(None, None, None)
            assert instance.gone()


UNPICKLES = """
import pickle, sys
instance = pickle.loads(bytes.fromhex(sys.stdin.readline()))
print(instance.act.remote(1), instance.told.remote()[0], flush=True)
sys.stdin.readline()
"""

IMPORTS = """
import classes
print(classes.Policy(seed=4).told.remote()[0], flush=True)
"""


@pytest.mark.no_transport
def test_a_pickled_instance_reaches_and_starts_it_where_nothing_else_is_known() -> None:
    with classes.app.run(), Program(UNPICKLES, SHMBATCH_NAMES="") as program:
        program.tell(pickle.dumps(Policy(seed=4)).hex())
        result, pid = program.line().split()
        assert result == "5"
        assert Policy(seed=4).told.remote()[0] == int(pid)
        with Program(IMPORTS) as child:  # it has the run's names from its environment
            assert child.line() == pid
        program.tell()
        assert program.wait() == 0
        assert Policy(seed=4).act.remote(1) == 5


@pytest.mark.no_transport
def test_a_handle_of_a_run_that_is_over_says_so() -> None:
    with classes.app.run():
        kept = pickle.dumps(Policy(seed=4))
    with pytest.raises(errors.ExecutorGone, match=r"^the run of 'classes' is over$"):
        pickle.loads(kept).act.remote(1)


def test_a_killed_instance_is_started_anew_and_who_uses_it_notices_nothing() -> None:
    with classes.app.run():
        policy = Policy(seed=5)
        pid = policy.told.remote()[0]
        waiting = policy.act.spawn(1)
        assert waiting.get(PATIENCE_S) == 6
        with Watched(pid) as instance:
            instance.kill()
            assert policy.noted.remote(1) == 1, "not even who has not used it before"
            assert instance.gone()
        assert policy.act.remote(1) == 6
        again = policy.where.remote(1)[0]
        assert again != pid
        with Watched(again) as instance:
            instance.kill()
            assert instance.gone()
    # The fixture of all tests looks whether the name of the second is left.


@pytest.mark.no_transport
@pytest.mark.slow
def test_an_instance_outlives_the_executor_of_its_run() -> None:
    with classes.app.run() as running:
        instance = Policy(seed=6).told.remote()[0]
        with Watched(running.pid) as executor, Watched(instance) as watched:
            executor.kill()
            assert executor.gone()
            processes.wait_until(lambda: running.pid, "the executor comes back")
            assert not watched.gone(0)
            assert Policy(seed=6).told.remote()[0] == instance


RUNS = """
import classes
with classes.app.run() as running:
    print(running._child.pid, classes.Policy(seed=3).told.remote()[0], flush=True)
    input()
"""


@pytest.mark.no_transport
@pytest.mark.parametrize("killed", ["run", "supervisor"])
def test_an_instance_does_not_outlive_a_run_that_was_killed(killed: str) -> None:
    with Program(RUNS) as program, ExitStack() as watched:
        supervisor, instance = (served(int(pid), watched) for pid in program.line().split())
        if killed == "run":
            program.kill()
        else:
            supervisor.kill()
        assert supervisor.gone()
        assert instance.gone()
        processes.wait_until(lambda: not run_owners(), "nobody has a name")
        if killed == "supervisor":
            program.tell()
            assert program.wait() == 0


@pytest.mark.no_transport
def test_executors_of_a_run_can_use_instances_as_its_producers_can() -> None:
    with classes.app.run() as running:
        assert Policy().asks.remote(9) == [10, Policy(seed=9).told.remote()[0]]
        result, pid = Policy(seed=9).asks.remote(0)
        assert (result, pid) == (1, running.pid)


@pytest.mark.no_transport
def test_an_instance_that_cannot_be_entered_says_so_to_who_uses_it_first(tmp_path: Path) -> None:
    file = written(tmp_path, "half.py", BROKEN.replace("default=True", "default=False"))
    program = f"import shmbatch.app.load as load, pathlib\n{RAISES}"
    use = program.replace('print("it runs"', "print(app.classes['Model'](bad=True).told.remote()")
    with Program(use, file) as running:
        assert running.line() == "Model.load of Model(bad=True) raises OSError: no weights"
        assert running.wait() == 0
    assert run_owners() == []


@pytest.mark.slow
@pytest.mark.no_transport
def test_handles_follow_their_app_into_a_run_and_out_of_it() -> None:
    policy = Policy(seed=3)
    name = policy.act.address.served_as()
    with processes.served("classes.py::Policy", name, "--param", "seed=3") as outside:
        assert policy.told.remote()[0] == outside.pid
        with classes.app.run():
            inside = policy.told.remote()[0]
            assert inside != outside.pid
            with classes.app.run():
                assert policy.told.remote()[0] not in (inside, outside.pid)
            assert policy.told.remote()[0] == inside
        assert policy.told.remote()[0] == outside.pid
