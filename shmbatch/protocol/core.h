/* core.h: what the files of the native core share.
 *
 *   core.c       the bell, and the module
 *   spinning.c   Spinning: how long to spin before sleeping
 *   values.c     a value of a column, between Python and the bytes of a slot
 *   arrays.c     a value that is an array of NumPy's
 *   segment.c    a segment as either end sees it: where its words and columns are
 *   producer.c   ProducerRing, the producer's end
 *   verb.c       Verb: a call from its handle and back, without Python
 *   call.c       Call and GetVerb: a call that was published, and its outcome
 *   failure.c    Failure: an outcome that is no value
 *   lending.c    Loan and Lent: slots that are lent to their own process
 *   moving.c     how it goes over to the segment of another executor
 *   executor.c   ExecutorRing and Inbox: the executor's ends, of one connection and one function
 *   batch.c      Batch and Phases: the rows of one batch, and how long they took
 *   watchdog.c   Watchdog, a thread that ends a process in which one execution takes too long
 *   apart.c      how a descriptor is closed without waiting for what that takes
 *
 * Copies of RELEASE_GIL_NBYTES and more (but of a text on its way out), spinning and parking run
 * without the GIL, and so does the watchdog's thread, which shares its state under a lock of its
 * own; everything else runs under it, and that makes the private state of each other object
 * single-threaded. Nothing allocates on the hot path but the Python objects that are returned.
 * Built against the limited API of CPython 3.11, but for a free-threaded interpreter, which has
 * none: that turns the GIL back on at import, because the module does not declare Py_mod_gil.
 */
#ifndef SHMBATCH_CORE_H
#define SHMBATCH_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <limits.h>
#include <string.h>
#include <time.h>

#include "ring.h"

#define RELEASE_GIL_NBYTES (64 * 1024)
#define MAX_COLUMNS 64
#define MAX_CAPACITY (1u << 17)
#define TICKET_SLOT_BITS 17
#define TICKET_SLOT_MASK ((1u << TICKET_SLOT_BITS) - 1)

#pragma GCC visibility push(hidden)

/* ---- time, spinning, futexes: core.c -------------------------------------------------- */

static inline uint64_t
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
int futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
void futex_wake(_Atomic uint32_t *word, int count);

/* A word that the kernel zeroes in a forked child. A ring remembers the value it was created
 * under, so a child cannot move the parent's tail, whoever called fork and however. */
extern uint64_t *fork_word;
uint64_t process_token(void);

/* ---- making and freeing objects: core.c ------------------------------------------------ */

void *new_self(PyTypeObject *type);
void free_self(PyObject *self);

static inline int
arguments(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
        return -1;
    }
    return 0;
}

/* ---- columns and their values: values.c ------------------------------------------------- */

/* How one value stands in its slot:
 *
 *   KIND_INT, KIND_FLOAT, KIND_BOOL   8 bytes
 *   KIND_ARRAY                        the bytes of an array whose shape never varies
 *   KIND_STR, KIND_BYTES, KIND_PACKED u64 length, 8 bytes unused, then as many bytes
 *   KIND_RAGGED                       i64 shape[ndim], up to a multiple of 16, then the array
 */
enum {
    KIND_INT = 0,
    KIND_FLOAT = 1,
    KIND_BOOL = 2,
    KIND_ARRAY = 3,
    KIND_STR = 4,    /* a str, as UTF-8 */
    KIND_BYTES = 5,  /* a bytes */
    KIND_PACKED = 6, /* a tuple of buffers, end to end, each at a multiple of 16 */
    KIND_RAGGED = 7, /* an array some of whose axes vary; or a tuple (shape, buffer), if that is
                        the carrier */
};

typedef struct {
    int kind;
    Py_ssize_t nbytes;  /* of one value in its slot */
    Py_ssize_t room;    /* of these for what varies in length */
    Py_ssize_t offset;  /* where that begins */
    char *base;         /* value of slot i stands at base + i * nbytes */
    PyObject *carrier;  /* from KIND_ARRAY on: the very type that is copied without asking Python;
                           a tuple type of our own where a caller's tuple must not be taken */
    char format[8];     /* of its items, in the buffer protocol's words */
    Py_ssize_t itemsize;
    int ndim;
    Py_ssize_t shape[PyBUF_MAX_NDIM]; /* KIND_RAGGED: -n for an axis of 0 to n */
    PyObject *allocate; /* makes the writable buffer into which a value is copied out */
    PyObject *dtype;    /* borrowed from `allocate`, where that is one: arrays.c makes the array */
} column;

/* Read (kind, offset, nbytes, carrier, format, shape, allocate, itemsize) and bind it. */
int column_init(column *self, PyObject *description, const Py_buffer *segment,
                uint32_t capacity);
void column_clear(column *self);

/* Whether these are the axes of a row, whose shape never varies. */
static inline bool
has_row_shape(const column *self, const Py_ssize_t *axes)
{
    for (int axis = 0; axis < self->ndim; axis++) {
        if (axes[axis] != self->shape[axis]) {
            return false;
        }
    }
    return true;
}

static inline char *
value_at(const column *values, uint32_t index)
{
    return values->base + (Py_ssize_t)index * values->nbytes;
}

/* A value that was checked and can be copied; it keeps alive what it points to. */
typedef struct {
    Py_ssize_t nbytes; /* how many will be copied */
    union {
        char scalar[8];
        const char *bytes;      /* KIND_STR, KIND_BYTES */
        const Py_ssize_t *axes; /* KIND_RAGGED: its shape, in `view` or in `owned` */
        Py_ssize_t pieces;      /* KIND_PACKED: how many of them are in `owned` */
    };
    Py_buffer view; /* KIND_ARRAY, KIND_RAGGED */
    void *owned;    /* Py_buffer[] or Py_ssize_t[], or NULL */
} held_value;

/* Whether values of this kind are 8 bytes. These are handled inline: most calls have them. */
static inline bool
is_scalar(int kind)
{
    return kind <= KIND_BOOL;
}

static inline int
hold_scalar(int kind, PyObject *value, char *bits)
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

static inline PyObject *
load_scalar(int kind, const char *at)
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

int hold_other(const column *self, PyObject *value, held_value *held);
void store_other(const column *self, const held_value *held, char *at);
void let_go_other(const column *self, held_value *held);
int put_other(const column *self, PyObject *value, char *at);
PyObject *load_other(const column *self, const char *at);

/* Take hold of *value* if it is exactly what the column holds. 1: held until value_let_go;
 * 0: leave it to Python; no exception is set. */
static inline int
value_hold(const column *self, PyObject *value, held_value *held)
{
    if (is_scalar(self->kind)) {
        held->nbytes = 8;
        return hold_scalar(self->kind, value, held->scalar);
    }
    return hold_other(self, value, held);
}

/* Copy it into a slot. Needs no GIL. */
static inline void
value_store(const column *self, const held_value *held, char *at)
{
    if (is_scalar(self->kind)) {
        memcpy(at, held->scalar, 8);
    } else {
        store_other(self, held, at);
    }
}

static inline void
value_let_go(const column *self, held_value *held)
{
    if (!is_scalar(self->kind)) {
        let_go_other(self, held);
    }
}

/* All three at once: 1 stored, 0 not. */
static inline int
value_put(const column *self, PyObject *value, char *at)
{
    return is_scalar(self->kind) ? hold_scalar(self->kind, value, at) : put_other(self, value, at);
}

/* Copy a value out of its slot, whoever may be writing there: lengths are read once, and never
 * believed beyond the room there is. */
static inline PyObject *
value_load(const column *self, const char *at)
{
    return is_scalar(self->kind) ? load_scalar(self->kind, at) : load_other(self, at);
}

/* The shape of a KIND_RAGGED value, as far as it can be one. */
void ragged_shape(const column *self, const char *at, Py_ssize_t *axes);
/* Copy such a value of shape *axes* to the start of a block of shape *padded*, zeros behind. */
void ragged_pad(const column *self, const char *at, const Py_ssize_t *axes,
                const Py_ssize_t *padded, char *to);

/* ---- NumPy's arrays: arrays.c ------------------------------------------------------------- */

/* -1, with an exception, unless *dtype* is one of NumPy's; before anything else here is used. */
int array_dtype_check(PyObject *dtype);
/* The memory of *value* if it is just a row of the column, or a stack of *count* rows; or a
 * writable stack of at least as many. NULL: it is not, or not of NumPy's; ask the buffer protocol. */
char *array_of_row(const column *self, PyObject *value);
char *array_of_rows(const column *self, PyObject *stack, Py_ssize_t count);
char *array_room(const column *self, PyObject *stack, Py_ssize_t count);
/* Make an array for one row of a column with a dtype; where its memory is. */
PyObject *array_new_row(const column *self);
char *array_memory(PyObject *row);
/* stack[:count], a view. */
PyObject *array_first_rows(const column *self, PyObject *stack, Py_ssize_t count);

/* ---- a segment: segment.c ---------------------------------------------------------------- */

typedef struct {
    Py_buffer segment;
    ring_words words;
    Py_ssize_t column_count;
    column *columns; /* inputs, then the result at [column_count] */
    char *errors;    /* error record of slot i at errors + i * error_nbytes */
    Py_ssize_t error_nbytes;
} ends;

/* (segment, capacity, indices_offset, controls_offset, errors_offset, error_nbytes, columns):
 * the offsets are the caller's own (layout.py), never read from the segment. */
int ends_init(ends *self, PyObject *segment, unsigned capacity, Py_ssize_t indices_offset,
              Py_ssize_t controls_offset, Py_ssize_t errors_offset, Py_ssize_t error_nbytes,
              PyObject *columns);
/* The same in another segment of the same size. */
int ends_like(ends *self, const ends *other, PyObject *segment);
void ends_clear(ends *self);

int get_shared(PyObject *buffer, Py_buffer *view);
int check_words(const Py_buffer *view, Py_ssize_t offset, Py_ssize_t nbytes);
/* True, with ValueError, if the segment has no slot *index*. */
bool no_slot(const ends *self, unsigned long index);

/* ---- the executor's objects: executor.c, batch.c ----------------------------------------- */

typedef struct {
    PyObject_HEAD
    ends shared;
    ring_executor ring;
    PyObject *lent;     /* a tuple: of each parameter, what gives slices of all slots, or None;
                           NULL: every batch is gathered */
    uint32_t running;   /* calls taken and not completed */
    uint32_t peak;      /* most calls outstanding (waiting or running) when a batch was taken */
    char wakes;         /* its producer sleeps on futexes: Batch.complete wakes it */
    bool broken;        /* the producer violated the protocol */
    bool detached;      /* the producer is gone */
    bool freed;         /* slots became FREE or calls expired, and nobody has been told */
    bool async_expired; /* among the expired, one that an event loop waits for */
} executor;

/* Four histograms of nanoseconds, log-linear: below 16 each value has a bucket, above each power
 * of two has 16 of them. */
enum { WAITING = 0, STAGING = 1, RUNNING = 2, DELIVERING = 3, PHASE_COUNT = 4 };
#define BUCKET_COUNT 976

/* The clock costs as much as a quarter of a lone call's staging. So the first TIMED_ALL batches
 * are timed, and after them one in TIMED_EVERY, which counts for all of these. */
#define TIMED_ALL 1024
#define TIMED_EVERY 8

typedef struct {
    PyObject_HEAD
    uint64_t batches; /* taken so far */
    uint64_t sum_ns[PHASE_COUNT];
    uint64_t max_ns[PHASE_COUNT];
    uint64_t counts[PHASE_COUNT][BUCKET_COUNT];
} phases;

void phases_count(phases *self, int phase, uint64_t ns, uint64_t calls);

/* How many batches the times of the next one are to stand for; 0: it is not to be timed. */
static inline unsigned
phases_next_weight(phases *self)
{
    if (self == NULL) {
        return 0;
    }
    uint64_t batches = self->batches++;
    return batches < TIMED_ALL ? 1 : batches % TIMED_EVERY == 0 ? TIMED_EVERY : 0;
}

typedef struct {
    executor *ring; /* strong: a batch keeps the memory of its rows mapped */
    uint32_t index;
    union {
        struct { /* until it is published */
            uint32_t generation;
            uint32_t outcome;
            uint32_t error_nbytes;
        };
        struct { /* from then on; all but the first in the first row of a run of one ring */
            uint32_t waiter; /* whether somebody sleeps on its slot */
            uint32_t flags;  /* as of add_wake */
            uint32_t sleepers; /* as of ring_notify */
        };
    };
} row;

typedef struct {
    PyObject_HEAD
    row *rows;         /* the live ones, those of one ring together; behind them the rejected */
    unsigned capacity;
    unsigned count;    /* live rows */
    unsigned rejected; /* rows that the function is not to see */
    phases *phases;    /* NULL: nobody wants to know */
    unsigned weight;   /* how many batches this one's times stand for; 0: it is not timed */
    uint64_t taken_ns; /* when it was taken, gathered, and had run; 0: not yet */
    uint64_t gathered_ns;
    uint64_t ran_ns;
} batch;

/* Append (ring, flags, threads, slots) for one ring to *wakes*, which is made when first needed;
 * slots may be NULL. */
int add_wake(PyObject **wakes, executor *ring, unsigned long flags, uint32_t sleepers,
             PyObject *slots);
/* Flags of such an entry. */
enum { WAKE_ASYNC = 1, WAKE_VIOLATION = 2 };

/* ---- spinning.c ------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    int64_t spin_ns;         /* how long to spin next */
    int64_t paying_ns;       /* the same where it pays */
    unsigned long long won;  /* spins so far that have found what they waited for */
    unsigned long long vain; /* and that have not */
    unsigned long long won_before, vain_before; /* when the last sleep was learnt from */
    uint32_t skip;      /* sleeps until a spin is tried again */
    uint32_t next_skip; /* the same after the next spin in vain */
    char learns;
} spinning;

static inline void
spinning_count(spinning *self, bool won)
{
    self->won += won;
    self->vain += !won;
}

/* Learn from a sleep, and from the spins that came before it. */
void spinning_slept(spinning *self);

/* ---- types, each in the file of its name -------------------------------------------------- */

extern PyType_Spec spinning_spec, producer_spec, executor_spec, batch_spec, phases_spec, inbox_spec,
    watchdog_spec, failure_spec, call_spec, get_verb_spec, verb_spec, loan_spec, lent_spec;
/* Set at import, immortal. */
extern PyTypeObject *spinning_type, *producer_type, *executor_type, *batch_type, *phases_type;
extern PyObject *pending_object, *failed_object; /* what poll returns instead of a result */

/* Of the module: apart.c. */
PyObject *core_close_apart(PyObject *module, PyObject *descriptor);

/* What ProducerRing.submit returns instead of a ticket, and `reserve` instead of a loan. */
enum {
    SUBMIT_FULL = -1,
    SUBMIT_MISFIT = -2,
    SUBMIT_CLOSED = -3,
    SUBMIT_FORKED = -4,
    SUBMIT_LENT = -5, /* half of the slots are */
};
/* Flag of ProducerRing.submit, beside RING_ASYNC: the result may be copied out before its caller
 * asks for it, to make room. */
enum { SUBMIT_SPAWNED = 0x100 };

#pragma GCC visibility pop

#endif
