"""What executors do with little memory, few CPUs or descriptors, a small or full /dev/shm."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from shmbatch.protocol import cgroups
from tests.processes import wait_until
from tests.programs import PATIENCE_S, environment, written

MIB = 1 << 20

# Serves segments of 8 MB; a producer connects as many times as it can, then uses all of them.
LARGE = """
    import numpy as np
    from jaxtyping import UInt8

    import shmbatch

    app = shmbatch.App("large")

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0, slots=4)
    def large(
        xs: UInt8[np.ndarray, "batch 1000000"],
    ) -> UInt8[np.ndarray, "batch 1000000"]:
        return xs + np.uint8(1)
"""
CONNECTS = """
    import sys

    import numpy as np

    import shmbatch
    from shmbatch.client import handshake
    from shmbatch.protocol.names import Address

    import large

    def connected():
        address = Address.parse("large.large")
        function = shmbatch.Function(address)
        function._connection = handshake.connect(address, None, None, arrays="native", wait="park")
        return function

    def main(most):
        x = np.zeros(1_000_000, np.uint8)
        producers = []
        try:
            while len(producers) < most:
                producers.append(connected())
                assert producers[-1].remote(x).sum() == 1_000_000
        except shmbatch.errors.ShmbatchError as error:
            print(f"{type(error).__name__}: {error}")
        # Who is in goes on, also with its memory touched to the last byte.
        for producer in producers:
            pending = [producer.spawn(x) for _ in range(4)]
            assert [call.get().sum() for call in pending] == [1_000_000] * 4
        print(len(producers), "connected")

    with large.app.run():
        main(int(sys.argv[1]))
"""


@pytest.fixture
def connects(tmp_path: Path) -> Path:
    written(tmp_path, "large.py", LARGE)
    return written(tmp_path, "connects.py", CONNECTS)


def said(command: list[str], **variables: str) -> list[str]:
    """Run a program to its end, which is good, and return its lines."""
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment(**variables), timeout=PATIENCE_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout.splitlines()


def after(prelude: str, *command: object) -> list[str]:
    """What a shell runs that does something before."""
    words = shlex.join([sys.executable, *map(str, command)])
    return ["sh", "-c", f"{prelude} && exec {words}"]


# ---- control groups --------------------------------------------------------------------------

Grouped = Callable[..., str]


@pytest.fixture
def grouped() -> Iterator[Grouped]:
    """Make a control group; what it returns has a shell join it."""
    made: list[Path] = []

    def make(controller: str, **limits: object) -> str:
        folders = list(cgroups.folders(controller))
        for _, parent in folders:
            folder = parent / f"shmbatch-test-{os.getpid()}"
            enter = f"echo $$ > {shlex.quote(str(folder / 'cgroup.procs'))}"
            try:
                folder.mkdir()
                made.append(folder)
                for name, value in limits.items():
                    (folder / name.replace("__", ".")).write_text(str(value))
            except OSError:
                continue  # not there, read-only, not delegated to us, or of the other version
            if subprocess.run(["sh", "-c", enter], capture_output=True).returncode == 0:
                return enter  # else where we are now is not delegated
        pytest.skip(f"no control group for {controller} can be made here")

    yield make
    for folder in made:
        wait_until(partial(_removed, folder), "nobody is in the control group")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def limited_memory(grouped: Grouped, nbytes: int) -> str:
    versions = {version for version, folder in cgroups.folders("memory") if folder.exists()}
    if 1 in versions:
        return grouped("memory", memory__limit_in_bytes=nbytes)
    return grouped("memory", memory__max=nbytes)


@pytest.mark.slow
@pytest.mark.no_transport
def test_in_a_cgroup_producers_are_refused_before_anybody_is_killed(
    grouped: Grouped, connects: Path
) -> None:
    """Half of it goes to segments, of 8 MB each."""
    enter = limited_memory(grouped, 200 * MIB)
    refused, connected = said(after(enter, connects, 64))
    assert refused.startswith("HandshakeError: ")
    takes = re.search(r"and gives 104857600; one more of 'large.large' takes (\d+)", refused)
    assert takes is not None, refused
    assert connected == f"{104857600 // int(takes[1])} connected"


@pytest.mark.slow
@pytest.mark.no_transport
def test_more_than_a_cgroup_has_left_is_refused_though_it_was_allowed(
    grouped: Grouped, connects: Path, tmp_path: Path
) -> None:
    enter = limited_memory(grouped, 200 * MIB)
    serve = written(
        tmp_path,
        "serve.py",
        """
        import subprocess, sys, time
        import large
        from shmbatch.protocol import owners

        options = ["--max-memory", "10G"]
        command = [sys.executable, "-m", "shmbatch", "start", large.__file__, *options]
        with subprocess.Popen(command) as executor:
            while (owner := owners.owner("large")) is None or owner.state != "serving":
                time.sleep(0.01)
            exec(open(sys.argv[1]).read().partition("with large.app.run()")[0])
            main(64)
            executor.terminate()
        assert executor.returncode == 0
        """,
    )
    refused, connected = said(after(enter, serve, connects))
    assert refused.startswith("HandshakeError: ")
    assert "Cannot allocate memory; give the function fewer with slots=" in refused
    assert int(connected.split()[0]) >= 4


@pytest.mark.slow
@pytest.mark.no_transport
@pytest.mark.parametrize("wait", ["auto", "spin"])
def test_half_a_cpu_is_enough(grouped: Grouped, connects: Path, wait: str) -> None:
    versions = {version for version, folder in cgroups.folders("cpu") if folder.exists()}
    if 1 in versions:
        enter = grouped("cpu", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    else:
        enter = grouped("cpu", cpu__max="50000 100000")
    assert said(after(enter, connects, 2), SHMBATCH_WAIT=wait) == ["2 connected"]


# ---- one CPU ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.no_transport
@pytest.mark.parametrize("wait", ["auto", "spin"])
def test_one_cpu_is_enough(connects: Path, wait: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    pinned = f"import os, sys; os.sched_setaffinity(0, {{{cpu}}}); "
    pinned += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", pinned, str(connects), "2"]
    assert said(command, SHMBATCH_WAIT=wait) == ["2 connected"]


# ---- /dev/shm and descriptors ----------------------------------------------------------------


def unshared(prelude: str, *command: object) -> list[str]:
    """The same in a mount namespace of its own; skip where there is none."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which(own[0]) is None
        or subprocess.run([*own, "sh", "-c", prelude], capture_output=True).returncode
    ):
        pytest.skip("this machine gives nobody a mount namespace")
    return [*own, *after(prelude, *command)]


SMALL_SHM = "mount -t tmpfs -o size=64m none /dev/shm"
FULL_SHM = "mount -t tmpfs -o size=4m none /dev/shm && head -c 4M /dev/zero > /dev/shm/full"


@pytest.mark.slow
@pytest.mark.no_transport
def test_in_a_dev_shm_of_64_mb_posix_serves_who_fits_and_refuses_the_rest(
    connects: Path,
) -> None:
    command = unshared(SMALL_SHM, connects, 64)
    refused, connected = said(command, SHMBATCH_TRANSPORT="posix")
    assert refused.startswith("HandshakeError: ")
    assert "/dev/shm has " in refused
    assert "use transport linux" in refused
    assert connected == "8 connected"


@pytest.mark.slow
@pytest.mark.no_transport
def test_transport_linux_does_not_care_about_dev_shm(connects: Path) -> None:
    command = unshared(FULL_SHM, connects, 12)
    assert said(command, SHMBATCH_TRANSPORT="linux") == ["12 connected"]


@pytest.mark.slow
@pytest.mark.no_transport
def test_in_a_full_dev_shm_posix_says_so_in_a_line(connects: Path) -> None:
    command = unshared(FULL_SHM, "-m", "shmbatch", "start", connects.with_name("large.py"))
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(SHMBATCH_TRANSPORT="posix"),
        timeout=PATIENCE_S,
    )
    *_, last = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert last.startswith("error: ")
    assert "/dev/shm" in last
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_with_few_descriptors_producers_are_refused_and_told_why(connects: Path) -> None:
    """22 of them are for who is connected and has not attached, 128 for the executor itself."""
    refused, connected = said(after("ulimit -n 184", connects, 64))
    assert refused.startswith("HandshakeError: ")
    assert "--max-producers" in refused
    assert connected == "17 connected"
