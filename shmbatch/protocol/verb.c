/* verb.c: Verb, a call from its handle and back without a line of Python.
 *
 *     handle.remote(x)   Verb     submit, spin, sleep once, take the result
 *     handle.spawn(x)    Verb     submit, make a Call
 *     call.get()         GetVerb  spin, sleep once, take the result: call.c
 *
 * That is so while nothing is in the way. Whatever else there is, a keyword, a limit, a misfit, a
 * full ring, a dead executor, a result that does not come in one sleep, goes to the method in
 * Python that each of them has, which does the whole of it, or what is left.
 */
#include "calling.h"

PyTypeObject *verb_type;

typedef struct {
    PyObject_HEAD
    PyObject *slow; /* the bound method in Python */
    PyObject *aio;  /* the same for event loops */
    PyTypeObject *made;   /* spawn: the type of its calls; NULL: remote, or no verb of one call */
    PyObject *limits;     /* of a call without limits */
    PyObject *connection; /* over which it calls by itself; NULL: none, and so are these: */
    PyObject *conclude;   /* its method that waits for an outcome */
    PyObject *timeout;    /* and for how long, in seconds; None: for ever */
    producer *ring;
} verb;

static PyObject *
verb_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *slow, *aio, *made = Py_None, *limits = Py_None;
    if (!PyArg_ParseTuple(args, "OO|OO:Verb", &slow, &aio, &made, &limits)) {
        return NULL;
    }
    if (made != Py_None
        && (!PyType_Check(made) || !PyType_IsSubtype((PyTypeObject *)made, call_type))) {
        PyErr_SetString(PyExc_TypeError, "expected a subclass of Call");
        return NULL;
    }
    verb *self = new_self(type);
    if (self != NULL) {
        self->slow = Py_NewRef(slow);
        self->aio = Py_NewRef(aio);
        self->made = made == Py_None ? NULL : (PyTypeObject *)Py_NewRef(made);
        self->limits = Py_NewRef(limits);
    }
    return (PyObject *)self;
}

static int
verb_traverse(verb *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->slow);
    Py_VISIT(self->aio);
    Py_VISIT((PyObject *)self->made);
    Py_VISIT(self->limits);
    Py_VISIT(self->connection);
    Py_VISIT(self->conclude);
    Py_VISIT(self->timeout);
    Py_VISIT((PyObject *)self->ring);
    return 0;
}

static int
verb_clear(verb *self)
{
    Py_CLEAR(self->slow);
    Py_CLEAR(self->aio);
    Py_CLEAR(self->made);
    Py_CLEAR(self->limits);
    Py_CLEAR(self->connection);
    Py_CLEAR(self->conclude);
    Py_CLEAR(self->timeout);
    Py_CLEAR(self->ring);
    return 0;
}

static void
verb_dealloc(verb *self)
{
    PyObject_GC_UnTrack((PyObject *)self);
    verb_clear(self);
    free_self((PyObject *)self);
}

/* What remote returns of a call that was published: its result, or NULL with its exception. */
static PyObject *
verb_result(PyObject *connection, producer *ring, PyObject *conclude, PyObject *timeout,
            uint64_t since_ns, uint64_t ticket)
{
    bool interrupted = false; /* or not: an exception ends the call */
    PyObject *outcome = take_outcome(ring, ticket, producer_spin_ns(ring), timeout == Py_None,
                                     &interrupted);
    if (outcome == pending_object || outcome == failed_object) {
        PyObject *result =
            PyObject_CallFunction(conclude, "KOOK", ticket, outcome, timeout, since_ns);
        Py_DECREF(outcome);
        outcome = result;
    } else if (outcome != NULL && tell_queue(connection, ring) != 0) {
        Py_CLEAR(outcome);
    } else if (outcome != NULL && Py_TYPE(outcome) == failure_type) {
        PyObject *error = ((failure *)outcome)->error;
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(outcome);
        return NULL;
    }
    if (outcome == NULL) { /* nobody will ask for what comes of the call, if it is not over */
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyObject *done = PyObject_CallMethod(connection, "abandon", "K", ticket);
        if (done == NULL) {
            PyErr_WriteUnraisable(connection);
        }
        Py_XDECREF(done);
        PyErr_Restore(type, error, trace);
    }
    return outcome;
}

static PyObject *
verb_call(verb *self, PyObject *args, PyObject *kwargs)
{
    if (PyErr_CheckSignals() != 0) { /* before anything: a loop in C may be what calls */
        return NULL;
    }
    producer *ring = self->ring;
    if (ring == NULL || ring->dead || ring->queueing
        || (kwargs != NULL && PyDict_Size(kwargs) > 0)) {
        return PyObject_Call(self->slow, args, kwargs);
    }
    /* The handle may let go of its connection while other code runs. */
    PyObject *connection = Py_NewRef(self->connection), *conclude = Py_NewRef(self->conclude);
    PyObject *timeout = Py_NewRef(self->timeout);
    PyObject *result = NULL;
    Py_INCREF((PyObject *)ring);
    long refusal;
    if (self->made != NULL) {
        result = call_spawn(self->made, connection, self->limits, ring, NULL, args, 0, &refusal);
    } else {
        uint64_t ticket, since_ns = timeout == Py_None ? 0 : now_ns();
        refusal = producer_begin(ring, NULL, args, 0, 0, &ticket);
        if (refusal == 0) {
            result = verb_result(connection, ring, conclude, timeout, since_ns, ticket);
        }
    }
    Py_DECREF((PyObject *)ring);
    Py_DECREF(timeout);
    Py_DECREF(conclude);
    Py_DECREF(connection);
    return refusal < 0 ? PyObject_Call(self->slow, args, NULL) : result;
}

/* follow(connection[, timeout]): call over it from now on; None: leave all to Python. */
static PyObject *
verb_follow(verb *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 1 && arguments(nargs, 2) != 0) {
        return NULL;
    }
    PyObject *connection = args[0], *ring = NULL, *conclude = NULL;
    bool none = connection == Py_None;
    if (!none) {
        ring = PyObject_GetAttrString(connection, "ring");
        conclude = ring != NULL ? PyObject_GetAttrString(connection, "conclude") : NULL;
        if (conclude == NULL || !PyObject_TypeCheck(ring, producer_type)) {
            Py_XDECREF(ring);
            Py_XDECREF(conclude);
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_TypeError, "a verb follows a connection with a ring");
            }
            return NULL;
        }
    }
    PyObject *before[] = {self->connection, self->conclude, self->timeout,
                          (PyObject *)self->ring};
    self->connection = none ? NULL : Py_NewRef(connection);
    self->conclude = conclude;
    self->timeout = none ? NULL : Py_NewRef(nargs == 2 ? args[1] : Py_None);
    self->ring = (producer *)ring;
    for (int i = 0; i < 4; i++) {
        Py_XDECREF(before[i]);
    }
    Py_RETURN_NONE;
}

static PyObject *
verb_doc(verb *self, void *Py_UNUSED(closure))
{
    return PyObject_GetAttrString(self->slow, "__doc__");
}

static PyObject *
verb_repr(verb *self)
{
    return PyUnicode_FromFormat("<verb %R>", self->slow);
}

static PyMethodDef verb_methods[] = {
    {"follow", (PyCFunction)(void (*)(void))verb_follow, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef verb_properties[] = {
    {"__doc__", (getter)verb_doc, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef verb_members[] = {
    {"aio", T_OBJECT_EX, offsetof(verb, aio), READONLY, NULL},
    {"__wrapped__", T_OBJECT_EX, offsetof(verb, slow), READONLY, NULL},
    {"connection", T_OBJECT, offsetof(verb, connection), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot verb_slots[] = {
    {Py_tp_new, verb_new},
    {Py_tp_call, verb_call},
    {Py_tp_repr, verb_repr},
    {Py_tp_traverse, verb_traverse},
    {Py_tp_clear, verb_clear},
    {Py_tp_dealloc, verb_dealloc},
    {Py_tp_methods, verb_methods},
    {Py_tp_members, verb_members},
    {Py_tp_getset, verb_properties},
    {0, NULL},
};

PyType_Spec verb_spec = {
    .name = "shmbatch.protocol._core.Verb",
    .basicsize = sizeof(verb),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = verb_slots,
};
