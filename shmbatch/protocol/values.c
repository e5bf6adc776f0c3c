/* values.c: values that are not 8 bytes, between a Python object and the bytes of a slot. */
#include "core.h"

#define ALIGNMENT 16 /* of what follows a length, and of every piece of a packed value */
#define LENGTH_NBYTES 16

static Py_ssize_t
align_up(Py_ssize_t nbytes)
{
    return (nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Bytes of the largest value; -1 if that is more than *limit*, or than can be counted on the way. */
static Py_ssize_t
largest_nbytes(const column *self, Py_ssize_t limit)
{
    Py_ssize_t nbytes = self->itemsize;
    bool empty = false;
    for (int axis = 0; axis < self->ndim; axis++) {
        Py_ssize_t length = self->shape[axis];
        if (length < -PY_SSIZE_T_MAX) {
            return -1;
        }
        length = length < 0 ? -length : length;
        if (length == 0) {
            empty = true;
        } else if (nbytes > PY_SSIZE_T_MAX / length) {
            return -1;
        } else {
            nbytes *= length;
        }
    }
    return empty ? 0 : nbytes <= limit ? nbytes : -1;
}

static bool
column_fits(column *self)
{
    switch (self->kind) {
    case KIND_INT:
    case KIND_FLOAT:
    case KIND_BOOL:
        return self->nbytes == 8;
    case KIND_ARRAY:
        return true;
    case KIND_STR:
    case KIND_BYTES:
    case KIND_PACKED:
        self->offset = LENGTH_NBYTES;
        self->room = self->nbytes - LENGTH_NBYTES;
        if (self->itemsize > 0 && self->itemsize <= self->room) {
            self->room = self->itemsize; /* what was asked for, not rounded up */
        }
        return self->nbytes % ALIGNMENT == 0 && self->room >= 0;
    case KIND_RAGGED:
        self->offset = align_up(self->ndim * (Py_ssize_t)sizeof(int64_t));
        self->room = self->nbytes - self->offset;
        return self->nbytes % ALIGNMENT == 0 && self->room >= 0 && self->itemsize > 0
               && self->ndim > 0 && largest_nbytes(self, self->room) >= 0;
    default:
        return false;
    }
}

int
column_init(column *self, PyObject *description, const Py_buffer *segment, uint32_t capacity)
{
    Py_ssize_t offset, itemsize = 0;
    PyObject *carrier, *shape, *allocate;
    const char *format;
    if (!PyArg_ParseTuple(description, "innOsO!O|n", &self->kind, &offset, &self->nbytes,
                          &carrier, &format, &PyTuple_Type, &shape, &allocate, &itemsize)) {
        return -1;
    }
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (offset < 0 || offset % 64 != 0 || offset > segment->len || self->nbytes < 0
        || (self->nbytes > 0 && (segment->len - offset) / self->nbytes < (Py_ssize_t)capacity)
        || ndim > PyBUF_MAX_NDIM || strlen(format) >= sizeof(self->format)) {
        PyErr_SetString(PyExc_ValueError, "column does not fit its segment");
        return -1;
    }
    strcpy(self->format, format);
    self->itemsize = itemsize;
    self->ndim = (int)ndim;
    for (Py_ssize_t axis = 0; axis < ndim; axis++) {
        self->shape[axis] = PyLong_AsSsize_t(PyTuple_GetItem(shape, axis));
        if (self->shape[axis] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (!column_fits(self)) {
        PyErr_SetString(PyExc_ValueError, "column does not fit its kind");
        return -1;
    }
    bool has_dtype =
        self->kind == KIND_ARRAY && allocate != Py_None && !PyCallable_Check(allocate);
    if (has_dtype && array_dtype_check(allocate) != 0) {
        return -1;
    }
    if (has_dtype && largest_nbytes(self, PY_SSIZE_T_MAX) != self->nbytes) {
        PyErr_SetString(PyExc_ValueError, "column does not have the bytes of its shape");
        return -1;
    }
    self->base = (char *)segment->buf + offset;
    self->carrier = Py_NewRef(carrier);
    self->allocate = Py_NewRef(allocate);
    self->dtype = has_dtype ? allocate : NULL;
    return 0;
}

void
column_clear(column *self)
{
    self->dtype = NULL;
    Py_CLEAR(self->carrier);
    Py_CLEAR(self->allocate);
}

/* ---- into a slot ------------------------------------------------------------------------ */

static int
hold_str(const column *self, PyObject *value, held_value *held)
{
    /* The length in characters first: a long string is not encoded only to be refused. */
    if (!PyUnicode_CheckExact(value) || PyUnicode_GetLength(value) > self->room) {
        return 0;
    }
    held->bytes = PyUnicode_AsUTF8AndSize(value, &held->nbytes);
    if (held->bytes == NULL) {
        PyErr_Clear(); /* a surrogate */
        return 0;
    }
    return held->nbytes <= self->room;
}

static int
hold_bytes(const column *self, PyObject *value, held_value *held)
{
    if (!PyBytes_CheckExact(value)) {
        return 0;
    }
    held->bytes = PyBytes_AsString(value);
    held->nbytes = PyBytes_Size(value);
    return held->nbytes <= self->room;
}

static int
hold_pieces(const column *self, PyObject *value, held_value *held)
{
    if ((PyObject *)Py_TYPE(value) != self->carrier || !PyTuple_Check(value)) {
        return 0;
    }
    Py_ssize_t count = PyTuple_Size(value);
    Py_buffer *pieces = PyMem_Malloc((size_t)(count ? count : 1) * sizeof(*pieces));
    if (pieces == NULL) {
        return 0;
    }
    held->owned = pieces;
    held->pieces = 0;
    held->nbytes = 0;
    for (; held->pieces < count; held->pieces++) {
        Py_buffer *piece = &pieces[held->pieces];
        if (PyObject_GetBuffer(PyTuple_GetItem(value, held->pieces), piece, PyBUF_SIMPLE) != 0) {
            PyErr_Clear();
            break;
        }
        Py_ssize_t start = align_up(held->nbytes);
        if (start > self->room || piece->len > self->room - start) {
            PyBuffer_Release(piece);
            break;
        }
        held->nbytes = start + piece->len;
    }
    if (held->pieces < count) {
        let_go_other(self, held);
        return 0;
    }
    return 1;
}

static bool
axes_fit(const column *self, const Py_ssize_t *axes)
{
    for (int axis = 0; axis < self->ndim; axis++) {
        Py_ssize_t most = self->shape[axis];
        if (most < 0 ? axes[axis] < 0 || axes[axis] > -most : axes[axis] != most) {
            return false;
        }
    }
    return true;
}

/* A tuple (shape, buffer): the array's bytes, and the shape they have. */
static int
hold_shaped_bytes(const column *self, PyObject *value, held_value *held)
{
    PyObject *shape = PyTuple_Size(value) == 2 ? PyTuple_GetItem(value, 0) : NULL;
    if (shape == NULL || !PyTuple_CheckExact(shape) || PyTuple_Size(shape) != self->ndim) {
        return 0;
    }
    Py_ssize_t *axes = PyMem_Malloc((size_t)(self->ndim ? self->ndim : 1) * sizeof(*axes));
    if (axes == NULL) {
        return 0;
    }
    held->owned = axes;
    held->axes = axes;
    held->nbytes = self->itemsize;
    bool fits = true;
    for (int axis = 0; axis < self->ndim; axis++) {
        axes[axis] = PyLong_AsSsize_t(PyTuple_GetItem(shape, axis));
        fits = fits && axes[axis] >= 0;
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        fits = false;
    }
    fits = fits && axes_fit(self, axes);
    for (int axis = 0; fits && axis < self->ndim; axis++) {
        held->nbytes *= axes[axis]; /* cannot overflow: see column_fits */
    }
    if (fits && PyObject_GetBuffer(PyTuple_GetItem(value, 1), &held->view, PyBUF_SIMPLE) == 0) {
        if (held->view.len == held->nbytes) {
            return 1;
        }
    }
    PyErr_Clear();
    let_go_other(self, held);
    return 0;
}

static int
hold_array(const column *self, PyObject *value, held_value *held)
{
    if ((PyObject *)Py_TYPE(value) != self->carrier) {
        return 0;
    }
    if (self->kind == KIND_RAGGED && PyTuple_Check(value)) {
        return hold_shaped_bytes(self, value, held);
    }
    Py_buffer *view = &held->view;
    char *memory = self->kind == KIND_ARRAY ? array_of_row(self, value) : NULL;
    if (memory != NULL) {
        held->nbytes = self->nbytes;
        return PyBuffer_FillInfo(view, value, memory, self->nbytes, true, PyBUF_SIMPLE) == 0;
    }
    if (PyObject_GetBuffer(value, view, PyBUF_ND | PyBUF_FORMAT) != 0) {
        PyErr_Clear(); /* not contiguous, or no buffer of that dtype */
        return 0;
    }
    held->nbytes = view->len;
    held->axes = view->shape;
    if (view->ndim == self->ndim && strcmp(view->format, self->format) == 0) {
        if (self->kind == KIND_RAGGED
                ? axes_fit(self, view->shape)
                : view->len == self->nbytes && has_row_shape(self, view->shape)) {
            return 1;
        }
    }
    let_go_other(self, held);
    return 0;
}

int
hold_other(const column *self, PyObject *value, held_value *held)
{
    held->view.obj = NULL;
    held->owned = NULL;
    switch (self->kind) {
    case KIND_STR:
        return hold_str(self, value, held);
    case KIND_BYTES:
        return hold_bytes(self, value, held);
    case KIND_PACKED:
        return hold_pieces(self, value, held);
    case KIND_ARRAY:
    case KIND_RAGGED:
        return hold_array(self, value, held);
    default:
        return 0;
    }
}

void
store_other(const column *self, const held_value *held, char *at)
{
    uint64_t length = (uint64_t)held->nbytes;
    switch (self->kind) {
    case KIND_STR:
    case KIND_BYTES:
        memcpy(at, &length, sizeof(length));
        memcpy(at + self->offset, held->bytes, length);
        break;
    case KIND_PACKED: {
        memcpy(at, &length, sizeof(length));
        const Py_buffer *pieces = held->owned;
        Py_ssize_t end = 0;
        for (Py_ssize_t i = 0; i < held->pieces; i++) {
            Py_ssize_t start = align_up(end);
            memset(at + self->offset + end, 0, (size_t)(start - end));
            memcpy(at + self->offset + start, pieces[i].buf, (size_t)pieces[i].len);
            end = start + pieces[i].len;
        }
        break;
    }
    case KIND_RAGGED:
        for (int axis = 0; axis < self->ndim; axis++) {
            int64_t length_of = held->axes[axis];
            memcpy(at + axis * (Py_ssize_t)sizeof(length_of), &length_of, sizeof(length_of));
        }
        memcpy(at + self->offset, held->view.buf, length);
        break;
    case KIND_ARRAY:
        if (held->view.buf != at) { /* else it was written in place */
            memcpy(at, held->view.buf, length);
        }
        break;
    }
}

void
let_go_other(const column *self, held_value *held)
{
    if (held->view.obj != NULL) {
        PyBuffer_Release(&held->view);
    }
    if (held->owned != NULL) {
        Py_buffer *pieces = held->owned;
        for (Py_ssize_t i = 0; self->kind == KIND_PACKED && i < held->pieces; i++) {
            PyBuffer_Release(&pieces[i]);
        }
        PyMem_Free(held->owned);
        held->owned = NULL;
    }
}

int
put_other(const column *self, PyObject *value, char *at)
{
    held_value held;
    if (!hold_other(self, value, &held)) {
        return 0;
    }
    if (held.nbytes >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        store_other(self, &held, at);
        Py_END_ALLOW_THREADS
    } else {
        store_other(self, &held, at);
    }
    let_go_other(self, &held);
    return 1;
}

/* ---- out of a slot ----------------------------------------------------------------------- */

/* Copy into an array that nobody else knows yet. */
static void
copy_out(char *to, const char *from, Py_ssize_t nbytes)
{
    if (nbytes >= RELEASE_GIL_NBYTES) {
        Py_BEGIN_ALLOW_THREADS
        memcpy(to, from, (size_t)nbytes);
        Py_END_ALLOW_THREADS
    } else {
        memcpy(to, from, (size_t)nbytes);
    }
}

static PyObject *
load_array(const column *self, const char *from)
{
    PyObject *array = array_new_row(self);
    if (array != NULL) {
        copy_out(array_memory(array), from, self->nbytes);
    }
    return array;
}

/* Copy *nbytes* into what self->allocate(argument) makes; argument is stolen, NULL for none. */
static PyObject *
load_allocated(const column *self, PyObject *argument, const char *from, Py_ssize_t nbytes)
{
    PyObject *array = argument == NULL
                          ? PyObject_CallNoArgs(self->allocate)
                          : PyObject_CallFunctionObjArgs(self->allocate, argument, NULL);
    Py_XDECREF(argument);
    if (array == NULL || nbytes == 0) {
        return array;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_WRITABLE) != 0) {
        Py_DECREF(array);
        return NULL;
    }
    if (view.len != nbytes) {
        PyErr_SetString(PyExc_ValueError, "allocated array has the wrong size");
        Py_CLEAR(array);
    } else {
        copy_out(view.buf, from, nbytes);
    }
    PyBuffer_Release(&view);
    return array;
}

void
ragged_shape(const column *self, const char *at, Py_ssize_t *axes)
{
    for (int axis = 0; axis < self->ndim; axis++) {
        int64_t length;
        memcpy(&length, at + axis * (Py_ssize_t)sizeof(length), sizeof(length));
        Py_ssize_t most = self->shape[axis];
        if (most >= 0) {
            axes[axis] = most;
        } else {
            axes[axis] = length < 0 ? 0 : length > -most ? -most : (Py_ssize_t)length;
        }
    }
}

static PyObject *
load_ragged(const column *self, const char *at)
{
    Py_ssize_t axes[PyBUF_MAX_NDIM];
    ragged_shape(self, at, axes);
    Py_ssize_t nbytes = self->itemsize;
    PyObject *shape = PyTuple_New(self->ndim);
    for (int axis = 0; shape != NULL && axis < self->ndim; axis++) {
        nbytes *= axes[axis];
        PyObject *length = PyLong_FromSsize_t(axes[axis]);
        if (length == NULL || PyTuple_SetItem(shape, axis, length) != 0) {
            Py_CLEAR(shape);
        }
    }
    return shape == NULL ? NULL : load_allocated(self, shape, at + self->offset, nbytes);
}

/* Bytes of a value with a length; a wrong one cannot lead out of the slot. */
static Py_ssize_t
load_length(const column *self, const char *at)
{
    uint64_t length;
    memcpy(&length, at, sizeof(length));
    return length <= (uint64_t)self->room ? (Py_ssize_t)length : self->room;
}

/* What we encoded decodes; what a scribbler wrote gives a string of some kind. */
static PyObject *
load_str(const column *self, const char *at)
{
    char small[512]; /* a copy, since the decoder reads twice */
    Py_ssize_t length = load_length(self, at);
    char *copy = length <= (Py_ssize_t)sizeof(small) ? small : PyMem_Malloc((size_t)length);
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    memcpy(copy, at + self->offset, (size_t)length);
    PyObject *text = PyUnicode_DecodeUTF8(copy, length, "replace");
    if (copy != small) {
        PyMem_Free(copy);
    }
    return text;
}

/* A bytes object of *length* bytes. */
static PyObject *
load_bytes(const char *from, Py_ssize_t length)
{
    if (length < RELEASE_GIL_NBYTES) {
        return PyBytes_FromStringAndSize(from, length);
    }
    PyObject *copy = PyBytes_FromStringAndSize(NULL, length);
    if (copy != NULL) {
        copy_out(PyBytes_AsString(copy), from, length);
    }
    return copy;
}

static PyObject *
load_packed(const column *self, const char *at)
{
    Py_ssize_t length = load_length(self, at);
    if (self->allocate == Py_None) {
        return load_bytes(at + self->offset, length);
    }
    PyObject *argument = PyLong_FromSsize_t(length);
    return argument == NULL ? NULL : load_allocated(self, argument, at + self->offset, length);
}

PyObject *
load_other(const column *self, const char *at)
{
    switch (self->kind) {
    case KIND_STR:
        return load_str(self, at);
    case KIND_BYTES:
        return load_bytes(at + self->offset, load_length(self, at));
    case KIND_PACKED:
        return load_packed(self, at);
    case KIND_RAGGED:
        return load_ragged(self, at);
    default:
        return self->dtype != NULL ? load_array(self, at)
                                   : load_allocated(self, NULL, at, self->nbytes);
    }
}

/* ---- padding ------------------------------------------------------------------------------ */

/* Copy axis *axis* and what is inside it; *inner_nbytes* are those of one element of the last. */
static void
pad_axes(const Py_ssize_t *axes, const Py_ssize_t *padded, int axis, int ragged_axes,
         Py_ssize_t inner_nbytes, const char **from, char **to)
{
    /* Bytes of one element of this axis, in the padded block. */
    Py_ssize_t stride = inner_nbytes;
    for (int later = axis + 1; later < ragged_axes; later++) {
        stride *= padded[later];
    }
    if (axis == ragged_axes - 1) {
        memcpy(*to, *from, (size_t)(axes[axis] * stride));
        *from += axes[axis] * stride;
        *to += axes[axis] * stride;
    } else {
        for (Py_ssize_t i = 0; i < axes[axis]; i++) {
            pad_axes(axes, padded, axis + 1, ragged_axes, inner_nbytes, from, to);
        }
    }
    Py_ssize_t behind = (padded[axis] - axes[axis]) * stride;
    memset(*to, 0, (size_t)behind);
    *to += behind;
}

void
ragged_pad(const column *self, const char *at, const Py_ssize_t *axes, const Py_ssize_t *padded,
           char *to)
{
    /* Axes behind the last one that differs are copied in one piece with it. */
    int ragged_axes = self->ndim;
    Py_ssize_t inner_nbytes = self->itemsize;
    while (ragged_axes > 1 && axes[ragged_axes - 1] == padded[ragged_axes - 1]) {
        inner_nbytes *= padded[--ragged_axes];
    }
    const char *from = at + self->offset;
    pad_axes(axes, padded, 0, ragged_axes, inner_nbytes, &from, &to);
}
