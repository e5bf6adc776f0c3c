/* weak_memory.c: ring.h itself, in programs small enough for a model checker of weak memory.
 *
 * A stateless model checker (GenMC) runs every execution that the C11 memory model allows of the
 * scenario chosen with -DSCENARIO_...: test_weak_memory.py says which there are. Payloads are
 * plain memory, so a missing order is a data race, which the checker reports by itself; what must
 * hold beyond that is asserted. Loops that wait are not run round: WAIT_FOR drops the executions
 * in which they would have to be.
 */
#include <assert.h>
#include <pthread.h>

void __VERIFIER_assume(_Bool holds);
#define WAIT_FOR(holds) __VERIFIER_assume(holds)

#include "ring.h"

enum { CAPACITY = 2 };

static ring_header header;
static _Atomic uint32_t indices[CAPACITY];
static ring_control controls[CAPACITY];
static ring_bell bell;
static int input[CAPACITY], result[CAPACITY];

static ring_waiting waiting[CAPACITY];
static uint8_t known[CAPACITY];

#define WORDS {&header, indices, controls, CAPACITY, CAPACITY - 1}
static ring_producer producer = {.words = WORDS};
static ring_executor executor = {.words = WORDS, .waiting = waiting, .known = known};

static void
publish(uint32_t index, uint32_t generation, int value)
{
    input[index] = value;
    ring_publish(&producer, index, generation, 0, 1, 0);
}

static void
check_result(uint32_t index, int value)
{
    assert(atomic_load_explicit(&controls[index].outcome, memory_order_relaxed) == RING_VALUE);
    assert(atomic_load_explicit(&controls[index].error_nbytes, memory_order_relaxed) == 7);
    assert(result[index] == 10 * value);
}

/* Run what waits, whatever was drained; return how many calls ran. */
static int
run_one(int value)
{
    uint32_t index, generation;
    int took = ring_take(&executor, &index, &generation);
    assert(took != RING_VIOLATION);
    if (took == RING_SKIPPED) {
        return 0;
    }
    assert(atomic_load_explicit(&controls[index].published_ns, memory_order_relaxed) == 1);
    assert(input[index] == value);
    result[index] = 10 * value;
    assert(ring_complete(&executor, index, generation, RING_VALUE, 7) != RING_VIOLATION);
    return 1;
}

#if defined(SCENARIO_call)
/* Publish, take, complete, and the slot is used again: publish and complete, twice. */
static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    WAIT_FOR(ring_state(ring_look(&producer, 0)) == RING_DONE);
    check_result(0, 1);
    ring_release(&producer, 0);
    publish(0, 2, 2);
    WAIT_FOR(ring_state(ring_look(&producer, 0)) == RING_DONE);
    check_result(0, 2);
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    for (int value = 1; value <= 2; value++) {
        int64_t found = ring_drain(&executor, 1);
        assert(found != RING_VIOLATION);
        WAIT_FOR(found == 1);
        assert(run_one(value) == 1);
    }
    return NULL;
}
#endif

#if defined(SCENARIO_free)
/* A call is given up at any moment, and its slot used again once it is FREE. */
static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    if (ring_withdraw(&producer, 0, false) == RING_DONE) {
        check_result(0, 1);
        ring_release(&producer, 0);
    } else {
        WAIT_FOR(ring_state(ring_look(&producer, 0)) == RING_FREE);
    }
    publish(0, 2, 2);
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    for (int value = 1; value <= 2; value++) {
        int64_t found = ring_drain(&executor, 1);
        assert(found != RING_VIOLATION);
        WAIT_FOR(found == 1);
        run_one(value);
    }
    return NULL;
}
#endif

#if defined(SCENARIO_sweep)
/* The executor learns of a cancelled call by the count of them, and by nothing else. */
static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    if (ring_withdraw(&producer, 0, true) == RING_CANCELLED) {
        WAIT_FOR(ring_state(ring_look(&producer, 0)) == RING_FREE);
        publish(0, 2, 2);
    }
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    WAIT_FOR(ring_drain(&executor, 1) == 1);
    int64_t freed = ring_sweep(&executor);
    assert(freed != RING_VIOLATION);
    uint32_t counted =
        atomic_load_explicit(&executor.words.header->withdrawn, memory_order_relaxed);
    WAIT_FOR(counted == 1); /* and the sweep, which came before, may not have seen it yet */
    freed += ring_sweep(&executor);
    assert(freed == 1);
    WAIT_FOR(ring_drain(&executor, 1) == 1);
    run_one(2);
    return NULL;
}
#endif

#if defined(SCENARIO_waiter) || defined(SCENARIO_completions)
static uint32_t told; /* what the executor was told of sleepers */

static void *
executing(void *unused)
{
    (void)unused;
    WAIT_FOR(ring_drain(&executor, 1) == 1);
    uint32_t index, generation;
    assert(ring_take(&executor, &index, &generation) == RING_TOOK);
    result[index] = 10;
    told = (uint32_t)ring_complete(&executor, index, generation, RING_VALUE, 7);
#if defined(SCENARIO_completions)
    told = ring_notify(&executor);
#endif
    return NULL;
}
#endif

#if defined(SCENARIO_waiter)
/* Who announces himself in the state word is seen there, or sees that the call is done. */
static uint32_t armed;

static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    armed = ring_arm(&producer, 0, RING_WAITER);
    if (ring_state(armed) != RING_DONE) {
        WAIT_FOR(ring_state(ring_look(&producer, 0)) == RING_DONE);
    }
    check_result(0, 1);
    return NULL;
}

static void
after(void)
{
    assert(ring_state(armed) == RING_DONE || told & RING_WAITER);
}
#endif

#if defined(SCENARIO_completions)
/* The same in the completion word, which is not the word that says DONE. */
static uint32_t found;

static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    ring_join_completions(&producer, RING_THREAD_STEP);
    found = ring_state(ring_look(&producer, 0)) == RING_DONE;
    if (found) {
        check_result(0, 1);
    }
    return NULL;
}

static void
after(void)
{
    if (atomic_load_explicit(&header.completions, memory_order_relaxed) >> 16 && !found) {
        assert(told & RING_THREADS_MASK);
    }
}
#endif

#if defined(SCENARIO_bell)
/* No wake-up is lost: the executor sees the call, does not sleep, or is woken. The first
 * announcement, which is over, waits for many calls; the second one for the next. */
static uint32_t woken;
static bool asleep, drained;

static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    woken = ring_bell_ring(&bell, false);
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    uint32_t seen = ring_bell_look(&bell);
    if (ring_bell_arm(&bell, seen, RING_BELL_PARKED, 9)) {
        ring_bell_disarm(&bell);
    }
    seen = ring_bell_look(&bell);
    drained = ring_drain(&executor, 1) == 1;
    if (!drained) {
        asleep = ring_bell_arm(&bell, seen, RING_BELL_PARKED, 1);
    } else {
        assert(run_one(1) == 1);
    }
    return NULL;
}

static void
after(void)
{
    if (asleep) {
        assert(woken & RING_BELL_PARKED);
    }
}
#endif

#if defined(SCENARIO_quorum)
/* The same with two producers, while the executor waits for both of their calls. */
static ring_header header_of_other;
static _Atomic uint32_t indices_of_other[CAPACITY];
static ring_control controls_of_other[CAPACITY];
static ring_waiting waiting_of_other[CAPACITY];
static uint8_t known_of_other[CAPACITY];

#define WORDS_OF_OTHER \
    {&header_of_other, indices_of_other, controls_of_other, CAPACITY, CAPACITY - 1}
static ring_producer other_producer = {.words = WORDS_OF_OTHER};
static ring_executor other_executor = {
    .words = WORDS_OF_OTHER, .waiting = waiting_of_other, .known = known_of_other};

static uint32_t woken, woken_by_other;
static bool asleep;

static void *
producing(void *unused)
{
    (void)unused;
    ring_publish(&producer, 0, 1, 0, 1, 0);
    woken = ring_bell_ring(&bell, false);
    return NULL;
}

static void *
producing_too(void *unused)
{
    (void)unused;
    ring_publish(&other_producer, 0, 1, 0, 1, 0);
    woken_by_other = ring_bell_ring(&bell, false);
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    uint32_t found = 0;
    for (int turn = 0; turn < 3 && !asleep; turn++) {
        uint32_t seen = ring_bell_look(&bell);
        found += (uint32_t)ring_drain(&executor, 1) + (uint32_t)ring_drain(&other_executor, 1);
        if (found == 2) {
            return NULL;
        }
        asleep = ring_bell_arm(&bell, seen, RING_BELL_PARKED, 2 - found);
    }
    assert(asleep); /* the bell changes only twice */
    return NULL;
}

static void
after(void)
{
    assert(!asleep || (woken | woken_by_other) & RING_BELL_PARKED);
}
#endif

#if defined(SCENARIO_closing)
/* A call that the last drain does not find belongs to a producer who learns of it. */
static bool open_after, drained;

static void *
producing(void *unused)
{
    (void)unused;
    publish(0, 1, 1);
    ring_bell_ring(&bell, false);
    open_after = ring_is_open(&producer);
    return NULL;
}

static void *
executing(void *unused)
{
    (void)unused;
    /* As executor.c does. */
    atomic_store_explicit(&header.status, RING_REPLACED, memory_order_release);
    ring_bell_disarm(&bell);
    drained = ring_drain(&executor, 1) == 1;
    return NULL;
}

static void
after(void)
{
    assert(drained || !open_after);
}
#endif

#if defined(SCENARIO_call) || defined(SCENARIO_free) || defined(SCENARIO_sweep)
static void
after(void)
{
}
#endif

int
main(void)
{
    pthread_t one, other;
    pthread_create(&one, NULL, producing, NULL);
    pthread_create(&other, NULL, executing, NULL);
#if defined(SCENARIO_quorum)
    pthread_t third;
    pthread_create(&third, NULL, producing_too, NULL);
    pthread_join(third, NULL);
#endif
    pthread_join(one, NULL);
    pthread_join(other, NULL);
    after();
    return 0;
}
