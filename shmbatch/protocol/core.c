/* core.c: futexes, forks, the bell, and the module; core.h says where the rest is. */
#include "calling.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

PyObject *pending_object;
PyObject *failed_object;

/* ---- futexes ---------------------------------------------------------------------------- */

int
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

void
futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* ---- noticing fork --------------------------------------------------------------------- */

uint64_t *fork_word;

uint64_t
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

/* ---- making and freeing objects ---------------------------------------------------------- */

void
free_self(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

void *
new_self(PyTypeObject *type)
{
    allocfunc allocate = PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

/* ---- Bell ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_buffer memory;
    ring_bell *shared;
    _Atomic uint32_t own; /* rings through this object */
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
    uint32_t asleep = ring_bell_ring(self->shared, true);
    atomic_fetch_add_explicit(&self->own, 1, memory_order_relaxed);
    return PyLong_FromUnsignedLong(asleep);
}

static PyObject *
bell_look(bell *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(ring_bell_look(self->shared));
}

/* spin(how, seen, until_ns, calls) -> word: at once if it does not read *seen* any more, for then
 * nobody knows how many of the calls were there before; else as soon as *calls* have rung, or this
 * process; *seen* when nobody has rung for as long as *how* says, at the latest after SPINS_MAX
 * times that, or when the clock says until_ns. One that always spins keeps its CPU anyway, and
 * looks at every ring. */
#define SPINS_MAX 4
static PyObject *
bell_spin(bell *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 4) != 0) {
        return NULL;
    }
    if (!PyObject_TypeCheck(args[0], spinning_type)) {
        PyErr_SetString(PyExc_TypeError, "expected a Spinning");
        return NULL;
    }
    spinning *how = (spinning *)args[0];
    unsigned long seen = PyLong_AsUnsignedLong(args[1]);
    uint64_t until_ns = PyLong_AsUnsignedLongLong(args[2]);
    unsigned long calls = PyLong_AsUnsignedLong(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    uint32_t own = atomic_load_explicit(&self->own, memory_order_relaxed);
    uint32_t word = ring_bell_look(self->shared);
    bool ends = word != seen, is_due = false;
    if (!ends && how->spin_ns > 0) {
        uint64_t spin_ns = (uint64_t)how->spin_ns;
        uint32_t rings = how->learns ? (uint32_t)calls : 1;
        Py_BEGIN_ALLOW_THREADS
        uint64_t at_ns = now_ns(), longest_ns = at_ns + SPINS_MAX * spin_ns;
        uint64_t limit_ns = longest_ns < until_ns ? longest_ns : until_ns;
        uint64_t end_ns = at_ns + spin_ns;
        uint32_t last = word;
        while (!ends && at_ns < end_ns && at_ns < limit_ns) {
            for (int i = 0; i < 32 && !ends; i++) {
                pause_cpu();
                word = ring_bell_look(self->shared);
                ends = ring_bell_rang((uint32_t)seen, word, rings);
            }
            ends = ends || atomic_load_explicit(&self->own, memory_order_relaxed) != own;
            at_ns = now_ns();
            end_ns = word != last ? at_ns + spin_ns : end_ns;
            last = word;
        }
        is_due = at_ns >= until_ns;
        Py_END_ALLOW_THREADS
        if (ends || !is_due) { /* else it had no more time, and was not in vain */
            spinning_count(how, ends);
        }
        word = ends ? ring_bell_look(self->shared) : (uint32_t)seen;
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

/* park(seen, timeout_ns, calls) -> int: sleep on the futex while the bell reads *seen* and fewer
 * than *calls* have rung, announced by PARKED in it; then return what it reads. */
static PyObject *
bell_park(bell *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    unsigned long seen = PyLong_AsUnsignedLong(args[0]);
    long long timeout_ns = PyLong_AsLongLong(args[1]);
    unsigned long calls = PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (timeout_ns > 0
        && ring_bell_arm(self->shared, (uint32_t)seen, RING_BELL_PARKED, (uint32_t)calls)) {
        uint32_t armed = (uint32_t)seen | RING_BELL_PARKED;
        int slept = futex_wait(&self->shared->word, armed, timeout_ns);
        ring_bell_disarm(self->shared);
        if (slept != 0) {
            return NULL;
        }
    }
    return PyLong_FromUnsignedLong(ring_bell_look(self->shared));
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

static PyType_Slot bell_slots[] = {
    {Py_tp_new, bell_new},
    {Py_tp_dealloc, bell_dealloc},
    {Py_tp_methods, bell_methods},
    {0, NULL},
};

static PyType_Spec bell_spec = {
    .name = "shmbatch.protocol._core.Bell",
    .basicsize = sizeof(bell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = bell_slots,
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
    {"close_apart", core_close_apart, METH_O, NULL},
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
        || add_type(module, &spinning_spec, &spinning_type) != 0
        || add_type(module, &producer_spec, &producer_type) != 0
        || add_type(module, &loan_spec, &loan_type) != 0
        || add_type(module, &lent_spec, &lent_type) != 0
        || add_type(module, &failure_spec, &failure_type) != 0
        || add_type(module, &call_spec, &call_type) != 0
        || add_type(module, &get_verb_spec, NULL) != 0
        || add_type(module, &verb_spec, &verb_type) != 0
        || add_type(module, &executor_spec, &executor_type) != 0
        || add_type(module, &batch_spec, &batch_type) != 0
        || add_type(module, &phases_spec, &phases_type) != 0
        || add_type(module, &inbox_spec, NULL) != 0
        || add_type(module, &watchdog_spec, NULL) != 0) {
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
        {"EXPELLED", RING_EXPELLED},
        {"REPLACED", RING_REPLACED},
        {"SPAWNED", SUBMIT_SPAWNED},
        {"SUBMIT_FULL", SUBMIT_FULL},
        {"SUBMIT_MISFIT", SUBMIT_MISFIT},
        {"SUBMIT_CLOSED", SUBMIT_CLOSED},
        {"SUBMIT_FORKED", SUBMIT_FORKED},
        {"SUBMIT_LENT", SUBMIT_LENT},
        {"WAITING", WAITING},
        {"STAGING", STAGING},
        {"RUNNING", RUNNING},
        {"DELIVERING", DELIVERING},
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
