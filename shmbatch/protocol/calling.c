/* calling.c: Verb, Call and GetVerb, a call from its handle and back without a line of Python; and
 * Failure, what an outcome is that is no value.
 *
 *     handle.remote(x)   Verb     submit, spin, take the result
 *     handle.spawn(x)    Verb     submit, make a Call
 *     call.get()         GetVerb  spin, take the result
 *
 * That is so while nothing is in the way. Whatever else there is, a keyword, a limit, a misfit, a
 * full ring, a dead executor, a result that is not there yet, goes to the method in Python that
 * each of them has, which does the whole of it, or what is left.
 */
#include "producer.h"

PyTypeObject *call_type, *failure_type, *verb_type;

/* ---- Failure ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *error;
} failure;

static PyObject *
failure_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *error;
    if (!PyArg_ParseTuple(args, "O:Failure", &error)) {
        return NULL;
    }
    failure *self = new_self(type);
    if (self != NULL) {
        self->error = Py_NewRef(error);
    }
    return (PyObject *)self;
}

static int
failure_traverse(failure *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->error);
    return 0;
}

static int
failure_clear(failure *self)
{
    Py_CLEAR(self->error);
    return 0;
}

static void
failure_dealloc(failure *self)
{
    PyObject_GC_UnTrack((PyObject *)self);
    failure_clear(self);
    free_self((PyObject *)self);
}

PyObject *
failure_of_exception(void)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return NULL;
    }
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace != NULL) {
        PyException_SetTraceback(error, trace);
    }
    failure *self = new_self(failure_type);
    if (self != NULL) {
        self->error = Py_NewRef(error);
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return (PyObject *)self;
}

static PyMemberDef failure_members[] = {
    {"error", T_OBJECT_EX, offsetof(failure, error), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot failure_slots[] = {
    {Py_tp_new, failure_new},
    {Py_tp_traverse, failure_traverse},
    {Py_tp_clear, failure_clear},
    {Py_tp_dealloc, failure_dealloc},
    {Py_tp_members, failure_members},
    {0, NULL},
};

PyType_Spec failure_spec = {
    .name = "shmbatch.protocol._core.Failure",
    .basicsize = sizeof(failure),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = failure_slots,
};

/* ---- what Python is told ------------------------------------------------------------------ */

static int
ask(PyObject *object, const char *method)
{
    PyObject *answer = PyObject_CallMethod(object, method, NULL);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Sleep for a call, as producer_sleep, and have Python learn from it how long to spin next time,
 * unless it would say what it said before: not at all. */
static int
sleep_for(PyObject *connection, producer *ring, uint64_t ticket)
{
    int done = producer_sleep(ring, ticket);
    bool learns = ring->crowd > 0 && (ring->spin_ns > 0 || producer_active_now(ring) < ring->crowd);
    return done == 1 && learns && ask(connection, "parked") != 0 ? -1 : done;
}

/* Take the outcome of a call, spinning for it and then, if it *parks*, sleeping; as producer_take.
 * NULL, and *interrupted*, where a signal handler raised: nothing has been taken then. */
static PyObject *
take_outcome(PyObject *connection, producer *ring, uint64_t ticket, int64_t spin_ns, bool parks,
             bool *interrupted)
{
    int64_t index = producer_find(ring, ticket);
    PyObject *outcome = index < 0 ? Py_NewRef(pending_object)
                                  : producer_take(ring, (uint32_t)index, spin_ns);
    if (outcome != pending_object || !parks) {
        return outcome;
    }
    int done = sleep_for(connection, ring, ticket);
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

/* A slot has been freed: somebody may have begun to queue for one while this thread spun. */
static int
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

/* As call_spawn; inline, since every call of a verb comes through here. */
static inline PyObject *
spawned(PyTypeObject *made, PyObject *connection, PyObject *limits, producer *ring, loan *reserved,
        PyObject *values, uint64_t deadline_ns, long *refusal)
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

PyObject *
call_spawn(PyTypeObject *made, PyObject *connection, PyObject *limits, producer *ring,
           loan *reserved, PyObject *values, uint64_t deadline_ns, long *refusal)
{
    return spawned(made, connection, limits, ring, reserved, values, deadline_ns, refusal);
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
    PyObject *outcome = take_outcome(self->connection, ring, (uint64_t)self->ticket, spin_ns,
                                     parks, &interrupted);
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
        if (call_settle(of, of->ring != NULL ? of->ring->spin_ns : 0, parks) < 0) {
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

/* ---- Verb ------------------------------------------------------------------------------- */

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
    PyObject *outcome = take_outcome(connection, ring, ticket, ring->spin_ns,
                                     timeout == Py_None, &interrupted);
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
        result = spawned(self->made, connection, self->limits, ring, NULL, args, 0, &refusal);
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
