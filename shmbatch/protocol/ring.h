/* ring.h: the protocol between one producer and the executor, in shared memory.
 *
 * Pure C11: no Python, no allocation, no system call. The binding (core.c) and the stress
 * harness (tests/native) include it; the model (tests/model) restates it state by state.
 *
 * A segment belongs to one (producer, function) pair. Its ring carries slot indices from the
 * producer to the executor; the slot's state word then carries everything else. Offsets are
 * computed by each side from its own copy of the layout (layout.py draws the bytes) and never
 * read from the segment.
 *
 * Life of a slot. P: moved by the producer, X: by the executor.
 *
 *     FREE --P publish--> READY --X take--> TAKEN --X complete--> DONE --P release--> FREE
 *                           |                 |
 *                      P withdraw        P withdraw
 *                           v                 v
 *                       CANCELLED         ABANDONED
 *                           |                 |
 *                   X take or sweep      X complete
 *                           +-----> FREE <----+
 *
 * The state word is  generation:24 | unused:3 | ASYNC:1 | WAITER:1 | state:3.
 *
 * Ordering pairs (SYNC). Each names the store or read-modify-write that releases and the load
 * or read-modify-write that acquires.
 *
 *   publish     P stores READY, then the tail      ->  X loads the tail, takes the slot: the
 *               input and its stamp are visible
 *   complete    X moves TAKEN to DONE              ->  P loads DONE: result and status are
 *   free        X moves CANCELLED or ABANDONED to  ->  P loads FREE and claims the slot: X no
 *               FREE                                   longer touches it
 *   bell        P adds to the bell after the tail  ->  X loads the bell before the tails, and
 *               parks only on the value it loaded; the quorum it stored before that is what P
 *               then reads
 *   completions X adds to the word after DONE      ->  P parks only on the value it loaded
 *                                                      before it looked for DONE
 *   withdraw    P counts after CANCELLED           ->  X loads the count before it sweeps
 *   closing     X stores the status, then touches  ->  P adds to the bell after the tail, then
 *               the bell, then drains for the last     loads the status: whichever touched the
 *               time                                   bell first, the other one sees what it did
 *
 * Every sleep is announced in the word it sleeps on, by one read-modify-write, so coherence of
 * that one word decides who must be woken: no fence, no second flag that a killed waker could
 * have cleared. Only the sleeper takes its own announcement back. The bell's quorum, which says
 * from which ring on a wake-up is worth it, stands in a word of its own: it is stored before the
 * announcement, and the announcement's own read-modify-write releases it.
 *
 * Invariants (tests and comments cite them):
 *
 *   R1  A slot's index stands in the ring at most once: it is published only from FREE, and
 *       leaves READY or CANCELLED only after the executor took it out of the ring. So the ring
 *       never overflows and needs no shared head.
 *   R2  Only the producer moves FREE, READY (to CANCELLED), TAKEN (to ABANDONED) and DONE; only
 *       the executor moves READY and TAKEN (to the right), CANCELLED and ABANDONED.
 *   R3  The generation changes only at publish; the executor completes only the generation it
 *       took. A late result therefore cannot reach a later call of the same slot.
 *   R4  The executor believes nothing it reads: the tail, the indices and the state words are
 *       snapshots, checked against its private copy; what does not fit is a VIOLATION and ends
 *       the connection.
 *   R5  Loops of the executor over shared words are bounded; a producer that writes without
 *       pause can end its own connection but cannot hold the executor.
 */
#ifndef SHMBATCH_RING_H
#define SHMBATCH_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free");
_Static_assert(sizeof(_Atomic uint32_t) == 4, "atomics must have no hidden lock");

/* Orders a harness may weaken to prove that it would notice. Product code never does. */
#ifndef RING_PUBLISH_ORDER
#define RING_PUBLISH_ORDER memory_order_release
#endif
#ifndef RING_COMPLETE_ORDER
#define RING_COMPLETE_ORDER memory_order_acq_rel
#endif

enum {
    RING_FREE = 0,
    RING_READY = 1,
    RING_TAKEN = 2,
    RING_DONE = 3,
    RING_CANCELLED = 4,
    RING_ABANDONED = 5,
};

#define RING_STATE_MASK 0x07u
#define RING_WAITER 0x08u /* somebody sleeps on this state word */
#define RING_ASYNC 0x10u  /* an event loop wants to hear of this slot */
#define RING_DROPPED 0x20u /* in no state word: what ring_complete says of an abandoned call */
#define RING_GENERATION_SHIFT 8
#define RING_GENERATION_MASK 0xFFFFFFu

#define RING_BELL_PARKED 0x1u  /* the executor sleeps on the bell */
#define RING_BELL_POLLING 0x2u /* the executor waits in its event loop */
#define RING_BELL_STEP 0x4u    /* what one ring of the bell adds */

#define RING_LOOP_STEP 0x1u           /* completion word, bits 0-7: event loops that listen */
#define RING_LOOPS_MASK 0xFFu
#define RING_THREAD_STEP 0x100u       /* bits 8-15: sleeping threads */
#define RING_THREADS_MASK 0xFF00u
#define RING_COMPLETION_STEP 0x10000u /* bits 16-31: batches completed */

#define RING_VIOLATION (-1)
#define RING_CAS_ATTEMPTS 64 /* R5; two moves per call are legal, more is a scribbler */

/* First 384 bytes of a segment; each word has a cache line of its own. */
typedef struct {
    _Alignas(64) uint64_t magic; /* for people with a debugger; nobody checks it */
    uint32_t layout_version;
    uint32_t capacity;
    _Alignas(64) _Atomic uint32_t status; /* X: RING_OPEN, RING_DRAINING, ... */
    _Alignas(64) _Atomic uint32_t tail;   /* P: indices published so far */
    _Alignas(64) _Atomic uint32_t completions;
    _Alignas(64) _Atomic uint32_t withdrawn; /* P: calls cancelled so far */
    _Alignas(64) _Atomic uint32_t reserved;
} ring_header;
_Static_assert(sizeof(ring_header) == 384, "layout.py draws 384 bytes");

/* EXPELLED: this producer broke the protocol, and was cut off. REPLACED: as DRAINING, and another
 * executor takes later calls. */
enum {
    RING_OPEN = 0,
    RING_DRAINING = 1,
    RING_CLOSED = 2,
    RING_EXPELLED = 3,
    RING_REPLACED = 4,
};

/* One cache line for each slot. */
typedef struct {
    _Alignas(64) _Atomic uint32_t state;
    _Atomic uint32_t outcome;      /* X: RING_VALUE, RING_ERROR or RING_EXPIRED, valid in DONE */
    _Atomic uint32_t error_nbytes; /* X: length of the error record, valid in DONE */
    _Atomic uint32_t reserved;
    _Atomic uint64_t published_ns; /* P: CLOCK_MONOTONIC at publish */
    _Atomic uint64_t deadline_ns;  /* P: if taken later than this it must not run; 0 for never */
} ring_control;
_Static_assert(sizeof(ring_control) == 64, "layout.py draws 64 bytes");

enum { RING_VALUE = 0, RING_ERROR = 1, RING_EXPIRED = 2 };

/* Where the shared words of a segment are; private to each side. */
typedef struct {
    ring_header *header;
    _Atomic uint32_t *indices; /* ring of `ring_mask + 1` slot indices */
    ring_control *controls;    /* `capacity` of them */
    uint32_t capacity;
    uint32_t ring_mask;
} ring_words;

static inline uint32_t
ring_state(uint32_t word)
{
    return word & RING_STATE_MASK;
}

static inline uint32_t
ring_generation(uint32_t word)
{
    return word >> RING_GENERATION_SHIFT;
}

static inline uint32_t
ring_word(uint32_t generation, uint32_t state)
{
    return generation << RING_GENERATION_SHIFT | state;
}

/* ---- the producer's end ------------------------------------------------------------- */

typedef struct {
    ring_words words;
    uint32_t tail; /* the shared tail is a copy of this one */
} ring_producer;

/* Make slot *index* READY in *generation* and put it into the ring. The caller owns the slot
 * (it was FREE) and has written the input. Never blocks, never fails (R1). */
static inline void
ring_publish(ring_producer *producer, uint32_t index, uint32_t generation, uint32_t flags,
             uint64_t now_ns, uint64_t deadline_ns)
{
    ring_control *control = &producer->words.controls[index];
    atomic_store_explicit(&control->published_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&control->deadline_ns, deadline_ns, memory_order_relaxed);
    /* SYNC publish: either store may be the one the executor reads first. */
    atomic_store_explicit(&control->state, ring_word(generation, RING_READY) | flags,
                          RING_PUBLISH_ORDER);
    atomic_store_explicit(&producer->words.indices[producer->tail & producer->words.ring_mask],
                          index, memory_order_relaxed);
    producer->tail++;
    atomic_store_explicit(&producer->words.header->tail, producer->tail, RING_PUBLISH_ORDER);
}

/* Say whether the executor still takes calls. Asked once more after the bell was rung: if it says
 * yes then, the executor's last drain finds what was published before. */
static inline bool
ring_is_open(const ring_producer *producer)
{
    return atomic_load_explicit(&producer->words.header->status, memory_order_acquire)
           == RING_OPEN; /* SYNC closing */
}

/* Return the slot's state word; DONE in it makes result and outcome readable. */
static inline uint32_t
ring_look(const ring_producer *producer, uint32_t index)
{
    return atomic_load_explicit(&producer->words.controls[index].state,
                                memory_order_acquire); /* SYNC complete, SYNC free */
}

/* Announce a sleeper (RING_WAITER) or a listener (RING_ASYNC) in the state word and return the
 * word as it now stands. Sleep on exactly that value, and only if it says READY or TAKEN in the
 * call's own generation: nobody wakes who sleeps on anything else. The bit stays until the call
 * is done: a wake-up too many is harmless, one too few is not. */
static inline uint32_t
ring_arm(ring_producer *producer, uint32_t index, uint32_t bit)
{
    return atomic_fetch_or_explicit(&producer->words.controls[index].state, bit,
                                    memory_order_acq_rel) | bit; /* SYNC complete */
}

/* Give up a published call: READY becomes CANCELLED, TAKEN becomes ABANDONED unless *only_ready*;
 * return the state it is in now. DONE stays DONE, and is the caller's to release. The executor
 * hands back the slots of the other two by making them FREE. */
static inline uint32_t
ring_withdraw(ring_producer *producer, uint32_t index, bool only_ready)
{
    _Atomic uint32_t *state = &producer->words.controls[index].state;
    uint32_t word = atomic_load_explicit(state, memory_order_acquire);
    for (;;) {
        uint32_t next;
        if (ring_state(word) == RING_READY) {
            next = RING_CANCELLED;
        } else if (ring_state(word) == RING_TAKEN && !only_ready) {
            next = RING_ABANDONED;
        } else {
            return ring_state(word);
        }
        /* Flags are dropped: the executor will wake nobody for this call any more. Where other
         * threads may sleep on it, the caller wakes them. */
        if (atomic_compare_exchange_weak_explicit(
                state, &word, ring_word(ring_generation(word), next),
                memory_order_acq_rel, memory_order_acquire)) {
            if (next == RING_CANCELLED) {
                atomic_fetch_add_explicit(&producer->words.header->withdrawn, 1,
                                          memory_order_release); /* SYNC withdraw */
            }
            return next;
        }
    }
}

/* Take a DONE slot back; the result must have been copied out. */
static inline void
ring_release(ring_producer *producer, uint32_t index)
{
    ring_control *control = &producer->words.controls[index];
    uint32_t word = atomic_load_explicit(&control->state, memory_order_relaxed);
    atomic_store_explicit(&control->state, ring_word(ring_generation(word), RING_FREE),
                          memory_order_relaxed);
}

/* Count a sleeping thread or a listening event loop (*step*) in the completion word and return
 * the value to sleep on. Look for results *after* this call and before sleeping. At most 255 of
 * each at a time; the caller counts. Undo with ring_leave_completions. */
static inline uint32_t
ring_join_completions(ring_producer *producer, uint32_t step)
{
    return atomic_fetch_add_explicit(&producer->words.header->completions, step,
                                     memory_order_acq_rel) + step; /* SYNC completions */
}

static inline void
ring_leave_completions(ring_producer *producer, uint32_t step)
{
    atomic_fetch_sub_explicit(&producer->words.header->completions, step, memory_order_acq_rel);
}

/* ---- the bell: shared by all producers of an executor -------------------------------- */

/* First bytes of the bell's page. */
typedef struct {
    _Alignas(64) _Atomic uint32_t word;   /* both: rings so far << 2 | POLLING | PARKED */
    _Alignas(64) _Atomic uint32_t quorum; /* X: the count of rings that is worth a wake-up */
} ring_bell;
_Static_assert(sizeof(ring_bell) == 128, "layout.py draws 128 bytes");

/* Ring; return RING_BELL_PARKED or RING_BELL_POLLING if the executor must be woken: it sleeps,
 * and as many rings as it waits for have come, or this one is *urgent*. */
static inline uint32_t
ring_bell_ring(ring_bell *bell, bool urgent)
{
    uint32_t before = atomic_fetch_add_explicit(&bell->word, RING_BELL_STEP,
                                                memory_order_acq_rel); /* SYNC bell */
    uint32_t asleep = before & (RING_BELL_PARKED | RING_BELL_POLLING);
    if (asleep == 0 || urgent) {
        return asleep;
    }
    /* The quorum of the announcement just read, or of a later one: that was then armed on a
     * word which has this ring in it, so its executor has looked at the rings since. */
    uint32_t quorum = atomic_load_explicit(&bell->quorum, memory_order_relaxed);
    uint32_t missing = (quorum - before / RING_BELL_STEP - 1) << 2; /* counts have 30 bits */
    return (int32_t)missing <= 0 ? asleep : 0;
}

static inline uint32_t
ring_bell_look(const ring_bell *bell)
{
    return atomic_load_explicit(&bell->word, memory_order_acquire); /* SYNC bell */
}

/* Whether *calls* or more have rung between two looks. */
static inline bool
ring_bell_rang(uint32_t seen, uint32_t word, uint32_t calls)
{
    return (int32_t)(word - seen - calls * RING_BELL_STEP) >= 0; /* counts have 30 bits */
}

/* Announce sleep until *calls* more rings, unless the bell rang since *seen* was loaded. On
 * success the executor sleeps on `seen | bit` and afterwards clears the bit itself with
 * ring_bell_disarm. */
static inline bool
ring_bell_arm(ring_bell *bell, uint32_t seen, uint32_t bit, uint32_t calls)
{
    atomic_store_explicit(&bell->quorum, seen / RING_BELL_STEP + calls, memory_order_relaxed);
    return atomic_compare_exchange_strong_explicit(&bell->word, &seen, seen | bit,
                                                   memory_order_acq_rel, memory_order_acquire);
}

static inline void
ring_bell_disarm(ring_bell *bell)
{
    atomic_fetch_and_explicit(&bell->word, ~(RING_BELL_PARKED | RING_BELL_POLLING),
                              memory_order_acq_rel);
}

/* ---- the executor's end ------------------------------------------------------------- */

/* What the executor itself knows of a slot (R4). */
enum { RING_IDLE = 0, RING_WAITING = 1, RING_RUNNING = 2 };

typedef struct {
    uint32_t index;
    uint64_t published_ns; /* not before the last drain, not after the one that found it */
} ring_waiting;

typedef struct {
    ring_words words;
    uint32_t head;         /* indices taken out of the ring so far */
    uint32_t withdrawn;    /* cancelled calls whose slots became FREE so far */
    uint32_t late;         /* those of them whose deadline had passed */
    uint64_t drained_ns;   /* when it was last drained */
    uint32_t waiting_head; /* `waiting` is a FIFO of `ring_mask + 1` entries */
    uint32_t waiting_tail;
    ring_waiting *waiting;
    uint8_t *known; /* RING_IDLE, ... for each slot */
} ring_executor;

static inline uint32_t
ring_waiting_count(const ring_executor *executor)
{
    return executor->waiting_tail - executor->waiting_head;
}

/* Whether a call came too late: its producer said by when it must be launched. */
static inline bool
ring_expired(const ring_executor *executor, uint32_t index, uint64_t now_ns)
{
    uint64_t deadline_ns = atomic_load_explicit(&executor->words.controls[index].deadline_ns,
                                                memory_order_relaxed);
    return deadline_ns != 0 && deadline_ns < now_ns;
}

/* Hand the slot of a cancelled call, last seen as *word*, back to the producer. False if it was
 * no longer CANCELLED, which nobody but us may change (R2). */
static inline bool
ring_free(ring_executor *executor, uint32_t index, uint32_t word)
{
    _Atomic uint32_t *state = &executor->words.controls[index].state;
    for (int attempt = 0; attempt < RING_CAS_ATTEMPTS && ring_state(word) == RING_CANCELLED;
         attempt++) { /* a thread that still waits for the call may set a flag meanwhile */
        bool late = ring_expired(executor, index, executor->drained_ns);
        if (atomic_compare_exchange_weak_explicit(state, &word,
                                                  ring_word(ring_generation(word), RING_FREE),
                                                  memory_order_acq_rel,
                                                  memory_order_acquire)) { /* SYNC free */
            executor->known[index] = RING_IDLE;
            executor->withdrawn++;
            executor->late += late;
            return true;
        }
    }
    return false;
}

/* Drop cancelled calls from `waiting`; drain first. Return how many slots became FREE, or
 * RING_VIOLATION. Costs one load where nothing was cancelled. The count is compared with what
 * was freed, not with what it was: a call it counts may still stand in the ring, published after
 * the last drain, and is swept after the next one. */
static inline int64_t
ring_sweep(ring_executor *executor)
{
    uint32_t withdrawn = atomic_load_explicit(&executor->words.header->withdrawn,
                                              memory_order_acquire); /* SYNC withdraw */
    if (withdrawn == executor->withdrawn) {
        return 0;
    }
    int64_t freed = 0;
    uint32_t mask = executor->words.ring_mask;
    uint32_t kept = executor->waiting_head;
    for (uint32_t at = executor->waiting_head; at != executor->waiting_tail; at++) {
        ring_waiting entry = executor->waiting[at & mask];
        uint32_t word = atomic_load_explicit(&executor->words.controls[entry.index].state,
                                             memory_order_acquire);
        if (ring_state(word) == RING_CANCELLED) {
            if (!ring_free(executor, entry.index, word)) {
                return RING_VIOLATION;
            }
            freed++;
        } else {
            executor->waiting[kept++ & mask] = entry;
        }
    }
    executor->waiting_tail = kept;
    return freed;
}

/* Move newly published indices into `waiting`. Return how many, or RING_VIOLATION. */
static inline int64_t
ring_drain(ring_executor *executor, uint64_t now_ns)
{
    uint32_t tail = atomic_load_explicit(&executor->words.header->tail,
                                         memory_order_acquire); /* SYNC publish */
    uint32_t count = tail - executor->head;
    if (count > executor->words.capacity) {
        return RING_VIOLATION;
    }
    uint32_t mask = executor->words.ring_mask;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = atomic_load_explicit(&executor->words.indices[executor->head & mask],
                                              memory_order_relaxed);
        if (index >= executor->words.capacity || executor->known[index] != RING_IDLE) {
            return RING_VIOLATION;
        }
        executor->known[index] = RING_WAITING;
        uint64_t published_ns = atomic_load_explicit(
            &executor->words.controls[index].published_ns, memory_order_relaxed);
        /* It was not in the ring at the last drain, so an older stamp is a forged one. */
        if (published_ns < executor->drained_ns) {
            published_ns = executor->drained_ns;
        }
        executor->waiting[executor->waiting_tail & mask] = (ring_waiting){
            .index = index,
            .published_ns = published_ns < now_ns ? published_ns : now_ns,
        };
        executor->waiting_tail++;
        executor->head++;
    }
    executor->drained_ns = now_ns;
    return count;
}

enum { RING_TOOK = 1, RING_SKIPPED = 0 };

/* Take the oldest waiting call. RING_TOOK: *index and *word identify it and its input may be
 * read. RING_SKIPPED: it had been cancelled and its slot is FREE now. Else RING_VIOLATION. */
static inline int
ring_take(ring_executor *executor, uint32_t *index, uint32_t *generation)
{
    ring_waiting entry =
        executor->waiting[executor->waiting_head++ & executor->words.ring_mask];
    _Atomic uint32_t *state = &executor->words.controls[entry.index].state;
    uint32_t word = atomic_load_explicit(state, memory_order_acquire);
    for (int attempt = 0; attempt < RING_CAS_ATTEMPTS; attempt++) {
        if (ring_state(word) == RING_CANCELLED) {
            return ring_free(executor, entry.index, word) ? RING_SKIPPED : RING_VIOLATION;
        }
        if (ring_state(word) != RING_READY) {
            return RING_VIOLATION;
        }
        uint32_t taken = (word & ~RING_STATE_MASK) | RING_TAKEN;
        if (atomic_compare_exchange_weak_explicit(state, &word, taken, memory_order_acq_rel,
                                                  memory_order_acquire)) { /* SYNC publish */
            executor->known[entry.index] = RING_RUNNING;
            *index = entry.index;
            *generation = ring_generation(word);
            return RING_TOOK;
        }
    }
    return RING_VIOLATION;
}

/* Publish the outcome of a taken call; result or error record must have been written. Return
 * the flags (RING_WAITER, RING_ASYNC) of those to wake, RING_DROPPED if the call was given up
 * meanwhile, or RING_VIOLATION. */
static inline int
ring_complete(ring_executor *executor, uint32_t index, uint32_t generation, uint32_t outcome,
              uint32_t error_nbytes)
{
    ring_control *control = &executor->words.controls[index];
    atomic_store_explicit(&control->outcome, outcome, memory_order_relaxed);
    atomic_store_explicit(&control->error_nbytes, error_nbytes, memory_order_relaxed);
    executor->known[index] = RING_IDLE;
    uint32_t word = atomic_load_explicit(&control->state, memory_order_acquire);
    for (int attempt = 0; attempt < RING_CAS_ATTEMPTS; attempt++) {
        if (ring_generation(word) != generation) {
            return RING_VIOLATION; /* R3 */
        }
        uint32_t next;
        if (ring_state(word) == RING_TAKEN) {
            next = RING_DONE; /* SYNC complete */
        } else if (ring_state(word) == RING_ABANDONED) {
            next = RING_FREE; /* SYNC free: the late result is dropped */
        } else {
            return RING_VIOLATION;
        }
        if (atomic_compare_exchange_weak_explicit(&control->state, &word,
                                                  ring_word(generation, next),
                                                  RING_COMPLETE_ORDER, memory_order_acquire)) {
            int dropped = next == RING_FREE ? RING_DROPPED : 0;
            return (int)(word & (RING_WAITER | RING_ASYNC)) | dropped;
        }
    }
    return RING_VIOLATION;
}

/* Say that slots of this connection became DONE or FREE. Return who sleeps on the completion
 * word: bits of RING_THREADS_MASK and RING_LOOPS_MASK. */
static inline uint32_t
ring_notify(ring_executor *executor)
{
    return atomic_fetch_add_explicit(&executor->words.header->completions, RING_COMPLETION_STEP,
                                     memory_order_acq_rel) /* SYNC completions */
           & (RING_THREADS_MASK | RING_LOOPS_MASK);
}

#endif
