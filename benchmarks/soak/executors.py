"""The executors of a soak: started and ended with their supervisor, killed, replaced."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import shmbatch
from benchmarks.soak.calls import NAME
from benchmarks.soak.ledger import Control, Ledger
from shmbatch import errors
from shmbatch.protocol import owners, ownership

_START_S = 60.0
_KILLED_LOADING = 0.1  # of the executors that are to be killed and have only begun to load


class Executors:
    """All that have one name, one after the other; logs are in *folder*.

    Args:
        counts: of what was done to them.
        violations: where what is wrong with them goes.
    """

    def __init__(
        self,
        folder: Path,
        transport: str,
        chance: random.Random,
        ledger: Ledger,
        counts: Counter[str],
        violations: list[str],
    ) -> None:
        self.known: set[int] = set()  # pids
        self._log, self._reloads_log = folder / "executors.log", folder / "reloads.log"
        self._transport = transport
        self._chance = chance
        self._ledger = ledger
        self._counts = counts
        self._violations = violations
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._reload: tuple[subprocess.Popen[bytes], int] | None = None

    def start(self) -> None:
        file = Path(__file__).with_name("functions.py")
        with self._log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-m", "shmbatch", "start", str(file), "--restart"),
                    *("--name", NAME, "--transport", self._transport),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_served():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no executor within {_START_S:.0f} s; see {self._log}")
            self.look()
            time.sleep(0.01)

    @property
    def supervisor_pid(self) -> int:
        assert self._supervisor is not None
        return self._supervisor.pid

    @property
    def pid(self) -> int:
        owner = owners.owner(NAME)
        assert owner is not None
        assert owner.pid is not None
        return owner.pid

    def stop(self, *, now: bool) -> None:
        """End it as a user does; its supervisor must end well.

        Args:
            now: with something wrong it might never end what it has to.
        """
        assert self._supervisor is not None
        try:
            shmbatch.stop(NAME, now=now)
        except errors.ShmbatchError as error:
            self._violations.append(f"the executor cannot be stopped: {error}")
            self._supervisor.terminate()
        try:
            status = self._supervisor.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._violations.append("the supervisor does not end")
        else:
            if status != 0:
                self._violations.append(f"the supervisor ended with status {status}")

    def wait(self) -> None:
        """For the supervisor, which was killed, or has ended."""
        if self._supervisor is not None:
            self._supervisor.wait()

    def look(self) -> None:
        """See who serves, and what has ended."""
        if self._reload is not None and self._reload[0].poll() is not None:
            self._reloaded()
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise RuntimeError(f"the supervisor ended with {self._supervisor.returncode}")
        owner = owners.owner(NAME)
        if owner is not None and owner.pid is not None:
            self.known.add(owner.pid)

    def _is_served(self) -> bool:
        owner = owners.owner(NAME)
        return owner is not None and owner.state == ownership.SERVING

    # ---- harm: each says whether there was anybody to do it to -----------------------------

    def kill(self) -> bool:
        pidfd = self._open(_KILLED_LOADING)
        if pidfd is None:
            return False
        self._ledger.tell(Control.KILLS_BEGUN)
        send(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], _START_S)
        self._ledger.tell(Control.KILLS_ENDED)
        os.close(pidfd)
        self._counts["executors killed"] += 1
        return True

    def suspend(self) -> int | None:
        """Return the pidfd of who has to be continued; None if it is not to be harmed now."""
        pidfd = self._open(0.0)
        if pidfd is not None:
            send(pidfd, signal.SIGSTOP)
            self._counts["executors stopped for a while"] += 1
        return pidfd

    def _open(self, loading: float) -> int | None:
        """Return a pidfd of whoever has the name; None if it is not to be harmed now."""
        owner = owners.owner(NAME)
        if owner is None or owner.pid is None or owner.pid == owner.keeper:
            return None  # nobody, or the supervisor is about to start one
        if owner.state != ownership.SERVING and self._chance.random() >= loading:
            return None
        try:
            pidfd = os.pidfd_open(owner.pid)
        except ProcessLookupError:
            return None
        if owners.owner(NAME) != owner:  # the number may be another's by now
            os.close(pidfd)
            return None
        return pidfd

    def reload(self) -> bool:
        if self._reload is not None or not self._is_served():
            return False
        with self._reloads_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "shmbatch", "reload", NAME],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._reload = process, self._ledger.told(Control.KILLS_ENDED)
        return True

    @property
    def reloading(self) -> bool:
        return self._reload is not None

    def _reloaded(self) -> None:
        assert self._reload is not None
        process, kills_before = self._reload
        self._reload = None
        if process.returncode == 0:
            self._counts["executors replaced by reload"] += 1
        elif self._ledger.told(Control.KILLS_BEGUN) > kills_before:
            self._counts["reloads that a kill has spoilt"] += 1
        else:
            self._violations.append(
                f"reload ended with status {process.returncode}: "
                f"{self._reloads_log.read_text()[-300:]}"
            )


def send(pidfd: int, number: int) -> None:
    """Send a signal to a process, unless it has just ended by itself."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
