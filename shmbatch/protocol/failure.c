/* failure.c: Failure, what an outcome is that is no value. */
#include "calling.h"

PyTypeObject *failure_type;

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
