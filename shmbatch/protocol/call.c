/* call.c: Call, a call that was published and whose outcome somebody may ask for; and GetVerb, its
 * `get`.
 */
#include "calling.h"

PyTypeObject *call_type;

/* ---- what Python is told ------------------------------------------------------------------ */

static int
ask(PyObject *object, const char *method)
{
    PyObject *answer = PyObject_CallMethod(object, method, NULL);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

PyObject *
take_outcome(producer *ring, uint64_t ticket, int64_t spin_ns, bool parks, bool *interrupted)
{
    int64_t index = producer_find(ring, ticket);
    PyObject *outcome = index < 0 ? Py_NewRef(pending_object)
                                  : producer_take(ring, (uint32_t)index, spin_ns);
    if (outcome != pending_object || !parks) {
        return outcome;
    }
    int done = producer_sleep(ring, ticket);
    if (done < 0) {
        *interrupted = true;
        Py_DECREF(outcome);
        return NULL;
    }
    index = producer_find(ring, ticket); /* another thread may have been faster */
    if (done == 1 && index >= 0 && !ring->queueing) {
        Py_DECREF(outcome);
        outcome = producer_take(ring, (uint32_t)index, 0);
    }
    return outcome;
}

int
tell_queue(PyObject *connection, const producer *ring)
{
    return ring->queueing ? ask(connection, "tell_queue") : 0;
}

/* ---- Call ------------------------------------------------------------------------------- */

enum { CALL_WAITING = 0, CALL_VALUE = 1, CALL_ERROR = 2, CALL_LENT = 3 };

typedef struct {
    PyObject_HEAD
    PyObject *connection;
    producer *ring;
    PyObject *limits;
    PyObject *outcome; /* always set before `state` */
    long long ticket;
    int state;
    unsigned sleepers; /* threads that sleep for it in here */
    char unlimited;    /* the verb that made it has no limits */
    char shared; /* somebody waits for it, and is to be told when this thread has its outcome */
} call;

static void
call_begin(call *self, PyObject *connection, producer *ring, PyObject *limits)
{
    self->connection = Py_NewRef(connection);
    self->ring = (producer *)Py_NewRef((PyObject *)ring);
    self->limits = Py_NewRef(limits);
    self->outcome = Py_NewRef(Py_None);
    self->state = CALL_ERROR; /* until it is published there is nothing to give up */
}

/* Call(connection, ticket, limits): a call that was published over *connection*. */
static PyObject *
call_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *connection, *limits;
    long long ticket;
    if (!PyArg_ParseTuple(args, "OLO:Call", &connection, &ticket, &limits)) {
        return NULL;
    }
    PyObject *ring = PyObject_GetAttrString(connection, "ring");
    if (ring == NULL || !PyObject_TypeCheck(ring, producer_type)) {
        Py_XDECREF(ring);
        PyErr_SetString(PyExc_TypeError, "a call needs a connection with a ring");
        return NULL;
    }
    call *self = new_self(type);
    if (self != NULL) {
        call_begin(self, connection, (producer *)ring, limits);
        self->ticket = ticket;
        self->state = CALL_WAITING;
    }
    Py_DECREF(ring);
    return (PyObject *)self;
}

PyObject *
call_spawn(PyTypeObject *made, PyObject *connection, PyObject *limits, producer *ring,
           loan *reserved, PyObject *values, uint64_t deadline_ns, long *refusal)
{
    call *self = new_self(made);
    if (self == NULL) {
        *refusal = SUBMIT_RAISED;
        return NULL;
    }
    uint64_t ticket;
    call_begin(self, connection, ring, limits);
    *refusal = producer_begin(ring, reserved, values, SUBMIT_SPAWNED, deadline_ns, &ticket);
    if (*refusal != 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->ticket = (long long)ticket;
    self->unlimited = reserved == NULL; /* so a verb says; of others Python knows */
    self->state = CALL_WAITING;
    return (PyObject *)self;
}

static int
call_traverse(call *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->connection);
    Py_VISIT((PyObject *)self->ring);
    Py_VISIT(self->limits);
    Py_VISIT(self->outcome);
    return 0;
}

static int
call_clear(call *self)
{
    Py_CLEAR(self->connection);
    Py_CLEAR(self->ring);
    Py_CLEAR(self->limits);
    Py_CLEAR(self->outcome);
    return 0;
}

/* Have Python give up a call that nobody will ask for any more. */
static void
call_finalize(call *self)
{
    if (self->state != CALL_WAITING || self->ring == NULL) {
        return;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (ask((PyObject *)self, "_dropped") != 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyErr_Restore(type, value, trace);
}

static void
call_dealloc(call *self)
{
    PyObject_GC_UnTrack((PyObject *)self);
    call_clear(self);
    free_self((PyObject *)self);
}

/* The outcome was lost on its way because of the exception that is set. */
static void
call_lost(call *self)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject *done = PyObject_CallMethod((PyObject *)self, "_lost", "O", error);
    if (done == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(done);
    PyErr_Restore(type, error, trace);
}

/* Take the outcome, spinning for it at most *spin_ns* and then, if it *parks*, sleeping. 1: the
 * call is done; 0: it is not, or it is for Python to say; -1: an exception. */
static int
call_settle(call *self, int64_t spin_ns, bool parks)
{
    if (self->state != CALL_WAITING) {
        return 1;
    }
    producer *ring = self->ring;
    if (ring == NULL || ring->queueing || producer_forked(ring)) {
        return 0;
    }
    bool interrupted = false;
    self->sleepers += parks;
    PyObject *outcome = take_outcome(ring, (uint64_t)self->ticket, spin_ns, parks, &interrupted);
    self->sleepers -= parks;
    if (outcome == NULL) {
        if (!interrupted) {
            call_lost(self);
        } /* else the call goes on */
        return -1;
    }
    if (outcome == pending_object || outcome == failed_object) {
        Py_DECREF(outcome);
        return self->state != CALL_WAITING;
    }
    int state = CALL_VALUE;
    if (Py_TYPE(outcome) == failure_type) {
        PyObject *error = Py_NewRef(((failure *)outcome)->error);
        Py_DECREF(outcome);
        outcome = error;
        state = CALL_ERROR;
    }
    PyObject *before = self->outcome;
    self->outcome = outcome;
    self->state = state;
    Py_XDECREF(before);
    if ((self->shared || self->sleepers > 0) && ask((PyObject *)self, "_tell") != 0) {
        return -1;
    }
    return tell_queue(self->connection, ring) != 0 ? -1 : 1;
}

/* _settle() -> bool: take the outcome if it is there; True once it is. Does not block. */
static PyObject *
call_settle_now(call *self, PyObject *Py_UNUSED(ignored))
{
    int done = call_settle(self, 0, false);
    if (done < 0) {
        return NULL;
    }
    return done ? Py_NewRef(Py_True)
                : PyObject_CallMethod((PyObject *)self, "_settle_otherwise", NULL);
}

/* _lend(spin_ns, tell) -> Lent, PENDING or None, as producer_lend; with a Lent the call is over, and
 * has no outcome for anybody else. */
static PyObject *
call_lend(call *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    long long spin_ns = PyLong_AsLongLong(args[0]);
    if (spin_ns == -1 && PyErr_Occurred()) {
        return NULL;
    }
    producer *ring = self->ring;
    if (self->state != CALL_WAITING || ring == NULL || producer_forked(ring)) {
        Py_RETURN_NONE;
    }
    int64_t index = producer_find(ring, (uint64_t)self->ticket);
    if (index < 0) {
        Py_RETURN_NONE;
    }
    PyObject *found = producer_lend(ring, (uint32_t)index, spin_ns, args[1]);
    if (found != NULL && Py_TYPE(found) == lent_type) {
        self->state = CALL_LENT;
    }
    return found;
}

static PyMethodDef call_methods[] = {
    {"_settle", (PyCFunction)call_settle_now, METH_NOARGS, NULL},
    {"_lend", (PyCFunction)(void (*)(void))call_lend, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef call_members[] = {
    {"_connection", T_OBJECT_EX, offsetof(call, connection), READONLY, NULL},
    {"_ticket", T_LONGLONG, offsetof(call, ticket), READONLY, NULL},
    {"_limits", T_OBJECT_EX, offsetof(call, limits), 0, NULL},
    {"_outcome", T_OBJECT_EX, offsetof(call, outcome), 0, NULL},
    {"_state", T_INT, offsetof(call, state), 0, NULL},
    {"_shared", T_BOOL, offsetof(call, shared), 0, NULL},
    {"_sleepers", T_UINT, offsetof(call, sleepers), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_new, call_new},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, call_clear},
    {Py_tp_finalize, call_finalize},
    {Py_tp_dealloc, call_dealloc},
    {Py_tp_methods, call_methods},
    {Py_tp_members, call_members},
    {0, NULL},
};

PyType_Spec call_spec = {
    .name = "shmbatch.protocol._core.Call",
    .basicsize = sizeof(call),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = call_slots,
};

/* ---- GetVerb ---------------------------------------------------------------------------- */

/* `get` in the class of calls: as a method that is called, never bound. */
typedef struct {
    PyObject_HEAD
    PyObject *method;
    PyObject *twin;
} get_verb;

static PyObject *
get_verb_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *method, *twin;
    if (!PyArg_ParseTuple(args, "OO:GetVerb", &method, &twin)) {
        return NULL;
    }
    get_verb *self = new_self(type);
    if (self != NULL) {
        self->method = Py_NewRef(method);
        self->twin = Py_NewRef(twin);
    }
    return (PyObject *)self;
}

static int
get_verb_traverse(get_verb *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->method);
    Py_VISIT(self->twin);
    return 0;
}

static int
get_verb_clear(get_verb *self)
{
    Py_CLEAR(self->method);
    Py_CLEAR(self->twin);
    return 0;
}

static void
get_verb_dealloc(get_verb *self)
{
    PyObject_GC_UnTrack((PyObject *)self);
    get_verb_clear(self);
    free_self((PyObject *)self);
}

static PyObject *
get_verb_call(get_verb *self, PyObject *args, PyObject *kwargs)
{
    if (PyErr_CheckSignals() != 0) { /* before anything: a loop in C may be what calls */
        return NULL;
    }
    PyObject *object = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : NULL;
    if (object != NULL && PyObject_TypeCheck(object, call_type)) {
        call *of = (call *)object;
        bool bare = PyTuple_Size(args) == 1 && (kwargs == NULL || PyDict_Size(kwargs) == 0);
        /* A time that was given, or the call's own, is for Python to watch. */
        bool parks = bare && of->unlimited;
        if (call_settle(of, of->ring != NULL ? producer_spin_ns(of->ring) : 0, parks) < 0) {
            return NULL;
        }
        if (bare && of->state == CALL_VALUE) {
            return Py_NewRef(of->outcome);
        }
    }
    return PyObject_Call(self->method, args, kwargs);
}

/* The verb of one call: what binding the method and its twin makes. */
static PyObject *
get_verb_bind(get_verb *self, PyObject *instance, PyObject *owner)
{
    (void)owner;
    if (instance == NULL || instance == Py_None) {
        return Py_NewRef((PyObject *)self);
    }
    PyObject *slow = PyObject_CallMethod(self->method, "__get__", "O", instance);
    PyObject *aio = slow ? PyObject_CallMethod(self->twin, "__get__", "O", instance) : NULL;
    PyObject *bound =
        aio ? PyObject_CallFunction((PyObject *)verb_type, "OO", slow, aio) : NULL;
    Py_XDECREF(slow);
    Py_XDECREF(aio);
    return bound;
}

static PyObject *
get_verb_doc(get_verb *self, void *Py_UNUSED(closure))
{
    return PyObject_GetAttrString(self->method, "__doc__");
}

static PyGetSetDef get_verb_properties[] = {
    {"__doc__", (getter)get_verb_doc, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef get_verb_members[] = {
    {"__wrapped__", T_OBJECT_EX, offsetof(get_verb, method), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot get_verb_slots[] = {
    {Py_tp_new, get_verb_new},
    {Py_tp_call, get_verb_call},
    {Py_tp_descr_get, get_verb_bind},
    {Py_tp_traverse, get_verb_traverse},
    {Py_tp_clear, get_verb_clear},
    {Py_tp_dealloc, get_verb_dealloc},
    {Py_tp_members, get_verb_members},
    {Py_tp_getset, get_verb_properties},
    {0, NULL},
};

PyType_Spec get_verb_spec = {
    .name = "shmbatch.protocol._core.GetVerb",
    .basicsize = sizeof(get_verb),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .slots = get_verb_slots,
};
