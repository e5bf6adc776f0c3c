"""Decides whether small concurrent programs can go wrong under store-buffer memory order.

A process is a generator function: it yields operations on shared words and is resumed with
their results, so a model reads like the C it restates. Every interleaving is explored, breadth
first; the first violation found therefore has a shortest trace.

Memory order is that of x86 (TSO): each process has a FIFO buffer of stores; a load sees the
newest store to that word in its own buffer, else memory; a read-modify-write and a system call
that sleeps need an empty buffer. A buffer drains one store at a time, at any moment.

A mortal process may be killed between any two operations. What stands in its buffer then drains
in part, late, or not at all, always a prefix: stores that had not been executed look the same
as stores that were dropped, so stores are executed as soon as the process gets to them.

Two kinds of violation are found:

  safety    a model raises `Violation`, or an invariant or a watched write returns a text
  liveness  a state from which no further path leads to a state that the model calls good,
            although nobody else is killed, no sleep ends by itself and nobody goes on who need
            not. A lost wake-up is one. Timers may be relied upon, if the model says so.
"""

from __future__ import annotations

import ast
import gc
import inspect
import itertools
import textwrap
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

# What a process yields: kind, word, and one or two arguments of that kind.
Operation = tuple[str, str, Any, Any]
Program = Generator[Operation, Any, Any]

RUNNING, ASLEEP, DEAD = 0, 1, 2

Part = tuple[int, int, tuple[tuple[int, int], ...]]  # mode, local state, store buffer
State = tuple[tuple[int, ...], tuple[Part, ...]]  # memory, processes


class Violation(Exception):
    """Raised by a model's process when what it just learned must never happen."""


# ---- operations -------------------------------------------------------------------------


def load(word: str) -> Operation:
    """Return the word's value."""
    return "load", word, None, None


def store(word: str, value: int) -> Operation:
    """Put a store into the buffer."""
    return "store", word, value, None


def rmw(word: str, change: Callable[[int], int], text: str) -> Operation:
    """Replace the word by *change* of it, atomically, and return the old value."""
    return "rmw", word, change, text


def add(word: str, value: int) -> Operation:
    return rmw(word, lambda old: old + value, f"add {value:#x}")


def set_bits(word: str, bits: int) -> Operation:
    return rmw(word, lambda old: old | bits, f"or {bits:#x}")


def clear_bits(word: str, bits: int) -> Operation:
    return rmw(word, lambda old: old & ~bits, f"and ~{bits:#x}")


def swap(word: str, value: int) -> Operation:
    return rmw(word, lambda old: value, f"exchange for {value:#x}")


def compare_and_swap(word: str, expected: int, value: int) -> Operation:
    """Succeeded if the old value returned is *expected*."""
    return rmw(
        word,
        lambda old: value if old == expected else old,
        f"compare-and-swap {expected:#x} to {value:#x}",
    )


def fence() -> Operation:
    """Wait until the own buffer is empty."""
    return "fence", "", None, None


def sleep_on(word: str, expected: int | None, timed: bool = False) -> Operation:
    """Sleep until woken, unless the word differs from *expected* (None: compare nothing).

    Return "woken" or "again"; *timed* sleeps may end by themselves with "timer".
    """
    return "sleep", word, expected, timed


def wake(word: str, count: int = 1 << 31) -> Operation:
    """Wake up to *count* of those asleep on the word, any of them."""
    return "wake", word, count, None


def block_until_set(word: str, timed: bool = False) -> Operation:
    """Sleep while the word is 0, as poll() on an eventfd does.

    Return "set"; *timed* sleeps may end by themselves with "timer".
    """
    return "block", word, None, timed


def choose(count: int) -> Operation:
    """Return any of 0 .. count - 1: what the model leaves open."""
    return "choose", "", count, None


def go_on() -> Operation:
    """Go on, or never: explored, but not relied upon."""
    return "go on", "", None, None


def is_alive(process: str) -> Operation:
    """Return whether a process has not been killed, as a pidfd tells."""
    return "alive", process, None, None


# ---- the model --------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A program; *mortal* ones are killed at every point, one run each."""

    name: str
    program: Callable[[], Program]
    mortal: bool = False


class View:
    """One state, as predicates of a model see it."""

    __slots__ = ("_checker", "_state")

    def __init__(self, checker: Checker, state: State) -> None:
        self._checker = checker
        self._state = state

    def word(self, name: str) -> int:
        return self._checker.value(self._state[0], self._checker.word_index[name])

    def alive(self, process: str) -> bool:
        return self._state[1][self._checker.process_index[process]][0] != DEAD

    def finished(self, process: str) -> bool:
        index = self._checker.process_index[process]
        return self._checker.tables[index].operations[self._state[1][index][1]] is None

    def local(self, process: str, name: str) -> Any:
        """Return a variable of the process's outermost function, or its "return"."""
        index = self._checker.process_index[process]
        return self._checker.tables[index].variables[self._state[1][index][1]].get(name)


@dataclass(frozen=True)
class Model:
    """What to explore and what must hold."""

    words: dict[str, int]
    processes: tuple[Process, ...]
    good: Callable[[View], bool]  # liveness: must stay reachable
    invariant: Callable[[View], str | None] = lambda view: None
    # Called for every write that changes the word: process, old, new.
    watch: dict[str, Callable[[str, int, int], str | None]] = field(default_factory=dict)
    sleeps_may_end: bool = False  # time slices: explored, but not relied upon
    forgets_the_dead: bool = False  # no predicate reads a dead one's variables: fewer states
    timers_fire: bool = False  # whether sleeps with a timer are relied upon to end by it


@dataclass(frozen=True)
class Result:
    """What an exploration found."""

    states: int
    transitions: int
    violation: str | None
    trace: str

    def __str__(self) -> str:
        found = f"VIOLATION: {self.violation}\n{self.trace}" if self.violation else "no violation"
        return f"{self.states} states, {self.transitions} transitions: {found}"


class _Table:
    """Local states of one process, found by running its program again on recorded results.

    Two histories that leave the same frames at the same instructions with the same variables
    are one local state. That holds for programs whose every yield is a statement of its own
    (nothing waits on the interpreter's stack) outside of `for` (whose position is hidden).
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.histories: list[tuple[Any, ...]] = []
        self.operations: list[Operation | None] = []
        self.variables: list[dict[str, Any]] = []
        self.checked: set[CodeType] = set()
        self.ids: dict[Hashable, int] = {}
        self.moves: dict[tuple[int, Any], tuple[int, tuple[Operation, ...]] | Violation] = {}

    def move(self, local: int, result: Any) -> tuple[int, tuple[Operation, ...]]:
        """Return the local state after *result*, and the stores executed on the way."""
        key = (local, result)
        known = self.moves.get(key)
        if known is None:
            known = self.moves[key] = self._run((*self.histories[local], result))
        if isinstance(known, Violation):
            raise known
        return known

    def start(self) -> tuple[int, tuple[Operation, ...]]:
        found = self._run((None,))
        if isinstance(found, Violation):
            raise found
        return found

    def _run(self, history: tuple[Any, ...]) -> tuple[int, tuple[Operation, ...]] | Violation:
        program = self.process.program()
        operation: Operation | None = None
        returned = None
        stores: list[Operation] = []
        try:
            for result in history:
                operation = program.send(result)
            while operation is not None and operation[0] == "store":
                stores.append(operation)
                history = (*history, None)
                operation = program.send(None)
        except StopIteration as stop:
            operation, returned = None, stop.value
        except Violation as violation:
            return violation
        return self._intern(program, history, operation, returned), tuple(stores)

    def _intern(
        self, program: Program, history: tuple[Any, ...], operation: Any, returned: Any
    ) -> int:
        frames: list[Hashable] = [returned]
        variables: dict[str, Any] = {"return": returned} if operation is None else {}
        inner: Any = program
        while inner is not None and inner.gi_frame is not None:
            frame: FrameType = inner.gi_frame
            if frame.f_code not in self.checked:
                _refuse_hidden_state(frame.f_code)
                self.checked.add(frame.f_code)
            frames.append((frame.f_code, frame.f_lasti, tuple(sorted(frame.f_locals.items()))))
            variables = variables or dict(frame.f_locals)
            inner = inner.gi_yieldfrom
        key = tuple(frames)
        found = self.ids.get(key)
        if found is None:
            found = self.ids[key] = len(self.operations)
            self.histories.append(history)
            self.operations.append(operation)
            self.variables.append(variables)
        return found


def _refuse_hidden_state(code: CodeType) -> None:
    """Raise TypeError if a yield of this function leaves state outside of its variables."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    whole = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr | ast.Assign | ast.Return) and node.value is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Yield | ast.YieldFrom) and id(node) not in whole:
            raise TypeError(f"{code.co_name}: a yield must be a statement of its own")
        if isinstance(node, ast.For | ast.With | ast.Try) and any(
            isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node)
        ):
            raise TypeError(f"{code.co_name}: no yield inside for, with or try")


class Checker:
    """Explores one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.word_names = list(model.words)
        self.word_index = {name: index for index, name in enumerate(self.word_names)}
        self.names = [process.name for process in model.processes]
        self.process_index = {name: index for index, name in enumerate(self.names)}
        self.tables = [_Table(process) for process in model.processes]
        self.watch = {self.word_index[name]: check for name, check in model.watch.items()}

    def explore(self, limit: int = 2_000_000) -> Result:
        """Visit every reachable state; stop at the first safety violation."""
        first = self._first()
        seen: dict[State, int] = {first: 0}
        order: list[State] = [first]
        parents = [-1]
        before: list[list[int]] = [[]]  # which states progress to this one
        quiet: list[bool] = []
        good: list[int] = []
        transitions = 0
        invariant, is_good = self.model.invariant, self.model.good
        at = 0
        while at < len(order):
            state = order[at]
            view = View(self, state)
            broken = invariant(view)
            if broken is not None:
                return Result(len(order), transitions, broken, self._trace(order, parents, at))
            if is_good(view):
                good.append(at)
            still = True
            try:
                for progress, following, _what in self._successors(state):
                    transitions += 1
                    index = seen.get(following)
                    if index is None:
                        index = seen[following] = len(order)
                        order.append(following)
                        parents.append(at)
                        before.append([])
                    if progress:
                        before[index].append(at)
                        still = False
            except Violation as violation:
                trace = self._trace(order, parents, at, str(violation))
                return Result(len(order), transitions, str(violation), trace)
            quiet.append(still)
            at += 1
            if len(order) > limit:
                raise RuntimeError(f"model has more than {limit} states; make it smaller")
        doomed = self._doomed(before, good)
        if doomed:
            stuck = next((index for index in doomed if quiet[index]), doomed[0])
            text = "stuck for ever: nobody can move" if quiet[stuck] else "no way out"
            return Result(len(order), transitions, text, self._trace(order, parents, stuck))
        return Result(len(order), transitions, None, "")

    @staticmethod
    def _doomed(before: list[list[int]], good: list[int]) -> list[int]:
        """Return the states, nearest first, from which no good one can be reached."""
        saved = bytearray(len(before))
        stack = list(good)
        for index in good:
            saved[index] = 1
        while stack:
            for index in before[stack.pop()]:
                if not saved[index]:
                    saved[index] = 1
                    stack.append(index)
        return [index for index, flag in enumerate(saved) if not flag]

    # ---- one step ---------------------------------------------------------------------

    @staticmethod
    def value(memory: Any, word: int) -> int:
        value: int = memory[word]
        return value

    def _first(self) -> State:
        parts = []
        for table in self.tables:
            local, stores = table.start()
            parts.append((RUNNING, local, self._buffered((), stores)))
        return tuple(self.model.words.values()), tuple(parts)

    def _buffered(
        self, buffer: tuple[tuple[int, int], ...], stores: tuple[Operation, ...]
    ) -> tuple[tuple[int, int], ...]:
        return buffer + tuple((self.word_index[word], value) for _, word, value, _ in stores)

    def _resume(self, parts: tuple[Part, ...], index: int, result: Any) -> tuple[Part, ...]:
        """Hand an operation's result to a process."""
        _, local, buffer = parts[index]
        local, stores = self.tables[index].move(local, result)
        if stores:
            buffer = self._buffered(buffer, stores)
        return (*parts[:index], (RUNNING, local, buffer), *parts[index + 1 :])

    def _write(self, memory: tuple[int, ...], who: int, word: int, value: int) -> tuple[int, ...]:
        check = self.watch.get(word)
        if check is not None and memory[word] != value:
            broken = check(self.names[who], memory[word], value)
            if broken is not None:
                raise Violation(broken)
        return (*memory[:word], value, *memory[word + 1 :])

    def _successors(self, state: State) -> Iterator[tuple[bool, State, tuple[int, str, Any]]]:
        """Yield whether it is progress, the next state, and who did what."""
        memory, parts = state
        for index, (mode, local, buffer) in enumerate(parts):
            if buffer:
                word, value = buffer[0]
                shorter: Part = (mode, local, buffer[1:])
                yield (
                    True,
                    (
                        self._write(memory, index, word, value),
                        (*parts[:index], shorter, *parts[index + 1 :]),
                    ),
                    (index, "flush", (word, value)),
                )
            if mode == DEAD:
                if buffer:
                    gone: Part = (DEAD, local, ())
                    after = (*parts[:index], gone, *parts[index + 1 :])
                    yield False, (memory, after), (index, "drop", None)
                continue
            operation = self.tables[index].operations[local]
            if mode == ASLEEP:
                if self.model.sleeps_may_end:
                    resumed = self._resume(parts, index, "slice")
                    yield False, (memory, resumed), (index, "slice", None)
                if operation is not None and operation[3]:
                    resumed = self._resume(parts, index, "timer")
                    yield self.model.timers_fire, (memory, resumed), (index, "timer", None)
            elif operation is not None:
                yield from self._execute(memory, parts, index, operation)
            if operation is not None and self.model.processes[index].mortal:
                kept = 0 if self.model.forgets_the_dead else local
                dead: Part = (DEAD, kept, buffer)
                after = (*parts[:index], dead, *parts[index + 1 :])
                yield False, (memory, after), (index, "killed", None)

    def _execute(
        self, memory: tuple[int, ...], parts: tuple[Part, ...], index: int, operation: Operation
    ) -> Iterator[tuple[bool, State, tuple[int, str, Any]]]:
        kind, name, argument, timed = operation
        buffer = parts[index][2]
        if kind == "load":
            word = self.word_index[name]
            value = memory[word]
            for stored, newer in buffer:
                if stored == word:
                    value = newer
            yield True, (memory, self._resume(parts, index, value)), (index, kind, value)
        elif kind == "choose":
            for choice in range(argument):
                resumed = self._resume(parts, index, choice)
                yield True, (memory, resumed), (index, kind, choice)
        elif kind == "go on":
            yield False, (memory, self._resume(parts, index, None)), (index, kind, None)
        elif kind == "alive":
            alive = parts[self.process_index[name]][0] != DEAD
            yield True, (memory, self._resume(parts, index, alive)), (index, kind, alive)
        elif kind == "wake":
            yield from self._wake(memory, self._resume(parts, index, None), index, operation)
        elif buffer:
            return  # the rest waits until its own stores have drained
        elif kind == "rmw":
            word = self.word_index[name]
            old = memory[word]
            after = self._write(memory, index, word, argument(old))
            yield True, (after, self._resume(parts, index, old)), (index, kind, old)
        elif kind == "fence":
            yield True, (memory, self._resume(parts, index, None)), (index, kind, None)
        elif kind == "sleep":
            if argument is not None and memory[self.word_index[name]] != argument:
                resumed = self._resume(parts, index, "again")
                yield True, (memory, resumed), (index, kind, "refused, the word has changed")
            else:
                asleep: Part = (ASLEEP, parts[index][1], ())
                after_sleep = (*parts[:index], asleep, *parts[index + 1 :])
                yield True, (memory, after_sleep), (index, kind, "asleep")
        elif kind == "block":
            if memory[self.word_index[name]]:
                yield True, (memory, self._resume(parts, index, "set")), (index, kind, "set")
                return
            if self.model.sleeps_may_end:
                resumed = self._resume(parts, index, "slice")
                yield False, (memory, resumed), (index, "slice", None)
            if timed:
                resumed = self._resume(parts, index, "timer")
                yield self.model.timers_fire, (memory, resumed), (index, "timer", None)
        else:
            raise TypeError(f"unknown operation {kind!r}")

    def _wake(
        self, memory: tuple[int, ...], parts: tuple[Part, ...], who: int, operation: Operation
    ) -> Iterator[tuple[bool, State, tuple[int, str, Any]]]:
        """Branch over every choice of sleepers."""
        _, name, count, _ = operation
        asleep = [
            index
            for index, (mode, local, _) in enumerate(parts)
            if mode == ASLEEP and (self.tables[index].operations[local] or ("", ""))[1] == name
        ]
        if len(asleep) <= count:
            for index in asleep:
                parts = self._resume(parts, index, "woken")
            woken = [self.names[index] for index in asleep]
            yield True, (memory, parts), (who, "wake", woken)
            return
        for index in asleep:
            resumed = self._resume(parts, index, "woken")
            rest = ("wake", name, count - 1, None)
            if count == 1:
                yield True, (memory, resumed), (who, "wake", [self.names[index]])
            else:
                yield from self._wake(memory, resumed, who, rest)

    # ---- traces -----------------------------------------------------------------------

    def _trace(self, order: list[State], parents: list[int], at: int, end: str = "") -> str:
        path = [at]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        path.reverse()
        lines = []
        for number, (here, there) in enumerate(itertools.pairwise(path), 1):
            for _, following, (index, kind, detail) in self._successors(order[here]):
                if following == order[there]:
                    text = self._describe(order[here], index, kind, detail)
                    added = self._added(order[here], following, index)
                    lines.append(f"  {number:3}  {self.names[index]:10} {text}{added}")
                    break
        if end:
            lines.append(f"       {end}")
        memory, parts = order[at]
        lines.append(f"       memory: {self._shown(memory)}")
        for name, table, (mode, local, _) in zip(self.names, self.tables, parts, strict=True):
            operation = table.operations[local]
            now = ("runs", "sleeps", "is dead")[mode] if operation else "has finished"
            lines.append(f"       {name} {now}")
        return "\n".join(lines)

    def _shown(self, memory: tuple[int, ...]) -> str:
        named = zip(self.word_names, memory, strict=True)
        return ", ".join(f"{name}={value:#x}" for name, value in named)

    def _added(self, state: State, following: State, index: int) -> str:
        """Name the stores which the process executed right after this step."""
        old, new = state[1][index][2], following[1][index][2]
        fresh = new[len(old) :]
        text = ", ".join(f"{self.word_names[word]} = {value:#x}" for word, value in fresh)
        return f"; buffers {text}" if text else ""

    def _describe(self, state: State, index: int, kind: str, detail: Any) -> str:
        local = state[1][index][1]
        operation = self.tables[index].operations[local] or ("", "", None, None)
        _, name, argument, text = operation
        if kind == "flush":
            return f"its store {self.word_names[detail[0]]} = {detail[1]:#x} reaches memory"
        if kind == "drop":
            return "what was left in its buffer is lost"
        if kind == "killed":
            return "KILLED"
        if kind == "slice":
            return "its sleep ends by itself"
        if kind == "timer":
            return "its timer fires"
        if kind == "load":
            return f"load {name} -> {detail:#x}"
        if kind == "rmw":
            return f"{text} on {name}, was {detail:#x}"
        if kind == "sleep":
            expected = "" if argument is None else f" while it is {argument:#x}"
            return f"sleep on {name}{expected}: {detail}"
        if kind == "wake":
            return f"wake {name}: {', '.join(detail) or 'nobody there'}"
        if kind == "alive":
            return f"is {name} alive? {detail}"
        return f"{kind} {name} {'' if detail is None else detail}".rstrip()


def explore(model: Model) -> Result:
    """Explore a model and print what was found, for `pytest -s` and for failures."""
    # Millions of states and no garbage among them; looking for some takes a tenth of the time.
    gc.disable()
    try:
        result = Checker(model).explore()
    finally:
        gc.enable()
    print(result)
    return result
