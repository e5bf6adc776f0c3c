/* lending.c: Loan, a slot that is lent to its own process, to write an input into it or to read a
 * result where it stands; and Lent, one value of such a slot, as a buffer.
 *
 *     FREE ------ reserve --> LENT --- spawn --> WRITING, PUBLISHED, as for any call
 *     PUBLISHED --- lend ---> LENT -- close, or nobody has the loan any more --> FREE
 *
 * The executor hears of neither: it has not seen the call yet, or has completed it.
 *
 *   L1  Slots are lent and given back under the GIL, in one step each: there is no lock.
 *   L2  A Lent has its loan, and the loan holds the memory. So what stands on a Lent does not
 *       dangle, whatever becomes of the slot, the ring, the connection and the executor.
 *   L3  A slot whose result is lent is not used again before the last Lent of it is gone.
 *   L4  When the ring moves, nothing of the new segment is lent. Loans go on in the old one, to
 *       which nobody else will ever write, and give nothing back.
 *   L5  Nor do they in a forked child: the slot is the parent's.
 */
#include "calling.h"

PyTypeObject *loan_type, *lent_type;

/* ---- Loan ------------------------------------------------------------------------------- */

enum { LOAN_OVER = 0, LOAN_RESERVED, LOAN_BORROWED };

struct loan {
    PyObject_HEAD
    producer *ring;
    PyObject *tell;    /* called when the slot comes back while somebody waits for one */
    Py_buffer segment; /* the one in which the slot is */
    uint32_t moves;    /* of the ring until then */
    uint32_t index;
    int state;
};

static bool
loan_holds(const loan *self)
{
    return self->state != LOAN_OVER && self->moves == self->ring->moves
           && !producer_forked(self->ring);
}

/* A loan of nothing yet. Runs no Python: mmap exports its buffer without. */
static loan *
loan_make(producer *ring, PyObject *tell)
{
    loan *self = new_self(loan_type);
    if (self == NULL) {
        return NULL;
    }
    self->ring = (producer *)Py_NewRef((PyObject *)ring);
    self->tell = Py_NewRef(tell);
    self->moves = ring->moves;
    if (get_shared(ring->shared.segment.obj, &self->segment) != 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return self;
}

static void
loan_begin(loan *self, uint32_t index, int state)
{
    self->ring->own[index] = OWN_LENT;
    self->ring->lent++;
    self->index = index;
    self->state = state;
}

static int
loan_end(loan *self)
{
    producer *ring = self->ring;
    bool holds = loan_holds(self), borrowed = self->state == LOAN_BORROWED;
    self->state = LOAN_OVER;
    if (!holds) {
        return 0;
    }
    ring->lent--;
    if (borrowed) {
        ring_release(&ring->ring, self->index);
    }
    producer_put_back(ring, self->index);
    if (!ring->queueing) {
        return 0;
    }
    PyObject *told = PyObject_CallNoArgs(self->tell);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

static void
loan_dealloc(loan *self)
{
    if (self->state != LOAN_OVER) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (loan_end(self) != 0) {
            PyErr_WriteUnraisable(self->tell);
        }
        PyErr_Restore(type, value, trace);
    }
    if (self->segment.obj != NULL) {
        PyBuffer_Release(&self->segment);
    }
    Py_XDECREF(self->tell);
    Py_XDECREF((PyObject *)self->ring);
    free_self((PyObject *)self);
}

bool
loan_take(loan *self, uint32_t *index)
{
    if (self->state != LOAN_RESERVED || !loan_holds(self)) {
        return false;
    }
    self->state = LOAN_OVER;
    self->ring->lent--;
    *index = self->index;
    return true;
}

/* spawn(made, connection, limits, values, deadline_ns) -> a Call of the type *made*, or SUBMIT_...:
 * publish this slot. An array over a Lent of it is where it belongs, and is not copied. The loan is
 * over then, unless it was a MISFIT; CLOSED where the values have to go another way. */
static PyObject *
loan_spawn(loan *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 5) != 0) {
        return NULL;
    }
    uint64_t deadline_ns = PyLong_AsUnsignedLongLong(args[4]);
    if (deadline_ns == (uint64_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!PyType_Check(args[0]) || !PyType_IsSubtype((PyTypeObject *)args[0], call_type)
        || !PyTuple_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "spawn takes a type of calls, and a tuple of values");
        return NULL;
    }
    if (self->state != LOAN_RESERVED) {
        PyErr_SetString(PyExc_ValueError, "the loan is over");
        return NULL;
    }
    long refusal;
    PyObject *made = call_spawn((PyTypeObject *)args[0], args[1], args[2], self->ring, self,
                                args[3], deadline_ns, &refusal);
    return made == NULL && refusal < 0 ? PyLong_FromLong(refusal) : made;
}

/* close(): give the slot back, unless it was published; what is over it goes on, read-only. */
static PyObject *
loan_close(loan *self, PyObject *Py_UNUSED(ignored))
{
    return loan_end(self) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyObject *lent_make(loan *of, const column *values);

/* value(column) -> Lent: where the value of a parameter belongs. */
static PyObject *
loan_value(loan *self, PyObject *number)
{
    const ends *shared = &self->ring->shared;
    Py_ssize_t at = PyLong_AsSsize_t(number);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (at < 0 || at >= shared->column_count) {
        PyErr_Format(PyExc_ValueError, "there is no column %zd", at);
        return NULL;
    }
    return lent_make(self, &shared->columns[at]);
}

static PyMethodDef loan_methods[] = {
    {"spawn", (PyCFunction)(void (*)(void))loan_spawn, METH_FASTCALL, NULL},
    {"value", (PyCFunction)loan_value, METH_O, NULL},
    {"close", (PyCFunction)loan_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_dealloc, loan_dealloc},
    {Py_tp_methods, loan_methods},
    {0, NULL},
};

PyType_Spec loan_spec = {
    .name = "shmbatch.protocol._core.Loan",
    .basicsize = sizeof(loan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = loan_slots,
};

/* ---- Lent ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    loan *of;
    char *at;
    Py_ssize_t nbytes;
} lent;

static PyObject *
lent_make(loan *of, const column *values)
{
    lent *self = new_self(lent_type);
    if (self != NULL) {
        /* Where it is in this loan's segment: L4. Segments of one ring are laid out alike. */
        Py_ssize_t offset = values->base - (const char *)of->ring->shared.segment.buf;
        self->of = (loan *)Py_NewRef((PyObject *)of);
        self->at = (char *)of->segment.buf + offset + (Py_ssize_t)of->index * values->nbytes;
        self->nbytes = values->nbytes;
    }
    return (PyObject *)self;
}

static void
lent_dealloc(lent *self)
{
    Py_XDECREF((PyObject *)self->of);
    free_self((PyObject *)self);
}

/* Its bytes; from when the call is published, or the slot given back, for reading only. */
static int
lent_get_buffer(lent *self, Py_buffer *view, int flags)
{
    bool over = self->of->state == LOAN_OVER;
    return PyBuffer_FillInfo(view, (PyObject *)self, self->at, self->nbytes, over, flags);
}

static PyType_Slot lent_slots[] = {
    {Py_tp_dealloc, lent_dealloc},
    {Py_bf_getbuffer, lent_get_buffer},
    {0, NULL},
};

PyType_Spec lent_spec = {
    .name = "shmbatch.protocol._core.Lent",
    .basicsize = sizeof(lent),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lent_slots,
};

/* ---- of the ring -------------------------------------------------------------------------- */

/* Half of the slots at most, so that there are others for whoever has these and waits for one. */
static bool
producer_has_lent_enough(const producer *self)
{
    return self->lent >= self->shared.words.capacity / 2;
}

PyObject *
producer_reserve(producer *self, PyObject *tell)
{
    if (producer_forked(self)) {
        return PyLong_FromLong(SUBMIT_FORKED);
    }
    if (!ring_is_open(&self->ring)) {
        return PyLong_FromLong(SUBMIT_CLOSED);
    }
    if (producer_has_lent_enough(self)) {
        return PyLong_FromLong(SUBMIT_LENT);
    }
    if (!producer_has_free(self)) {
        return PyLong_FromLong(SUBMIT_FULL);
    }
    loan *made = loan_make(self, tell);
    if (made != NULL) {
        loan_begin(made, producer_claim(self), LOAN_RESERVED);
    }
    return (PyObject *)made;
}

PyObject *
producer_lend(producer *self, uint32_t index, int64_t spin_ns, PyObject *tell)
{
    if (!producer_done(self, index, spin_ns)) {
        return Py_NewRef(pending_object);
    }
    const column *result = &self->shared.columns[self->shared.column_count];
    if (result->kind != KIND_ARRAY || !producer_has_value(self, index)
        || producer_has_lent_enough(self)) {
        return Py_NewRef(Py_None);
    }
    loan *made = loan_make(self, tell);
    if (made == NULL) {
        return NULL;
    }
    made->index = index;
    PyObject *value = lent_make(made, result);
    if (value != NULL) {
        loan_begin(made, index, LOAN_BORROWED);
    }
    Py_DECREF((PyObject *)made);
    return value;
}
