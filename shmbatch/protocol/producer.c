/* producer.c: ProducerRing, the producer's end of a connection: submit, poll, arm, withdraw. */
#include "calling.h"

PyTypeObject *producer_type;

static void
producer_dealloc(producer *self)
{
    ends_clear(&self->shared);
    producer_unmap_left(self);
    if (self->bell_memory.obj != NULL) {
        PyBuffer_Release(&self->bell_memory);
    }
    Py_XDECREF(self->wake);
    Py_XDECREF(self->finish);
    Py_XDECREF((PyObject *)self->spinning);
    PyMem_Free(self->runs);
    PyMem_Free(self->generations);
    PyMem_Free(self->own);
    PyMem_Free(self->spawned);
    PyMem_Free(self->free);
    PyMem_Free(self->withdrawn);
    free_self((PyObject *)self);
}

static PyObject *
producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *segment, *columns, *bell_buffer, *wake, *finish;
    unsigned capacity;
    Py_ssize_t indices_offset, controls_offset, errors_offset, error_nbytes;
    if (!PyArg_ParseTuple(args, "OInnnnO!OOO:ProducerRing", &segment, &capacity, &indices_offset,
                          &controls_offset, &errors_offset, &error_nbytes, &PyTuple_Type, &columns,
                          &bell_buffer, &wake, &finish)) {
        return NULL;
    }
    producer *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    if (ends_init(&self->shared, segment, capacity, indices_offset, controls_offset,
                  errors_offset, error_nbytes, columns) != 0
        || get_shared(bell_buffer, &self->bell_memory) != 0
        || check_words(&self->bell_memory, 0, sizeof(ring_bell)) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->bell = self->bell_memory.buf;
    self->wake = Py_NewRef(wake);
    self->finish = Py_NewRef(finish);
    self->token = process_token();
    self->ring.words = self->shared.words;
    self->generations = PyMem_Calloc(capacity, sizeof(uint32_t));
    self->own = PyMem_Calloc(capacity, 1);
    self->spawned = PyMem_Calloc(capacity, 1);
    self->free = PyMem_Calloc(capacity / 64 + 1, sizeof(uint64_t));
    self->withdrawn = PyMem_Calloc(capacity, sizeof(uint32_t));
    self->runs = PyMem_Calloc(capacity, 1);
    if (!self->generations || !self->own || !self->spawned || !self->free || !self->withdrawn
        || !self->runs) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (uint32_t i = 0; i < capacity; i++) {
        producer_free(self, i);
    }
    return (PyObject *)self;
}

/* Wake some of this process's threads out of park_completions. */
static void
producer_notify(producer *self, int threads)
{
    if (self->threads_joined > 0) {
        _Atomic uint32_t *completions = &self->ring.words.header->completions;
        atomic_fetch_add_explicit(completions, RING_COMPLETION_STEP, memory_order_acq_rel);
        futex_wake(completions, threads);
    }
}

void
producer_put_back(producer *self, uint32_t index)
{
    self->own[index] = OWN_FREE;
    producer_free(self, index);
    producer_notify(self, 1); /* one of our own threads may wait for just this */
}

void
producer_reclaim(producer *self)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < self->withdrawn_count; i++) {
        uint32_t index = self->withdrawn[i];
        if (ring_state(ring_look(&self->ring, index)) == RING_FREE) { /* SYNC free */
            producer_put_back(self, index);
        } else {
            self->withdrawn[kept++] = index;
        }
    }
    self->withdrawn_count = kept;
}

/* Give up a published call whose outcome nobody will read; with *only_ready* only one that is
 * not launched. Return its state. */
static uint32_t
producer_drop(producer *self, uint32_t index, bool only_ready)
{
    uint32_t state = ring_withdraw(&self->ring, index, only_ready);
    if (state == RING_TAKEN || (state == RING_DONE && only_ready)) {
        return state; /* the call goes on */
    }
    if (state == RING_DONE) {
        ring_release(&self->ring, index);
        producer_put_back(self, index);
    } else {
        self->own[index] = OWN_WITHDRAWN;
        self->withdrawn[self->withdrawn_count++] = index;
    }
    return state;
}

static int
producer_wake(producer *self, uint32_t sleeping)
{
    if (sleeping == RING_BELL_PARKED && self->park_ns > 0) {
        futex_wake(&self->bell->word, 1); /* it parks as we do */
        return 0;
    }
    PyObject *wake = Py_NewRef(self->wake); /* another thread may move to the next meanwhile */
    PyObject *result = PyObject_CallFunction(wake, "I", sleeping);
    Py_DECREF(wake);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Copy what is held into a slot that is being written and publish it, as producer_begin;
 * SUBMIT_CLOSED if it came too late. Large values are copied without the GIL. */
static long
producer_publish(producer *self, uint32_t index, const held_value *held, Py_ssize_t nbytes,
                 unsigned long flags, uint64_t deadline_ns, uint64_t *ticket)
{
    uint32_t moves;
    do { /* again where the ring has moved meanwhile, and what was written stayed behind */
        moves = self->moves;
        const column *columns = self->shared.columns;
        PyThreadState *saved = nbytes >= RELEASE_GIL_NBYTES ? PyEval_SaveThread() : NULL;
        for (Py_ssize_t i = 0; i < self->shared.column_count; i++) {
            value_store(&columns[i], &held[i], value_at(&columns[i], index));
        }
        if (saved != NULL) {
            PyEval_RestoreThread(saved);
        }
    } while (moves != self->moves);
    uint32_t generation = self->generations[index] =
        (self->generations[index] + 1) & RING_GENERATION_MASK;
    *ticket = (uint64_t)generation << TICKET_SLOT_BITS | index;
    self->own[index] = OWN_PUBLISHED;
    self->runs[index] = 0;
    self->spawned[index] = (flags & SUBMIT_SPAWNED) != 0;
    ring_publish(&self->ring, index, generation, (uint32_t)flags & RING_ASYNC, now_ns(),
                 deadline_ns);
    uint32_t sleeping = ring_bell_ring(self->bell, false);
    if (!ring_is_open(&self->ring) && producer_drop(self, index, true) == RING_CANCELLED) {
        return SUBMIT_CLOSED; /* the executor may have drained for the last time before */
    }
    if (sleeping != 0 && producer_wake(self, sleeping) != 0) {
        /* While Python ran, another thread may have taken the outcome to make room. */
        if (self->own[index] == OWN_PUBLISHED && self->generations[index] == generation) {
            producer_drop(self, index, false);
        }
        return SUBMIT_RAISED;
    }
    return 0;
}

/* Bytes of what is held that stand in their slot already, and will not be copied. */
static Py_ssize_t
producer_in_place(const producer *self, uint32_t index, const held_value *held)
{
    Py_ssize_t nbytes = 0;
    for (Py_ssize_t i = 0; i < self->shared.column_count; i++) {
        const column *values = &self->shared.columns[i];
        if (values->kind == KIND_ARRAY && held[i].view.buf == value_at(values, index)) {
            nbytes += held[i].nbytes;
        }
    }
    return nbytes;
}

long
producer_begin(producer *self, loan *reserved, PyObject *values, unsigned long flags,
               uint64_t deadline_ns, uint64_t *ticket)
{
    if (producer_forked(self)) {
        return SUBMIT_FORKED;
    }
    if (!ring_is_open(&self->ring)) {
        return SUBMIT_CLOSED;
    }
    Py_ssize_t count = self->shared.column_count;
    if (PyTuple_Size(values) != count) {
        return SUBMIT_MISFIT;
    }

    producer_enter(self);
    held_value held[MAX_COLUMNS];
    Py_ssize_t fitting = 0; /* columns before this one hold their value */
    Py_ssize_t nbytes = 0;
    while (fitting < count
           && value_hold(&self->shared.columns[fitting], PyTuple_GetItem(values, fitting),
                         &held[fitting])) {
        nbytes += held[fitting++].nbytes;
    }
    uint32_t index = 0;
    long refusal = fitting < count ? SUBMIT_MISFIT : 0;
    if (refusal == 0 && reserved != NULL) {
        refusal = !self->dead && loan_take(reserved, &index) ? 0 : SUBMIT_CLOSED;
        nbytes -= refusal == 0 ? producer_in_place(self, index, held) : 0;
    } else if (refusal == 0 && producer_has_free(self)) {
        index = producer_claim(self);
    } else if (refusal == 0) {
        refusal = SUBMIT_FULL;
    }
    if (refusal == 0) {
        self->own[index] = OWN_WRITING;
        refusal = producer_publish(self, index, held, nbytes, flags, deadline_ns, ticket);
    }
    for (Py_ssize_t i = 0; i < fitting; i++) {
        value_let_go(&self->shared.columns[i], &held[i]);
    }
    producer_leave(self);
    return refusal;
}

/* submit(values, flags[, deadline_ns]) -> ticket, or one of SUBMIT_FULL, MISFIT, CLOSED, FORKED.
 *
 * *values* is a tuple with one value a column, exactly of the column's type; anything else is a
 * MISFIT, which Python coerces or explains. A call that is not launched by deadline_ns never
 * runs. One copy, no system call unless the executor sleeps. */
static PyObject *
producer_submit(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 && arguments(nargs, 2) != 0) {
        return NULL;
    }
    unsigned long flags = PyLong_AsUnsignedLong(args[1]);
    uint64_t deadline_ns = nargs == 3 ? PyLong_AsUnsignedLongLong(args[2]) : 0;
    if (((flags == (unsigned long)-1 || deadline_ns == (uint64_t)-1) && PyErr_Occurred())
        || !PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "submit takes a tuple, flags and perhaps a deadline");
        return NULL;
    }
    uint64_t ticket;
    long refusal = producer_begin(self, NULL, args[0], flags, deadline_ns, &ticket);
    if (refusal == SUBMIT_RAISED) {
        return NULL;
    }
    return refusal != 0 ? PyLong_FromLong(refusal) : PyLong_FromUnsignedLongLong(ticket);
}

/* Return the slot of a live ticket, or -1 with ValueError; with RuntimeError in a fork of the
 * process whose ring this is. */
static int64_t
producer_slot(const producer *self, PyObject *ticket)
{
    if (producer_forked(self)) {
        PyErr_SetString(PyExc_RuntimeError, "the ring belongs to the parent process");
        return -1;
    }
    uint64_t number = PyLong_AsUnsignedLongLong(ticket);
    if (number == (uint64_t)-1 && PyErr_Occurred()) {
        return -1;
    }
    int64_t index = producer_find(self, number);
    if (index < 0) {
        PyErr_SetString(PyExc_ValueError, "the ticket's call is over");
    }
    return index;
}

PyObject *
producer_take(producer *self, uint32_t index, int64_t spin_ns)
{
    if (!producer_done(self, index, spin_ns)) {
        return Py_NewRef(pending_object);
    }
    if (!producer_has_value(self, index)) {
        return Py_NewRef(failed_object);
    }
    self->own[index] = OWN_READING;
    const column *result_column = &self->shared.columns[self->shared.column_count];
    producer_enter(self);
    PyObject *result = value_load(result_column, value_at(result_column, index));
    producer_leave(self);
    ring_release(&self->ring, index);
    producer_put_back(self, index);
    if (result != NULL && self->finish != Py_None) {
        PyObject *finished = PyObject_CallFunctionObjArgs(self->finish, result, NULL);
        Py_DECREF(result);
        return finished != NULL ? finished : failure_of_exception();
    }
    return result;
}

int
producer_sleep(producer *self, uint64_t ticket)
{
    int64_t index = producer_find(self, ticket);
    bool looked = now_ns() - self->looked_ns < (uint64_t)self->park_ns;
    if (index < 0 || !looked || self->dead || self->queueing) {
        return 0;
    }
    uint32_t word = ring_arm(&self->ring, (uint32_t)index, RING_WAITER);
    if (ring_state(word) != RING_DONE) {
        producer_enter(self);
        int slept = futex_wait(&self->ring.words.controls[index].state, word, self->park_ns);
        producer_leave(self);
        if (slept != 0) {
            return -1;
        }
        /* Another thread may have taken it meanwhile, or given it up. */
        index = producer_find(self, ticket);
        if (index < 0 || ring_state(ring_look(&self->ring, (uint32_t)index)) != RING_DONE) {
            return 0;
        }
    }
    if (self->spinning != NULL) {
        spinning_slept(self->spinning);
    }
    return 1;
}

/* poll(ticket, spin_ns) -> result, PENDING, FAILED, or a Failure: see producer_take.
 *
 * Spins without the GIL. A call that another thread is reading is PENDING; FAILED keeps the slot
 * until error(). */
static PyObject *
producer_poll(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    int64_t slot = producer_slot(self, args[0]);
    long long spin_ns = PyLong_AsLongLong(args[1]);
    if (slot < 0 || (spin_ns == -1 && PyErr_Occurred())) {
        return NULL;
    }
    return producer_take(self, (uint32_t)slot, spin_ns);
}

/* error(ticket) -> bytes: the error record of a call that poll said FAILED, or None if it expired;
 * frees its slot. */
static PyObject *
producer_error(producer *self, PyObject *ticket)
{
    int64_t slot = producer_slot(self, ticket);
    if (slot < 0) {
        return NULL;
    }
    uint32_t index = (uint32_t)slot;
    const ring_control *control = &self->ring.words.controls[index];
    bool done = self->own[index] != OWN_READING
                && ring_state(ring_look(&self->ring, index)) == RING_DONE;
    uint32_t outcome = atomic_load_explicit(&control->outcome, memory_order_relaxed);
    if (!done || outcome == RING_VALUE) {
        PyErr_SetString(PyExc_ValueError, "the call has no error"); /* or none yet */
        return NULL;
    }
    uint32_t nbytes = atomic_load_explicit(&control->error_nbytes, memory_order_relaxed);
    if (nbytes > self->shared.error_nbytes) {
        nbytes = (uint32_t)self->shared.error_nbytes;
    }
    PyObject *record =
        outcome == RING_EXPIRED
            ? Py_NewRef(Py_None)
            : PyBytes_FromStringAndSize(
                  self->shared.errors + (Py_ssize_t)index * self->shared.error_nbytes, nbytes);
    ring_release(&self->ring, index);
    producer_put_back(self, index);
    return record;
}

/* state(ticket) -> RING_READY, TAKEN or DONE: how far the call has come. */
static PyObject *
producer_state(producer *self, PyObject *ticket)
{
    int64_t slot = producer_slot(self, ticket);
    if (slot < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(ring_state(ring_look(&self->ring, (uint32_t)slot)));
}

/* finished(spawned) -> list of the tickets whose calls are done and not yet polled; only of
 * spawned ones if *spawned* is true. */
static PyObject *
producer_finished(producer *self, PyObject *only_spawned)
{
    int spawned = PyObject_IsTrue(only_spawned);
    PyObject *tickets = spawned < 0 ? NULL : PyList_New(0);
    for (uint32_t i = 0; tickets != NULL && i < self->shared.words.capacity; i++) {
        if (self->own[i] != OWN_PUBLISHED || (spawned && !self->spawned[i])
            || ring_state(ring_look(&self->ring, i)) != RING_DONE) {
            continue;
        }
        PyObject *ticket =
            PyLong_FromUnsignedLongLong((uint64_t)self->generations[i] << TICKET_SLOT_BITS | i);
        if (ticket == NULL || PyList_Append(tickets, ticket) != 0) {
            Py_CLEAR(tickets);
        }
        Py_XDECREF(ticket);
    }
    return tickets;
}

/* arm(ticket, bit) -> word to sleep on, or -1 if the call is done. */
static PyObject *
producer_arm(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    int64_t slot = producer_slot(self, args[0]);
    unsigned long bit = PyLong_AsUnsignedLong(args[1]);
    if (slot < 0 || PyErr_Occurred()) {
        return NULL;
    }
    uint32_t word = ring_arm(&self->ring, (uint32_t)slot, (uint32_t)bit & (RING_WAITER | RING_ASYNC));
    return ring_state(word) == RING_DONE ? PyLong_FromLong(-1) : PyLong_FromUnsignedLong(word);
}

static PyObject *
producer_give_up(producer *self, PyObject *ticket, bool only_ready)
{
    int64_t slot = producer_slot(self, ticket);
    if (slot < 0) {
        return NULL;
    }
    if (self->own[slot] == OWN_READING) {
        PyErr_SetString(PyExc_ValueError, "another thread is taking the ticket's outcome");
        return NULL;
    }
    uint32_t state = producer_drop(self, (uint32_t)slot, only_ready);
    if (state == RING_CANCELLED) {
        uint32_t sleeping = ring_bell_ring(self->bell, true); /* the slot is to come back soon */
        if (sleeping != 0 && producer_wake(self, sleeping) != 0) {
            return NULL;
        }
    }
    return PyLong_FromUnsignedLong(state);
}

/* withdraw(ticket) -> RING_CANCELLED (never runs), RING_ABANDONED (its result will be dropped)
 * or RING_DONE (its result has been dropped). The ticket is over. */
static PyObject *
producer_withdraw(producer *self, PyObject *ticket)
{
    return producer_give_up(self, ticket, false);
}

/* expire(ticket) -> RING_CANCELLED (never runs; the ticket is over), or RING_TAKEN or RING_DONE:
 * it was launched, and goes on. */
static PyObject *
producer_expire(producer *self, PyObject *ticket)
{
    return producer_give_up(self, ticket, true);
}

/* join_completions(step) -> word to park on, or -1 where 255 of that kind have joined;
 * leave_completions(step) undoes it. *step* is THREAD or LOOP. */
static uint32_t
producer_step(PyObject *step)
{
    return PyLong_AsUnsignedLong(step) == RING_LOOP_STEP ? RING_LOOP_STEP : RING_THREAD_STEP;
}

static PyObject *
producer_join_completions(producer *self, PyObject *kind)
{
    uint32_t step = producer_step(kind);
    unsigned *joined = step == RING_LOOP_STEP ? &self->loops_joined : &self->threads_joined;
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (*joined == 255 || producer_forked(self)) {
        return PyLong_FromLong(-1);
    }
    ++*joined;
    return PyLong_FromUnsignedLong(ring_join_completions(&self->ring, step));
}

static PyObject *
producer_leave_completions(producer *self, PyObject *kind)
{
    uint32_t step = producer_step(kind);
    unsigned *joined = step == RING_LOOP_STEP ? &self->loops_joined : &self->threads_joined;
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (*joined > 0 && !producer_forked(self)) {
        --*joined;
        ring_leave_completions(&self->ring, step);
    }
    Py_RETURN_NONE;
}

/* park_slot(ticket, timeout_ns) -> whether the call is done: arm, and sleep on the state word. */
static PyObject *
producer_park_slot(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    int64_t slot = producer_slot(self, args[0]);
    long long timeout_ns = PyLong_AsLongLong(args[1]);
    if (slot < 0 || (timeout_ns == -1 && PyErr_Occurred())) {
        return NULL;
    }
    uint32_t word = ring_arm(&self->ring, (uint32_t)slot, RING_WAITER);
    if (ring_state(word) != RING_DONE) {
        producer_enter(self);
        int slept = futex_wait(&self->ring.words.controls[slot].state, word, timeout_ns);
        producer_leave(self);
        if (slept != 0
            || producer_slot(self, args[0]) < 0) { /* another thread got the outcome meanwhile */
            return NULL;
        }
        word = ring_look(&self->ring, (uint32_t)slot);
    }
    return PyBool_FromLong(ring_state(word) == RING_DONE);
}

/* park_completions(joined, timeout_ns): sleep on the completion word. */
static PyObject *
producer_park_completions(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    unsigned long joined = PyLong_AsUnsignedLong(args[0]);
    long long timeout_ns = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    producer_enter(self);
    int slept =
        futex_wait(&self->ring.words.header->completions, (uint32_t)joined, timeout_ns);
    producer_leave(self);
    if (slept != 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* wake_slot(ticket), wake_completions(): wake this process's own threads out of those sleeps, for
 * what the executor does not know of: a call given up, a slot put back. */
static PyObject *
producer_wake_slot(producer *self, PyObject *ticket)
{
    uint64_t number = PyLong_AsUnsignedLongLong(ticket);
    uint32_t index = number & TICKET_SLOT_MASK;
    if (PyErr_Occurred() || no_slot(&self->shared, index)) {
        return NULL;
    }
    futex_wake(&self->ring.words.controls[index].state, INT_MAX);
    Py_RETURN_NONE;
}

static PyObject *
producer_wake_completions(producer *self, PyObject *Py_UNUSED(ignored))
{
    if (!producer_forked(self)) {
        producer_notify(self, INT_MAX);
    }
    Py_RETURN_NONE;
}

static PyObject *
producer_free_slots(producer *self, void *Py_UNUSED(closure))
{
    if (self->withdrawn_count > 0 && !producer_forked(self)) {
        producer_reclaim(self);
    }
    return PyLong_FromUnsignedLong(self->free_count);
}

static PyObject *
producer_is_forked(producer *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(producer_forked(self));
}

static PyObject *
producer_status(producer *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(
        atomic_load_explicit(&self->ring.words.header->status, memory_order_acquire));
}

static int
producer_set_spinning(producer *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL || !PyObject_TypeCheck(value, spinning_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a Spinning");
        return -1;
    }
    spinning *before = self->spinning;
    self->spinning = (spinning *)Py_NewRef(value);
    Py_XDECREF((PyObject *)before);
    return 0;
}

static PyMethodDef producer_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))producer_submit, METH_FASTCALL, NULL},
    {"reserve", (PyCFunction)producer_reserve, METH_O, NULL},
    {"move", (PyCFunction)(void (*)(void))producer_move, METH_FASTCALL, NULL},
    {"poll", (PyCFunction)(void (*)(void))producer_poll, METH_FASTCALL, NULL},
    {"error", (PyCFunction)producer_error, METH_O, NULL},
    {"state", (PyCFunction)producer_state, METH_O, NULL},
    {"finished", (PyCFunction)producer_finished, METH_O, NULL},
    {"arm", (PyCFunction)(void (*)(void))producer_arm, METH_FASTCALL, NULL},
    {"withdraw", (PyCFunction)producer_withdraw, METH_O, NULL},
    {"expire", (PyCFunction)producer_expire, METH_O, NULL},
    {"join_completions", (PyCFunction)producer_join_completions, METH_O, NULL},
    {"leave_completions", (PyCFunction)producer_leave_completions, METH_O, NULL},
    {"park_slot", (PyCFunction)(void (*)(void))producer_park_slot, METH_FASTCALL, NULL},
    {"wake_slot", (PyCFunction)producer_wake_slot, METH_O, NULL},
    {"wake_completions", (PyCFunction)producer_wake_completions, METH_NOARGS, NULL},
    {"park_completions", (PyCFunction)(void (*)(void))producer_park_completions, METH_FASTCALL,
     NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_properties[] = {
    {"free_slots", (getter)producer_free_slots, NULL, NULL, NULL},
    {"forked", (getter)producer_is_forked, NULL, NULL, NULL},
    {"status", (getter)producer_status, NULL, NULL, NULL},
    {"spinning", NULL, (setter)producer_set_spinning, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef producer_members[] = {
    {"moves", T_UINT, offsetof(producer, moves), READONLY, NULL},
    {"dead", T_BOOL, offsetof(producer, dead), 0, NULL},
    {"queueing", T_BOOL, offsetof(producer, queueing), 0, NULL},
    {"park_ns", T_LONGLONG, offsetof(producer, park_ns), 0, NULL},
    {"looked_ns", T_ULONGLONG, offsetof(producer, looked_ns), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_new, producer_new},
    {Py_tp_dealloc, producer_dealloc},
    {Py_tp_methods, producer_methods},
    {Py_tp_members, producer_members},
    {Py_tp_getset, producer_properties},
    {0, NULL},
};

PyType_Spec producer_spec = {
    .name = "shmbatch.protocol._core.ProducerRing",
    .basicsize = sizeof(producer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = producer_slots,
};
