"""The protocol of ``ring.h``, one call for each operation; implemented in ``core.c``.

There is no pure-Python version: CPython promises nothing about the order in which another
process sees two stores, so it would pass every test on x86 and lose calls elsewhere.
"""

from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

from typing_extensions import Buffer

# (kind, offset, nbytes, carrier, format, shape, allocate, itemsize); core.h says how a value of
# each kind stands in its slot, wire.py what they are made from.
# The last but one: the dtype of an array, or what allocates memory for a value.
_Column = tuple[int, int, int, Any, str, tuple[int, ...], Any, int]

_Call = TypeVar("_Call", bound=Call)

# (ring, flags, sleeping threads, slots with sleepers): whom to wake.
Wake = tuple[ExecutorRing, int, int, list[int]]

PENDING: Final[object]
FAILED: Final[object]

# States of a slot, flags of its word, bits of the bell, status of a connection: see ring.h.
FREE: Final[int]
READY: Final[int]
TAKEN: Final[int]
DONE: Final[int]
CANCELLED: Final[int]
ABANDONED: Final[int]
WAITER: Final[int]
ASYNC: Final[int]
PARKED: Final[int]
POLLING: Final[int]
OPEN: Final[int]
DRAINING: Final[int]
CLOSED: Final[int]
EXPELLED: Final[int]
REPLACED: Final[int]

# Flag of `submit`: the result may be polled before its caller asks, to make room.
SPAWNED: Final[int]

# Phases of a call: what `Phases.read` takes.
WAITING: Final[int]
STAGING: Final[int]
RUNNING: Final[int]
DELIVERING: Final[int]

# Kinds of sleepers on the completion word.
THREAD: Final[int]
LOOP: Final[int]

# What `ProducerRing.submit` returns instead of a ticket, and `reserve` of a loan; all negative.
SUBMIT_FULL: Final[int]
SUBMIT_MISFIT: Final[int]
SUBMIT_CLOSED: Final[int]
SUBMIT_FORKED: Final[int]
SUBMIT_LENT: Final[int]  # half of the slots are lent

# Flags in what `Batch.complete` and `Inbox.pop_attention` return.
WAKE_ASYNC: Final[int]
WAKE_VIOLATION: Final[int]

MAX_COLUMNS: Final[int]
MAX_CAPACITY: Final[int]
TICKET_SLOT_MASK: Final[int]  # the bits of a ticket that say its slot
HEADER_NBYTES: Final[int]
CONTROL_NBYTES: Final[int]

def set_timer_slack(nanoseconds: int, /) -> None:
    """Bound how late the kernel may end this thread's sleeps. Linux only."""

def close_apart(fd: int, /) -> None:
    """Close *fd*, without waiting for what that may take.

    Takes 0.1 ms, and a thread that ends at once; before Linux 5.9 the thread waits instead.

    Raises:
        OSError: there is no thread to be had, and *fd* is still open.
    """

class Spinning:
    """How long to spin before sleeping, learnt from what spins have brought."""

    def __new__(cls, spin_ns: int, learns: bool, /) -> Spinning:
        """Spins for so long: always, or, if it *learns*, as long as that pays."""
    @property
    def spin_ns(self) -> int:
        """How long to spin next; 0: not at all."""
    # Counted by whoever spins: those that found what they waited for, and those that did not.
    won: int
    vain: int
    def slept(self) -> None:
        """Learn from a sleep, and from the spins that came before it."""

class Bell:
    """The word that all producers of an executor ring, and on which it sleeps."""

    def __new__(cls, memory: Buffer, /) -> Bell: ...
    def ring(self) -> int:
        """Ring urgently; return PARKED or POLLING if the executor must be woken, else 0."""
    def look(self) -> int:
        """Return the word. Look here before looking at the rings, then spin or arm on it."""
    def spin(self, how: Spinning, seen: int, until_ns: int, calls: int, /) -> int:
        """Spin until *calls* have rung since now, or this process has; return what the word reads.

        At once if it does not read *seen*. Returns *seen* when nobody has rung for as long as
        *how* says, at the latest after four times that, or when the clock says *until_ns*. With
        one that does not learn any ring will do. No GIL.
        """
    def arm(self, seen: int, bit: int, calls: int, /) -> bool:
        """Announce sleep (PARKED) or the event loop (POLLING) until *calls* more were published.

        False if the bell rang since *seen*. An urgent ring ends the sleep whatever *calls* is.
        """
    def disarm(self) -> None:
        """Take the announcement back. Only the executor calls this."""
    def park(self, seen: int, timeout_ns: int, calls: int, /) -> int:
        """Arm with PARKED, sleep on the futex, disarm; return what the word then reads.

        Does not sleep if the bell rang since *seen*, or no time is left; may return early. No GIL.
        """
    def wake(self) -> None:
        """Wake the executor out of `park`. One system call."""

class ProducerRing:
    """The producer's end of a connection; used by one process, by any of its threads."""

    def __new__(
        cls,
        segment: Buffer,
        capacity: int,
        indices: int,
        controls: int,
        errors: int,
        error_nbytes: int,
        columns: tuple[_Column, ...],
        bell: Buffer,
        wake: Callable[[int], object],
        finish: Callable[[Any], Any] | None,
        /,
    ) -> ProducerRing:
        """*wake* is called with the bell's bits when the executor sleeps; *finish* makes of a
        result what `poll` returns."""

    @property
    def free_slots(self) -> int:
        """Slots that a submit can claim now; only this process makes it fewer."""
    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that created the ring."""
    @property
    def status(self) -> int:
        """OPEN, DRAINING, CLOSED, EXPELLED or REPLACED."""
    @property
    def moves(self) -> int:
        """How often the ring has gone over to another segment."""

    # For `Verb` and `Call`, which ask nobody else.
    dead: bool  # no call is to be made over it any more
    queueing: bool  # somebody waits for a slot, and who is next is not for the core to say
    spinning: Spinning  # to be set: how long to spin for a result; at first not at all
    park_ns: int  # how long to sleep for one after that, once; 0: Python sleeps, and wakes
    looked_ns: int  # when the executor's life was last looked at; after park_ns they do not sleep
    def submit(self, values: tuple[Any, ...], flags: int, deadline_ns: int = 0, /) -> int:
        """Copy one input into a slot and publish it; return its ticket, or SUBMIT_... (< 0).

        Takes only values exactly of their columns' types; anything else is SUBMIT_MISFIT. A call
        that is not launched by *deadline_ns*, unless that is 0, never runs.
        Cost: one copy; a system call only if the executor sleeps.
        """
    def reserve(self, tell: Callable[[], object], /) -> Loan | int:
        """Lend a free slot, to write an input into it; or return SUBMIT_... (< 0).

        *tell* is called when it is given back without a call while somebody is `queueing`.
        """
    def move(
        self,
        segment: Buffer,
        bell: Buffer,
        wake: Callable[[int], object],
        record: bytes,
        most_runs: int,
        /,
    ) -> tuple[int, int]:
        """Go over to a segment of the same layout, whose executor has seen no call yet.

        Tickets stay what they are. Calls that the executor of the old segment, which must be dead,
        had not taken are published again, in their order; those that it had, too, as long as no
        more than *most_runs* executors will have run them, else they fail with *record*. Outcomes
        that are there are kept. Returns how many calls were published, and what *wake* is now to
        be called with, if it is not 0.

        Raises, and then nothing has moved:
            ValueError: the segments differ in size. RuntimeError: this process is a fork.
        """
    def poll(self, ticket: int, spin_ns: int, /) -> Any:
        """Return the result and free the slot; or PENDING; or FAILED (then call `error`).

        A `Failure` where *finish* raised an Exception; the slot is free then, too.
        """
    def error(self, ticket: int, /) -> bytes | None:
        """Return the error record of a FAILED call, None if it expired, and free its slot."""
    def state(self, ticket: int, /) -> int:
        """READY, TAKEN or DONE."""
    def finished(self, spawned: bool, /) -> list[int]:
        """Return the tickets of calls that are done and not yet polled. Looks at every slot.

        Of those submitted with SPAWNED only, if *spawned*.
        """
    def arm(self, ticket: int, bit: int, /) -> int:
        """Announce a sleeper (WAITER) or an event loop (ASYNC); return the word to park on.

        -1 if the call is done: poll it. The bit stays until then.
        """
    def withdraw(self, ticket: int, /) -> int:
        """Give a call up: CANCELLED (never runs), ABANDONED or DONE (its result is dropped)."""
    def expire(self, ticket: int, /) -> int:
        """Give a call up if it is not launched: CANCELLED; else TAKEN or DONE, and it goes on."""
    def join_completions(self, kind: int, /) -> int:
        """Count a sleeper (THREAD) or an event loop (LOOP) and return the word to park on.

        Look for results after this and before parking. -1 where 255 of the kind have joined:
        do not park, or for one slice only.
        """
    def leave_completions(self, kind: int, /) -> None:
        """Undo `join_completions`."""
    def park_slot(self, ticket: int, timeout_ns: int, /) -> bool:
        """Announce a sleeper and sleep on the slot's futex, without the GIL; say if it is done."""
    def park_completions(self, joined: int, timeout_ns: int, /) -> None:
        """Sleep on the connection's futex while its word is *joined*. No GIL."""
    def wake_slot(self, ticket: int, /) -> None:
        """Wake this process's sleepers on the slot of a ticket that is over. One system call."""
    def wake_completions(self) -> None:
        """Wake this process's sleepers on the connection's futex, if there are any."""

class Loan:
    """A slot that is lent to its own process, to write an input into it.

    Given back by `close`, or when nobody has it any more, nor a value of it.
    """

    def value(self, column: int, /) -> Lent:
        """Return where a parameter's value stands; for a move of the ring, where it stood."""
    def spawn(
        self,
        made: type[_Call],
        connection: Any,
        limits: Any,
        values: tuple[Any, ...],
        deadline_ns: int,
        /,
    ) -> _Call | int:
        """Publish this slot; return a call of the type *made*, or SUBMIT_... (< 0).

        *values* and *deadline_ns* as of `ProducerRing.submit`, with SPAWNED. An array over `value`
        stands where it belongs and is not copied. The loan is over then, but not after
        SUBMIT_MISFIT. SUBMIT_CLOSED also where the ring is dead, or has moved.

        Raises:
            ValueError: it was published, or closed, before.
        """
    def close(self) -> None:
        """Give the slot back, unless it was published. Idempotent."""

class Lent(Buffer):
    """One value of a lent slot, whose memory it holds; of a result that holds the slot, too.

    Writable until the call is published, or the slot given back.
    """

class Failure:
    """An outcome that is an error; None of a call that expired, of which only who made it knows
    by when it was to be launched."""

    def __new__(cls, error: Exception | None, /) -> Failure: ...
    @property
    def error(self) -> Any: ...

class Call:
    """A published call and its outcome. Python has what this leaves to it.

    `_settle_otherwise()` does what `_settle` cannot; `_tell()` wakes who else waits for it;
    `_lost(error)` is told of an exception that came between the result's leaving its slot and
    its being here; `_dropped()` that nobody has a call any more which has no outcome.
    """

    def __new__(cls, connection: Any, ticket: int, limits: Any, /) -> Self: ...
    _limits: Any
    _outcome: Any  # to be set before `_state`
    _state: int  # 0: it waits for its outcome; 1: that is a value; 2: an error; 3: it was lent
    _shared: bool  # somebody may wait for it, who is to be told
    _sleepers: int  # threads that sleep for it in the core; read-only
    _connection: Any  # read-only, as is the ticket
    _ticket: int
    def _settle(self) -> bool:
        """Take the outcome if it is there; True once it is. Does not block; frees the slot."""
    def _lend(self, spin_ns: int, tell: Callable[[], object], /) -> Any:
        """Return the result where it stands, a `Lent`, after which there is no outcome.

        Else PENDING, after spinning; or None where it is not an array of fixed shape, or not
        there, or half of the slots are lent. *tell* as of `ProducerRing.reserve`.
        """

class GetVerb:
    """`get` in the class of calls: takes an outcome that is there, or comes in a spin or a sleep.

    What else there is to do *method* does, whose asyncio version is *twin*.
    """

    def __new__(cls, method: Callable[..., Any], twin: Callable[..., Any], /) -> GetVerb: ...
    @property
    def __wrapped__(self) -> Callable[..., Any]: ...
    def __get__(self, instance: Any, owner: type | None = None, /) -> Any: ...

class Verb:
    """A method of a handle, or a call; its asyncio twin is `aio`.

    Over a connection that it follows, it submits by itself what the core takes as it is, and then
    waits for the result, spinning first; or, with *made*, returns a call of that type and with
    these *limits*. All else *slow* does, a bound method.
    """

    def __new__(
        cls,
        slow: Callable[..., Any],
        aio: Callable[..., Any],
        made: type[Call] | None = None,
        limits: Any = None,
        /,
    ) -> Verb: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    @property
    def aio(self) -> Callable[..., Any]:
        """The same for event loops: a coroutine function, or an async generator function."""
    @property
    def __wrapped__(self) -> Callable[..., Any]: ...
    @property
    def connection(self) -> Any:
        """What it follows, or None."""
    def follow(self, connection: Any, timeout: float | None = None, /) -> None:
        """Call over *connection* from now on, or leave all to *slow* if that is None.

        Where spinning and one sleep have not brought the result, ``connection.conclude(ticket,
        outcome, timeout, since_ns)`` returns it, *timeout* seconds after *since_ns* at most;
        ``connection.abandon(ticket)`` is called where that raises, and
        ``connection.tell_queue()`` where a slot was freed while somebody waits for one.
        """

class ExecutorRing:
    """The executor's end of a connection."""

    wakes: bool  # its producer sleeps on futexes: `Batch.complete` wakes it

    def __new__(
        cls,
        segment: Buffer,
        capacity: int,
        indices: int,
        controls: int,
        errors: int,
        error_nbytes: int,
        columns: tuple[_Column, ...],
        layout_version: int,
        /,
    ) -> ExecutorRing: ...
    def set_status(self, status: int, /) -> None: ...
    def lend(self, stacks: tuple[Any, ...], /) -> None:
        """Have batches that are one run of this ring get slices of *stacks*, and no copy.

        One for each parameter: all slots of a column of arrays of one shape, or None, which is
        gathered. Before the ring is attached.

        Raises:
            ValueError: they are not that.
        """
    def wake(self, threads: int, slots: list[int], /) -> None:
        """Wake the sleepers on these slots' futexes and, if there are *threads*, on the
        connection's. One system call each."""

class Phases:
    """How long calls were waiting, staged, running and being delivered: four histograms.

    How long they waited is counted of every call. Of the other times those of the first 1024
    batches are, and then of one batch in eight, which counts eightfold.
    """

    def __new__(cls) -> Phases: ...
    def read(self, phase: int, /) -> tuple[int, int, bytes]:
        """Return (sum, largest, counts) of one of them, in nanoseconds; counts are 976 native u64.

        Bucket i holds exactly i below 16; above, ``octave = i // 16 - 1`` and it begins at
        ``(16 + i % 16) << octave`` and is ``1 << octave`` wide.
        """

class Batch:
    """The calls of one batch: rows 0..count-1, in the order in which they were taken.

    *phases*, if there are any, hear how long the calls took.
    """

    count: int
    rejected: int
    capacity: int

    def __new__(cls, capacity: int, phases: Phases | None = None, /) -> Batch: ...
    def runs(self) -> list[tuple[ExecutorRing, int, int]]:
        """Return where the rows stand: ring, first slot, and how many neighbours, in order."""
    def gather(self, buffers: list[tuple[Buffer | None, Any] | None], /) -> list[Any]:
        """Copy the inputs of all rows; return one item a column.

        That is a list of values where *buffers* has None. For a column of arrays of one shape it
        has a pair: the rows are copied to the start of the first, unless that is None, and the
        item is the second up to as many; neighbouring slots are one copy. Of a column that is
        lent nothing is copied where all rows are neighbours. For arrays of varying
        shape it may have a pair (room, lengths): the rows are written to the start of the first,
        padded with zeros to the longest of them, their lengths along each axis that varies as
        int64 to the second, and the item is the shape of the whole.
        """
    def reject(self, row: int, record: bytes, /) -> None:
        """Make an error record the outcome of a row that the function is not to see.

        It leaves the rows; those behind it move up. `complete` publishes it with the others.
        """
    def scatter(self, results: object, /) -> bool:
        """Store one result a row out of a list or a packed stack of `count` rows.

        False if it is not exactly of the result's type; some rows may have been written then.
        """
    def put(self, row: int, value: Any, /) -> bool:
        """Store one result; False if it is not exactly of the result's type."""
    def fail(self, row: int, record: bytes, /) -> None:
        """Make an error record the outcome of one row."""
    def split(self, at: int, /) -> Batch:
        """Move the rows from *at* on into a batch of their own, as if it had taken them.

        What was rejected stays. Latencies are counted of neither part.
        """
    def drop_abandoned(self) -> int:
        """Take rows out as `reject` does whose calls nobody waits for; return how many are left.

        That are those that were given up, and those whose producers are gone.
        """
    def complete(self) -> list[Wake] | None:
        """Publish every outcome, empty the batch, wake whom the core can; return whom it cannot.

        Cost: a system call for each sleeper of a ring that `wakes`.
        """

class Inbox:
    """The executor's ends of all producers of one function."""

    oldest_ns: int
    absent: int
    attention: int
    count: int
    expired: int
    cancelled: int

    def __new__(cls) -> Inbox: ...
    @property
    def running(self) -> int:
        """Calls taken and not completed."""
    def attach(self, ring: ExecutorRing, since_ns: int, /) -> None:
        """Drain this ring from now on. No call of it was published before *since_ns*."""
    def detach(self, ring: ExecutorRing, /) -> None:
        """Drop the ring and its waiting calls; rows in a batch live until completed."""
    def drain(self, now_ns: int, /) -> int:
        """Look at every ring; return how many calls wait.

        Sets `oldest_ns` (their earliest publication); `absent`, how many calls are missing until
        every producer has as many outstanding as it had lately; and `attention` where
        `pop_attention` has something to say.
        """
    def forget_absent(self) -> None:
        """Wait for nobody who has fewer calls outstanding now than it had lately."""
    def pending(self) -> int:
        """Return how many calls are published and not taken now. For any thread."""
    def take(self, batch: Batch, limit: int, now_ns: int, /) -> int:
        """Fill an empty batch with up to *limit* calls, producers taking turns (I5).

        Calls whose deadline has passed are not among them: that is their outcome, and `expired`
        counts them.
        """
    def seal(self) -> None:
        """Take no more calls out of the rings; those found by `drain` already still run."""
    def pop_attention(self) -> list[Wake] | None:
        """Return whom to wake because slots of withdrawn calls are free, and who violated."""

class Watchdog:
    """A thread without the GIL that ends this process when one execution takes too long.

    One byte is written to *notice_fd* first. If nobody calls `accept` within *grace_ns*, which
    takes the GIL, or the process is still there *patience_ns* after that, the thread itself tells
    producers, writes to standard error, raises *signal_number*, unless that is 0, and ends the
    process with status 1, after another *grace_ns* at the latest.

    Producers are those at the other ends of the connections to *socket_fd*, a bound socket.

    Raises:
        OSError: the thread cannot be started.
    """

    def __new__(
        cls,
        notice_fd: int,
        socket_fd: int,
        signal_number: int,
        grace_ns: int,
        patience_ns: int,
        /,
    ) -> Watchdog: ...
    def add(self, limit_ns: int, told: bytes, logged: bytes, on_device: bool, /) -> int:
        """Add a function, of which nothing may take longer, and return its number; 0: no limit.

        *told* is the packet for producers, *logged* is for standard error. The code of a function
        *on_device* may also wait for what lands then.
        """
    def enter(self, number: int, /) -> None:
        """The calling thread goes into a function, or delivers its results; its clock begins anew.

        Those of all others stand still until `leave` or `done`.
        """
    def leave(self, number: int, in_flight: bool, lands: bool, /) -> None:
        """It is out again. The clock of the function goes on only if something is in flight.

        What *lands* is under way on the device behind all that was left so before, and its clock
        stands still until these are done.
        """
    def done(self, number: int, in_flight: bool, /) -> None:
        """The oldest batch of a function is over; its clock begins anew for another in flight.

        The thread is out again, if it was inside.
        """
    def accept(self) -> int:
        """Take it over to end this process; return the number of the function, -1 if none is."""
    def close(self) -> None:
        """End the thread. Idempotent."""
