/* batch.c: Batch, the rows of one batch: gather, scatter, complete; Phases, how long they took. */
#include "core.h"

/* ---- Phases ----------------------------------------------------------------------------- */

PyTypeObject *phases_type;

/* Which bucket: i < 16 holds exactly i; else octave i / 16 - 1, from (16 + i % 16) << octave on. */
static unsigned
bucket_of(uint64_t ns)
{
    if (ns < 16) {
        return (unsigned)ns;
    }
    unsigned octave = 59u - (unsigned)__builtin_clzll(ns);
    return (octave + 1) * 16 + (unsigned)(ns >> octave & 15);
}

void
phases_count(phases *self, int phase, uint64_t ns, uint64_t calls)
{
    self->counts[phase][bucket_of(ns)] += calls;
    self->sum_ns[phase] += ns * calls;
    if (ns > self->max_ns[phase]) {
        self->max_ns[phase] = ns;
    }
}

static PyObject *
phases_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    if (!PyArg_ParseTuple(args, ":Phases")) {
        return NULL;
    }
    return new_self(type);
}

static void
phases_dealloc(phases *self)
{
    free_self((PyObject *)self);
}

/* read(phase) -> (sum_ns, max_ns, counts): counts are BUCKET_COUNT native u64. */
static PyObject *
phases_read(phases *self, PyObject *number)
{
    unsigned long phase = PyLong_AsUnsignedLong(number);
    if (phase == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (phase >= PHASE_COUNT) {
        PyErr_Format(PyExc_ValueError, "there is no phase %lu", phase);
        return NULL;
    }
    return Py_BuildValue("(KKy#)", self->sum_ns[phase], self->max_ns[phase],
                         (const char *)self->counts[phase],
                         (Py_ssize_t)sizeof(self->counts[phase]));
}

static PyMethodDef phases_methods[] = {
    {"read", (PyCFunction)phases_read, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot phases_slots[] = {
    {Py_tp_new, phases_new},
    {Py_tp_dealloc, phases_dealloc},
    {Py_tp_methods, phases_methods},
    {0, NULL},
};

PyType_Spec phases_spec = {
    .name = "shmbatch.protocol._core.Phases",
    .basicsize = sizeof(phases),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = phases_slots,
};

/* ---- Batch ------------------------------------------------------------------------------ */

PyTypeObject *batch_type;

static void
batch_drop_rows(batch *self)
{
    unsigned count = self->count + self->rejected;
    self->count = self->rejected = 0;
    for (unsigned i = 0; i < count; i++) {
        Py_CLEAR(self->rows[i].ring);
    }
}

static void
batch_dealloc(batch *self)
{
    if (self->rows != NULL) {
        batch_drop_rows(self);
    }
    PyMem_Free(self->rows);
    Py_XDECREF((PyObject *)self->phases);
    free_self((PyObject *)self);
}

static PyObject *
batch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    unsigned capacity;
    PyObject *timed = Py_None;
    if (!PyArg_ParseTuple(args, "I|O:Batch", &capacity, &timed)) {
        return NULL;
    }
    if (timed != Py_None && !PyObject_TypeCheck(timed, phases_type)) {
        PyErr_SetString(PyExc_TypeError, "expected Phases or None");
        return NULL;
    }
    batch *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    self->capacity = capacity;
    self->phases = timed == Py_None ? NULL : (phases *)Py_NewRef(timed);
    self->rows = PyMem_Calloc(capacity, sizeof(row));
    if (capacity == 0 || self->rows == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

/* Column *number* of every row's ring; -1 is the result. All rings of a batch have the same
 * columns, because an Inbox only accepts rings of one function. */
static const column *
row_column(const row *at, Py_ssize_t number)
{
    const ends *shared = &at->ring->shared;
    return &shared->columns[number < 0 ? shared->column_count : number];
}

static int
batch_check(const batch *self)
{
    if (self->count == 0) {
        PyErr_SetString(PyExc_ValueError, "the batch is empty");
        return -1;
    }
    return 0;
}

/* How many rows from row *i* on are neighbouring slots of one ring. */
static unsigned
batch_run(const batch *self, unsigned i)
{
    const row *first = &self->rows[i];
    unsigned run = 1;
    while (i + run < self->count && self->rows[i + run].ring == first->ring
           && self->rows[i + run].index == first->index + run) {
        run++;
    }
    return run;
}

/* Copy rows between the slots and *packed*; neighbouring slots are one copy. */
static void
batch_copy(const batch *self, Py_ssize_t number, char *packed, bool to_slots)
{
    Py_ssize_t nbytes = row_column(&self->rows[0], number)->nbytes;
    for (unsigned i = 0; i < self->count;) {
        const row *first = &self->rows[i];
        unsigned run = batch_run(self, i);
        char *slots = value_at(row_column(first, number), first->index);
        if (to_slots) {
            memcpy(slots, packed, (size_t)(nbytes * run));
        } else {
            memcpy(packed, slots, (size_t)(nbytes * run));
        }
        packed += nbytes * run;
        i += run;
    }
}

static PyObject *
batch_gather_list(const batch *self, Py_ssize_t number)
{
    PyObject *values = PyList_New(self->count);
    for (unsigned i = 0; values != NULL && i < self->count; i++) {
        const column *from = row_column(&self->rows[i], number);
        PyObject *value = value_load(from, value_at(from, self->rows[i].index));
        if (value == NULL || PyList_SetItem(values, i, value) != 0) {
            Py_CLEAR(values);
        }
    }
    return values;
}

/* Copy a column out of the slots, or into them, without the GIL if it is worth it. */
static void
batch_copy_freely(const batch *self, Py_ssize_t number, char *rows, bool scatter)
{
    if (row_column(&self->rows[0], number)->nbytes * self->count >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        batch_copy(self, number, rows, scatter);
        Py_END_ALLOW_THREADS
    } else {
        batch_copy(self, number, rows, scatter);
    }
}

/* Copy the rows of an array column to the start of *room*. */
static int
batch_fill(const batch *self, Py_ssize_t number, PyObject *room)
{
    const column *of = row_column(&self->rows[0], number);
    char *memory = array_room(of, room, self->count);
    if (memory != NULL) {
        batch_copy_freely(self, number, memory, false);
        return 0;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(room, &view, PyBUF_WRITABLE) != 0) {
        return -1;
    }
    Py_ssize_t nbytes = of->nbytes * self->count;
    bool fits = view.len >= nbytes;
    if (fits) {
        batch_copy_freely(self, number, view.buf, false);
    } else {
        PyErr_Format(PyExc_ValueError, "buffer has %zd bytes, the batch %zd", view.len, nbytes);
    }
    PyBuffer_Release(&view);
    return fits ? 0 : -1;
}

/* Copy the rows of an array column to the start of pair[0], unless that is None; return
 * pair[1][:count]. */
static PyObject *
batch_gather_array(const batch *self, Py_ssize_t number, PyObject *pair)
{
    PyObject *room = PyTuple_GetItem(pair, 0), *rows = PyTuple_GetItem(pair, 1);
    if (room != Py_None && batch_fill(self, number, room) != 0) {
        return NULL;
    }
    /* A slice even where it is all of them: what the function does to the object itself, such as
     * requires_grad_(), must not reach the next batch. */
    return array_first_rows(row_column(&self->rows[0], number), rows, self->count);
}

/* The padded shape of *count* rows whose shapes stand in *axes*, with *count* itself in front. */
static PyObject *
padded_shape(const column *self, unsigned count, const Py_ssize_t *axes, Py_ssize_t *padded)
{
    memset(padded, 0, (size_t)self->ndim * sizeof(*padded));
    for (unsigned i = 0; i < count; i++, axes += self->ndim) {
        for (int axis = 0; axis < self->ndim; axis++) {
            padded[axis] = axes[axis] > padded[axis] ? axes[axis] : padded[axis];
        }
    }
    PyObject *shape = PyTuple_New(1 + self->ndim);
    for (int axis = -1; shape != NULL && axis < self->ndim; axis++) {
        PyObject *length = PyLong_FromSsize_t(axis < 0 ? (Py_ssize_t)count : padded[axis]);
        if (length == NULL || PyTuple_SetItem(shape, 1 + axis, length) != 0) {
            Py_CLEAR(shape);
        }
    }
    return shape;
}

static void
batch_pad(const batch *self, Py_ssize_t number, const Py_ssize_t *axes, const Py_ssize_t *padded,
          Py_ssize_t row_nbytes, char *to, int64_t *lengths)
{
    for (unsigned i = 0; i < self->count; i++) {
        const column *from = row_column(&self->rows[i], number);
        if (row_nbytes > 0) {
            ragged_pad(from, value_at(from, self->rows[i].index), axes, padded, to);
        }
        for (int axis = 0; axis < from->ndim; axis++) {
            if (from->shape[axis] < 0) {
                *lengths++ = axes[axis];
            }
        }
        axes += from->ndim;
        to += row_nbytes;
    }
}

/* Write the rows of a ragged column, padded with zeros to the longest of them, to the start of
 * pair[0], and the lengths that they have into pair[1]; return the shape of the whole. */
static PyObject *
batch_gather_padded(const batch *self, Py_ssize_t number, PyObject *pair)
{
    const column *of = row_column(&self->rows[0], number);
    int variable = 0;
    for (int axis = 0; axis < of->ndim; axis++) {
        variable += of->shape[axis] < 0;
    }
    Py_buffer rows, lengths;
    if (PyObject_GetBuffer(PyTuple_GetItem(pair, 0), &rows, PyBUF_WRITABLE) != 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(PyTuple_GetItem(pair, 1), &lengths, PyBUF_WRITABLE) != 0) {
        PyBuffer_Release(&rows);
        return NULL;
    }
    PyObject *shape = NULL;
    Py_ssize_t padded[PyBUF_MAX_NDIM];
    /* One snapshot of all the shapes: their writers may be scribbling. */
    Py_ssize_t *axes =
        PyMem_Malloc((size_t)self->count * (size_t)of->ndim * sizeof(*axes));
    if (axes == NULL) {
        PyErr_NoMemory();
    } else {
        for (unsigned i = 0; i < self->count; i++) {
            const column *from = row_column(&self->rows[i], number);
            ragged_shape(from, value_at(from, self->rows[i].index), axes + i * of->ndim);
        }
        shape = padded_shape(of, self->count, axes, padded);
    }
    if (shape != NULL) {
        Py_ssize_t row_nbytes = of->itemsize;
        for (int axis = 0; axis < of->ndim; axis++) {
            row_nbytes *= padded[axis];
        }
        Py_ssize_t nbytes = row_nbytes * self->count;
        Py_ssize_t lengths_nbytes = (Py_ssize_t)(self->count * variable * sizeof(int64_t));
        if (rows.len < nbytes || lengths.len < lengths_nbytes) {
            PyErr_Format(PyExc_ValueError, "buffers have %zd and %zd bytes, the batch %zd and %zd",
                         rows.len, lengths.len, nbytes, lengths_nbytes);
            Py_CLEAR(shape);
        } else if (nbytes >= RELEASE_GIL_NBYTES) {
            Py_BEGIN_ALLOW_THREADS
            batch_pad(self, number, axes, padded, row_nbytes, rows.buf, lengths.buf);
            Py_END_ALLOW_THREADS
        } else {
            batch_pad(self, number, axes, padded, row_nbytes, rows.buf, lengths.buf);
        }
    }
    PyMem_Free(axes);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&rows);
    return shape;
}

/* What lends the batch its slots: the tuple of its ring, if all rows are one run of that. */
static PyObject *
batch_lender(const batch *self)
{
    PyObject *lent = self->rows[0].ring->lent;
    return lent != NULL && batch_run(self, 0) == self->count ? lent : NULL;
}

/* gather(buffers) -> list: the inputs of all rows, one item a column. *buffers* has for each
 *   None           a list of the values (any kind but KIND_ARRAY)
 *   (room, rows)   KIND_ARRAY: rows[:count], after the values were copied to the start of room;
 *                  (None, rows): without that
 *   (room, lengths)  KIND_RAGGED: see batch_gather_padded
 * Of a KIND_ARRAY column that is lent nothing is copied: the item is a slice of the slots. */
static PyObject *
batch_gather(batch *self, PyObject *buffers)
{
    if (batch_check(self) != 0) {
        return NULL;
    }
    const ends *shared = &self->rows[0].ring->shared;
    if (!PyList_Check(buffers) || PyList_Size(buffers) != shared->column_count) {
        PyErr_SetString(PyExc_ValueError, "expected a list with a pair, or None, a column");
        return NULL;
    }
    PyObject *lent = batch_lender(self);
    PyObject *inputs = PyList_New(shared->column_count);
    for (Py_ssize_t number = 0; inputs != NULL && number < shared->column_count; number++) {
        PyObject *pair = PyList_GetItem(buffers, number);
        PyObject *slots = lent == NULL ? Py_None : PyTuple_GetItem(lent, number);
        int kind = shared->columns[number].kind;
        PyObject *input = NULL;
        if (slots != Py_None) {
            Py_ssize_t first = self->rows[0].index;
            input = PySequence_GetSlice(slots, first, first + self->count);
        } else if (pair == Py_None && kind != KIND_ARRAY) {
            input = batch_gather_list(self, number);
        } else if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2
                   || (kind != KIND_ARRAY && kind != KIND_RAGGED)) {
            PyErr_SetString(PyExc_TypeError, "expected a pair of buffers for an array column");
        } else if (kind == KIND_ARRAY) {
            input = batch_gather_array(self, number, pair);
        } else {
            input = batch_gather_padded(self, number, pair);
        }
        if (input == NULL || PyList_SetItem(inputs, number, input) != 0) {
            Py_CLEAR(inputs);
        }
    }
    self->gathered_ns = self->weight > 0 ? now_ns() : 0;
    return inputs;
}

/* runs() -> list of (ring, slot, count): where the rows stand, neighbouring slots as one run. */
static PyObject *
batch_runs(batch *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *runs = PyList_New(0);
    for (unsigned i = 0, run; runs != NULL && i < self->count; i += run) {
        run = batch_run(self, i);
        PyObject *item = Py_BuildValue("OII", self->rows[i].ring, self->rows[i].index, run);
        if (item == NULL || PyList_Append(runs, item) != 0) {
            Py_CLEAR(runs);
        }
        Py_XDECREF(item);
    }
    return runs;
}

/* The function has run, when the first outcome is written. */
static void
batch_ran(batch *self)
{
    if (self->ran_ns == 0 && self->weight > 0) {
        self->ran_ns = now_ns();
    }
}

/* Scatter a list of values that are all exactly the result's; 1 done, 0 not. */
static int
batch_scatter_list(batch *self, PyObject *values)
{
    if (PyList_Size(values) != (Py_ssize_t)self->count) {
        return 0;
    }
    for (unsigned i = 0; i < self->count; i++) {
        const column *to = row_column(&self->rows[i], -1);
        /* Strong: writing a large value lets other threads run. */
        PyObject *value = PyList_GetItem(values, i);
        if (value == NULL) {
            PyErr_Clear(); /* one of them has shortened the list */
            return 0;
        }
        Py_INCREF(value);
        int stored = value_put(to, value, value_at(to, self->rows[i].index));
        Py_DECREF(value);
        if (!stored) {
            return 0;
        }
    }
    return 1;
}

/* Scatter a stack if it is exactly of the result's carrier, dtype and row shape, and packed. For
 * the carrier of raw bytes, a memoryview, all rows stand behind each other. */
static int
batch_scatter_stack(batch *self, PyObject *stack)
{
    const column *to = row_column(&self->rows[0], -1);
    char *memory = array_of_rows(to, stack, self->count);
    if (memory != NULL) {
        batch_copy_freely(self, -1, memory, true);
        return 1;
    }
    Py_buffer view;
    if ((PyObject *)Py_TYPE(stack) != to->carrier) {
        return 0;
    }
    if (PyObject_GetBuffer(stack, &view, PyBUF_ND | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t nbytes = to->nbytes * self->count;
    bool raw = (PyObject *)Py_TYPE(stack) == (PyObject *)&PyMemoryView_Type;
    int fits = view.len == nbytes && strcmp(view.format, to->format) == 0;
    if (!raw) {
        fits = fits && view.ndim == to->ndim + 1 && view.shape[0] == (Py_ssize_t)self->count
               && has_row_shape(to, &view.shape[1]);
    }
    if (fits) {
        batch_copy_freely(self, -1, view.buf, true);
    }
    PyBuffer_Release(&view);
    return fits;
}

/* scatter(results) -> bool: store one result a row out of a list or a packed stack; False if it
 * is not exactly that. Rows may have been written then, but nobody looks before complete(). */
static PyObject *
batch_scatter(batch *self, PyObject *results)
{
    if (batch_check(self) != 0) {
        return NULL;
    }
    batch_ran(self);
    int stored = 0;
    if (PyList_CheckExact(results)) {
        stored = batch_scatter_list(self, results);
    } else if (row_column(&self->rows[0], -1)->kind == KIND_ARRAY) {
        stored = batch_scatter_stack(self, results);
    }
    return PyBool_FromLong(stored);
}

static row *
batch_row(batch *self, PyObject *number)
{
    Py_ssize_t i = PyLong_AsSsize_t(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (i < 0 || i >= (Py_ssize_t)self->count) {
        PyErr_SetString(PyExc_IndexError, "no such row");
        return NULL;
    }
    return &self->rows[i];
}

/* put(row, value) -> bool: store one result; False if it is not exactly of the result's type. */
static PyObject *
batch_put(batch *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    row *at = batch_row(self, args[0]);
    if (at == NULL) {
        return NULL;
    }
    batch_ran(self);
    const column *to = row_column(at, -1);
    return PyBool_FromLong(value_put(to, args[1], value_at(to, at->index)));
}

static row *
batch_set_error(batch *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    row *at = batch_row(self, args[0]);
    char *record;
    Py_ssize_t nbytes;
    if (at == NULL || PyBytes_AsStringAndSize(args[1], &record, &nbytes) != 0) {
        return NULL;
    }
    Py_ssize_t room = at->ring->shared.error_nbytes;
    at->error_nbytes = (uint32_t)(nbytes < room ? nbytes : room);
    at->outcome = RING_ERROR;
    memcpy(at->ring->shared.errors + (Py_ssize_t)at->index * room, record, at->error_nbytes);
    return at;
}

/* fail(row, record): the outcome of this row is an error record, cut to the slot's room. */
static PyObject *
batch_fail(batch *self, PyObject *const *args, Py_ssize_t nargs)
{
    batch_ran(self);
    return batch_set_error(self, args, nargs) == NULL ? NULL : Py_NewRef(Py_None);
}

/* Move a live row to the rejected ones: the function is not to see it. */
static void
batch_take_out(batch *self, row *at)
{
    row rejected = *at;
    row *last = &self->rows[self->count - 1];
    memmove(at, at + 1, (size_t)(last - at) * sizeof(*at));
    *last = rejected;
    self->count--;
    self->rejected++;
}

/* reject(row, record): the same before the function runs, which is not to see this row. */
static PyObject *
batch_reject(batch *self, PyObject *const *args, Py_ssize_t nargs)
{
    row *at = batch_set_error(self, args, nargs);
    if (at == NULL) {
        return NULL;
    }
    batch_take_out(self, at);
    Py_RETURN_NONE;
}

/* split(at) -> Batch: move the live rows from *at* on into a batch of their own. What was rejected
 * stays. Neither part is timed: it was tried once already, in more rows. */
static PyObject *
batch_split(batch *self, PyObject *number)
{
    Py_ssize_t at = PyLong_AsSsize_t(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (at <= 0 || at >= (Py_ssize_t)self->count) {
        PyErr_SetString(PyExc_IndexError, "a batch is split between two of its rows");
        return NULL;
    }
    unsigned moved = self->count - (unsigned)at;
    batch *rest = new_self(batch_type);
    if (rest == NULL) {
        return NULL;
    }
    rest->rows = PyMem_Calloc(moved, sizeof(row));
    if (rest->rows == NULL) {
        Py_DECREF(rest);
        return PyErr_NoMemory();
    }
    rest->phases = (phases *)Py_XNewRef((PyObject *)self->phases);
    rest->capacity = rest->count = moved;
    memcpy(rest->rows, &self->rows[at], moved * sizeof(row));
    memmove(&self->rows[at], &self->rows[self->count], self->rejected * sizeof(row));
    memset(&self->rows[at + self->rejected], 0, moved * sizeof(row));
    self->count = (unsigned)at;
    self->weight = 0;
    self->ran_ns = 0;
    return (PyObject *)rest;
}

/* drop_abandoned() -> int: take rows whose calls were given up, or whose producers are gone, out
 * of the live ones; return how many of these are left. */
static PyObject *
batch_drop_abandoned(batch *self, PyObject *Py_UNUSED(ignored))
{
    for (unsigned i = self->count; i-- > 0;) {
        row *at = &self->rows[i];
        const _Atomic uint32_t *state = &at->ring->ring.words.controls[at->index].state;
        uint32_t word = atomic_load_explicit(state, memory_order_relaxed);
        if (at->ring->detached || at->ring->broken || ring_state(word) == RING_ABANDONED) {
            batch_take_out(self, at);
        }
    }
    return PyLong_FromUnsignedLong(self->count);
}

int
add_wake(PyObject **wakes, executor *ring, unsigned long flags, uint32_t sleepers,
         PyObject *slots)
{
    flags |= sleepers & RING_LOOPS_MASK ? WAKE_ASYNC : 0;
    unsigned long threads = (sleepers & RING_THREADS_MASK) / RING_THREAD_STEP;
    if (flags == 0 && threads == 0 && slots == NULL) {
        return 0;
    }
    if (*wakes == NULL && (*wakes = PyList_New(0)) == NULL) {
        return -1;
    }
    PyObject *entry = slots != NULL
                          ? Py_BuildValue("(OkkO)", (PyObject *)ring, flags, threads, slots)
                          : Py_BuildValue("(Okk[])", (PyObject *)ring, flags, threads);
    int status = entry == NULL ? -1 : PyList_Append(*wakes, entry);
    Py_XDECREF(entry);
    return status;
}

/* Count how long the calls of this batch took, and forget when that was. */
static void
batch_time(batch *self)
{
    uint64_t calls = (uint64_t)self->count * self->weight;
    if (calls > 0 && self->gathered_ns != 0 && self->ran_ns != 0) {
        bool later = self->gathered_ns > self->taken_ns; /* take() is told what time it is */
        phases_count(self->phases, STAGING, later ? self->gathered_ns - self->taken_ns : 0, calls);
        phases_count(self->phases, RUNNING, self->ran_ns - self->gathered_ns, calls);
        phases_count(self->phases, DELIVERING, now_ns() - self->ran_ns, calls);
    }
    self->taken_ns = self->gathered_ns = self->ran_ns = 0;
}

/* Publish the outcomes of rows of one ring, from *first* on; return the row behind them. */
static unsigned
batch_publish(batch *self, unsigned first, unsigned count)
{
    executor *ring = self->rows[first].ring;
    uint32_t flags = 0;
    unsigned i = first;
    for (; i < count && self->rows[i].ring == ring; i++) {
        row *at = &self->rows[i];
        ring->running--;
        int sleeping =
            ring_complete(&ring->ring, at->index, at->generation, at->outcome, at->error_nbytes);
        at->waiter = 0;
        if (sleeping == RING_VIOLATION) {
            ring->broken = true; /* drain ignores it from now on */
            ring->ring.waiting_head = ring->ring.waiting_tail;
            flags |= WAKE_VIOLATION;
            continue;
        }
        if (sleeping & RING_DROPPED && ring->peak > 1) {
            ring->peak--; /* its producer may have called again meanwhile, which made two */
        }
        flags |= sleeping & RING_ASYNC ? WAKE_ASYNC : 0;
        at->waiter = sleeping & RING_WAITER;
    }
    self->rows[first].flags = flags;
    self->rows[first].sleepers = ring_notify(&ring->ring);
    return i;
}

/* The slots of published rows on which somebody sleeps: woken by us, or as a list for Python. NULL
 * with an exception where there is no memory for that: the sleeper's slice is its safety net. */
static PyObject *
batch_wake_slots(const batch *self, unsigned first, unsigned end)
{
    executor *ring = self->rows[first].ring;
    PyObject *slots = NULL;
    for (unsigned i = first; i < end; i++) {
        uint32_t index = self->rows[i].index;
        if (self->rows[i].waiter == 0) {
            continue;
        }
        if (ring->wakes) {
            futex_wake(&ring->ring.words.controls[index].state, INT_MAX);
            continue;
        }
        PyObject *slot = PyLong_FromUnsignedLong(index);
        if (slots == NULL) {
            slots = PyList_New(0);
        }
        int status = slot == NULL || slots == NULL ? -1 : PyList_Append(slots, slot);
        Py_XDECREF(slot);
        if (status != 0) {
            Py_XDECREF(slots);
            return NULL;
        }
    }
    return slots != NULL ? slots : Py_NewRef(Py_None);
}

/* complete() -> None, or a list of (ring, flags, threads, slots) to wake: the sleepers on those
 * slots, *threads* sleepers on completions, and with WAKE_ASYNC the producer's event loops.
 * WAKE_VIOLATION: that producer must be disconnected. Sleepers on futexes are awake by then. Every
 * row's outcome is published, whatever happens to any one of them (I7), and before anybody is
 * woken, which takes longer; the batch is empty afterwards. */
static PyObject *
batch_complete(batch *self, PyObject *Py_UNUSED(ignored))
{
    unsigned count = self->count + self->rejected, end;
    for (unsigned i = 0; i < count; i = end) {
        end = batch_publish(self, i, count);
    }
    batch_time(self);
    PyObject *wakes = NULL;
    bool short_of_memory = false;
    for (unsigned i = 0; i < count; i = end) {
        executor *ring = self->rows[i].ring;
        for (end = i; end < count && self->rows[end].ring == ring; end++) {
        }
        uint32_t flags = self->rows[i].flags, sleepers = self->rows[i].sleepers;
        PyObject *slots = batch_wake_slots(self, i, end);
        if (ring->wakes && sleepers & RING_THREADS_MASK) {
            futex_wake(&ring->ring.words.header->completions, INT_MAX);
            sleepers &= ~RING_THREADS_MASK;
        }
        bool listed = slots != NULL
                      && add_wake(&wakes, ring, flags, sleepers, slots != Py_None ? slots : NULL)
                             == 0;
        short_of_memory = short_of_memory || !listed;
        Py_XDECREF(slots);
    }
    batch_drop_rows(self);
    if (short_of_memory) {
        Py_XDECREF(wakes);
        return PyErr_NoMemory();
    }
    return wakes != NULL ? wakes : Py_NewRef(Py_None);
}

static PyMethodDef batch_methods[] = {
    {"gather", (PyCFunction)batch_gather, METH_O, NULL},
    {"runs", (PyCFunction)batch_runs, METH_NOARGS, NULL},
    {"scatter", (PyCFunction)batch_scatter, METH_O, NULL},
    {"put", (PyCFunction)(void (*)(void))batch_put, METH_FASTCALL, NULL},
    {"fail", (PyCFunction)(void (*)(void))batch_fail, METH_FASTCALL, NULL},
    {"reject", (PyCFunction)(void (*)(void))batch_reject, METH_FASTCALL, NULL},
    {"split", (PyCFunction)batch_split, METH_O, NULL},
    {"drop_abandoned", (PyCFunction)batch_drop_abandoned, METH_NOARGS, NULL},
    {"complete", (PyCFunction)batch_complete, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef batch_members[] = {
    {"count", T_UINT, offsetof(batch, count), READONLY, NULL},
    {"capacity", T_UINT, offsetof(batch, capacity), READONLY, NULL},
    {"rejected", T_UINT, offsetof(batch, rejected), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_new, batch_new},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {Py_tp_members, batch_members},
    {0, NULL},
};

PyType_Spec batch_spec = {
    .name = "shmbatch.protocol._core.Batch",
    .basicsize = sizeof(batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = batch_slots,
};
