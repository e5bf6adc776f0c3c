"""Restates ring.h as model steps: what each function does to shared words, in its order.

Names and branches follow ring.h, so that the two can be read side by side;
test_model_is_ring_h.py holds the numbers together. Private variables of the C structs are
arguments and return values here: the checker tells states apart by local variables.
"""

from __future__ import annotations

from tests.model.tso_checker import (
    Operation,
    Program,
    Violation,
    add,
    clear_bits,
    compare_and_swap,
    load,
    rmw,
    set_bits,
    store,
)

FREE, READY, TAKEN, DONE, CANCELLED, ABANDONED = range(6)
STATE_NAMES = ("FREE", "READY", "TAKEN", "DONE", "CANCELLED", "ABANDONED")
STATE_MASK = 0x07
WAITER = 0x08
ASYNC = 0x10
GENERATION_SHIFT = 8

PARKED = 0x1
POLLING = 0x2
STEP = 0x4

LOOP_STEP = 0x1
LOOPS_MASK = 0xFF
THREAD_STEP = 0x100
THREADS_MASK = 0xFF00
COMPLETION_STEP = 0x10000

IDLE, WAITING, RUNNING = range(3)

OPEN, DRAINING, CLOSED, EXPELLED, REPLACED = range(5)

WORD = 1 << 32  # where the bell, which counts for ever, begins again


def state_of(word: int) -> int:
    return word & STATE_MASK


def generation_of(word: int) -> int:
    return word >> GENERATION_SHIFT


def word_of(generation: int, state: int) -> int:
    return generation << GENERATION_SHIFT | state


def slot_words(capacity: int, of: str = "") -> dict[str, int]:
    """Return the words of a segment: header, ring and slots, with their first values.

    Where there are several segments, the words of each begin with its name, *of*.
    """
    words = {f"{of}tail": 0, f"{of}withdrawn": 0}
    for index in range(capacity):
        words |= {f"{of}index{index}": 0, f"{of}state{index}": word_of(0, FREE)}
        words |= {f"{of}input{index}": 0, f"{of}result{index}": 0}
    return words


# ---- the producer's end -----------------------------------------------------------------


def publish(
    capacity: int, tail: int, index: int, generation: int, flags: int = 0, of: str = ""
) -> Program:
    """Return the new tail."""
    yield store(f"{of}state{index}", word_of(generation, READY) | flags)
    yield store(f"{of}index{tail % capacity}", index)
    yield store(f"{of}tail", tail + 1)
    return tail + 1


def is_open() -> Program:
    status = yield load("status")
    return status == OPEN


def arm(index: int, bit: int, of: str = "") -> Program:
    """Return the word as it now stands."""
    word = yield set_bits(f"{of}state{index}", bit)
    return word | bit


def withdraw(index: int, only_ready: bool = False, of: str = "") -> Program:
    """Return the state it is in now."""
    word = yield load(f"{of}state{index}")
    while True:
        if state_of(word) == READY:
            following = CANCELLED
        elif state_of(word) == TAKEN and not only_ready:
            following = ABANDONED
        else:
            return state_of(word)
        wanted = word_of(generation_of(word), following)
        found = yield compare_and_swap(f"{of}state{index}", word, wanted)
        if found == word:
            if following == CANCELLED:
                yield add(f"{of}withdrawn", 1)
            return following
        word = found


def release(index: int, of: str = "") -> Program:
    word = yield load(f"{of}state{index}")
    yield store(f"{of}state{index}", word_of(generation_of(word), FREE))


def join_completions(step: int) -> Program:
    """Return the value to sleep on."""
    word = yield add("completions", step)
    return word + step


def leave_completions(step: int) -> Program:
    yield add("completions", -step)


def ring_bell(urgent: bool = False) -> Program:
    """Return PARKED or POLLING if the executor must be woken."""
    before = yield add_to_bell()
    asleep = before & (PARKED | POLLING)
    if asleep == 0 or urgent:
        return asleep
    quorum = yield load("quorum")
    return asleep if missing(quorum, before) <= 0 else 0


def add_to_bell() -> Operation:
    return rmw("bell", lambda old: (old + STEP) % WORD, f"add {STEP:#x}")


def missing(quorum: int, before: int) -> int:
    """Return four times the rings that are missing, as the int32_t that ring.h has."""
    value = ((quorum - before // STEP - 1) << 2) % WORD
    return value - WORD if value >= WORD // 2 else value


# ---- the executor's end -----------------------------------------------------------------


def arm_bell(seen: int, bit: int, calls: int) -> Program:
    """Return whether sleep until *calls* more rings is announced."""
    yield store("quorum", quorum_of(seen, calls))
    word = yield compare_and_swap("bell", seen, seen | bit)
    return word == seen


def quorum_of(seen: int, calls: int) -> int:
    return (seen // STEP + calls) % WORD


def disarm_bell() -> Program:
    yield clear_bits("bell", PARKED | POLLING)


def free(index: int, word: int, of: str = "") -> Program:
    """Return whether the slot of a withdrawn call became FREE."""
    while state_of(word) == CANCELLED:
        wanted = word_of(generation_of(word), FREE)
        found = yield compare_and_swap(f"{of}state{index}", word, wanted)
        if found == word:
            return True
        word = found
    return False


def drain(
    capacity: int, head: int, waiting: tuple[int, ...], known: tuple[int, ...], of: str = ""
) -> Program:
    """Return head, waiting and known as they are now."""
    tail = yield load(f"{of}tail")
    if tail - head > capacity:
        raise Violation(f"executor: tail {tail} is more than the capacity ahead of head {head}")
    while head != tail:
        index = yield load(f"{of}index{head % capacity}")
        if known[index] != IDLE:
            raise Violation(f"executor: slot {index} came out of the ring twice (R1)")
        known = _changed(known, index, WAITING)
        waiting = (*waiting, index)
        head += 1
    return head, waiting, known


def sweep(waiting: tuple[int, ...], known: tuple[int, ...], withdrawn: int) -> Program:
    """Return waiting, known and withdrawn as they are now."""
    count = yield load("withdrawn")
    if count == withdrawn:
        return waiting, known, withdrawn
    kept: tuple[int, ...] = ()
    while waiting:
        index = waiting[0]
        word = yield load(f"state{index}")
        if state_of(word) == CANCELLED:
            freed = yield from free(index, word)
            if not freed:
                raise Violation(f"executor: somebody else moved slot {index} from CANCELLED (R2)")
            known = _changed(known, index, IDLE)
            withdrawn += 1
        else:
            kept = (*kept, index)
        waiting = waiting[1:]
    return kept, known, withdrawn


def take(index: int, of: str = "") -> Program:
    """Return the generation taken, or None where the call had been cancelled (now FREE)."""
    word = yield load(f"{of}state{index}")
    while True:
        if state_of(word) == CANCELLED:
            freed = yield from free(index, word, of)
            if not freed:
                raise Violation(f"executor: somebody else moved slot {index} from CANCELLED (R2)")
            return None
        if state_of(word) != READY:
            raise Violation(f"executor: slot {index} stood in the ring {name_of(word)}")
        found = yield compare_and_swap(f"{of}state{index}", word, word & ~STATE_MASK | TAKEN)
        if found == word:
            return generation_of(word)
        word = found


def complete(index: int, generation: int, of: str = "") -> Program:
    """Return the flags of those to wake."""
    word = yield load(f"{of}state{index}")
    while True:
        if generation_of(word) != generation:
            raise Violation(f"executor: slot {index} has another generation than taken (R3)")
        if state_of(word) == TAKEN:
            following = DONE
        elif state_of(word) == ABANDONED:
            following = FREE
        else:
            raise Violation(f"executor: slot {index} was taken and is {name_of(word)}")
        found = yield compare_and_swap(f"{of}state{index}", word, word_of(generation, following))
        if found == word:
            return word & (WAITER | ASYNC)
        word = found


def notify() -> Program:
    """Return who sleeps on the completion word: bits of THREADS_MASK and LOOPS_MASK."""
    word = yield add("completions", COMPLETION_STEP)
    return word & (THREADS_MASK | LOOPS_MASK)


# ---- what R2 allows ---------------------------------------------------------------------

PRODUCER_MOVES = {(FREE, READY), (READY, CANCELLED), (TAKEN, ABANDONED), (DONE, FREE)}
EXECUTOR_MOVES = {(READY, TAKEN), (TAKEN, DONE), (CANCELLED, FREE), (ABANDONED, FREE)}


def refuse_other_moves(process: str, old: int, new: int) -> str | None:
    """Watch a state word: only R2's moves, and only publish changes the generation (R3)."""
    move = (state_of(old), state_of(new))
    if move[0] != move[1]:
        moves = EXECUTOR_MOVES if process == "executor" else PRODUCER_MOVES
        if move not in moves:
            return f"{process} moved a slot from {name_of(old)} to {name_of(new)} (R2)"
    if generation_of(old) != generation_of(new) and move != (FREE, READY):
        return f"{process} changed the generation of a {name_of(old)} slot (R3)"
    return None


def name_of(word: int) -> str:
    return STATE_NAMES[state_of(word)]


def _changed(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
