/* moving.c: what becomes of a producer's calls when their executor has died and another serves.
 *
 * The segment of the dead executor is still mapped here, and nobody but this process will ever
 * write to it again. Its live calls go over to the new executor's segment, which has the same
 * layout, under the same tickets, so that whoever waits for one notices nothing:
 *
 *     in the old segment        in the new one
 *     -----------------------   ----------------------------------------------------------------
 *     READY                     published again: it never ran
 *     TAKEN                     published again if it may run once more, else DONE with an error
 *     DONE                      DONE, with its result or error
 *     CANCELLED, ABANDONED      FREE
 *     lent to our own process   FREE; the loan goes on in the old one (L4 of lending.c)
 *
 *   M1  The old executor is dead before its segment is looked at: what is READY then has not run
 *       and never will, so it runs once. The caller sees to that, by the pidfd.
 *   M2  All of it happens under the GIL in one step: no thread finds a call in both segments, or
 *       gives up in the old one a call that has gone over.
 *   M3  A thread that is without the GIL meanwhile (it copies, spins or sleeps) may go on in the
 *       old memory, which stays mapped until the last of them is back; it then finds that the
 *       ring has moved and looks again.
 */
#include "producer.h"

void
producer_unmap_left(producer *self)
{
    while (self->left != NULL) {
        left_behind *gone = self->left;
        self->left = gone->next;
        ends_clear(&gone->shared);
        PyMem_Free(gone);
    }
}

/* Write the slots that have calls in the order in which these were published, the oldest first;
 * return how many. One whose place in the ring has been used again is older than all others. */
static uint32_t
moving_order(const producer *self, uint32_t *order, uint8_t *seen)
{
    const ring_words *words = &self->ring.words;
    uint32_t at = self->shared.words.capacity; /* filled from the end */
    memset(seen, 0, at);
    for (uint32_t back = 1; back <= words->ring_mask + 1; back++) {
        uint32_t index = atomic_load_explicit(
            &words->indices[(self->ring.tail - back) & words->ring_mask], memory_order_relaxed);
        if (index < words->capacity && !seen[index] && self->own[index] == OWN_PUBLISHED) {
            seen[index] = 1;
            order[--at] = index;
        }
    }
    for (uint32_t index = words->capacity; index-- > 0;) {
        if (!seen[index] && self->own[index] == OWN_PUBLISHED) {
            order[--at] = index;
        }
    }
    uint32_t count = words->capacity - at;
    memmove(order, order + at, count * sizeof(*order));
    return count;
}

static void
moving_copy(const ends *from, const ends *to, Py_ssize_t first, Py_ssize_t last, uint32_t index)
{
    for (Py_ssize_t i = first; i <= last; i++) {
        memcpy(value_at(&to->columns[i], index), value_at(&from->columns[i], index),
               (size_t)from->columns[i].nbytes);
    }
}

/* Make the slot DONE in the new segment, with what its control block says, or failed with the
 * *record*. No executor looks at a slot that is in no ring, so it stays the producer's. */
static void
moving_settle(const ends *to, const ends *from, uint32_t index, uint32_t generation,
              const char *record, uint32_t record_nbytes)
{
    ring_control *control = &to->words.controls[index];
    const ring_control *old = &from->words.controls[index];
    uint32_t outcome = RING_ERROR, error_nbytes = record_nbytes;
    char *error = to->errors + (Py_ssize_t)index * to->error_nbytes;
    if (record != NULL) {
        memcpy(error, record, record_nbytes);
    } else {
        outcome = atomic_load_explicit(&old->outcome, memory_order_relaxed);
        error_nbytes = atomic_load_explicit(&old->error_nbytes, memory_order_relaxed);
        memcpy(error, from->errors + (Py_ssize_t)index * from->error_nbytes,
               (size_t)from->error_nbytes);
        moving_copy(from, to, from->column_count, from->column_count, index);
    }
    atomic_store_explicit(&control->outcome, outcome, memory_order_relaxed);
    atomic_store_explicit(&control->error_nbytes, error_nbytes, memory_order_relaxed);
    atomic_store_explicit(&control->state, ring_word(generation, RING_DONE),
                          memory_order_release);
}

/* Take the calls of *from* over into *self*, which has moved already; return how many of them are
 * published. */
static uint32_t
moving_calls(producer *self, const ends *from, const uint32_t *order, uint32_t count,
             const char *record, uint32_t record_nbytes, unsigned most_runs)
{
    const ends *to = &self->shared;
    uint32_t published = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = order[i], generation = self->generations[index];
        ring_control *old = &from->words.controls[index];
        uint32_t word = atomic_load_explicit(&old->state, memory_order_acquire);
        bool ours = ring_generation(word) == generation;
        if (ours && ring_state(word) == RING_DONE) {
            moving_settle(to, from, index, generation, NULL, 0);
        } else if (ours
                   && (ring_state(word) == RING_READY
                       || (ring_state(word) == RING_TAKEN
                           && ++self->runs[index] < most_runs))) {
            moving_copy(from, to, 0, from->column_count - 1, index);
            ring_publish(&self->ring, index, generation, word & (RING_WAITER | RING_ASYNC),
                         atomic_load_explicit(&old->published_ns, memory_order_relaxed),
                         atomic_load_explicit(&old->deadline_ns, memory_order_relaxed));
            published++;
        } else {
            moving_settle(to, from, index, generation, record, record_nbytes);
        }
        /* M3: who sleeps on the word, or is about to, is to look in the new segment. */
        atomic_exchange_explicit(&old->state, ring_word(generation, RING_FREE),
                                 memory_order_acq_rel);
        futex_wake(&old->state, INT_MAX);
    }
    return published;
}

/* move(segment, bell, wake, record, most_runs) -> (int, int): how many calls were published again,
 * and what the bell says of how their executor sleeps. It does not call *wake* itself, which is
 * Python, where a signal handler may raise; by now the ring has moved. */
PyObject *
producer_move(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    char *record;
    Py_ssize_t record_nbytes;
    if (arguments(nargs, 5) != 0
        || PyBytes_AsStringAndSize(args[3], &record, &record_nbytes) != 0) {
        return NULL;
    }
    unsigned long most_runs = PyLong_AsUnsignedLong(args[4]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (producer_forked(self)) {
        PyErr_SetString(PyExc_RuntimeError, "the ring belongs to the parent process");
        return NULL;
    }
    if (most_runs < 1 || most_runs > UINT8_MAX || record_nbytes > self->shared.error_nbytes) {
        PyErr_SetString(PyExc_ValueError, "most_runs or the length of the record out of range");
        return NULL;
    }
    uint32_t capacity = self->shared.words.capacity;
    left_behind *old = PyMem_Malloc(sizeof(*old));
    uint32_t *order = PyMem_Malloc(capacity * sizeof(*order));
    uint8_t *seen = PyMem_Malloc(capacity);
    ends next = {0};
    Py_buffer bell = {0};
    if (old == NULL || order == NULL || seen == NULL) {
        PyErr_NoMemory();
    }
    if (PyErr_Occurred() || ends_like(&next, &self->shared, args[0]) != 0
        || get_shared(args[1], &bell) != 0 || check_words(&bell, 0, sizeof(ring_bell)) != 0) {
        ends_clear(&next);
        if (bell.obj != NULL) {
            PyBuffer_Release(&bell);
        }
        PyMem_Free(old);
        PyMem_Free(order);
        PyMem_Free(seen);
        return NULL;
    }
    /* From here on nothing can fail, and until the end no Python runs: M2. */
    uint32_t count = moving_order(self, order, seen);
    *old = (left_behind){.shared = self->shared, .next = self->left};
    Py_buffer old_bell = self->bell_memory;
    PyObject *old_wake = self->wake;
    self->shared = next;
    self->ring = (ring_producer){.words = next.words};
    self->bell_memory = bell;
    self->bell = bell.buf;
    self->wake = Py_NewRef(args[2]);
    self->moves++;
    /* The counts go on from where the old word stands, so that none that anybody has read there
     * can come again. */
    _Atomic uint32_t *completions = &self->ring.words.header->completions;
    _Atomic uint32_t *old_completions = &old->shared.words.header->completions;
    uint32_t seen_there = atomic_load_explicit(old_completions, memory_order_relaxed)
                          & ~(RING_THREADS_MASK | RING_LOOPS_MASK);
    atomic_fetch_add_explicit(completions,
                              seen_there + self->threads_joined * RING_THREAD_STEP
                                  + self->loops_joined * RING_LOOP_STEP,
                              memory_order_acq_rel); /* SYNC completions */
    for (uint32_t i = 0; i < self->withdrawn_count; i++) {
        self->own[self->withdrawn[i]] = OWN_FREE;
        producer_free(self, self->withdrawn[i]);
    }
    self->withdrawn_count = 0;
    for (uint32_t i = 0; self->lent > 0; i++) {
        if (self->own[i] == OWN_LENT) {
            self->own[i] = OWN_FREE;
            producer_free(self, i);
            self->lent--;
        }
    }
    uint32_t published = moving_calls(self, &old->shared, order, count, record,
                                      (uint32_t)record_nbytes, (unsigned)most_runs);
    atomic_fetch_add_explicit(completions, RING_COMPLETION_STEP,
                              memory_order_acq_rel); /* SYNC completions: after what was settled */
    atomic_fetch_add_explicit(old_completions, RING_COMPLETION_STEP, memory_order_relaxed); /* M3 */
    futex_wake(old_completions, INT_MAX);
    self->left = old;
    PyMem_Free(order);
    PyMem_Free(seen);
    uint32_t sleeping = 0;
    for (uint32_t i = 0; i < published; i++) {
        sleeping |= ring_bell_ring(self->bell, false);
    }
    producer_enter(self); /* what follows may run Python, and lets go of what nobody is inside */
    PyBuffer_Release(&old_bell);
    Py_DECREF(old_wake);
    producer_leave(self);
    return Py_BuildValue("II", (unsigned)published, (unsigned)sleeping);
}
