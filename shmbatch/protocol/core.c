/* core.c: Python's view of ring.h, one call for each operation of the protocol.
 *
 *   Bell          the word that wakes the executor
 *   ProducerRing  the producer's end: submit, poll, arm, withdraw
 *   ExecutorRing  the executor's end of one connection
 *   Inbox         the executor's ends of one function: drain, take in turns
 *   Batch         the rows of one batch: gather, scatter, complete
 *
 * Copies of RELEASE_GIL_NBYTES and more, spinning and parking run without the GIL; everything
 * else runs under it, and that makes the private state of each object single-threaded. Nothing
 * here allocates on the hot path but the Python objects that it returns. Built against the
 * limited API of CPython 3.11; a free-threaded interpreter turns the GIL back on at import,
 * because the module does not declare Py_mod_gil.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#define RELEASE_GIL_NBYTES (64 * 1024)
#define MAX_COLUMNS 64
#define MAX_CAPACITY (1u << 17)
#define TICKET_SLOT_BITS 17
#define TICKET_SLOT_MASK ((1u << TICKET_SLOT_BITS) - 1)

/* What ProducerRing.submit returns instead of a ticket. */
enum { SUBMIT_FULL = -1, SUBMIT_MISFIT = -2, SUBMIT_CLOSED = -3, SUBMIT_FORKED = -4 };

/* Flag of ProducerRing.submit, beside RING_ASYNC: the result may be copied out before its caller
 * asks for it, to make room. */
enum { SUBMIT_SPAWNED = 0x100 };

/* Flags of one entry of what Batch.complete returns. */
enum { WAKE_ASYNC = 1, WAKE_VIOLATION = 2 };

/* ---- time, spinning, futexes ---------------------------------------------------------- */

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void
pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleep while *word == expected, at most timeout_ns. Spurious returns are fine: callers look
 * again. Return -1 with an exception only where a signal handler raised. */
static int
futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    if (timeout_ns <= 0) {
        return 0;
    }
    struct timespec timeout = {
        .tv_sec = timeout_ns / 1000000000,
        .tv_nsec = timeout_ns % 1000000000,
    };
    long status;
    int error;
    Py_BEGIN_ALLOW_THREADS
    status = syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
    error = errno;
    Py_END_ALLOW_THREADS
    if (status == -1 && error == EINTR) {
        return PyErr_CheckSignals();
    }
    return 0;
}

static void
futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* ---- noticing fork --------------------------------------------------------------------- */

/* A word that the kernel zeroes in a forked child. A ring remembers the value it was created
 * under, so a child cannot move the parent's tail, whoever called fork and however. */
static uint64_t *fork_word;

static uint64_t
process_token(void)
{
    if (*fork_word == 0) {
        *fork_word = (uint64_t)getpid();
    }
    return *fork_word;
}

static int
map_fork_word(void)
{
    if (fork_word != NULL) {
        return 0;
    }
    size_t nbytes = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || madvise(page, nbytes, MADV_WIPEONFORK) != 0) {
        PyErr_SetString(PyExc_ImportError, "shmbatch needs Linux 4.14 or newer (MADV_WIPEONFORK)");
        return -1;
    }
    fork_word = page;
    return 0;
}

/* ---- columns --------------------------------------------------------------------------- */

enum { KIND_INT = 0, KIND_FLOAT = 1, KIND_BOOL = 2, KIND_ARRAY = 3 };

typedef struct {
    int kind;
    Py_ssize_t nbytes; /* of one value */
    char *base;        /* value of slot i stands at base + i * nbytes */
    /* KIND_ARRAY only: what a value must look like to be copied without asking Python. */
    PyObject *carrier;
    char format[8];
    int ndim;
    Py_ssize_t shape[PyBUF_MAX_NDIM];
    PyObject *allocate; /* result column of a producer: makes a writable array */
} column;

static void
column_clear(column *self)
{
    Py_CLEAR(self->carrier);
    Py_CLEAR(self->allocate);
}

/* Read (kind, offset, nbytes, carrier, format, shape, allocate) and bind it to the segment. */
static int
column_init(column *self, PyObject *description, const Py_buffer *segment, uint32_t capacity)
{
    Py_ssize_t offset;
    PyObject *carrier, *shape, *allocate;
    const char *format;
    if (!PyArg_ParseTuple(description, "innOsO!O", &self->kind, &offset, &self->nbytes, &carrier,
                          &format, &PyTuple_Type, &shape, &allocate)) {
        return -1;
    }
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (self->kind < KIND_INT || self->kind > KIND_ARRAY || offset < 0 || self->nbytes < 0
        || (self->kind != KIND_ARRAY && self->nbytes != 8) || offset % 64 != 0
        || (self->nbytes > 0 && (segment->len - offset) / self->nbytes < (Py_ssize_t)capacity)
        || offset > segment->len || ndim > PyBUF_MAX_NDIM
        || strlen(format) >= sizeof(self->format)) {
        PyErr_SetString(PyExc_ValueError, "column does not fit its segment");
        return -1;
    }
    strcpy(self->format, format);
    self->ndim = (int)ndim;
    for (Py_ssize_t axis = 0; axis < ndim; axis++) {
        self->shape[axis] = PyLong_AsSsize_t(PyTuple_GetItem(shape, axis));
        if (self->shape[axis] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    self->base = (char *)segment->buf + offset;
    self->carrier = Py_NewRef(carrier);
    self->allocate = Py_NewRef(allocate);
    return 0;
}

/* Read 8 bytes of a scalar column, whoever may be writing them. */
static PyObject *
scalar_load(int kind, const char *at)
{
    int64_t bits;
    memcpy(&bits, at, sizeof(bits));
    if (kind == KIND_INT) {
        return PyLong_FromLongLong(bits);
    }
    if (kind == KIND_BOOL) {
        return PyBool_FromLong(bits != 0);
    }
    double number;
    memcpy(&number, &bits, sizeof(number));
    return PyFloat_FromDouble(number);
}

/* Encode *value* if it is exactly of its column's type. 1: done; 0: leave it to Python. */
static int
scalar_encode(int kind, PyObject *value, char *bits)
{
    if (kind == KIND_INT) {
        if (!PyLong_CheckExact(value)) {
            return 0;
        }
        int overflow;
        long long integer = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            return 0;
        }
        memcpy(bits, &integer, sizeof(integer));
        return 1;
    }
    if (kind == KIND_FLOAT) {
        if (!PyFloat_CheckExact(value)) {
            return 0;
        }
        double number = PyFloat_AsDouble(value);
        memcpy(bits, &number, sizeof(number));
        return 1;
    }
    if (value != Py_True && value != Py_False) {
        return 0;
    }
    int64_t truth = value == Py_True;
    memcpy(bits, &truth, sizeof(truth));
    return 1;
}

/* Get a view of *value* if it is exactly what the column holds. 1: view is held; 0: leave it to
 * Python (no exception is set). */
static int
array_view(const column *self, PyObject *value, Py_buffer *view)
{
    if ((PyObject *)Py_TYPE(value) != self->carrier) {
        return 0;
    }
    if (PyObject_GetBuffer(value, view, PyBUF_ND | PyBUF_FORMAT) != 0) {
        PyErr_Clear(); /* not contiguous, or no buffer of that dtype */
        return 0;
    }
    if (view->ndim == self->ndim && view->len == self->nbytes
        && strcmp(view->format, self->format) == 0
        && (self->ndim == 0
            || memcmp(view->shape, self->shape, (size_t)self->ndim * sizeof(Py_ssize_t)) == 0)) {
        return 1;
    }
    PyBuffer_Release(view);
    return 0;
}

/* ---- the segment as either end sees it -------------------------------------------------- */

typedef struct {
    Py_buffer segment;
    ring_words words;
    Py_ssize_t column_count;
    column *columns; /* inputs, then the result at [column_count] */
    char *errors;    /* error record of slot i at errors + i * error_nbytes */
    Py_ssize_t error_nbytes;
} ends;

static void
ends_clear(ends *self)
{
    if (self->columns != NULL) {
        for (Py_ssize_t i = 0; i <= self->column_count; i++) {
            column_clear(&self->columns[i]);
        }
        PyMem_Free(self->columns);
        self->columns = NULL;
    }
    if (self->segment.obj != NULL) {
        PyBuffer_Release(&self->segment);
    }
}

static int
check_words(const Py_buffer *view, Py_ssize_t offset, Py_ssize_t nbytes)
{
    if (offset < 0 || offset % 64 != 0 || nbytes < 0 || offset > view->len
        || view->len - offset < nbytes) {
        PyErr_SetString(PyExc_ValueError, "layout does not fit its segment");
        return -1;
    }
    return 0;
}

static int
get_shared(PyObject *buffer, Py_buffer *view)
{
    if (PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE) != 0) {
        return -1;
    }
    if ((uintptr_t)view->buf % 64 != 0) {
        PyErr_SetString(PyExc_ValueError, "shared memory must be aligned to 64 bytes");
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

/* (segment, capacity, indices_offset, controls_offset, errors_offset, error_nbytes, columns):
 * the offsets are the caller's own (layout.py), never read from the segment. */
static int
ends_init(ends *self, PyObject *segment, unsigned capacity, Py_ssize_t indices_offset,
          Py_ssize_t controls_offset, Py_ssize_t errors_offset, Py_ssize_t error_nbytes,
          PyObject *columns)
{
    if (get_shared(segment, &self->segment) != 0) {
        return -1;
    }
    Py_ssize_t column_count = PyTuple_Size(columns) - 1;
    if (capacity < 1 || capacity > MAX_CAPACITY || column_count < 1 || column_count > MAX_COLUMNS
        || error_nbytes < 0 || error_nbytes > INT32_MAX / (Py_ssize_t)MAX_CAPACITY) {
        PyErr_SetString(PyExc_ValueError, "capacity, columns or error_nbytes out of range");
        return -1;
    }
    uint32_t ring_size = 1;
    while (ring_size < capacity) {
        ring_size *= 2;
    }
    if (check_words(&self->segment, 0, sizeof(ring_header)) != 0
        || check_words(&self->segment, indices_offset, (Py_ssize_t)ring_size * 4) != 0
        || check_words(&self->segment, controls_offset,
                       (Py_ssize_t)(capacity * sizeof(ring_control))) != 0
        || check_words(&self->segment, errors_offset, (Py_ssize_t)capacity * error_nbytes) != 0) {
        return -1;
    }
    char *start = self->segment.buf;
    self->words = (ring_words){
        .header = (ring_header *)start,
        .indices = (_Atomic uint32_t *)(start + indices_offset),
        .controls = (ring_control *)(start + controls_offset),
        .capacity = capacity,
        .ring_mask = ring_size - 1,
    };
    self->errors = start + errors_offset;
    self->error_nbytes = error_nbytes;
    self->columns = PyMem_Calloc((size_t)column_count + 1, sizeof(column));
    if (self->columns == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->column_count = column_count;
    for (Py_ssize_t i = 0; i <= column_count; i++) {
        if (column_init(&self->columns[i], PyTuple_GetItem(columns, i), &self->segment, capacity)
            != 0) {
            return -1;
        }
    }
    return 0;
}

static char *
value_at(const column *values, uint32_t index)
{
    return values->base + (Py_ssize_t)index * values->nbytes;
}

/* True, with ValueError, if the segment has no slot *index*. */
static bool
no_slot(const ends *self, unsigned long index)
{
    if (index < self->words.capacity) {
        return false;
    }
    PyErr_Format(PyExc_ValueError, "there is no slot %lu", index);
    return true;
}

static void
free_self(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static void *
new_self(PyTypeObject *type)
{
    allocfunc allocate = PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

static int
arguments(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
        return -1;
    }
    return 0;
}

/* ---- Bell ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_buffer memory;
    ring_bell *shared;
    unsigned long long spins_won; /* spins that ended because the bell rang */
} bell;

static PyObject *
bell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *buffer;
    if (!PyArg_ParseTuple(args, "O:Bell", &buffer)) {
        return NULL;
    }
    bell *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    if (get_shared(buffer, &self->memory) != 0 || check_words(&self->memory, 0, sizeof(ring_bell)) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->shared = self->memory.buf;
    return (PyObject *)self;
}

static void
bell_dealloc(bell *self)
{
    if (self->memory.obj != NULL) {
        PyBuffer_Release(&self->memory);
    }
    free_self((PyObject *)self);
}

static PyObject *
bell_ring(bell *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(ring_bell_ring(self->shared, true));
}

static PyObject *
bell_look(bell *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(ring_bell_look(self->shared));
}

/* spin(seen, spin_ns, until_ns) -> word: as soon as the bell no longer reads *seen*; *seen* when
 * spin_ns have passed, or the clock says until_ns. */
static PyObject *
bell_spin(bell *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    unsigned long seen = PyLong_AsUnsignedLong(args[0]);
    uint64_t spin_ns = PyLong_AsUnsignedLongLong(args[1]);
    uint64_t until_ns = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    uint32_t word = ring_bell_look(self->shared);
    if (word == seen) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t at_ns = now_ns();
        until_ns = at_ns + spin_ns < until_ns ? at_ns + spin_ns : until_ns;
        while (word == seen && at_ns < until_ns) {
            for (int i = 0; i < 32 && word == seen; i++) {
                pause_cpu();
                word = ring_bell_look(self->shared);
            }
            at_ns = now_ns();
        }
        Py_END_ALLOW_THREADS
        self->spins_won += word != seen;
    }
    return PyLong_FromUnsignedLong(word);
}

static PyObject *
bell_arm(bell *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    unsigned long seen = PyLong_AsUnsignedLong(args[0]);
    unsigned long bit = PyLong_AsUnsignedLong(args[1]);
    unsigned long calls = PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyBool_FromLong(
        ring_bell_arm(self->shared, (uint32_t)seen, (uint32_t)bit, (uint32_t)calls));
}

static PyObject *
bell_disarm(bell *self, PyObject *Py_UNUSED(ignored))
{
    ring_bell_disarm(self->shared);
    Py_RETURN_NONE;
}

/* park(armed, timeout_ns): sleep on the futex while the bell reads *armed*. */
static PyObject *
bell_park(bell *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    unsigned long armed = PyLong_AsUnsignedLong(args[0]);
    long long timeout_ns = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred() || futex_wait(&self->shared->word, (uint32_t)armed, timeout_ns) != 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
bell_wake(bell *self, PyObject *Py_UNUSED(ignored))
{
    futex_wake(&self->shared->word, 1);
    Py_RETURN_NONE;
}

static PyMethodDef bell_methods[] = {
    {"ring", (PyCFunction)bell_ring, METH_NOARGS, NULL},
    {"look", (PyCFunction)bell_look, METH_NOARGS, NULL},
    {"spin", (PyCFunction)(void (*)(void))bell_spin, METH_FASTCALL, NULL},
    {"arm", (PyCFunction)(void (*)(void))bell_arm, METH_FASTCALL, NULL},
    {"disarm", (PyCFunction)bell_disarm, METH_NOARGS, NULL},
    {"park", (PyCFunction)(void (*)(void))bell_park, METH_FASTCALL, NULL},
    {"wake", (PyCFunction)bell_wake, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef bell_members[] = {
    {"spins_won", T_ULONGLONG, offsetof(bell, spins_won), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot bell_slots[] = {
    {Py_tp_new, bell_new},
    {Py_tp_dealloc, bell_dealloc},
    {Py_tp_methods, bell_methods},
    {Py_tp_members, bell_members},
    {0, NULL},
};

static PyType_Spec bell_spec = {
    .name = "shmbatch.protocol._core.Bell",
    .basicsize = sizeof(bell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = bell_slots,
};

/* ---- ProducerRing ----------------------------------------------------------------------- */

/* What the producer itself knows of a slot. */
enum { OWN_FREE = 0, OWN_WRITING, OWN_PUBLISHED, OWN_READING, OWN_WITHDRAWN };

typedef struct {
    PyObject_HEAD
    ends shared;
    ring_producer ring;
    Py_buffer bell_memory;
    ring_bell *bell;
    PyObject *wake;   /* called with the bell's bits when the executor sleeps */
    PyObject *finish; /* makes of a result what the caller gets; None: it is that */
    uint64_t token; /* the process that may use this end */
    uint32_t *generations;
    uint8_t *own;
    uint8_t *spawned; /* whether the result may be copied out before its caller asks */
    uint32_t *free;   /* stack of free slots */
    uint32_t free_count;
    uint32_t *withdrawn; /* slots the executor has yet to hand back */
    uint32_t withdrawn_count;
    unsigned threads_joined; /* sleepers on completions, of this process */
    unsigned loops_joined;
    unsigned long long spins_won; /* polls that spun and got their result */
} producer;

static PyObject *pending_object; /* poll: no outcome yet */
static PyObject *failed_object;  /* poll: the outcome is an error record */

static void
producer_dealloc(producer *self)
{
    ends_clear(&self->shared);
    if (self->bell_memory.obj != NULL) {
        PyBuffer_Release(&self->bell_memory);
    }
    Py_XDECREF(self->wake);
    Py_XDECREF(self->finish);
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
    self->free = PyMem_Calloc(capacity, sizeof(uint32_t));
    self->withdrawn = PyMem_Calloc(capacity, sizeof(uint32_t));
    if (!self->generations || !self->own || !self->spawned || !self->free || !self->withdrawn) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    /* Popped from the end, so that a burst gets neighbouring slots in rising order. */
    for (uint32_t i = 0; i < capacity; i++) {
        self->free[i] = capacity - 1 - i;
    }
    self->free_count = capacity;
    return (PyObject *)self;
}

static inline bool
producer_forked(const producer *self)
{
    return *fork_word != self->token;
}

static void
producer_put_back(producer *self, uint32_t index)
{
    self->own[index] = OWN_FREE;
    self->free[self->free_count++] = index;
    if (self->threads_joined > 0) { /* one of our own threads may wait for just this */
        _Atomic uint32_t *completions = &self->ring.words.header->completions;
        atomic_fetch_add_explicit(completions, RING_COMPLETION_STEP, memory_order_acq_rel);
        futex_wake(completions, 1);
    }
}

/* Collect withdrawn slots that the executor has handed back. */
static void
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

/* Give up a published call whose outcome nobody will read. Return its state. */
static uint32_t
producer_drop(producer *self, uint32_t index)
{
    uint32_t state = ring_withdraw(&self->ring, index);
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
    PyObject *result = PyObject_CallFunction(self->wake, "I", sleeping);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* submit(values, flags) -> ticket, or one of SUBMIT_FULL, MISFIT, CLOSED, FORKED.
 *
 * *values* is a tuple with one value a column, exactly of the column's type; anything else is a
 * MISFIT, which Python coerces or explains. One copy, no system call unless the executor sleeps. */
static PyObject *
producer_submit(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    PyObject *values = args[0];
    unsigned long flags = PyLong_AsUnsignedLong(args[1]);
    if ((flags == (unsigned long)-1 && PyErr_Occurred()) || !PyTuple_Check(values)) {
        PyErr_SetString(PyExc_TypeError, "submit takes a tuple and flags");
        return NULL;
    }
    if (producer_forked(self)) {
        return PyLong_FromLong(SUBMIT_FORKED);
    }
    if (atomic_load_explicit(&self->ring.words.header->status, memory_order_acquire)
        != RING_OPEN) {
        return PyLong_FromLong(SUBMIT_CLOSED);
    }
    Py_ssize_t count = self->shared.column_count;
    if (PyTuple_Size(values) != count) {
        return PyLong_FromLong(SUBMIT_MISFIT);
    }

    char scalars[MAX_COLUMNS][8];
    Py_buffer views[MAX_COLUMNS];
    Py_ssize_t held = 0; /* columns before this one have been looked at */
    Py_ssize_t array_nbytes = 0;
    long refusal = 0;
    for (; held < count; held++) {
        const column *values_of = &self->shared.columns[held];
        PyObject *value = PyTuple_GetItem(values, held);
        int fits = values_of->kind == KIND_ARRAY
                       ? array_view(values_of, value, &views[held])
                       : scalar_encode(values_of->kind, value, scalars[held]);
        if (!fits) {
            refusal = SUBMIT_MISFIT;
            break;
        }
        array_nbytes += values_of->kind == KIND_ARRAY ? values_of->nbytes : 0;
    }
    if (refusal == 0 && self->free_count == 0) {
        producer_reclaim(self);
        if (self->free_count == 0) {
            refusal = SUBMIT_FULL;
        }
    }

    PyObject *ticket = NULL;
    if (refusal == 0) {
        uint32_t index = self->free[--self->free_count];
        self->own[index] = OWN_WRITING;
        PyThreadState *saved = array_nbytes >= RELEASE_GIL_NBYTES ? PyEval_SaveThread() : NULL;
        for (Py_ssize_t i = 0; i < count; i++) {
            const column *values_of = &self->shared.columns[i];
            char *at = value_at(values_of, index);
            if (values_of->kind == KIND_ARRAY) {
                memcpy(at, views[i].buf, (size_t)values_of->nbytes);
            } else {
                memcpy(at, scalars[i], 8);
            }
        }
        if (saved != NULL) {
            PyEval_RestoreThread(saved);
        }
        uint32_t generation = self->generations[index] =
            (self->generations[index] + 1) & RING_GENERATION_MASK;
        ticket = PyLong_FromUnsignedLongLong((uint64_t)generation << TICKET_SLOT_BITS | index);
        if (ticket == NULL) {
            producer_put_back(self, index);
        } else {
            self->own[index] = OWN_PUBLISHED;
            self->spawned[index] = (flags & SUBMIT_SPAWNED) != 0;
            ring_publish(&self->ring, index, generation, (uint32_t)flags & RING_ASYNC, now_ns());
            uint32_t sleeping = ring_bell_ring(self->bell, false);
            if (sleeping != 0 && producer_wake(self, sleeping) != 0) {
                /* While Python ran, another thread may have taken the outcome to make room. */
                if (self->own[index] == OWN_PUBLISHED && self->generations[index] == generation) {
                    producer_drop(self, index);
                }
                Py_CLEAR(ticket);
            }
        }
    }
    for (Py_ssize_t i = 0; i < held; i++) {
        if (self->shared.columns[i].kind == KIND_ARRAY) {
            PyBuffer_Release(&views[i]);
        }
    }
    return refusal != 0 ? PyLong_FromLong(refusal) : ticket;
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
    uint32_t index = number & TICKET_SLOT_MASK;
    if (index >= self->shared.words.capacity
        || self->generations[index] != number >> TICKET_SLOT_BITS
        || (self->own[index] != OWN_PUBLISHED && self->own[index] != OWN_READING)) {
        PyErr_SetString(PyExc_ValueError, "the ticket's call is over");
        return -1;
    }
    return index;
}

static PyObject *
producer_decode(producer *self, uint32_t index)
{
    const column *result = &self->shared.columns[self->shared.column_count];
    const char *at = value_at(result, index);
    if (result->kind != KIND_ARRAY) {
        return scalar_load(result->kind, at);
    }
    PyObject *array = PyObject_CallNoArgs(result->allocate);
    if (array == NULL || result->nbytes == 0) {
        return array;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_WRITABLE) != 0) {
        Py_DECREF(array);
        return NULL;
    }
    if (view.len != result->nbytes) {
        PyErr_SetString(PyExc_ValueError, "allocated array has the wrong size");
        Py_CLEAR(array);
    } else if (view.len >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        memcpy(view.buf, at, (size_t)view.len);
        Py_END_ALLOW_THREADS
    } else {
        memcpy(view.buf, at, (size_t)view.len);
    }
    PyBuffer_Release(&view);
    return array;
}

/* poll(ticket, spin_ns) -> result, PENDING, or FAILED.
 *
 * A result is copied out and its slot is free again; FAILED keeps the slot until error(). Spins
 * without the GIL for at most spin_ns. A call that another thread is reading is PENDING. */
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
    uint32_t index = (uint32_t)slot;
    if (self->own[index] == OWN_READING) {
        return Py_NewRef(pending_object);
    }
    bool done = ring_state(ring_look(&self->ring, index)) == RING_DONE;
    bool spun = !done && spin_ns > 0;
    if (spun) {
        uint32_t generation = self->generations[index];
        Py_BEGIN_ALLOW_THREADS
        uint64_t until_ns = now_ns() + (uint64_t)spin_ns;
        do {
            for (int i = 0; i < 32 && !done; i++) {
                pause_cpu();
                done = ring_state(ring_look(&self->ring, index)) == RING_DONE;
            }
        } while (!done && now_ns() < until_ns);
        Py_END_ALLOW_THREADS
        if (self->generations[index] != generation || self->own[index] != OWN_PUBLISHED) {
            return Py_NewRef(pending_object); /* another thread got there first */
        }
    }
    if (!done) {
        return Py_NewRef(pending_object);
    }
    self->spins_won += spun;
    const ring_control *control = &self->ring.words.controls[index];
    if (atomic_load_explicit(&control->outcome, memory_order_relaxed) != RING_VALUE) {
        return Py_NewRef(failed_object);
    }
    self->own[index] = OWN_READING;
    PyObject *result = producer_decode(self, index);
    ring_release(&self->ring, index);
    producer_put_back(self, index);
    if (result != NULL && self->finish != Py_None) {
        PyObject *finished = PyObject_CallFunctionObjArgs(self->finish, result, NULL);
        Py_DECREF(result);
        return finished;
    }
    return result;
}

/* error(ticket) -> bytes: the error record of a call that poll said FAILED; frees its slot. */
static PyObject *
producer_error(producer *self, PyObject *ticket)
{
    int64_t slot = producer_slot(self, ticket);
    if (slot < 0) {
        return NULL;
    }
    uint32_t index = (uint32_t)slot;
    const ring_control *control = &self->ring.words.controls[index];
    if (self->own[index] == OWN_READING
        || ring_state(ring_look(&self->ring, index)) != RING_DONE
        || atomic_load_explicit(&control->outcome, memory_order_relaxed) != RING_ERROR) {
        PyErr_SetString(PyExc_ValueError, "the call has no error"); /* or none yet */
        return NULL;
    }
    uint32_t nbytes = atomic_load_explicit(&control->error_nbytes, memory_order_relaxed);
    if (nbytes > self->shared.error_nbytes) {
        nbytes = (uint32_t)self->shared.error_nbytes;
    }
    PyObject *record = PyBytes_FromStringAndSize(
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

/* withdraw(ticket) -> RING_CANCELLED (never runs), RING_ABANDONED (its result will be dropped)
 * or RING_DONE (its result has been dropped). The ticket is over. */
static PyObject *
producer_withdraw(producer *self, PyObject *ticket)
{
    int64_t slot = producer_slot(self, ticket);
    if (slot < 0) {
        return NULL;
    }
    if (self->own[slot] == OWN_READING) {
        PyErr_SetString(PyExc_ValueError, "another thread is taking the ticket's outcome");
        return NULL;
    }
    uint32_t state = producer_drop(self, (uint32_t)slot);
    if (state == RING_CANCELLED) {
        uint32_t sleeping = ring_bell_ring(self->bell, true); /* the slot is to come back soon */
        if (sleeping != 0 && producer_wake(self, sleeping) != 0) {
            return NULL;
        }
    }
    return PyLong_FromUnsignedLong(state);
}

/* join_completions(step) -> word to park on, or -1 where 255 of that kind have joined;
 * leave_completions(step) undoes it. *step* is THREAD or LOOP. */
static uint32_t
producer_step(PyObject *step)
{
    return PyLong_AsUnsignedLong(step) == RING_LOOP_STEP ? RING_LOOP_STEP : RING_THREAD_STEP;
}

static PyObject *
producer_join(producer *self, PyObject *kind)
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
producer_leave(producer *self, PyObject *kind)
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

/* park_slot(ticket, armed, timeout_ns), park_completions(joined, timeout_ns): futex sleeps. */
static PyObject *
producer_park_slot(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    uint64_t ticket = PyLong_AsUnsignedLongLong(args[0]);
    unsigned long armed = PyLong_AsUnsignedLong(args[1]);
    long long timeout_ns = PyLong_AsLongLong(args[2]);
    uint32_t index = ticket & TICKET_SLOT_MASK;
    if (PyErr_Occurred() || no_slot(&self->shared, index)
        || futex_wait(&self->ring.words.controls[index].state, (uint32_t)armed, timeout_ns) != 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
producer_park_completions(producer *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    unsigned long joined = PyLong_AsUnsignedLong(args[0]);
    long long timeout_ns = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()
        || futex_wait(&self->ring.words.header->completions, (uint32_t)joined, timeout_ns) != 0) {
        return NULL;
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

static PyObject *
producer_active(producer *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(
        atomic_load_explicit(&self->ring.words.header->active, memory_order_relaxed));
}

static PyMethodDef producer_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))producer_submit, METH_FASTCALL, NULL},
    {"poll", (PyCFunction)(void (*)(void))producer_poll, METH_FASTCALL, NULL},
    {"error", (PyCFunction)producer_error, METH_O, NULL},
    {"state", (PyCFunction)producer_state, METH_O, NULL},
    {"finished", (PyCFunction)producer_finished, METH_O, NULL},
    {"arm", (PyCFunction)(void (*)(void))producer_arm, METH_FASTCALL, NULL},
    {"withdraw", (PyCFunction)producer_withdraw, METH_O, NULL},
    {"join_completions", (PyCFunction)producer_join, METH_O, NULL},
    {"leave_completions", (PyCFunction)producer_leave, METH_O, NULL},
    {"park_slot", (PyCFunction)(void (*)(void))producer_park_slot, METH_FASTCALL, NULL},
    {"park_completions", (PyCFunction)(void (*)(void))producer_park_completions, METH_FASTCALL,
     NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_properties[] = {
    {"free_slots", (getter)producer_free_slots, NULL, NULL, NULL},
    {"forked", (getter)producer_is_forked, NULL, NULL, NULL},
    {"status", (getter)producer_status, NULL, NULL, NULL},
    {"active", (getter)producer_active, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef producer_members[] = {
    {"spins_won", T_ULONGLONG, offsetof(producer, spins_won), READONLY, NULL},
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

static PyType_Spec producer_spec = {
    .name = "shmbatch.protocol._core.ProducerRing",
    .basicsize = sizeof(producer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = producer_slots,
};

/* ---- ExecutorRing ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    ends shared;
    ring_executor ring;
    uint64_t active_ns; /* when the last new call was found */
    bool broken;        /* the producer violated the protocol */
    bool freed;         /* slots of withdrawn calls became FREE, and nobody has been told */
} executor;

static PyTypeObject *executor_type; /* set at import; the type is immutable and immortal */

static void
executor_dealloc(executor *self)
{
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

static PyObject *
executor_wake_slot(executor *self, PyObject *slot)
{
    unsigned long index = PyLong_AsUnsignedLong(slot);
    if (PyErr_Occurred() || no_slot(&self->shared, index)) {
        return NULL;
    }
    futex_wake(&self->ring.words.controls[index].state, INT_MAX);
    Py_RETURN_NONE;
}

static PyObject *
executor_wake_completions(executor *self, PyObject *Py_UNUSED(ignored))
{
    futex_wake(&self->ring.words.header->completions, INT_MAX);
    Py_RETURN_NONE;
}

static PyMethodDef executor_methods[] = {
    {"set_status", (PyCFunction)executor_set_status, METH_O, NULL},
    {"wake_slot", (PyCFunction)executor_wake_slot, METH_O, NULL},
    {"wake_completions", (PyCFunction)executor_wake_completions, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot executor_slots[] = {
    {Py_tp_new, executor_new},
    {Py_tp_dealloc, executor_dealloc},
    {Py_tp_methods, executor_methods},
    {0, NULL},
};

static PyType_Spec executor_spec = {
    .name = "shmbatch.protocol._core.ExecutorRing",
    .basicsize = sizeof(executor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = executor_slots,
};

/* ---- Batch ------------------------------------------------------------------------------ */

typedef struct {
    executor *ring; /* strong: a batch keeps the memory of its rows mapped */
    uint32_t index;
    uint32_t generation;
    uint32_t outcome;
    uint32_t error_nbytes;
} row;

typedef struct {
    PyObject_HEAD
    row *rows; /* rows of one ring stand together */
    unsigned capacity;
    unsigned count;
    unsigned long long oldest_ns; /* earliest publication of the rows */
} batch;

static PyTypeObject *batch_type;

static void
batch_drop_rows(batch *self)
{
    unsigned count = self->count;
    self->count = 0;
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
    free_self((PyObject *)self);
}

static PyObject *
batch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    unsigned capacity;
    if (!PyArg_ParseTuple(args, "I:Batch", &capacity)) {
        return NULL;
    }
    batch *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    self->capacity = capacity;
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

/* Copy rows between the slots and *packed*; neighbouring slots are one copy. */
static void
batch_copy(const batch *self, Py_ssize_t number, char *packed, bool to_slots)
{
    Py_ssize_t nbytes = row_column(&self->rows[0], number)->nbytes;
    for (unsigned i = 0; i < self->count;) {
        const row *first = &self->rows[i];
        unsigned run = 1;
        while (i + run < self->count && self->rows[i + run].ring == first->ring
               && self->rows[i + run].index == first->index + run) {
            run++;
        }
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
batch_gather_scalars(const batch *self, Py_ssize_t number)
{
    PyObject *values = PyList_New(self->count);
    for (unsigned i = 0; values != NULL && i < self->count; i++) {
        const column *from = row_column(&self->rows[i], number);
        PyObject *value = scalar_load(from->kind, value_at(from, self->rows[i].index));
        if (value == NULL || PyList_SetItem(values, i, value) != 0) {
            Py_CLEAR(values);
        }
    }
    return values;
}

/* Copy the rows of an array column to the start of pair[0]; return pair[1][:count]. */
static PyObject *
batch_gather_array(const batch *self, Py_ssize_t number, PyObject *pair)
{
    Py_buffer view;
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "expected a pair of buffers for an array column");
        return NULL;
    }
    if (PyObject_GetBuffer(PyTuple_GetItem(pair, 0), &view, PyBUF_WRITABLE) != 0) {
        return NULL;
    }
    Py_ssize_t nbytes = row_column(&self->rows[0], number)->nbytes * self->count;
    Py_ssize_t room = view.len;
    bool fits = room >= nbytes;
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "buffer has %zd bytes, the batch %zd", room, nbytes);
    } else if (nbytes >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        batch_copy(self, number, view.buf, false);
        Py_END_ALLOW_THREADS
    } else {
        batch_copy(self, number, view.buf, false);
    }
    PyBuffer_Release(&view);
    if (!fits) {
        return NULL;
    }
    PyObject *rows = PyTuple_GetItem(pair, 1);
    /* A slice even where it is all of them: what the function does to the object itself, such as
     * requires_grad_(), must not reach the next batch. */
    return PySequence_GetSlice(rows, 0, self->count);
}

/* gather(buffers) -> list: the inputs of all rows, one item a column: a list of the values of a
 * scalar column, for which *buffers* has None; else the rows of what it has, see above. */
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
    PyObject *inputs = PyList_New(shared->column_count);
    for (Py_ssize_t number = 0; inputs != NULL && number < shared->column_count; number++) {
        PyObject *input = shared->columns[number].kind == KIND_ARRAY
                              ? batch_gather_array(self, number, PyList_GetItem(buffers, number))
                              : batch_gather_scalars(self, number);
        if (input == NULL || PyList_SetItem(inputs, number, input) != 0) {
            Py_CLEAR(inputs);
        }
    }
    return inputs;
}

/* Scatter a list of scalars if all are exactly of the result's type; 1 done, 0 not, -1 error. */
static int
batch_scatter_scalars(batch *self, PyObject *values)
{
    if (!PyList_CheckExact(values) || PyList_Size(values) != (Py_ssize_t)self->count) {
        return 0;
    }
    for (unsigned i = 0; i < self->count; i++) {
        const column *to = row_column(&self->rows[i], -1);
        char *at = value_at(to, self->rows[i].index);
        if (!scalar_encode(to->kind, PyList_GetItem(values, i), at)) {
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
               && (to->ndim == 0
                   || memcmp(&view.shape[1], to->shape, (size_t)to->ndim * sizeof(Py_ssize_t))
                          == 0);
    }
    if (fits && nbytes >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        batch_copy(self, -1, view.buf, true);
        Py_END_ALLOW_THREADS
    } else if (fits) {
        batch_copy(self, -1, view.buf, true);
    }
    PyBuffer_Release(&view);
    return fits;
}

/* scatter(results) -> bool: store one result a row out of a list of scalars or a packed stack;
 * False if it is not exactly that. Rows may have been written then, but nobody looks before
 * complete(). */
static PyObject *
batch_scatter(batch *self, PyObject *results)
{
    if (batch_check(self) != 0) {
        return NULL;
    }
    int stored = row_column(&self->rows[0], -1)->kind == KIND_ARRAY
                     ? batch_scatter_stack(self, results)
                     : batch_scatter_scalars(self, results);
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
    const column *to = row_column(at, -1);
    char *slot = value_at(to, at->index);
    if (to->kind != KIND_ARRAY) {
        return PyBool_FromLong(scalar_encode(to->kind, args[1], slot));
    }
    Py_buffer view;
    if (!array_view(to, args[1], &view)) {
        Py_RETURN_FALSE;
    }
    memcpy(slot, view.buf, (size_t)to->nbytes);
    PyBuffer_Release(&view);
    Py_RETURN_TRUE;
}

/* fail(row, record): the outcome of this row is an error record, cut to the slot's room. */
static PyObject *
batch_fail(batch *self, PyObject *const *args, Py_ssize_t nargs)
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
    Py_RETURN_NONE;
}

/* Append (ring, flags, threads, slots) for one ring to *wakes*, which is made when first needed;
 * slots may be NULL. */
static int
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

/* complete() -> None, or a list of (ring, flags, threads, slots) to wake: the sleepers on those
 * slots, *threads* sleepers on completions, and with WAKE_ASYNC the producer's event loops.
 * WAKE_VIOLATION: that producer must be disconnected. Every row's outcome is published, whatever
 * happens to any one of them (I7); the batch is empty afterwards. */
static PyObject *
batch_complete(batch *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *wakes = NULL;
    bool short_of_memory = false;
    for (unsigned i = 0; i < self->count;) {
        executor *ring = self->rows[i].ring;
        unsigned long flags = 0;
        PyObject *slots = NULL;
        for (; i < self->count && self->rows[i].ring == ring; i++) {
            const row *at = &self->rows[i];
            int sleeping = ring_complete(&ring->ring, at->index, at->generation, at->outcome,
                                         at->error_nbytes);
            if (sleeping == RING_VIOLATION) {
                ring->broken = true; /* drain ignores it from now on */
                ring->ring.waiting_head = ring->ring.waiting_tail;
                flags |= WAKE_VIOLATION;
                continue;
            }
            if (sleeping & RING_ASYNC) {
                flags |= WAKE_ASYNC;
            }
            if (sleeping & RING_WAITER) {
                PyObject *slot = PyLong_FromUnsignedLong(at->index);
                if (slots == NULL) {
                    slots = PyList_New(0);
                }
                if (slot == NULL || slots == NULL || PyList_Append(slots, slot) != 0) {
                    short_of_memory = true; /* the sleeper's slice is its safety net */
                }
                Py_XDECREF(slot);
            }
        }
        if (add_wake(&wakes, ring, flags, ring_notify(&ring->ring), slots) != 0) {
            short_of_memory = true;
        }
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
    {"scatter", (PyCFunction)batch_scatter, METH_O, NULL},
    {"put", (PyCFunction)(void (*)(void))batch_put, METH_FASTCALL, NULL},
    {"fail", (PyCFunction)(void (*)(void))batch_fail, METH_FASTCALL, NULL},
    {"complete", (PyCFunction)batch_complete, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef batch_members[] = {
    {"count", T_UINT, offsetof(batch, count), READONLY, NULL},
    {"capacity", T_UINT, offsetof(batch, capacity), READONLY, NULL},
    {"oldest_ns", T_ULONGLONG, offsetof(batch, oldest_ns), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_new, batch_new},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {Py_tp_members, batch_members},
    {0, NULL},
};

static PyType_Spec batch_spec = {
    .name = "shmbatch.protocol._core.Batch",
    .basicsize = sizeof(batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = batch_slots,
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
    unsigned long long oldest_ns; /* earliest publication of the waiting calls */
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

/* drain(now_ns) -> int: look at every ring; return how many calls wait. Sets `oldest_ns`, and
 * `attention` where pop_attention has something to say. */
static PyObject *
inbox_drain(inbox *self, PyObject *now)
{
    uint64_t at_ns = PyLong_AsUnsignedLongLong(now);
    if (at_ns == (uint64_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    uint64_t waiting = 0;
    uint64_t oldest_ns = UINT64_MAX;
    for (unsigned i = 0; i < self->count; i++) {
        executor *ring = self->rings[i];
        if (ring->broken) {
            continue;
        }
        int64_t found = self->sealed ? 0 : ring_drain(&ring->ring, at_ns);
        int64_t freed = found < 0 ? 0 : ring_sweep(&ring->ring);
        if (found < 0 || freed < 0) {
            inbox_break(self, ring);
            continue;
        }
        if (found > 0) {
            ring->active_ns = at_ns;
        }
        if (freed > 0) {
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
    }
    self->oldest_ns = oldest_ns;
    return PyLong_FromUnsignedLongLong(waiting);
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

/* take(batch, limit) -> int: fill the empty *batch* with up to *limit* of the waiting calls. */
static PyObject *
inbox_take(inbox *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    unsigned long limit = PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    batch *into = (batch *)args[0];
    if (!PyObject_TypeCheck(args[0], batch_type) || into->count != 0 || limit > into->capacity) {
        PyErr_SetString(PyExc_ValueError, "take needs an empty Batch with room for the limit");
        return NULL;
    }
    into->oldest_ns = UINT64_MAX;
    bool again = true;
    /* A second round only where calls were cancelled between drain and take. */
    while (again && into->count < limit && self->count > 0) {
        again = false;
        inbox_share(self, (uint32_t)limit - into->count);
        for (unsigned i = 0; i < self->count; i++) {
            executor *ring = self->rings[i];
            for (uint32_t left = self->quotas[i]; left > 0; left--) {
                row *to = &into->rows[into->count];
                uint32_t mask = ring->ring.words.ring_mask;
                uint64_t published_ns =
                    ring->ring.waiting[ring->ring.waiting_head & mask].published_ns;
                int taken = ring_take(&ring->ring, &to->index, &to->generation);
                if (taken == RING_VIOLATION) {
                    inbox_break(self, ring);
                    break;
                }
                if (taken == RING_SKIPPED) {
                    inbox_freed(self, ring);
                    again = true;
                    continue;
                }
                to->ring = (executor *)Py_NewRef((PyObject *)ring);
                to->outcome = RING_VALUE;
                to->error_nbytes = 0;
                into->count++;
                if (published_ns < into->oldest_ns) {
                    into->oldest_ns = published_ns;
                }
            }
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
        ring->freed = false;
        if (add_wake(&wakes, ring, ring->broken ? WAKE_VIOLATION : 0, sleepers, NULL) != 0) {
            Py_XDECREF(wakes);
            return NULL;
        }
    }
    self->attention = 0;
    return wakes != NULL ? wakes : Py_NewRef(Py_None);
}

/* count_active(since_ns) -> int: rings in which a call was found since then; tells the
 * producers, who choose by it whether spinning pays. */
static PyObject *
inbox_count_active(inbox *self, PyObject *since)
{
    uint64_t since_ns = PyLong_AsUnsignedLongLong(since);
    if (since_ns == (uint64_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    unsigned long active = 0;
    for (unsigned i = 0; i < self->count; i++) {
        active += self->rings[i]->active_ns >= since_ns;
    }
    return PyLong_FromUnsignedLong(active);
}

static PyObject *
inbox_tell_active(inbox *self, PyObject *number)
{
    unsigned long active = PyLong_AsUnsignedLong(number);
    if (active == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    for (unsigned i = 0; i < self->count; i++) {
        atomic_store_explicit(&self->rings[i]->ring.words.header->active, (uint32_t)active,
                              memory_order_relaxed);
    }
    Py_RETURN_NONE;
}

static PyMethodDef inbox_methods[] = {
    {"attach", (PyCFunction)(void (*)(void))inbox_attach, METH_FASTCALL, NULL},
    {"detach", (PyCFunction)inbox_detach, METH_O, NULL},
    {"drain", (PyCFunction)inbox_drain, METH_O, NULL},
    {"take", (PyCFunction)(void (*)(void))inbox_take, METH_FASTCALL, NULL},
    {"seal", (PyCFunction)inbox_seal, METH_NOARGS, NULL},
    {"pop_attention", (PyCFunction)inbox_pop_attention, METH_NOARGS, NULL},
    {"count_active", (PyCFunction)inbox_count_active, METH_O, NULL},
    {"tell_active", (PyCFunction)inbox_tell_active, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef inbox_members[] = {
    {"oldest_ns", T_ULONGLONG, offsetof(inbox, oldest_ns), READONLY, NULL},
    {"attention", T_UINT, offsetof(inbox, attention), READONLY, NULL},
    {"count", T_UINT, offsetof(inbox, count), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot inbox_slots[] = {
    {Py_tp_new, inbox_new},
    {Py_tp_dealloc, inbox_dealloc},
    {Py_tp_methods, inbox_methods},
    {Py_tp_members, inbox_members},
    {0, NULL},
};

static PyType_Spec inbox_spec = {
    .name = "shmbatch.protocol._core.Inbox",
    .basicsize = sizeof(inbox),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = inbox_slots,
};

/* ---- module ----------------------------------------------------------------------------- */

/* set_timer_slack(ns): how late the kernel may end this thread's sleeps. */
static PyObject *
core_set_timer_slack(PyObject *Py_UNUSED(module), PyObject *nanoseconds)
{
    unsigned long slack = PyLong_AsUnsignedLong(nanoseconds);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef core_functions[] = {
    {"set_timer_slack", core_set_timer_slack, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) != 0) {
        Py_XDECREF(type);
        return -1;
    }
    if (keep != NULL) {
        *keep = (PyTypeObject *)type; /* keeps the reference */
    } else {
        Py_DECREF(type);
    }
    return 0;
}

static int
core_exec(PyObject *module)
{
    if (map_fork_word() != 0 || add_type(module, &bell_spec, NULL) != 0
        || add_type(module, &producer_spec, NULL) != 0
        || add_type(module, &executor_spec, &executor_type) != 0
        || add_type(module, &batch_spec, &batch_type) != 0
        || add_type(module, &inbox_spec, NULL) != 0) {
        return -1;
    }
    pending_object = PyUnicode_FromString("PENDING");
    failed_object = PyUnicode_FromString("FAILED");
    if (PyModule_AddObjectRef(module, "PENDING", pending_object) != 0
        || PyModule_AddObjectRef(module, "FAILED", failed_object) != 0) {
        return -1;
    }
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"FREE", RING_FREE},
        {"READY", RING_READY},
        {"TAKEN", RING_TAKEN},
        {"DONE", RING_DONE},
        {"CANCELLED", RING_CANCELLED},
        {"ABANDONED", RING_ABANDONED},
        {"WAITER", RING_WAITER},
        {"ASYNC", RING_ASYNC},
        {"PARKED", RING_BELL_PARKED},
        {"POLLING", RING_BELL_POLLING},
        {"OPEN", RING_OPEN},
        {"DRAINING", RING_DRAINING},
        {"CLOSED", RING_CLOSED},
        {"SPAWNED", SUBMIT_SPAWNED},
        {"SUBMIT_FULL", SUBMIT_FULL},
        {"SUBMIT_MISFIT", SUBMIT_MISFIT},
        {"SUBMIT_CLOSED", SUBMIT_CLOSED},
        {"SUBMIT_FORKED", SUBMIT_FORKED},
        {"THREAD", RING_THREAD_STEP},
        {"LOOP", RING_LOOP_STEP},
        {"WAKE_ASYNC", WAKE_ASYNC},
        {"WAKE_VIOLATION", WAKE_VIOLATION},
        {"MAX_COLUMNS", MAX_COLUMNS},
        {"MAX_CAPACITY", MAX_CAPACITY},
        {"TICKET_SLOT_MASK", TICKET_SLOT_MASK},
        {"HEADER_NBYTES", sizeof(ring_header)},
        {"CONTROL_NBYTES", sizeof(ring_control)},
    };
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) != 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmbatch.protocol._core",
    .m_methods = core_functions,
    .m_slots = core_slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
