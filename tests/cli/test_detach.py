"""`shmbatch start --detach`: it serves when the command returns, or nothing of it is left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import shmbatch
from shmbatch.app.detaching import Log
from shmbatch.errors import ConfigError
from shmbatch.protocol import owners
from shmbatch.protocol.transport import TRANSPORTS
from tests import processes
from tests.programs import (
    DEAF,
    HANGING,
    SERVED,
    SLOW,
    Watched,
    environment,
    processes_of,
    ran,
    started,
    written,
)

pytestmark = pytest.mark.no_transport  # but where one is asked for


def pid_of(app: str) -> int:
    owner = owners.owner(app)
    assert owner is not None
    assert owner.pid is not None
    return owner.pid


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat that follow the command's name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@pytest.mark.parametrize("transport", TRANSPORTS, indirect=True, scope="module")
def test_it_serves_when_the_command_returns_and_says_where_it_is(
    tmp_path: Path, logs: Path, transport: str
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    result = ran("start", file, "--detach", "--transport", transport)
    pid = pid_of("served")
    assert result.stdout == f"served is served by process {pid}, log {logs / 'served.log'}\n"
    assert (result.stderr, result.returncode) == ("", 0)
    with Watched(pid) as executor:
        assert shmbatch.connect("served.pid", timeout=0).remote(0) == pid
        assert shmbatch.statistics("served")["transport"] == transport
        assert ran("stop", "served").returncode == 0
        assert executor.gone(0)
    text = (logs / "served.log").read_text()
    assert "served serves double, never, pid" in text
    assert "served has stopped" in text


def test_it_has_nothing_of_whoever_started_it(tmp_path: Path, logs: Path) -> None:
    """Neither terminal nor session nor parent nor descriptors, and it is no session's leader."""
    file = written(tmp_path, "served.py", SERVED)
    out, into = os.pipe()
    os.set_inheritable(into, True)
    with started("start", file, "--detach", pass_fds=(into,)) as command:
        _, errors = command.communicate(timeout=60)  # it holds none of these ends
        assert command.returncode == 0, errors
    os.close(into)
    assert os.read(out, 1) == b""
    os.close(out)
    pid = pid_of("served")
    _, parent, group, session, terminal, *_ = stat_of(pid)
    assert int(parent) not in (os.getpid(), command.pid)
    assert group == session
    assert int(session) not in (pid, command.pid, os.getsid(0))
    assert int(terminal) == 0
    log = str(logs / "served.log")
    links = {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert [links[fd] for fd in "012"] == [os.devnull, log, log]
    assert not any(target.startswith("/dev/pts") for target in links.values())
    shmbatch.stop("served")


def test_its_log_is_its_owners_alone_and_is_appended_to(tmp_path: Path, logs: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    for _ in range(2):
        assert ran("start", file, "--detach").returncode == 0
        shmbatch.stop("served")
    log = logs / "served.log"
    assert log.read_text().count("served serves") == 2
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def renamed(text: str) -> str:
    return text.replace("shmbatch.App()", 'shmbatch.App("other")')


def test_its_log_has_the_name_that_it_is_served_under(tmp_path: Path, logs: Path) -> None:
    """Also where only the file knows that; what was said before it was known goes along."""
    file = written(tmp_path, "served.py", "print('loads', flush=True)", renamed(SERVED))
    for starts in (1, 2):
        result = ran("start", file, "--detach")
        pid = pid_of("other")
        log = logs / "other.log"
        assert result.stdout == f"other is served by process {pid}, log {log}\n", result.stderr
        links = [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (1, 2)]
        assert links == [str(log), str(log)]
        shmbatch.stop("other")
        assert [each.name for each in logs.iterdir()] == ["other.log"]
        text = log.read_text()
        assert text.count("loads") == text.count("other serves double") == starts
        assert text.index("loads") < text.index("other serves")


def test_what_is_wrong_once_its_name_is_known_is_in_the_log_of_that_name(
    tmp_path: Path, logs: Path
) -> None:
    text = "import shmbatch\nprint('loads', flush=True)\napp = shmbatch.App('other')"
    file = written(tmp_path, "served.py", text)
    result = ran("start", file, "--detach")
    first, last = result.stderr.splitlines()
    assert (first, result.returncode) == ("loads", 1)
    assert last.startswith("error: app 'other' has no functions")
    assert [each.name for each in logs.iterdir()] == ["other.log"]
    assert "ERROR shmbatch.executor app 'other' has no" in (logs / "other.log").read_text()


def test_paths_are_taken_from_the_working_directory_which_it_keeps(tmp_path: Path) -> None:
    where = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def here(xs: list[int]) -> list[bool]:
        return [os.path.exists("served.py")]
    """
    written(tmp_path, "served.py", SERVED, where)
    options = ("--detach", "--log", "its.log", "--name", "other")
    result = ran("start", "served.py", *options, cwd=tmp_path)
    assert result.stdout.endswith(f", log {tmp_path / 'its.log'}\n"), result.stderr
    assert shmbatch.connect("other.here").remote(0) is True
    shmbatch.stop("other")
    assert "other serves" in (tmp_path / "its.log").read_text()


def test_what_is_about_its_starter_does_not_reach_it(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def known(xs: list[int]) -> list[bool]:
        return [bool({"SHMBATCH_NAMES", "NOTIFY_SOCKET", "WATCHDOG_PID"} & set(os.environ))]
    """
    file = written(tmp_path, "served.py", SERVED, asked)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "/nowhere")
    assert ran("start", file, "--detach", SHMBATCH_NAMES="x=run-1").returncode == 0
    assert shmbatch.connect("served.known").remote(0) is False
    shmbatch.stop("served")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import shmbatch\n1 / 0", "does not import: ZeroDivisionError: division by zero (line 2"),
        ("raise SystemExit(3)", "does not import: SystemExit: 3 (line 1)"),
        ("import shmbatch\napp = shmbatch.App()", "app 'served' has no functions; add one"),
        ("import os\nprint('so long', flush=True)\nos._exit(3)", "which ends with 'so long'"),
        ("import os\nos._exit(3)", "', where it wrote nothing"),
    ],
)
def test_what_does_not_load_is_said_and_nothing_of_it_is_left(
    tmp_path: Path, logs: Path, sockets: Path, text: str, message: str
) -> None:
    file = written(tmp_path, "served.py", text)
    result = ran("start", file, "--detach")
    assert (result.stdout, result.returncode) == ("", 1)
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


def test_the_end_of_the_log_of_this_start_and_of_no_other_comes_with_the_reason(
    tmp_path: Path, logs: Path
) -> None:
    file = written(tmp_path, "served.py", "print(*range(40), sep='\\n', flush=True)\n1 / 0")
    for _ in range(2):
        result = ran("start", file, "--detach")
        lines = result.stderr.splitlines()
        assert len(lines) == 21
        assert lines[:20] == [str(number) for number in range(20, 40)]
        assert "ZeroDivisionError" in lines[-1]


@pytest.mark.slow
def test_a_child_of_one_that_died_while_it_started_does_not_hide_that(
    tmp_path: Path, logs: Path
) -> None:
    """It has the pipe to the starter open, and belongs to what must not be left."""
    text = f"""
    import os, pathlib, signal
    child = os.fork()
    if not child:
        while True:
            signal.pause()
    pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child))
    os._exit(3)
    """
    file = written(tmp_path, "served.py", text)
    result = ran("start", file, "--detach", "--name", "given")
    assert "error: the executor of 'given' died while it started; see its log" in result.stderr
    child = int((tmp_path / "child").read_text())
    processes.wait_until(lambda: not Path(f"/proc/{child}").exists(), "its child has ended")


@pytest.mark.parametrize(
    "text", [HANGING, pytest.param(DEAF, marks=pytest.mark.slow)], ids=["hears", "deaf"]
)
def test_one_that_takes_too_long_is_stopped(
    tmp_path: Path, logs: Path, sockets: Path, text: str
) -> None:
    file = written(tmp_path, "served.py", text)
    result = ran("start", file, "--detach", "--name", "given", "--timeout", "1.5")
    assert result.stderr == (
        f"error: '{file}' was not loaded within 1.5 seconds and its executor was stopped; "
        f"if it needs longer, give it more with --timeout\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_while_it_loads_stop_what_was_started(
    tmp_path: Path, logs: Path, sockets: Path, number: int
) -> None:
    file = written(tmp_path, "served.py", HANGING)
    with started("start", file, "--detach", "--name", "given") as command:
        processes.wait_until((tmp_path / "importing").exists, "the file is being imported")
        command.send_signal(number)
        output, errors = command.communicate(timeout=60)
    assert (output, errors.strip(), command.returncode) == ("", "Aborted!", 1)
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


def test_one_whose_starter_is_killed_serves_all_the_same(tmp_path: Path, logs: Path) -> None:
    file = written(tmp_path, "served.py", SLOW, SERVED)
    with started("start", file, "--detach", "--name", "given") as command:
        processes.wait_until(lambda: owners.owner("given"), "it loads")
        command.kill()
        command.communicate(timeout=60)
    (tmp_path / "go").touch()
    processes.wait_until(lambda: owners.owner("given").state == "serving", "it serves")
    assert shmbatch.connect("given.double").remote(4) == 8
    shmbatch.stop("given")


def test_a_name_already_served_is_refused_and_its_owner_goes_on(
    tmp_path: Path, logs: Path
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    assert ran("start", file, "--detach").returncode == 0
    result = ran("start", file, "--detach")
    assert result.stderr.splitlines()[-1] == (
        f"error: name 'served' is already served by process {pid_of('served')}; "
        f"stop it with `shmbatch stop served` or choose another --name"
    )
    assert (result.stdout, result.returncode) == ("", 1)
    assert shmbatch.connect("served.double").remote(4) == 8
    shmbatch.stop("served")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("folder", "Is a directory"),
        ("missing/its.log", "No such file or directory"),
        ("file/its.log", "Not a directory"),
        ("link", "it is a symbolic link"),
        ("pipe", "it is not a regular file"),
    ],
)
def test_a_log_that_cannot_be_written_is_refused_before_anything_starts(
    tmp_path: Path, log: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    file = written(tmp_path, "served.py", "open('imported', 'w')")
    result = ran("start", file, "--detach", "--log", tmp_path / log, cwd=tmp_path)
    assert result.stderr == (
        f"error: cannot log to '{tmp_path / log}': {reason}; choose another file with --log\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "target").exists()


def test_a_default_log_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = written(tmp_path, "served.py", SERVED)
    result = ran("start", file, "--detach", XDG_STATE_HOME=str(tmp_path / "file"))
    assert f"error: cannot log to '{tmp_path}/file/shmbatch/served.log': Not a" in result.stderr
    assert result.returncode == 1


def test_a_log_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "its.log").touch()
    uid = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(ConfigError) as refusal:
            Log(tmp_path / "its.log", "served")
    assert f"it belongs to uid {uid}, not to uid {uid + 1}; choose another" in str(refusal.value)


def test_a_log_may_be_nowhere(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    assert ran("start", file, "--detach", "--log", os.devnull).returncode == 0
    shmbatch.stop("served")


def test_a_missing_file_is_one_line(tmp_path: Path, logs: Path) -> None:
    result = ran("start", tmp_path / "none.py", "--detach")
    assert result.stderr == f"error: there is no file '{tmp_path / 'none.py'}'\n"
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("sockets", "error: SHMBATCH_DIR is 'sockets'; use an absolute path\n"),
        ("/tmp/" + "x" * 120, " bytes and at most 107 fit; set SHMBATCH_DIR to a shorter path"),
    ],
    ids=["relative", "too long"],
)
@pytest.mark.parametrize("options", [[], ["--detach"]], ids=["foreground", "background"])
def test_a_directory_that_cannot_be_used_is_one_line(
    tmp_path: Path, logs: Path, directory: str, message: str, options: list[str]
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    for name in ([], ["--name", "given"]):
        result = ran("start", file, *options, *name, SHMBATCH_DIR=directory)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert (result.stdout, result.returncode) == ("", 1)
        assert not Path(directory).exists()


def test_an_unknown_app_is_one_line(tmp_path: Path, logs: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    for options in ([], ["--detach"]):
        result = ran("start", file, "--app", "other", *options)
        *_, last = result.stderr.splitlines()
        assert last == f"error: '{file}' has no app 'other'; it has 'served'"
        assert result.returncode == 1


@pytest.mark.parametrize("options", [["--log", "x"], ["--timeout", "1"]])
def test_options_of_the_background_are_wrong_usage_in_the_foreground(options: list[str]) -> None:
    result = ran("start", "served.py", *options)
    assert f"{options[0]} goes with --detach" in result.stderr
    assert (result.stdout, result.returncode) == ("", 2)


@pytest.mark.parametrize("limit", [7, 9, 12])
@pytest.mark.parametrize("options", [[], ["--detach"]], ids=["foreground", "background"])
def test_too_few_descriptors_are_one_line(
    tmp_path: Path, logs: Path, limit: int, options: list[str]
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    limited = f'ulimit -n {limit}; exec "$@"'
    command = [sys.executable, "-m", "shmbatch", "start", str(file), "--name", "given", *options]
    result = subprocess.run(
        ["bash", "-c", limited, "-", *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert "Too many open files" in last
    assert "Traceback" not in result.stderr
    assert (result.stdout, result.returncode) == ("", 1)
    assert processes_of(file) == []


def test_a_second_ctrl_c_kills_what_was_started(tmp_path: Path, logs: Path, sockets: Path) -> None:
    heard = "import pathlib; pathlib.Path(__file__).with_name('heard').touch()"
    file = written(tmp_path, "served.py", DEAF.replace("pass", heard))
    with started("start", file, "--detach", "--name", "given") as command:
        processes.wait_until((tmp_path / "importing").exists, "the file is being imported")
        command.send_signal(signal.SIGINT)
        processes.wait_until((tmp_path / "heard").exists, "it is asked to end")
        command.send_signal(signal.SIGINT)
        output, errors = command.communicate(timeout=60)
    assert (output, errors.strip(), command.returncode) == ("", "Aborted!", 1)
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


CLOSED = 'exec "$@" <&- >&- 2>&-'
HOMELESS = 'rmdir "$PWD"; exec "$@"'


def under(prelude: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``shmbatch`` as a shell does that has done something before."""
    return subprocess.run(
        ["bash", "-c", prelude, "-", sys.executable, "-m", "shmbatch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
        timeout=60,
    )


def test_one_whose_starter_has_closed_its_standard_descriptors_serves(
    tmp_path: Path, logs: Path
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    assert under(CLOSED, "start", file, "--detach", cwd=tmp_path).returncode == 0
    assert shmbatch.connect("served.double", timeout=0).remote(4) == 8
    shmbatch.stop("served")


def test_a_run_with_closed_standard_descriptors_runs(tmp_path: Path) -> None:
    main = """
    @app.local_entrypoint()
    def main():
        import pathlib
        pathlib.Path(__file__).with_name("done").write_text(str(double.remote(4)))
    """
    file = written(tmp_path, "served.py", SERVED, main)
    assert under(CLOSED, "run", file, cwd=tmp_path).returncode == 0
    assert (tmp_path / "done").read_text() == "8"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "served.py"),
        ("start", "served.py"),
        ("start", "served.py", "--name", "given"),
        ("start", "served.py", "--detach"),
        ("start", Path("served.py"), "--detach", "--log", "its.log"),
    ],
)
def test_a_relative_path_from_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, logs: Path, arguments: tuple[object, ...]
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    here = tmp_path / "here"
    here.mkdir()
    absolute = [file if isinstance(each, Path) else each for each in arguments]
    result = under(HOMELESS, *absolute, cwd=here)
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert "the working directory is gone" in last
    assert "Traceback" not in result.stderr
    assert (result.stdout, result.returncode) == ("", 1)


def test_a_timeout_that_is_no_number_is_wrong_usage(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    result = ran("start", file, "--detach", "--timeout", "nan")
    assert "Invalid value for '--timeout'" in result.stderr
    assert (result.stdout, result.returncode) == ("", 2)
