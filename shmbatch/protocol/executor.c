/* executor.c: ExecutorRing, the executor's end of one connection; Inbox, those of one function. */
#include "core.h"

/* ---- ExecutorRing ----------------------------------------------------------------------- */

PyTypeObject *executor_type;

static void
executor_dealloc(executor *self)
{
    Py_XDECREF(self->lent);
    ends_clear(&self->shared);
    PyMem_Free(self->ring.waiting);
    PyMem_Free(self->ring.known);
    free_self((PyObject *)self);
}

static PyObject *
executor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *segment, *columns;
    unsigned capacity, layout_version;
    Py_ssize_t indices_offset, controls_offset, errors_offset, error_nbytes;
    if (!PyArg_ParseTuple(args, "OInnnnO!I:ExecutorRing", &segment, &capacity, &indices_offset,
                          &controls_offset, &errors_offset, &error_nbytes, &PyTuple_Type, &columns,
                          &layout_version)) {
        return NULL;
    }
    executor *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    if (ends_init(&self->shared, segment, capacity, indices_offset, controls_offset,
                  errors_offset, error_nbytes, columns) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.words = self->shared.words;
    self->ring.waiting = PyMem_Calloc(self->ring.words.ring_mask + 1, sizeof(ring_waiting));
    self->ring.known = PyMem_Calloc(capacity, 1);
    if (self->ring.waiting == NULL || self->ring.known == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->ring.words.header->magic = 0x68637461626d6873; /* "shmbatch" */
    self->ring.words.header->layout_version = layout_version;
    self->ring.words.header->capacity = capacity;
    return (PyObject *)self;
}

static PyObject *
executor_set_status(executor *self, PyObject *status)
{
    unsigned long value = PyLong_AsUnsignedLong(status);
    if (value == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    atomic_store_explicit(&self->ring.words.header->status, (uint32_t)value,
                          memory_order_release);
    Py_RETURN_NONE;
}

/* wake(threads, slots): wake who sleeps on the completion word, if *threads* is not 0, and on each
 * of the *slots*, a list. */
static PyObject *
executor_wake(executor *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    int threads = PyObject_IsTrue(args[0]);
    Py_ssize_t count = PyList_Size(args[1]);
    if (threads < 0 || count < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long index = PyLong_AsUnsignedLong(PyList_GetItem(args[1], i));
        if (PyErr_Occurred() || no_slot(&self->shared, index)) {
            return NULL;
        }
        futex_wake(&self->ring.words.controls[index].state, INT_MAX);
    }
    if (threads) {
        futex_wake(&self->ring.words.header->completions, INT_MAX);
    }
    Py_RETURN_NONE;
}

/* lend(stacks): a batch that is one run of this ring gets slices of *stacks*, a tuple with one, of
 * all slots, or None for each parameter. Before the ring is attached to an Inbox. */
static PyObject *
executor_lend(executor *self, PyObject *stacks)
{
    if (!PyTuple_Check(stacks) || PyTuple_Size(stacks) != self->shared.column_count) {
        PyErr_SetString(PyExc_ValueError, "expected a tuple with a stack, or None, a parameter");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < self->shared.column_count; i++) {
        PyObject *stack = PyTuple_GetItem(stacks, i);
        Py_ssize_t slots = stack == Py_None ? -1 : PySequence_Size(stack);
        if (slots < 0 && PyErr_Occurred()) {
            return NULL;
        }
        if (stack != Py_None
            && (self->shared.columns[i].kind != KIND_ARRAY
                || slots != (Py_ssize_t)self->ring.words.capacity)) {
            PyErr_SetString(PyExc_ValueError, "only arrays are lent, of all slots");
            return NULL;
        }
    }
    PyObject *before = self->lent;
    self->lent = Py_NewRef(stacks);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef executor_methods[] = {
    {"set_status", (PyCFunction)executor_set_status, METH_O, NULL},
    {"lend", (PyCFunction)executor_lend, METH_O, NULL},
    {"wake", (PyCFunction)(void (*)(void))executor_wake, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef executor_members[] = {
    {"wakes", T_BOOL, offsetof(executor, wakes), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot executor_slots[] = {
    {Py_tp_new, executor_new},
    {Py_tp_dealloc, executor_dealloc},
    {Py_tp_methods, executor_methods},
    {Py_tp_members, executor_members},
    {0, NULL},
};

PyType_Spec executor_spec = {
    .name = "shmbatch.protocol._core.ExecutorRing",
    .basicsize = sizeof(executor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = executor_slots,
};

/* ---- Inbox ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    executor **rings;
    uint32_t *quotas; /* scratch of take: how many of each ring */
    unsigned count;
    unsigned room;
    unsigned turn;      /* the ring that is asked first */
    bool sealed;        /* what is not in `waiting` by now never runs */
    unsigned attention; /* rings whose `broken` or `freed` was set since pop_attention */
    unsigned absent;    /* calls missing until everybody has as many outstanding as lately */
    unsigned long long oldest_ns; /* earliest publication of the waiting calls */
    unsigned long long expired;   /* calls that were not launched by their deadline, so far */
    unsigned long long cancelled; /* calls that their producers withdrew before that */
} inbox;

static void
inbox_dealloc(inbox *self)
{
    for (unsigned i = 0; i < self->count; i++) {
        Py_DECREF(self->rings[i]);
    }
    PyMem_Free(self->rings);
    PyMem_Free(self->quotas);
    free_self((PyObject *)self);
}

static PyObject *
inbox_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    if (!PyArg_ParseTuple(args, ":Inbox")) {
        return NULL;
    }
    return new_self(type);
}

/* attach(ring, since_ns): calls of this ring are drained from now on; none of them was published
 * before since_ns. */
static PyObject *
inbox_attach(inbox *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    PyObject *ring = args[0];
    uint64_t since_ns = PyLong_AsUnsignedLongLong(args[1]);
    if (since_ns == (uint64_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!PyObject_TypeCheck(ring, executor_type)) {
        PyErr_SetString(PyExc_TypeError, "expected an ExecutorRing");
        return NULL;
    }
    ((executor *)ring)->ring.drained_ns = since_ns;
    if (self->count == self->room) {
        unsigned room = self->room ? self->room * 2 : 8;
        executor **rings = PyMem_Realloc(self->rings, room * sizeof(*rings));
        if (rings != NULL) {
            self->rings = rings;
        }
        uint32_t *quotas = PyMem_Realloc(self->quotas, room * sizeof(*quotas));
        if (quotas != NULL) {
            self->quotas = quotas;
        }
        if (rings == NULL || quotas == NULL) {
            return PyErr_NoMemory();
        }
        self->room = room;
    }
    self->rings[self->count++] = (executor *)Py_NewRef(ring);
    Py_RETURN_NONE;
}

/* detach(ring): its waiting calls are dropped; rows in a batch live on until completed. */
static PyObject *
inbox_detach(inbox *self, PyObject *ring)
{
    for (unsigned i = 0; i < self->count; i++) {
        if ((PyObject *)self->rings[i] == ring) {
            self->count--;
            memmove(&self->rings[i], &self->rings[i + 1],
                    (self->count - i) * sizeof(*self->rings));
            self->turn = self->count && self->turn > i ? self->turn - 1 : self->turn;
            ((executor *)ring)->detached = true;
            Py_DECREF(ring);
            break;
        }
    }
    Py_RETURN_NONE;
}

static void
inbox_break(inbox *self, executor *ring)
{
    self->attention++;
    ring->broken = true;
    ring->ring.waiting_head = ring->ring.waiting_tail;
}

static void
inbox_freed(inbox *self, executor *ring)
{
    self->attention++;
    ring->freed = true;
}

/* What this producer waits for now: calls that wait here, and those that run. */
static uint32_t
ring_outstanding(const executor *ring)
{
    return ring_waiting_count(&ring->ring) + ring->running;
}

/* Count calls that were withdrawn before they were launched; *late* is what ring.late was. */
static void
inbox_count_withdrawn(inbox *self, const executor *ring, uint32_t calls, uint32_t late)
{
    late = ring->ring.late - late;
    self->expired += late;
    self->cancelled += calls - late;
}

/* drain(now_ns) -> int: look at every ring; return how many calls wait. Sets `oldest_ns`,
 * `absent`, and `attention` where pop_attention has something to say. */
static PyObject *
inbox_drain(inbox *self, PyObject *now)
{
    uint64_t at_ns = PyLong_AsUnsignedLongLong(now);
    if (at_ns == (uint64_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    uint64_t waiting = 0;
    uint32_t absent = 0;
    uint64_t oldest_ns = UINT64_MAX;
    for (unsigned i = 0; i < self->count; i++) {
        executor *ring = self->rings[i];
        if (ring->broken) {
            continue;
        }
        uint32_t late = ring->ring.late;
        int64_t found = self->sealed ? 0 : ring_drain(&ring->ring, at_ns);
        int64_t freed = found < 0 ? 0 : ring_sweep(&ring->ring);
        if (found < 0 || freed < 0) {
            inbox_break(self, ring);
            continue;
        }
        if (freed > 0) {
            inbox_count_withdrawn(self, ring, (uint32_t)freed, late);
            inbox_freed(self, ring);
        }
        uint32_t count = ring_waiting_count(&ring->ring);
        if (count > 0) {
            waiting += count;
            uint64_t published_ns =
                ring->ring.waiting[ring->ring.waiting_head & ring->ring.words.ring_mask]
                    .published_ns;
            oldest_ns = published_ns < oldest_ns ? published_ns : oldest_ns;
        }
        uint32_t outstanding = ring_outstanding(ring);
        absent += outstanding < ring->peak ? ring->peak - outstanding : 0;
    }
    self->oldest_ns = oldest_ns;
    self->absent = absent;
    return PyLong_FromUnsignedLongLong(waiting);
}

/* forget_absent(): nobody is to be waited for who has fewer calls outstanding than lately. */
static PyObject *
inbox_forget_absent(inbox *self, PyObject *Py_UNUSED(ignored))
{
    for (unsigned i = 0; i < self->count; i++) {
        self->rings[i]->peak = ring_outstanding(self->rings[i]);
    }
    self->absent = 0;
    Py_RETURN_NONE;
}

/* pending() -> int: calls published and not taken, at this moment. For any thread. */
static PyObject *
inbox_pending(inbox *self, PyObject *Py_UNUSED(ignored))
{
    uint64_t pending = 0;
    for (unsigned i = 0; i < self->count; i++) {
        const executor *ring = self->rings[i];
        if (ring->broken) {
            continue;
        }
        uint32_t tail = atomic_load_explicit(&ring->ring.words.header->tail, memory_order_relaxed);
        uint32_t found = self->sealed ? 0 : tail - ring->ring.head;
        pending += ring_waiting_count(&ring->ring);
        pending += found < ring->ring.words.capacity ? found : ring->ring.words.capacity;
    }
    return PyLong_FromUnsignedLongLong(pending);
}

static PyObject *
inbox_running(inbox *self, void *Py_UNUSED(closure))
{
    uint64_t running = 0;
    for (unsigned i = 0; i < self->count; i++) {
        running += self->rings[i]->running;
    }
    return PyLong_FromUnsignedLongLong(running);
}

/* Share *limit* among the rings: everybody in turn, one call each, until it is used up or
 * nobody has more (I5). Sets `quotas`; the next turn starts after the last one served. */
static void
inbox_share(inbox *self, uint32_t limit)
{
    memset(self->quotas, 0, self->count * sizeof(*self->quotas));
    while (limit > 0) {
        uint32_t hungry = 0;
        for (unsigned i = 0; i < self->count; i++) {
            hungry += self->quotas[i] < ring_waiting_count(&self->rings[i]->ring);
        }
        if (hungry == 0) {
            return;
        }
        uint32_t share = limit / hungry; /* whole rounds at once; 0: the last, partial one */
        unsigned start = self->turn;
        for (unsigned step = 0; step < self->count && limit > 0; step++) {
            unsigned i = (start + step) % self->count;
            uint32_t more = ring_waiting_count(&self->rings[i]->ring) - self->quotas[i];
            uint32_t given = more < (share ? share : 1) ? more : (share ? share : 1);
            self->quotas[i] += given;
            limit -= given;
            if (share == 0 && given > 0) {
                self->turn = (i + 1) % self->count;
            }
        }
    }
}

/* Take the oldest waiting call of *ring* into *to*. RING_TOOK: it is to run; RING_SKIPPED: it was
 * cancelled, or its deadline has passed, which is its outcome; RING_VIOLATION. */
static int
inbox_take_one(inbox *self, executor *ring, row *to, uint64_t at_ns)
{
    uint32_t late = ring->ring.late;
    int taken = ring_take(&ring->ring, &to->index, &to->generation);
    if (taken != RING_TOOK) {
        if (taken == RING_SKIPPED) {
            inbox_count_withdrawn(self, ring, 1, late);
        }
        return taken;
    }
    if (!ring_expired(&ring->ring, to->index, at_ns)) {
        ring->running++;
        to->ring = (executor *)Py_NewRef((PyObject *)ring);
        to->outcome = RING_VALUE;
        to->error_nbytes = 0;
        return RING_TOOK;
    }
    int sleeping = ring_complete(&ring->ring, to->index, to->generation, RING_EXPIRED, 0);
    if (sleeping == RING_VIOLATION) {
        return RING_VIOLATION;
    }
    /* A thread that waits for it sleeps until the deadline at most. */
    ring->async_expired = ring->async_expired || (sleeping & RING_ASYNC);
    self->expired++;
    return RING_SKIPPED;
}

/* take(batch, limit, now_ns) -> int: fill the empty *batch* with up to *limit* waiting calls. */
static PyObject *
inbox_take(inbox *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    unsigned long limit = PyLong_AsUnsignedLong(args[1]);
    uint64_t at_ns = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    batch *into = (batch *)args[0];
    if (!PyObject_TypeCheck(args[0], batch_type) || into->count != 0 || into->rejected != 0
        || limit > into->capacity) {
        PyErr_SetString(PyExc_ValueError, "take needs an empty Batch with room for the limit");
        return NULL;
    }
    into->taken_ns = at_ns;
    into->weight = phases_next_weight(into->phases);
    bool again = true;
    /* A second round only where calls were cancelled between drain and take, or have expired. */
    while (again && into->count < limit && self->count > 0) {
        again = false;
        inbox_share(self, (uint32_t)limit - into->count);
        for (unsigned i = 0; i < self->count; i++) {
            executor *ring = self->rings[i];
            for (uint32_t left = self->quotas[i]; left > 0; left--) {
                uint32_t mask = ring->ring.words.ring_mask;
                uint64_t published_ns =
                    ring->ring.waiting[ring->ring.waiting_head & mask].published_ns;
                int taken = inbox_take_one(self, ring, &into->rows[into->count], at_ns);
                if (taken == RING_VIOLATION) {
                    inbox_break(self, ring);
                    break;
                }
                if (taken == RING_SKIPPED) {
                    inbox_freed(self, ring);
                    again = true;
                    continue;
                }
                into->count++;
                if (into->phases != NULL) {
                    phases_count(into->phases, WAITING,
                                 published_ns < at_ns ? at_ns - published_ns : 0, 1);
                }
            }
        }
    }
    for (unsigned i = 0; i < self->count; i++) {
        uint32_t outstanding = ring_outstanding(self->rings[i]);
        if (outstanding > self->rings[i]->peak) {
            self->rings[i]->peak = outstanding;
        }
    }
    return PyLong_FromUnsignedLong(into->count);
}

/* seal(): take no more calls out of the rings; those that wait already still run. */
static PyObject *
inbox_seal(inbox *self, PyObject *Py_UNUSED(ignored))
{
    self->sealed = true;
    Py_RETURN_NONE;
}

/* pop_attention() -> None, or a list as complete() returns it: rings with slots that became FREE,
 * and with WAKE_VIOLATION those whose producers violated the protocol. */
static PyObject *
inbox_pop_attention(inbox *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *wakes = NULL;
    for (unsigned i = 0; i < self->count; i++) {
        executor *ring = self->rings[i];
        uint32_t sleepers = ring->freed ? ring_notify(&ring->ring) : 0;
        unsigned long flags = ring->broken ? WAKE_VIOLATION : 0;
        flags |= ring->async_expired ? WAKE_ASYNC : 0;
        ring->freed = ring->async_expired = false;
        if (add_wake(&wakes, ring, flags, sleepers, NULL) != 0) {
            Py_XDECREF(wakes);
            return NULL;
        }
    }
    self->attention = 0;
    return wakes != NULL ? wakes : Py_NewRef(Py_None);
}

static PyMethodDef inbox_methods[] = {
    {"attach", (PyCFunction)(void (*)(void))inbox_attach, METH_FASTCALL, NULL},
    {"detach", (PyCFunction)inbox_detach, METH_O, NULL},
    {"drain", (PyCFunction)inbox_drain, METH_O, NULL},
    {"take", (PyCFunction)(void (*)(void))inbox_take, METH_FASTCALL, NULL},
    {"forget_absent", (PyCFunction)inbox_forget_absent, METH_NOARGS, NULL},
    {"pending", (PyCFunction)inbox_pending, METH_NOARGS, NULL},
    {"seal", (PyCFunction)inbox_seal, METH_NOARGS, NULL},
    {"pop_attention", (PyCFunction)inbox_pop_attention, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef inbox_members[] = {
    {"oldest_ns", T_ULONGLONG, offsetof(inbox, oldest_ns), READONLY, NULL},
    {"attention", T_UINT, offsetof(inbox, attention), READONLY, NULL},
    {"absent", T_UINT, offsetof(inbox, absent), READONLY, NULL},
    {"expired", T_ULONGLONG, offsetof(inbox, expired), READONLY, NULL},
    {"cancelled", T_ULONGLONG, offsetof(inbox, cancelled), READONLY, NULL},
    {"count", T_UINT, offsetof(inbox, count), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef inbox_properties[] = {
    {"running", (getter)inbox_running, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot inbox_slots[] = {
    {Py_tp_new, inbox_new},
    {Py_tp_dealloc, inbox_dealloc},
    {Py_tp_methods, inbox_methods},
    {Py_tp_members, inbox_members},
    {Py_tp_getset, inbox_properties},
    {0, NULL},
};

PyType_Spec inbox_spec = {
    .name = "shmbatch.protocol._core.Inbox",
    .basicsize = sizeof(inbox),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = inbox_slots,
};
