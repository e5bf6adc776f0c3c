/* fuzz_ring.c: what can a producer do to the executor's end of ring.h by what it writes?
 *
 * The bytes of an input are steps: some of the executor, which does what the binding does, and some
 * of a producer that publishes and withdraws as it should, or writes any word anywhere. Each block
 * of memory is of its very size, so that the address sanitizer sees who leaves it; and after each
 * step of the executor these must hold, whatever was written:
 *
 *   - it has changed nothing but the state of slots that it held, the outcome of those that ran,
 *     and the count of completions
 *   - `waiting` has each slot once at most, and exactly those that `known` says wait
 *   - it runs no call twice, and no more than there are slots
 *   - no stamp is later than the clock
 *   - it takes what is READY, and completes what is TAKEN or ABANDONED in the generation it took
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_driver.h"
#include "ring.h"

enum { CAPACITY = 5, RING_SIZE = 8 };

typedef struct {
    ring_header header;
    _Atomic uint32_t indices[RING_SIZE];
    ring_control controls[CAPACITY];
} shared_copy;

static ring_executor executor;
static ring_bell *bell;
static uint32_t seen_bell;
static uint64_t clock_ns;
static bool broken; /* a violation was found: the binding drains and takes no more */
static bool runs[CAPACITY];
static uint32_t generations[CAPACITY];
static unsigned running;

#define COUNTERS(X) X(drained) X(swept) X(took) X(skipped) X(completed) X(dropped) X(violations)
#define X(name) static uint64_t count_##name;
COUNTERS(X)
#undef X

/* ---- the input -------------------------------------------------------------------------- */

static const uint8_t *next;
static size_t left;

static uint32_t
take_bytes(unsigned count)
{
    uint32_t value = 0;
    for (; count > 0; count--) {
        value = value << 8 | (left > 0 ? *next : 0);
        next += left > 0;
        left -= left > 0;
    }
    return value;
}

/* ---- what must hold --------------------------------------------------------------------- */

static void
copy_shared(shared_copy *copy)
{
    memcpy(&copy->header, executor.words.header, sizeof copy->header);
    memcpy(copy->indices, executor.words.indices, sizeof copy->indices);
    memcpy(copy->controls, executor.words.controls, sizeof copy->controls);
}

static void
check_untouched(const shared_copy *before, const uint8_t *known_before, bool completes)
{
    static shared_copy now;
    copy_shared(&now);
    if (memcmp(now.indices, before->indices, sizeof now.indices) != 0) {
        fuzz_fail("the executor wrote into the ring of indices", 0);
    }
    size_t completions = offsetof(ring_header, completions);
    memcpy((char *)&now.header + completions, (const char *)&before->header + completions, 4);
    if (memcmp(&now.header, &before->header, sizeof now.header) != 0) {
        fuzz_fail("the executor wrote into the header", 0);
    }
    for (unsigned i = 0; i < CAPACITY; i++) {
        ring_control is = now.controls[i], was = before->controls[i];
        if (is.state != was.state && known_before[i] == RING_IDLE) {
            fuzz_fail("the executor moved a slot that it did not hold", i);
        }
        if (known_before[i] == RING_RUNNING && completes) {
            was.outcome = is.outcome;
            was.error_nbytes = is.error_nbytes;
        }
        was.state = is.state;
        if (memcmp(&is, &was, sizeof is) != 0) {
            fuzz_fail("the executor wrote into the control block of a slot", i);
        }
    }
}

static void
check_private(void)
{
    unsigned waits = 0, runs_now = 0;
    bool met[CAPACITY] = {false};
    for (unsigned i = 0; i < CAPACITY; i++) {
        waits += executor.known[i] == RING_WAITING;
        runs_now += executor.known[i] == RING_RUNNING;
        if (executor.known[i] > RING_RUNNING) {
            fuzz_fail("a slot is known as what it cannot be", executor.known[i]);
        }
        if ((executor.known[i] == RING_RUNNING) != runs[i]) {
            fuzz_fail("a slot runs that was not taken, or the other way round", i);
        }
    }
    if (runs_now != running) {
        fuzz_fail("other calls run than were taken", runs_now);
    }
    uint32_t count = ring_waiting_count(&executor);
    if (broken) {
        return; /* those that waited are forgotten with the ring */
    }
    if (count > CAPACITY || count != waits) {
        fuzz_fail("other calls wait than are known to", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        ring_waiting entry = executor.waiting[(executor.waiting_head + i) % RING_SIZE];
        if (entry.index >= CAPACITY || met[entry.index]) {
            fuzz_fail("a slot waits twice, or there is none such", entry.index);
        }
        met[entry.index] = true;
        if (executor.known[entry.index] != RING_WAITING) {
            fuzz_fail("a slot waits and is known as something else", entry.index);
        }
        if (entry.published_ns > clock_ns) {
            fuzz_fail("a call was published in the future", entry.published_ns);
        }
    }
}

/* ---- steps ------------------------------------------------------------------------------ */

static void
found_violation(void)
{
    count_violations++;
    broken = true;
    executor.waiting_head = executor.waiting_tail; /* as inbox_break does */
}

static void
step_drain(void)
{
    clock_ns += take_bytes(1);
    int64_t found = ring_drain(&executor, clock_ns);
    if (found > CAPACITY) {
        fuzz_fail("more calls were found than there are slots", (uint64_t)found);
    }
    found < 0 ? found_violation() : (void)(count_drained += (uint64_t)found);
}

static void
step_sweep(void)
{
    int64_t freed = ring_sweep(&executor);
    if (freed > CAPACITY) {
        fuzz_fail("more calls were swept than there are slots", (uint64_t)freed);
    }
    freed < 0 ? found_violation() : (void)(count_swept += (uint64_t)freed);
}

static void
step_take(void)
{
    uint32_t index = 0, generation = 0;
    if (ring_waiting_count(&executor) == 0) {
        return;
    }
    uint32_t oldest = executor.waiting[executor.waiting_head % RING_SIZE].index;
    uint32_t word = executor.words.controls[oldest].state;
    switch (ring_take(&executor, &index, &generation)) {
    case RING_TOOK:
        if (ring_state(word) != RING_READY || ring_generation(word) != generation) {
            fuzz_fail("a call was taken that is not ready", word);
        }
        if (index >= CAPACITY || runs[index]) {
            fuzz_fail("a call was taken that runs, or of no slot", index);
        }
        runs[index] = true;
        generations[index] = generation;
        running++;
        count_took++;
        break;
    case RING_SKIPPED:
        count_skipped++;
        break;
    default:
        found_violation();
    }
}

static void
step_complete(void)
{
    unsigned slot = take_bytes(1) % CAPACITY;
    for (unsigned i = 0; i < CAPACITY && !runs[slot]; i++) {
        slot = (slot + 1) % CAPACITY;
    }
    if (!runs[slot]) {
        return;
    }
    runs[slot] = false;
    running--;
    uint32_t word = executor.words.controls[slot].state;
    int told = ring_complete(&executor, slot, generations[slot], RING_VALUE, 0);
    if (told == RING_VIOLATION) {
        found_violation();
        return;
    }
    if (ring_generation(word) != generations[slot]
        || (ring_state(word) != RING_TAKEN && ring_state(word) != RING_ABANDONED)) {
        fuzz_fail("a call was completed that is not the one that was taken", word);
    }
    if (told & ~(RING_WAITER | RING_ASYNC | RING_DROPPED)) {
        fuzz_fail("a completed call has flags that there are not", (uint64_t)told);
    }
    count_dropped += (told & RING_DROPPED) != 0;
    count_completed++;
}

static void
step_bell(void)
{
    switch (take_bytes(1) % 5) {
    case 0:
        seen_bell = ring_bell_look(bell);
        break;
    case 1: {
        uint32_t bit = take_bytes(1) % 2 ? RING_BELL_PARKED : RING_BELL_POLLING;
        uint32_t calls = 1 + take_bytes(1);
        bool as_seen = ring_bell_look(bell) == seen_bell;
        if (ring_bell_arm(bell, seen_bell, bit, calls) != as_seen) {
            fuzz_fail("the executor would sleep although the bell has rung", seen_bell);
        }
        break;
    }
    case 2:
        ring_bell_disarm(bell);
        if (ring_bell_look(bell) & (RING_BELL_PARKED | RING_BELL_POLLING)) {
            fuzz_fail("the executor is awake and announced as asleep", ring_bell_look(bell));
        }
        break;
    case 3:
        ring_bell_ring(bell, take_bytes(1) % 2);
        break;
    default:
        bell->word = take_bytes(4);
        bell->quorum = take_bytes(4);
    }
}

/* ---- the producer ----------------------------------------------------------------------- */

static void
publish(void)
{
    uint32_t tail = executor.words.header->tail;
    uint32_t slot = take_bytes(1) % (CAPACITY + 1);
    executor.words.controls[slot % CAPACITY].state =
        ring_word(take_bytes(1), RING_READY) | (take_bytes(1) & (RING_WAITER | RING_ASYNC));
    executor.words.indices[tail % RING_SIZE] = slot;
    executor.words.header->tail = tail + 1;
}

static void
withdraw(void)
{
    ring_producer producer = {.words = executor.words};
    ring_withdraw(&producer, take_bytes(1) % CAPACITY, take_bytes(1) % 2);
}

static void
scribble(void)
{
    char *blocks[] = {(char *)executor.words.header, (char *)executor.words.indices,
                      (char *)executor.words.controls};
    size_t nbytes[] = {sizeof(ring_header), RING_SIZE * sizeof(uint32_t),
                       CAPACITY * sizeof(ring_control)};
    unsigned block = take_bytes(1) % 3;
    uint32_t word = take_bytes(1) % 2 ? take_bytes(4) : take_bytes(1);
    memcpy(blocks[block] + take_bytes(2) % (nbytes[block] / 4) * 4, &word, 4);
}

void
fuzz_target(const uint8_t *bytes, size_t nbytes)
{
    next = bytes;
    left = nbytes;
    executor = (ring_executor){
        .words = {
            .header = aligned_alloc(64, sizeof(ring_header)),
            .indices = malloc(RING_SIZE * sizeof(uint32_t)),
            .controls = aligned_alloc(64, CAPACITY * sizeof(ring_control)),
            .capacity = CAPACITY,
            .ring_mask = RING_SIZE - 1,
        },
        .waiting = calloc(RING_SIZE, sizeof(ring_waiting)),
        .known = calloc(CAPACITY, 1),
    };
    bell = aligned_alloc(64, sizeof *bell);
    memset(executor.words.header, 0, sizeof(ring_header));
    memset(executor.words.indices, 0, RING_SIZE * sizeof(uint32_t));
    memset(executor.words.controls, 0, CAPACITY * sizeof(ring_control));
    memset(bell, 0, sizeof *bell);
    memset(runs, 0, sizeof runs);
    broken = false;
    running = seen_bell = 0;
    clock_ns = 1000;
    while (left > 0) {
        static shared_copy before;
        uint8_t known_before[CAPACITY];
        copy_shared(&before);
        memcpy(known_before, executor.known, CAPACITY);
        unsigned step = take_bytes(1) % 9;
        switch (step) {
        case 0:
            scribble();
            continue;
        case 1:
        case 2:
            publish();
            continue;
        case 3:
            withdraw();
            continue;
        case 4:
            broken ? (void)0 : step_drain();
            break;
        case 5:
            broken ? (void)0 : step_sweep();
            break;
        case 6:
            broken ? (void)0 : step_take();
            break;
        case 7:
            step_complete();
            ring_notify(&executor);
            break;
        default:
            step_bell();
        }
        check_untouched(&before, known_before, step == 7);
        check_private();
    }
    free(executor.words.header);
    free(executor.words.indices);
    free(executor.words.controls);
    free(executor.waiting);
    free(executor.known);
    free(bell);
}

void
fuzz_report(void)
{
#define X(name) printf(#name "=%llu ", (unsigned long long)count_##name);
    COUNTERS(X)
#undef X
    printf("\n");
}
