/* arrays.c: what is done to NumPy's arrays by NumPy's own interface: making one, and looking
 * whether one is a row, or a stack of rows, of a column.
 *
 * The buffer protocol can do the same, and does for whatever is not found here: for an array of a
 * few bytes it takes several times as long, since NumPy then writes the dtype as text.
 */
#include "core.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <numpy/arrayobject.h>

int
array_dtype_check(PyObject *dtype)
{
    if (PyArray_ImportNumPyAPI() != 0) {
        return -1;
    }
    if (!PyArray_DescrCheck(dtype)) {
        PyErr_SetString(PyExc_TypeError, "a column's arrays are made by a dtype, or a callable");
        return -1;
    }
    return 0;
}

/* The memory of an array of exactly this dtype, *ndim* axes, and C order; else NULL. */
static char *
memory_of(const column *self, PyObject *value, int ndim)
{
    if (self->dtype == NULL || Py_TYPE(value) != &PyArray_Type) {
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)value;
    bool same = (PyObject *)PyArray_DESCR(array) == self->dtype && PyArray_NDIM(array) == ndim
                && PyArray_IS_C_CONTIGUOUS(array);
    return same ? PyArray_DATA(array) : NULL;
}

char *
array_of_row(const column *self, PyObject *value)
{
    char *memory = memory_of(self, value, self->ndim);
    return memory != NULL && has_row_shape(self, PyArray_DIMS((PyArrayObject *)value)) ? memory
                                                                                      : NULL;
}

/* The memory of a stack of rows, and how many these are. */
static char *
memory_of_rows(const column *self, PyObject *stack, Py_ssize_t *count)
{
    char *memory = memory_of(self, stack, self->ndim + 1);
    if (memory == NULL) {
        return NULL;
    }
    const npy_intp *axes = PyArray_DIMS((PyArrayObject *)stack);
    *count = axes[0];
    return has_row_shape(self, axes + 1) ? memory : NULL;
}

char *
array_of_rows(const column *self, PyObject *stack, Py_ssize_t count)
{
    Py_ssize_t length;
    char *memory = memory_of_rows(self, stack, &length);
    return memory != NULL && length == count ? memory : NULL;
}

char *
array_room(const column *self, PyObject *stack, Py_ssize_t count)
{
    Py_ssize_t length;
    char *memory = memory_of_rows(self, stack, &length);
    bool fits = memory != NULL && length >= count && PyArray_ISWRITEABLE((PyArrayObject *)stack);
    return fits ? memory : NULL;
}

PyObject *
array_new_row(const column *self)
{
    PyArray_Descr *dtype = (PyArray_Descr *)Py_NewRef(self->dtype); /* stolen */
    return PyArray_NewFromDescr(&PyArray_Type, dtype, self->ndim, self->shape, NULL, NULL, 0, NULL);
}

PyObject *
array_first_rows(const column *self, PyObject *stack, Py_ssize_t count)
{
    Py_ssize_t length;
    char *memory = memory_of_rows(self, stack, &length);
    if (memory == NULL || length < count) {
        return PySequence_GetSlice(stack, 0, count);
    }
    npy_intp axes[PyBUF_MAX_NDIM + 1] = {count};
    for (int axis = 0; axis < self->ndim; axis++) {
        axes[1 + axis] = self->shape[axis];
    }
    PyArray_Descr *dtype = (PyArray_Descr *)Py_NewRef(self->dtype);
    int flags = PyArray_FLAGS((PyArrayObject *)stack) & NPY_ARRAY_CARRAY;
    PyObject *first = PyArray_NewFromDescr(&PyArray_Type, dtype, self->ndim + 1, axes, NULL,
                                           memory, flags, NULL);
    if (first != NULL && PyArray_SetBaseObject((PyArrayObject *)first, Py_NewRef(stack)) != 0) {
        Py_CLEAR(first);
    }
    return first;
}

char *
array_memory(PyObject *row)
{
    return PyArray_DATA((PyArrayObject *)row);
}
