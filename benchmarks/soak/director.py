"""Who lives, who is killed, stopped or replaced, and when: everything at random from one seed."""

from __future__ import annotations

import gc
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shmbatch
from benchmarks.soak import watching
from benchmarks.soak.calls import NAME
from benchmarks.soak.ledger import OUTCOMES, PRODUCERS_MAX, Column, Control, Ledger
from benchmarks.soak.producer import Life
from shmbatch import errors
from shmbatch.protocol import owners, ownership

PRODUCERS = 64
HANG_S = 90.0  # nothing that a producer does takes a tenth of this
START_S = 60.0

# Seconds between two of a kind on average, in a soak that is long enough.
PRODUCER_KILLED_S = 0.7
PRODUCER_STOPPED_S = 4.0
EXECUTOR_KILLED_S = 12.0
EXECUTOR_STOPPED_S = 20.0
RELOADED_S = 40.0

_TICK_S = 0.02
_FRESH = 0.2  # of all producers are a fresh Python; the others are forks of a warm one
_KILLED_LOADING = 0.1  # of the executors that are to be killed and have only begun to load
_STOP_MAX_S = 2.0
_COMPLAINT = re.compile(r"producer \d+ lane|Traceback|Exception ignored|Fatal Python error")
_COMPLAINTS_MAX = 40


class Born(BaseException):
    """Raised in a forked child, to unwind what is only the director's."""

    def __init__(self, life: Life) -> None:
        self.life = life


@dataclass(slots=True)
class Running:
    """A producer that was started and not yet reaped."""

    life: Life
    pid: int
    pidfd: int
    ends_by: float  # monotonic seconds; after that it hangs
    killed: bool = False
    stopped: bool = False


@dataclass(slots=True)
class _Harm:
    """Something that is done again and again."""

    every_s: float
    do: Callable[[], bool]  # says whether there was anybody to do it to
    next_at: float


class Director:
    """Runs one soak in *folder*; what it finds wrong is in `violations`."""

    def __init__(self, folder: Path, names: Path, seed: int, transport: str) -> None:
        self.violations: list[str] = []
        self.counts = Counter[str]()
        self.killed: set[int] = set()  # numbers of producers
        self.started = 0
        self._folder = folder
        self._names = names
        self._transport = transport
        self._chance = random.Random(seed)
        self._ledger = Ledger(folder)
        self._running: dict[int, Running] = {}  # by pid
        self._to_continue: list[tuple[float, int, Running | None]] = []  # pidfds
        self._reloading: tuple[subprocess.Popen[bytes], int] | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._watched_at = 0.0
        self._executors: set[int] = set()  # that there have been

    # ---- the executor --------------------------------------------------------------------

    def start_executor(self) -> None:
        file = Path(__file__).with_name("functions.py")
        with self.log("executors.log").open("ab") as log:
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
        if not self._wait_until(self._is_served, START_S, "the executor serves"):
            raise RuntimeError(f"no executor within {START_S:.0f} s; see {self._folder}")

    def _is_served(self) -> bool:
        owner = owners.owner(NAME)
        return owner is not None and owner.state == ownership.SERVING

    def supervisor(self) -> int:
        assert self._supervisor is not None
        return self._supervisor.pid

    def executor(self) -> int:
        owner = owners.owner(NAME)
        assert owner is not None
        assert owner.pid is not None
        return owner.pid

    def stop_executor(self) -> None:
        """End it as a user does; its supervisor must end well."""
        assert self._supervisor is not None
        try:
            # With something wrong it might never end what it has to.
            shmbatch.stop(NAME, now=bool(self.violations))
        except errors.ShmbatchError as error:
            self.violations.append(f"the executor cannot be stopped: {error}")
            self._supervisor.terminate()
        try:
            status = self._supervisor.wait(START_S)
        except subprocess.TimeoutExpired:
            self.violations.append("the supervisor does not end")
        else:
            if status != 0:
                self.violations.append(f"the supervisor ended with status {status}")

    def kill_everything(self) -> None:
        """For a soak that was interrupted: leave nobody behind. Idempotent."""
        for each in self._running.values():
            _signal(each.pidfd, signal.SIGKILL)
        for pid in watching.processes_in(self._names):
            os.kill(pid, signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.wait()

    # ---- phases --------------------------------------------------------------------------

    def run(self, seconds: float, *, executor_lives: bool) -> None:
        """Keep all producers going for so long, harming whom this phase harms.

        Raises:
            Born: in a child, which is one of them.
        """
        kinds = [
            (PRODUCER_KILLED_S, self._kill_producer),
            (PRODUCER_STOPPED_S, self._stop_producer),
            (EXECUTOR_STOPPED_S, self._stop_executor),
        ]
        if not executor_lives:
            kinds += [(EXECUTOR_KILLED_S, self._kill_executor), (RELOADED_S, self._reload)]
        begun = time.monotonic()
        harms = []
        for every_s, do in kinds:
            # A short one, too, has some of each.
            every_s = min(every_s, seconds / 3)
            harms.append(_Harm(every_s, do, begun + self._chance.uniform(0.3, 1.0) * every_s))
        while (now := time.monotonic()) < begun + seconds:
            self._look_after(now)
            while len(self._running) < PRODUCERS and self.started < PRODUCERS_MAX:
                self._start_producer()
            for harm in harms:
                if now >= harm.next_at:
                    if harm.do():
                        harm.next_at = now + self._chance.expovariate(1 / harm.every_s)
                    else:
                        harm.next_at = now + _TICK_S

    def quiesce(self) -> None:
        """Have all producers end by themselves, and the executor let go of them."""
        self._ledger.tell(Control.OVER)
        if not self._wait_until(lambda: not self._running, 2 * HANG_S, "all producers end"):
            for each in self._running.values():
                each.killed = True
                _signal(each.pidfd, signal.SIGKILL)
            self._wait_until(lambda: not self._running, HANG_S, "killed producers end")
        self._ledger.unsay(Control.OVER)
        self._wait_until(lambda: not self._to_continue, HANG_S, "nobody is stopped")
        self._wait_until(lambda: self._reloading is None, HANG_S, "reload returns")
        self._wait_until(self._nobody_attached, HANG_S, "the executor lets go of producers")

    def _nobody_attached(self) -> bool:
        try:
            counted = shmbatch.statistics(NAME, timeout=HANG_S)
        except errors.ShmbatchError as error:
            self.violations.append(f"no statistics: {error}")
            return True
        if any(each["producers"] for each in counted["functions"].values()):
            return False
        return counted["admission"]["nbytes"] == 0  # its loop has unmapped the last segment

    # ---- producers -----------------------------------------------------------------------

    def _start_producer(self) -> None:
        life = Life.drawn(self.started, self._chance)
        is_fresh = self._chance.random() < _FRESH
        self.started += 1
        self.counts["producers started"] += 1
        self.counts[f"producers of style {life.style}"] += 1
        pid = os.fork()
        if pid == 0:
            self._become(life, is_fresh)
        ends_by = time.monotonic() + life.seconds + HANG_S
        self._running[pid] = Running(life, pid, os.pidfd_open(pid), ends_by)

    def _become(self, life: Life, is_fresh: bool) -> None:
        """In the child."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with self.log("producers.log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        gc.freeze()
        if is_fresh:
            command = life.command(self._folder)
            os.execv(command[0], command)
        raise Born(life)

    def _look_after(self, now: float) -> None:
        """Reap who has ended, continue who was stopped, see who hangs; take a moment."""
        poll = select.poll()
        for each in self._running.values():
            poll.register(each.pidfd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(_TICK_S * 1000)}
        for each in [each for each in self._running.values() if each.pidfd in ended]:
            self._reap(each)
        for at in [each for each in self._to_continue if each[0] <= now]:
            _, pidfd, producer = at
            _signal(pidfd, signal.SIGCONT)
            self._to_continue.remove(at)
            if producer is None:
                os.close(pidfd)
            else:
                producer.stopped = False
        if self._reloading is not None and self._reloading[0].poll() is not None:
            self._reloaded()
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise RuntimeError(f"the supervisor ended with {self._supervisor.returncode}")
        owner = owners.owner(NAME)
        if owner is not None and owner.pid is not None:
            self._executors.add(owner.pid)
        if now > self._watched_at + 1:
            self._watched_at = now
            self._watch(now)

    def _reap(self, each: Running) -> None:
        del self._running[each.pid]
        self._to_continue = [at for at in self._to_continue if at[2] is not each]
        os.close(each.pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(each.pid, 0)[1])
        if each.killed:
            # It may have ended by itself at the same moment; then its books must balance.
            if status == -signal.SIGKILL:
                self.killed.add(each.life.number)
                self.counts["producers killed"] += 1
        elif status != 0:
            self.killed.add(each.life.number)
            self.violations.append(f"producer {each.life.number} ended with status {status}")
        else:
            self.counts[f"producers that ended by themselves: {each.life.ending}"] += 1

    def _watch(self, now: float) -> None:
        for each in self._running.values():
            if each.stopped or each.killed:
                continue
            begun_ns = self._ledger.lanes_of(each.life.number)[:, Column.BUSY_SINCE_NS]
            oldest_ns = min((int(ns) for ns in begun_ns if ns), default=None)
            hangs = oldest_ns is not None and now - oldest_ns / 1e9 > HANG_S
            if hangs or now > each.ends_by + HANG_S:
                self.violations.append(
                    f"producer {each.life.number} hangs; where is in producers.log"
                )
                _signal(each.pidfd, signal.SIGUSR1)
                time.sleep(1)  # it writes where it is
                _signal(each.pidfd, signal.SIGKILL)
                each.killed = True

    # ---- harm ----------------------------------------------------------------------------

    def _kill_producer(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.killed = True
        _signal(victim.pidfd, signal.SIGKILL)
        return True

    def _stop_producer(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.stopped = True
        _signal(victim.pidfd, signal.SIGSTOP)
        self._continue_later(victim.pidfd, victim)
        self.counts["producers stopped for a while"] += 1
        return True

    def _victim(self) -> Running | None:
        chosen = [each for each in self._running.values() if not each.killed and not each.stopped]
        return self._chance.choice(chosen) if chosen else None

    def _kill_executor(self) -> bool:
        pidfd = self._open_executor(_KILLED_LOADING)
        if pidfd is None:
            return False
        self._ledger.tell(Control.KILLS_BEGUN)
        _signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], START_S)
        self._ledger.tell(Control.KILLS_ENDED)
        os.close(pidfd)
        self.counts["executors killed"] += 1
        return True

    def _stop_executor(self) -> bool:
        pidfd = self._open_executor(0.0)
        if pidfd is None:
            return False
        _signal(pidfd, signal.SIGSTOP)
        self._continue_later(pidfd, None)
        self.counts["executors stopped for a while"] += 1
        return True

    def left(self) -> list[str]:
        """What is there that should not be, once everybody has ended."""
        found = [
            f"process {pid} is left, in state {state}"
            for pid, state in watching.descendants(os.getpid()).items()
        ]
        found += [f"process {pid} is left" for pid in watching.processes_in(self._names)]
        found += [f"'{path.name}' is left" for path in self._names.iterdir()]
        for name, maker in watching.shared_memory_of_the_dead().items():
            if maker in self._executors:
                found.append(f"'/dev/shm/{name}' is left")
        return found

    def complaints(self) -> list[str]:
        """What producers and executors have written that tells of something wrong."""
        found = []
        for log in ("producers.log", "executors.log", "reloads.log"):
            if self.log(log).exists():
                lines = self.log(log).read_text(errors="replace").splitlines()
                found += [f"{log}: {line}" for line in lines if _COMPLAINT.search(line)]
        return found[:_COMPLAINTS_MAX]

    def _open_executor(self, loading: float) -> int | None:
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

    def _continue_later(self, pidfd: int, producer: Running | None) -> None:
        at = time.monotonic() + self._chance.uniform(0.01, _STOP_MAX_S)
        self._to_continue.append((at, pidfd, producer))

    def _reload(self) -> bool:
        if self._reloading is not None or not self._is_served():
            return False
        with self.log("reloads.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "shmbatch", "reload", NAME],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._reloading = process, self._ledger.told(Control.KILLS_ENDED)
        return True

    def _reloaded(self) -> None:
        assert self._reloading is not None
        process, kills_before = self._reloading
        self._reloading = None
        if process.returncode == 0:
            self.counts["executors replaced by reload"] += 1
        elif self._ledger.told(Control.KILLS_BEGUN) > kills_before:
            self.counts["reloads that a kill has spoilt"] += 1
        else:
            self.violations.append(
                f"reload ended with status {process.returncode}: "
                f"{self.log('reloads.log').read_text()[-300:]}"
            )

    # ---- small things --------------------------------------------------------------------

    def log(self, name: str) -> Path:
        return self._folder / name

    def _wait_until(self, true: Callable[[], bool], seconds: float, what: str) -> bool:
        """Go on until something is so; if that takes too long it is a violation."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                self.violations.append(f"not within {seconds:.0f} s: {what}")
                return False
            self._look_after(time.monotonic())
        return True

    def books(self) -> dict[str, int]:
        """Add up all rows, and find those that do not balance."""
        totals = {column.name.lower(): 0 for column in (Column.SUBMITTED, *OUTCOMES)}
        totals["lost with killed producers"] = 0
        for number in range(self.started):
            for lane, row in enumerate(self._ledger.lanes_of(number)):
                for column in (Column.SUBMITTED, *OUTCOMES):
                    totals[column.name.lower()] += int(row[column])
                missing = int(row[Column.SUBMITTED] - sum(row[each] for each in OUTCOMES))
                if number in self.killed and missing >= 0:
                    totals["lost with killed producers"] += missing
                elif missing:
                    self.violations.append(
                        f"producer {number} lane {lane}: {missing} calls have no outcome"
                    )
                elif number not in self.killed and row[Column.BEGUN] != row[Column.ENDED]:
                    self.violations.append(f"producer {number} lane {lane} has not ended")
        totals["connects"] = int(self._ledger.rows[1 : 1 + self.started, :, Column.CONNECTS].sum())
        return totals

    def executions(self) -> dict[str, int]:
        return self._ledger.executed_wrongly(self.started)


def _signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # it has just ended by itself
