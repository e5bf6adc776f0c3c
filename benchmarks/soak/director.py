"""Which producers live, who is killed, stopped or replaced, and when: all from one seed."""

from __future__ import annotations

import gc
import os
import random
import re
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import shmbatch
from benchmarks.soak import watching
from benchmarks.soak.calls import NAME
from benchmarks.soak.executors import Executors, send
from benchmarks.soak.ledger import OUTCOMES, PRODUCERS_MAX, Column, Control, Ledger
from benchmarks.soak.producer import Life
from shmbatch import errors
from shmbatch.doctor import machine

PRODUCERS = 64
HANG_S = 90.0  # nothing that a producer does takes a tenth of this

# Seconds between two of a kind on average, in a soak that is long enough.
PRODUCER_KILLED_S = 0.7
PRODUCER_STOPPED_S = 4.0
EXECUTOR_KILLED_S = 12.0
EXECUTOR_STOPPED_S = 20.0
RELOADED_S = 40.0

_TICK_S = 0.02
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
        self._chance = random.Random(seed)
        self._ledger = Ledger(folder)
        self.executors = Executors(
            folder, transport, self._chance, self._ledger, self.counts, self.violations
        )
        self._running: dict[int, Running] = {}  # by pid
        self._to_continue: list[tuple[float, int, Running | None]] = []  # pidfds
        self._watched_at = 0.0

    def kill_everything(self) -> None:
        """For a soak that was interrupted: leave nobody behind. Idempotent."""
        for each in self._running.values():
            send(each.pidfd, signal.SIGKILL)
        for pid in watching.processes_in(self._names):
            os.kill(pid, signal.SIGKILL)
        self.executors.wait()

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
            kinds += [
                (EXECUTOR_KILLED_S, self.executors.kill),
                (RELOADED_S, self.executors.reload),
            ]
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
                send(each.pidfd, signal.SIGKILL)
            self._wait_until(lambda: not self._running, HANG_S, "killed producers end")
        self._ledger.unsay(Control.OVER)
        self._wait_until(lambda: not self._to_continue, HANG_S, "nobody is stopped")
        self._wait_until(lambda: not self.executors.reloading, HANG_S, "reload returns")
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
        self.started += 1
        self.counts["producers started"] += 1
        self.counts[f"producers of style {life.style}"] += 1
        pid = os.fork()
        if pid == 0:
            self._become(life)
        ends_by = time.monotonic() + life.seconds + HANG_S
        self._running[pid] = Running(life, pid, os.pidfd_open(pid), ends_by)

    def _become(self, life: Life) -> None:
        """In the child."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with self.log("producers.log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        for entry in list(Path("/proc/self/fd").iterdir()):
            if int(entry.name) > 2:
                with suppress(OSError):  # that the list was read with
                    os.close(int(entry.name))
        gc.freeze()
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
            send(pidfd, signal.SIGCONT)
            self._to_continue.remove(at)
            if producer is None:
                os.close(pidfd)
            else:
                producer.stopped = False
        self.executors.look()
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
                send(each.pidfd, signal.SIGUSR1)
                time.sleep(1)  # it writes where it is
                send(each.pidfd, signal.SIGKILL)
                each.killed = True

    # ---- harm ----------------------------------------------------------------------------

    def _kill_producer(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.killed = True
        send(victim.pidfd, signal.SIGKILL)
        return True

    def _stop_producer(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.stopped = True
        send(victim.pidfd, signal.SIGSTOP)
        self._continue_later(victim.pidfd, victim)
        self.counts["producers stopped for a while"] += 1
        return True

    def _victim(self) -> Running | None:
        chosen = [each for each in self._running.values() if not each.killed and not each.stopped]
        return self._chance.choice(chosen) if chosen else None

    def _stop_executor(self) -> bool:
        pidfd = self.executors.suspend()
        if pidfd is None:
            return False
        self._continue_later(pidfd, None)
        return True

    def left(self) -> list[str]:
        """What is there that should not be, once everybody has ended."""
        found = [
            f"process {pid} is left, in state {state}"
            for pid, state in watching.descendants(os.getpid()).items()
        ]
        found += [f"process {pid} is left" for pid in watching.processes_in(self._names)]
        found += [f"'{path.name}' is left" for path in self._names.iterdir()]
        for maker, names in machine.shared_memory_of_the_dead(older_s=0).items():
            if int(maker) in self.executors.known:
                found += [f"'/dev/shm/{name}' is left" for name in names]
        return found

    def complaints(self) -> list[str]:
        """What producers and executors have written that tells of something wrong."""
        found = []
        for log in ("producers.log", "executors.log", "reloads.log"):
            if self.log(log).exists():
                lines = self.log(log).read_text(errors="replace").splitlines()
                found += [f"{log}: {line}" for line in lines if _COMPLAINT.search(line)]
        return found[:_COMPLAINTS_MAX]

    def _continue_later(self, pidfd: int, producer: Running | None) -> None:
        at = time.monotonic() + self._chance.uniform(0.01, _STOP_MAX_S)
        self._to_continue.append((at, pidfd, producer))

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
