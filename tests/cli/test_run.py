from __future__ import annotations

import signal
from pathlib import Path
from types import ModuleType

import pytest

from shmbatch.cli import run, start
from shmbatch.protocol import owners
from shmbatch.protocol.transport import TRANSPORTS
from tests.programs import FIRST_PROGRAM, SERVED, Watched, line, ran, started, written

PRINT_PID = """
    @app.local_entrypoint()
    def main():
        print(pid.remote(0), flush=True)
"""


def test_the_first_program_of_the_guide_prints_its_sums_in_order(tmp_path: Path) -> None:
    result = ran("run", written(tmp_path, "sums.py", FIRST_PROGRAM))
    assert result.stdout == "Sum: 301\nSum: 202\nSum: 103\n"
    assert result.stderr == ""
    assert result.returncode == 0


def test_the_first_program_takes_exactly_two_executions_of_sizes_2_and_1(tmp_path: Path) -> None:
    recording = f"""
    import pathlib

    sizes = pathlib.Path({str(tmp_path / "sizes")!r})
    plain_zip = zip

    def zip(xs, ys):  # called once an execution
        with sizes.open("a") as file:
            file.write(f"{{xs}} {{ys}}\\n")
        return plain_zip(xs, ys)
    """
    file = written(tmp_path, "sums.py", recording, FIRST_PROGRAM)
    with file.open("a") as program:  # goes on where the entrypoint ends
        program.write("    print(modal.statistics('sums')['functions']['batch_add'])\n")
    result = ran("run", file)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sizes").read_text() == "[1, 2] [300, 200]\n[3] [100]\n"
    *sums, counted = result.stdout.splitlines()
    assert sums == ["Sum: 301", "Sum: 202", "Sum: 103"]
    assert "'batch_sizes': {'1': 1, '2': 1}" in counted
    assert "'calls_done': 3, 'calls_failed': 0" in counted


def test_a_sync_entrypoint_runs_and_writes_all_of_standard_output(tmp_path: Path) -> None:
    main = """
    @app.local_entrypoint()
    def main():
        print(list(double.map(range(5))))
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main))
    assert (result.stdout, result.stderr, result.returncode) == ("[0, 2, 4, 6, 8]\n", "", 0)


def test_the_file_is_imported_once_here_and_once_in_the_executor(tmp_path: Path) -> None:
    note = f"""
    with open({str(tmp_path / "imports")!r}, "a") as file:
        print(__name__, file=file)
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, PRINT_PID, note))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "imports").read_text() == "served\nserved\n"


def test_children_that_import_the_file_reach_the_same_private_executor(tmp_path: Path) -> None:
    main = """
    import multiprocessing

    def child(pipe):
        pipe.send((pid.remote(0), double.remote(21)))

    @app.local_entrypoint()
    def main():
        ours = pid.remote(0)
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            here, there = context.Pipe()
            process = context.Process(target=child, args=(there,))
            process.start()
            theirs, answer = here.recv()
            process.join()
            print(method, theirs == ours, answer)
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main))
    assert (result.stdout, result.stderr) == ("fork True 42\nspawn True 42\n", "")


@pytest.mark.slow
def test_parameters_of_an_entrypoint_are_options_of_the_command(tmp_path: Path) -> None:
    main = """
    @app.local_entrypoint()
    def main(n_steps: int, wait: str = "", loud: bool = False):
        \"\"\"Train for a while.\"\"\"
        print([double.remote(x) for x in range(n_steps)], wait, loud)
    """
    file = written(tmp_path, "served.py", SERVED, main)
    result = ran("run", file, "--n-steps", "3", "--loud")
    assert (result.stdout, result.stderr) == ("[0, 2, 4]  True\n", "")
    # Our own options are ours, on either side; behind `--` all are the entrypoint's.
    result = ran("run", "--wait", "park", f"{file}::main", "--n-steps=1", "--", "--wait", "x")
    assert (result.stdout, result.stderr) == ("[0] x False\n", "")
    result = ran("run", file, "--", "--help")
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.startswith(f"Usage: shmbatch run {file} -- ")
    assert "Train for a while." in result.stdout
    assert "--n-steps INTEGER" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "3"], "No such option '--n'"),
        (["--n-steps", "3", "b.py"], "unexpected extra argument (b.py)"),
        (["--n-steps", "three"], "'three' is not a valid integer"),
        ([], "Missing option '--n-steps'"),
    ],
)
def test_an_option_that_the_entrypoint_does_not_have_is_status_2_and_starts_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    main = """
    @app.local_entrypoint()
    def main(n_steps: int):
        print("started")
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main), *arguments)
    assert (result.stdout, result.returncode) == ("", 2)
    assert message in result.stderr


@pytest.mark.slow
def test_several_entrypoints_are_told_apart_after_two_colons(tmp_path: Path) -> None:
    two = """
    @app.local_entrypoint()
    def first():
        print("first")

    @app.local_entrypoint()
    def second():
        print("second", double.remote(1))
    """
    file = written(tmp_path, "served.py", SERVED, two)
    assert ran("run", f"{file}::second").stdout == "second 2\n"
    refused = ran("run", file)
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: app 'served' has several entrypoints, 'first', 'second'; use FILE::NAME\n"
    )
    refused = ran("run", f"{file}::third")
    assert refused.stderr == (
        "error: app 'served' has no entrypoint 'third'; it has 'first', 'second'\n"
    )


@pytest.mark.slow
def test_several_apps_are_told_apart_by_name(tmp_path: Path) -> None:
    text = """
    import shmbatch

    one, two = shmbatch.App("one"), shmbatch.App("two")

    @one.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def up(xs: list[int]) -> list[int]:
        return [x + 1 for x in xs]

    @two.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def down(xs: list[int]) -> list[int]:
        return [x - 1 for x in xs]

    @two.local_entrypoint()
    def main():
        with one.run():
            print(up.remote(1), down.remote(1))
    """
    file = written(tmp_path, "both.py", text)
    assert ran("run", file, "--app", "two").stdout == "2 0\n"
    refused = ran("run", file)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"error: '{file}' has several apps, 'one', 'two'; choose one with --app\n"
    )
    refused = ran("run", file, "--app", "three")
    assert refused.stderr == f"error: '{file}' has no app 'three'; it has 'one', 'two'\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.py", "x = 1\ny = [\n", "SyntaxError: '[' was never closed (broken.py, line 2)"),
        ("raises.py", "\n1 / 0\n", "ZeroDivisionError: division by zero (line 2)"),
        ("needs.py", "import no_such_module\n", "ModuleNotFoundError: No module named 'no_"),
        ("leaves.py", "raise SystemExit(3)\n", "SystemExit: 3 (line 1)"),
        ("sums.py", "x = 1\n", "has no app; add `app = shmbatch.App()`"),
        ("two words.py", "x = 1\n", "'two words.py' cannot be imported; name it like a module"),
        ("sums.txt", "x = 1\n", "'sums.txt' cannot be imported; name it like a module"),
        ("enum.py", "x = 1\n", "has the name of module 'enum', in use already; rename it"),
        ("wave.py", "x = 1\n", "has the name of Python's own module 'wave'; rename it"),
    ],
)
def test_a_file_that_does_not_load_is_one_line_and_status_1(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    result = ran("run", written(tmp_path, name, text))
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert (result.stdout, result.returncode) == ("", 1)


def test_a_missing_file_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = ran("run", tmp_path / "none.py")
    assert result.stderr == f"error: there is no file '{tmp_path / 'none.py'}'\n"
    assert result.returncode == 1


def test_a_function_that_is_not_batched_is_refused_with_the_remedy(tmp_path: Path) -> None:
    text = """
    import shmbatch

    app = shmbatch.App()

    @app.function()
    def plain(xs: list[int]) -> list[int]:
        return xs
    """
    result = ran("run", written(tmp_path, "plain.py", text))
    assert "'plain' is not batched; put @shmbatch.batched(max_batch_size=..., wait_ms=...)" in (
        result.stderr
    )
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app = shmbatch.App()", "app 'served' has no entrypoint; decorate one with @app.local_"),
        (
            "app = shmbatch.App()\n\n@app.local_entrypoint()\ndef main(): pass",
            "app 'served' has no functions; add one with @app.function()",
        ),
    ],
)
def test_an_app_without_entrypoint_or_functions_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    result = ran("run", written(tmp_path, "served.py", "import shmbatch", text))
    assert message in result.stderr
    assert result.returncode == 1


def test_what_fails_in_the_executor_alone_is_said_once(tmp_path: Path) -> None:
    trap = """
    import sys
    if "start" in sys.argv:  # so we are the executor
        raise RuntimeError("no model here")
    """
    result = ran("run", written(tmp_path, "served.py", trap, SERVED, PRINT_PID))
    assert result.stderr.count("no model here") == 1
    assert "does not import: RuntimeError: no model here" in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "a.py", "--transport", "carrier-pigeon"],
        ["run", "a.py", "--wait", "sleep"],
        ["run", "a.py", "--device", "tpu"],
        ["start", "a.py", "--device", "cuda:-1"],
        ["start"],
        ["stop"],
        ["stats"],
        ["ps", "served"],
        ["fly"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = ran(*arguments)
    assert (result.stdout, result.returncode) == ("", 2)
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("verb", [run, start])
def test_the_transports_to_choose_from_are_those_there_are(verb: ModuleType) -> None:
    (option,) = (each for each in verb.command.params if each.name == "transport")
    assert tuple(option.type.choices) == TRANSPORTS


@pytest.mark.no_transport
@pytest.mark.parametrize("verb", [["run"], ["start"], ["start", "--detach"]])
def test_a_transport_of_the_environment_that_there_is_not_is_one_line(
    tmp_path: Path, verb: list[str]
) -> None:
    file = written(tmp_path, "first.py", FIRST_PROGRAM)
    result = ran(*verb, file, SHMBATCH_TRANSPORT="carrier")
    assert result.stderr == (
        "error: SHMBATCH_TRANSPORT is 'carrier'; it must be one of linux, posix\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.no_transport
@pytest.mark.parametrize("verb", [["run"], ["start"], ["start", "--detach"]])
def test_a_device_of_the_environment_that_is_none_is_one_line(
    tmp_path: Path, verb: list[str]
) -> None:
    file = written(tmp_path, "first.py", FIRST_PROGRAM)
    result = ran(*verb, file, SHMBATCH_DEVICE="tpu")
    assert result.stderr == (
        "error: SHMBATCH_DEVICE is 'tpu'; use auto, cpu, cuda or cuda:N, as in cuda:0\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.no_transport
@pytest.mark.parametrize("verb", [["run"], ["start", "--detach"]])
def test_a_device_of_the_command_line_goes_to_the_executor(
    tmp_path: Path, logs: Path, verb: list[str]
) -> None:
    # The option wins over the environment, in this process and in the executor's.
    main = """
    import sys

    class Nowhere(Exception): ...

    if "start" in sys.argv:  # so we are the executor
        raise Nowhere(sys.argv[sys.argv.index("--device") + 1])
    """
    file = written(tmp_path, "served.py", main, SERVED, PRINT_PID)
    result = ran(*verb, file, "--device", "cuda:1", SHMBATCH_DEVICE="tpu")
    assert "does not import: Nowhere: cuda:1" in result.stderr
    assert result.returncode == 1


def test_a_device_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    result = ran("run", "a.py", "--device", "tpu")
    assert result.stderr.endswith(
        "Error: Invalid value for '--device': 'tpu' is not auto, cpu, cuda or cuda:N.\n"
    )


def test_help_and_version_are_status_0() -> None:
    verbs = ("run", "start", "stop", "ps", "stats")
    for verb in verbs:
        assert ran(verb, "--help").returncode == 0
    assert all(verb in ran("--help").stdout for verb in verbs)


@pytest.mark.no_transport
def test_help_loads_nothing_that_takes_long() -> None:
    code = """
import sys
from shmbatch.cli import main
sys.argv = ["shmbatch", *sys.argv[1:]]
try:
    main()
finally:
    slow = ("numpy", "shmbatch.protocol._core", "asyncio")
    print([name for name in slow if name in sys.modules])
"""
    for verb in ([], ["run"], ["start"], ["stop"], ["ps"], ["stats"]):
        assert ran("-c", code, *verb, "--help", python=True).stdout.endswith("\n[]\n")


@pytest.mark.parametrize(
    ("statement", "status"),
    [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no')", 1), ("1 / 0", 1)],
)
def test_an_entrypoint_chooses_the_exit_status(
    tmp_path: Path, statement: str, status: int
) -> None:
    main = f"""
    import sys

    @app.local_entrypoint()
    def main():
        print(pid.remote(0), flush=True)
        {statement}
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main))
    assert result.returncode == status, result.stderr


@pytest.mark.parametrize(
    "waiting",
    [
        "def main():\n    say()\n    threading.Event().wait()",
        "def main():\n    say()\n    never.remote(1)",
        "def main():\n    say()\n    list(never.map(range(3)))",
        "async def main():\n    say()\n    await never.remote.aio(1)",
        "async def main():\n    say()\n    [_ async for _ in never.map.aio(range(3))]",
    ],
    ids=["event", "remote", "map", "remote.aio", "map.aio"],
)
def test_ctrl_c_ends_quietly_and_leaves_nothing(tmp_path: Path, waiting: str) -> None:
    say = "import threading\n\ndef say():\n    print(pid.remote(0), flush=True)\n"
    entrypoint = "@app.local_entrypoint()\n" + waiting
    file = written(tmp_path, "served.py", SERVED, say, entrypoint)
    with started("run", file) as process, Watched(int(line(process))) as executor:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert executor.gone(0), "run must not end before its executor"
    assert output == ""
    assert errors.strip() == "Aborted!"
    assert process.returncode == 1


def test_a_killed_run_leaves_no_executor_behind(tmp_path: Path) -> None:
    main = """
    import threading

    @app.local_entrypoint()
    def main():
        waiting = never.spawn(1)
        print(pid.remote(0), flush=True)
        threading.Event().wait()
    """
    file = written(tmp_path, "served.py", SERVED, main)
    with (
        started("run", file) as process,
        Watched(int(line(process))) as executor,
        Watched(owners.owners()[0].keeper) as supervisor,
    ):
        process.kill()
        assert executor.gone()
        assert supervisor.gone()


def test_a_run_killed_while_its_executor_loads_leaves_none_behind(tmp_path: Path) -> None:
    slow = f"""
    import os, sys, pathlib, time
    if "start" in sys.argv:
        print(os.getpid(), flush=True)
        while not pathlib.Path({str(tmp_path / "go")!r}).exists():
            time.sleep(0.01)
    """
    file = written(tmp_path, "served.py", slow, SERVED, PRINT_PID)
    with (
        started("run", file) as process,
        Watched(int(line(process))) as executor,
        Watched(owners.owners()[0].keeper) as supervisor,
    ):
        process.kill()
        process.wait()
        (tmp_path / "go").touch()
        assert executor.gone()
        assert supervisor.gone()


def test_the_executor_runs_under_a_name_that_nobody_else_can_meet(tmp_path: Path) -> None:
    """Two runs of one file at once, and a public executor of it, do not disturb each other."""
    file = written(tmp_path, "served.py", SERVED, PRINT_PID)
    with started("start", file) as public:
        assert public.stderr is not None
        assert "serves double, never, pid" in public.stderr.readline()
        pids = {ran("run", file).stdout for _ in range(2)}
        assert len(pids) == 2
        assert f"{public.pid}\n" not in pids
        assert ran("stop", "served").returncode == 0
