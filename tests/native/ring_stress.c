/* ring_stress.c: is ring.h right when real threads use it?
 *
 *     caller  caller           caller  caller
 *        \      /                 \      /
 *        producer                 producer        each with its own segment
 *             \                    /
 *              +----- executor ---+               one bell
 *
 * All of it in one process over plain memory, because a thread sanitizer does not recognise two
 * mappings of one page as the same memory. Callers publish, wait by spinning, on the slot's word
 * or on the completion word, give up their own calls and those of their neighbour; the executor
 * drains, sweeps, takes, completes in any order, and parks on the bell or polls an eventfd, until
 * the next call or, with a timer, until some more.
 * Inputs and results are plain bytes, so every missing order is a data race.
 *
 * usage: ring_stress SEED CALLS     calls for each caller
 *
 * Prints its counters as "name=value ..." and exits 0, or "FAILED: reason" and exits 1. A sleep
 * of SLEEP_SECONDS without a wake-up is a lost wake-up: nothing here depends on time slices, and
 * on a timer only the executor that sleeps until more than one call has come.
 *
 * Planted bugs: -DRING_PUBLISH_ORDER=memory_order_relaxed, -DRING_COMPLETE_ORDER=
 * memory_order_acquire, and -DREUSE_AT_ONCE, where a caller takes a withdrawn slot back before
 * the executor has freed it.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

enum {
    PRODUCERS = 2,
    CALLERS = 2,     /* for each producer */
    OUTSTANDING = 3, /* calls of each caller at most */
    CAPACITY = CALLERS * OUTSTANDING,
    RING_SIZE = 8,
    PAYLOAD_WORDS = 12,
    RUNNING_LIMIT = 6,
    SLEEP_SECONDS = 30,
    QUORUM_LIMIT = 3, /* rings that the executor sleeps until, at most */
    TIMER_NS = 100000,
};

/* Read at run time, so that the compiler does not turn payload loops into single moves, which
 * one sanitizer does not see. */
static volatile unsigned payload_words = PAYLOAD_WORDS;

typedef struct {
    uint64_t number; /* names the call; everything in its payload derives from it */
    uint32_t index;
    uint32_t generation;
    bool active;    /* published, and neither read nor withdrawn */
    bool withdrawn; /* by the caller or by its neighbour */
} call;

typedef struct {
    void *segment;
    ring_producer ring;
    uint64_t *inputs; /* CAPACITY rows of PAYLOAD_WORDS */
    uint64_t *results;
    /* The lock stands for the GIL: it guards everything below, and who publishes. */
    pthread_mutex_t lock;
    bool owned[CAPACITY];
    uint32_t generations[CAPACITY];
    call calls[CALLERS][OUTSTANDING];
} producer;

static producer producers[PRODUCERS];
static ring_bell bell;
static int bell_eventfd;
static _Atomic bool stop;
static uint64_t calls_each;
static uint64_t seed;

#define COUNTERS(X) \
    X(done) X(cancelled) X(abandoned) X(too_late) X(swept) X(skipped) X(completed) \
    X(slot_sleeps) X(completion_sleeps) X(full_sleeps) X(parks) X(polls) X(neighbours) \
    X(quorums) X(timers)

enum {
#define X(name) COUNT_##name,
    COUNTERS(X)
#undef X
    COUNTER_COUNT
};
static _Atomic uint64_t counters[COUNTER_COUNT];
#define COUNT(name) atomic_fetch_add_explicit(&counters[COUNT_##name], 1, memory_order_relaxed)

static void
fail(const char *reason, uint64_t detail)
{
    printf("FAILED: %s (%#" PRIx64 ")\n", reason, detail);
    fflush(stdout);
    _exit(1);
}

/* ---- small tools ---------------------------------------------------------------------- */

static uint64_t
random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static unsigned
random_below(uint64_t *state, unsigned limit)
{
    return (unsigned)((random_next(state) >> 33) % limit);
}

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Return whether the sleep ended before its time. */
static bool
futex_sleep_at_most(_Atomic uint32_t *word, uint32_t expected, struct timespec timeout)
{
    return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &timeout, NULL, 0) == 0
           || errno != ETIMEDOUT;
}

static void
futex_sleep(_Atomic uint32_t *word, uint32_t expected, const char *what)
{
    if (!futex_sleep_at_most(word, expected, (struct timespec){.tv_sec = SLEEP_SECONDS})) {
        fail(what, expected);
    }
}

static void
futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void
ring_and_wake(bool urgent)
{
    uint32_t asleep = ring_bell_ring(&bell, urgent);
    if (asleep & RING_BELL_PARKED) {
        futex_wake(&bell.word);
    }
    if (asleep & RING_BELL_POLLING) {
        uint64_t one = 1;
        if (write(bell_eventfd, &one, sizeof one) != sizeof one) {
            fail("the eventfd cannot be written", (uint64_t)errno);
        }
    }
}

/* ---- payloads ------------------------------------------------------------------------- */

static uint64_t
input_word(uint64_t number, unsigned i)
{
    return number * 0x9E3779B97F4A7C15u + i;
}

static uint64_t
result_word(uint64_t number, unsigned i)
{
    return ~input_word(number, i) ^ 0x5555555555555555u;
}

static uint64_t *
row(uint64_t *rows, uint32_t index)
{
    return rows + (size_t)index * PAYLOAD_WORDS;
}

/* ---- a caller ------------------------------------------------------------------------- */

typedef struct {
    producer *producer;
    unsigned which;
    uint64_t random;
    uint64_t made;
} caller;

static bool
is_pending(uint32_t word, uint32_t generation)
{
    return ring_generation(word) == generation
           && (ring_state(word) == RING_READY || ring_state(word) == RING_TAKEN);
}

/* Claim a slot; the caller holds the lock. Return its index, or -1. */
static int
claim(producer *self)
{
    for (int i = 0; i < CAPACITY; i++) {
        if (self->owned[i]) {
            continue;
        }
        uint32_t state = ring_state(ring_look(&self->ring, (uint32_t)i));
#ifdef REUSE_AT_ONCE
        if (state == RING_ABANDONED) {
            state = RING_FREE;
        }
#endif
        if (state == RING_FREE) {
            self->owned[i] = true;
            return i;
        }
    }
    return -1;
}

/* Claim a slot, and sleep on the completion word while there is none. As there are as many slots
 * as calls outstanding, one that is not owned is on its way back from the executor. */
static uint32_t
claim_or_sleep(producer *self)
{
    pthread_mutex_lock(&self->lock);
    int index = claim(self);
    pthread_mutex_unlock(&self->lock);
    while (index < 0) {
        uint32_t joined = ring_join_completions(&self->ring, RING_THREAD_STEP);
        pthread_mutex_lock(&self->lock);
        index = claim(self);
        pthread_mutex_unlock(&self->lock);
        if (index < 0) {
            COUNT(full_sleeps);
            futex_sleep(&self->ring.words.header->completions, joined,
                        "a thread that waits for a slot was not woken");
        }
        ring_leave_completions(&self->ring, RING_THREAD_STEP);
    }
    return (uint32_t)index;
}

static void
submit(caller *self, call *made)
{
    producer *producer = self->producer;
    uint32_t index = claim_or_sleep(producer);
    self->made++;
    uint64_t number = (uint64_t)(producer - producers + 1) << 56
                      | (uint64_t)(self->which + 1) << 48 | self->made;
    uint64_t *input = row(producer->inputs, index);
    for (unsigned i = 0; i < payload_words; i++) {
        input[i] = i == 0 ? number : input_word(number, i);
    }
    pthread_mutex_lock(&producer->lock);
    uint32_t generation = ++producer->generations[index] & RING_GENERATION_MASK;
    *made = (call){.number = number, .index = index, .generation = generation, .active = true};
    ring_publish(&producer->ring, index, generation, 0, now_ns(), 0);
    pthread_mutex_unlock(&producer->lock);
    ring_and_wake(false);
}

/* Give up a call that is still active; the caller holds the lock. Return whether it was. */
static bool
withdraw(producer *producer, call *given_up)
{
    uint32_t state = ring_withdraw(&producer->ring, given_up->index, false);
    if (state == RING_DONE) {
        COUNT(too_late);
        return false;
    }
    if (state == RING_CANCELLED) {
        COUNT(cancelled);
    } else if (state == RING_ABANDONED) {
        COUNT(abandoned);
    } else {
        fail("a call that was withdrawn had another state", state);
    }
    given_up->active = false;
    given_up->withdrawn = true;
    producer->owned[given_up->index] = false;
    return true;
}

/* Give up a call of one's own or of the neighbour, who may be asleep on it. */
static void
give_up(producer *producer, call *given_up)
{
    pthread_mutex_lock(&producer->lock);
    uint32_t index = given_up->index;
    bool was_active = given_up->active && withdraw(producer, given_up);
    pthread_mutex_unlock(&producer->lock);
    if (was_active) {
        ring_and_wake(true);
        futex_wake(&producer->ring.words.controls[index].state);
    }
}

static void
wait_by_spinning(producer *producer, const call *waited)
{
    for (int i = 0; i < 200; i++) {
        if (!is_pending(ring_look(&producer->ring, waited->index), waited->generation)) {
            return;
        }
    }
}

static void
wait_on_slot(producer *producer, const call *waited)
{
    for (;;) {
        uint32_t word = ring_arm(&producer->ring, waited->index, RING_WAITER);
        if (!is_pending(word, waited->generation)) {
            return;
        }
        COUNT(slot_sleeps);
        futex_sleep(&producer->ring.words.controls[waited->index].state, word,
                    "a thread that sleeps on a slot was not woken");
    }
}

static void
wait_on_completions(producer *producer, const call *waited)
{
    for (;;) {
        uint32_t joined = ring_join_completions(&producer->ring, RING_THREAD_STEP);
        uint32_t word = ring_look(&producer->ring, waited->index);
        bool pending = is_pending(word, waited->generation);
        if (pending) {
            COUNT(completion_sleeps);
            futex_sleep(&producer->ring.words.header->completions, joined,
                        "a thread that sleeps on completions was not woken");
        }
        ring_leave_completions(&producer->ring, RING_THREAD_STEP);
        if (!pending) {
            return;
        }
    }
}

static void
check_result(producer *producer, const call *done)
{
    const ring_control *control = &producer->ring.words.controls[done->index];
    const uint64_t *result = row(producer->results, done->index);
    for (unsigned i = 0; i < payload_words; i++) {
        if (result[i] != result_word(done->number, i)) {
            fail("a result is not that of its call", done->number);
        }
    }
    uint32_t outcome = atomic_load_explicit(&control->outcome, memory_order_relaxed);
    uint32_t error_nbytes = atomic_load_explicit(&control->error_nbytes, memory_order_relaxed);
    if (outcome != (done->number & 1 ? RING_ERROR : RING_VALUE)
        || error_nbytes != (uint32_t)(done->number & 0xFFFF)) {
        fail("an outcome is not that of its call", done->number);
    }
}

/* Wait for a call in one way or another, and check what came of it. */
static void
settle(caller *self, call *settled)
{
    producer *producer = self->producer;
    for (;;) {
        switch (random_below(&self->random, 3)) {
        case 0:
            wait_by_spinning(producer, settled);
            break;
        case 1:
            wait_on_slot(producer, settled);
            break;
        default:
            wait_on_completions(producer, settled);
        }
        pthread_mutex_lock(&producer->lock);
        uint32_t word = ring_look(&producer->ring, settled->index);
        bool withdrawn = settled->withdrawn;
        bool done = !withdrawn && ring_state(word) == RING_DONE;
        settled->active = settled->active && !done;
        pthread_mutex_unlock(&producer->lock);
        if (withdrawn) {
            break;
        }
        if (done) {
            check_result(producer, settled);
            pthread_mutex_lock(&producer->lock);
            ring_release(&producer->ring, settled->index);
            producer->owned[settled->index] = false;
            pthread_mutex_unlock(&producer->lock);
            COUNT(done);
            break;
        }
        if (!is_pending(word, settled->generation)) {
            fail("a call that nobody withdrew lost its slot", word);
        }
    }
}

static void *
caller_main(void *argument)
{
    caller *self = argument;
    call *calls = self->producer->calls[self->which];
    call *neighbours = self->producer->calls[(self->which + 1) % CALLERS];
    unsigned count = 0;
    while (self->made < calls_each || count > 0) {
        if (count < OUTSTANDING && self->made < calls_each && random_below(&self->random, 2)) {
            submit(self, &calls[count++]);
            continue;
        }
        if (random_below(&self->random, 16) == 0) {
            COUNT(neighbours);
            give_up(self->producer, &neighbours[random_below(&self->random, OUTSTANDING)]);
        }
        if (count == 0) {
            continue;
        }
        unsigned which = random_below(&self->random, count);
        if (random_below(&self->random, 4) == 0) {
            give_up(self->producer, &calls[which]);
        }
        settle(self, &calls[which]);
        /* The neighbour may look at these entries at any time. */
        pthread_mutex_lock(&self->producer->lock);
        calls[which] = calls[--count];
        calls[count].active = false;
        pthread_mutex_unlock(&self->producer->lock);
    }
    return NULL;
}

/* ---- the executor --------------------------------------------------------------------- */

typedef struct {
    unsigned from;
    uint32_t index;
    uint32_t generation;
    uint64_t number;
} running_call;

typedef struct {
    ring_executor rings[PRODUCERS];
    running_call running[RUNNING_LIMIT];
    unsigned running_count;
    bool told[PRODUCERS]; /* something happened that the producer has to hear of */
    uint64_t random;
} executor;

static uint64_t
checked_input(const uint64_t *input)
{
    uint64_t number = input[0];
    for (unsigned i = 1; i < payload_words; i++) {
        if (input[i] != input_word(number, i)) {
            fail("an input changed while it was read", number);
        }
    }
    return number;
}

/* Now and then without the sweep, so that takes meet cancelled calls as well. */
static void
drain_and_sweep(executor *self, unsigned from)
{
    int64_t found = ring_drain(&self->rings[from], now_ns());
    int64_t swept = random_below(&self->random, 4) ? ring_sweep(&self->rings[from]) : 0;
    if (found < 0 || swept < 0) {
        fail("the executor saw a violation in the ring", from);
    }
    for (; swept > 0; swept--) {
        COUNT(swept);
        self->told[from] = true;
    }
}

static void
take_some(executor *self, unsigned from)
{
    ring_executor *ring = &self->rings[from];
    while (ring_waiting_count(ring) > 0 && self->running_count < RUNNING_LIMIT
           && random_below(&self->random, 4)) {
        running_call *taken = &self->running[self->running_count];
        taken->from = from;
        switch (ring_take(ring, &taken->index, &taken->generation)) {
        case RING_TOOK:
            taken->number = checked_input(row(producers[from].inputs, taken->index));
            self->running_count++;
            break;
        case RING_SKIPPED:
            COUNT(skipped);
            self->told[from] = true;
            break;
        default:
            fail("the executor saw a violation when it took a call", from);
        }
    }
}

static void
complete_some(executor *self)
{
    while (self->running_count > 0 && random_below(&self->random, 4)) {
        unsigned which = random_below(&self->random, self->running_count);
        running_call done = self->running[which];
        self->running[which] = self->running[--self->running_count];
        /* The input must not change before the call is completed, withdrawn or not. */
        if (checked_input(row(producers[done.from].inputs, done.index)) != done.number) {
            fail("a slot was reused while its call ran", done.number);
        }
        uint64_t *result = row(producers[done.from].results, done.index);
        for (unsigned i = 0; i < payload_words; i++) {
            result[i] = result_word(done.number, i);
        }
        int flags = ring_complete(&self->rings[done.from], done.index, done.generation,
                                  done.number & 1 ? RING_ERROR : RING_VALUE,
                                  (uint32_t)(done.number & 0xFFFF));
        if (flags == RING_VIOLATION) {
            fail("the executor saw a violation when it completed a call", done.number);
        }
        if (flags & RING_WAITER) {
            futex_wake(&producers[done.from].ring.words.controls[done.index].state);
        }
        self->told[done.from] = true;
        COUNT(completed);
    }
}

static void
tell(executor *self, unsigned from)
{
    if (self->told[from]) {
        self->told[from] = false;
        if (ring_notify(&self->rings[from]) & RING_THREADS_MASK) {
            futex_wake(&producers[from].ring.words.header->completions);
        }
    }
}

/* Sleep until the next call; or, with a timer, until some more have come. */
static void
sleep_until_rung(executor *self, uint32_t seen)
{
    uint32_t calls = 1 + random_below(&self->random, QUORUM_LIMIT);
    uint32_t bit = random_below(&self->random, 2) ? RING_BELL_PARKED : RING_BELL_POLLING;
    struct timespec timeout = {.tv_sec = SLEEP_SECONDS};
    if (calls > 1) {
        timeout = (struct timespec){.tv_nsec = TIMER_NS};
    }
    if (!ring_bell_arm(&bell, seen, bit, calls)) {
        return;
    }
    bool woken;
    if (bit == RING_BELL_PARKED) {
        COUNT(parks);
        woken = futex_sleep_at_most(&bell.word, seen | bit, timeout);
    } else {
        COUNT(polls);
        struct pollfd polled = {.fd = bell_eventfd, .events = POLLIN};
        woken = ppoll(&polled, 1, &timeout, NULL) != 0;
        uint64_t value;
        if (read(bell_eventfd, &value, sizeof value) < 0 && errno != EAGAIN) {
            fail("the eventfd cannot be read", (uint64_t)errno);
        }
    }
    if (!woken && calls == 1) {
        fail("the sleeping executor was not woken", seen | bit);
    }
    if (calls > 1 && woken) {
        COUNT(quorums);
    } else if (calls > 1) {
        COUNT(timers);
    }
    ring_bell_disarm(&bell);
}

static void *
executor_main(void *argument)
{
    executor *self = argument;
    for (;;) {
        bool last = atomic_load_explicit(&stop, memory_order_acquire);
        uint32_t seen = ring_bell_look(&bell);
        /* Several rounds without a look at the bell: it orders more than the tails need, and
         * would hide a tail that is published too weakly. */
        unsigned rounds = 1 + random_below(&self->random, 6);
        unsigned waiting = 0;
        for (unsigned round = 0; round < rounds; round++) {
            waiting = 0;
            for (unsigned from = 0; from < PRODUCERS; from++) {
                drain_and_sweep(self, from);
                take_some(self, from);
                waiting += ring_waiting_count(&self->rings[from]);
            }
            complete_some(self);
            for (unsigned from = 0; from < PRODUCERS; from++) {
                tell(self, from);
            }
        }
        if (waiting == 0 && self->running_count == 0) {
            if (last) {
                return NULL;
            }
            sleep_until_rung(self, seen);
        }
    }
}

/* ---- main ----------------------------------------------------------------------------- */

static size_t
rounded(size_t nbytes)
{
    return (nbytes + 63) / 64 * 64;
}

static void
create(unsigned from, executor *executor)
{
    producer *made = &producers[from];
    size_t payload_nbytes = (size_t)CAPACITY * PAYLOAD_WORDS * sizeof(uint64_t);
    size_t indices_at = sizeof(ring_header);
    size_t controls_at = indices_at + rounded(RING_SIZE * sizeof(uint32_t));
    size_t inputs_at = controls_at + CAPACITY * sizeof(ring_control);
    size_t results_at = inputs_at + rounded(payload_nbytes);
    size_t nbytes = results_at + rounded(payload_nbytes);
    char *segment = aligned_alloc(64, nbytes);
    ring_waiting *waiting = calloc(RING_SIZE, sizeof *waiting);
    uint8_t *known = calloc(CAPACITY, 1);
    if (segment == NULL || waiting == NULL || known == NULL
        || pthread_mutex_init(&made->lock, NULL) != 0) {
        fail("out of memory", nbytes);
    }
    memset(segment, 0, nbytes);
    ring_words words = {
        .header = (ring_header *)(void *)segment,
        .indices = (_Atomic uint32_t *)(void *)(segment + indices_at),
        .controls = (ring_control *)(void *)(segment + controls_at),
        .capacity = CAPACITY,
        .ring_mask = RING_SIZE - 1,
    };
    made->segment = segment;
    made->ring = (ring_producer){.words = words};
    made->inputs = (uint64_t *)(void *)(segment + inputs_at);
    made->results = (uint64_t *)(void *)(segment + results_at);
    executor->rings[from] = (ring_executor){.words = words, .waiting = waiting, .known = known};
}

static void
check_all_free_and_destroy(unsigned from, executor *executor)
{
    for (uint32_t i = 0; i < CAPACITY; i++) {
        uint32_t word = ring_look(&producers[from].ring, i);
        if (ring_state(word) != RING_FREE || executor->rings[from].known[i] != RING_IDLE) {
            fail("a slot did not come back", word);
        }
    }
    free(executor->rings[from].waiting);
    free(executor->rings[from].known);
    free(producers[from].segment);
    pthread_mutex_destroy(&producers[from].lock);
}

int
main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: ring_stress SEED CALLS\n");
        return 2;
    }
    seed = strtoull(argv[1], NULL, 10) * 2 + 1;
    calls_each = strtoull(argv[2], NULL, 10);
    bell_eventfd = eventfd(0, EFD_NONBLOCK);
    static executor executor;
    executor.random = seed * 0x9E3779B97F4A7C15u;
    static caller callers[PRODUCERS * CALLERS];
    pthread_t threads[PRODUCERS * CALLERS + 1];
    for (unsigned from = 0; from < PRODUCERS; from++) {
        create(from, &executor);
    }
    int status = pthread_create(&threads[PRODUCERS * CALLERS], NULL, executor_main, &executor);
    for (unsigned i = 0; i < PRODUCERS * CALLERS; i++) {
        callers[i] = (caller){
            .producer = &producers[i / CALLERS],
            .which = i % CALLERS,
            .random = seed * (i + 2) * 0x9E3779B97F4A7C15u,
        };
        status |= pthread_create(&threads[i], NULL, caller_main, &callers[i]);
    }
    if (bell_eventfd < 0 || status != 0) {
        fail("threads cannot be started", (uint64_t)status);
    }
    for (unsigned i = 0; i < PRODUCERS * CALLERS; i++) {
        pthread_join(threads[i], NULL);
    }
    atomic_store_explicit(&stop, true, memory_order_release);
    ring_and_wake(true);
    pthread_join(threads[PRODUCERS * CALLERS], NULL);
    for (unsigned from = 0; from < PRODUCERS; from++) {
        check_all_free_and_destroy(from, &executor);
    }
#define X(name) printf(#name "=%" PRIu64 " ", atomic_load(&counters[COUNT_##name]));
    COUNTERS(X)
#undef X
    printf("\n");
    return 0;
}
