/* segment.c: a segment as either end sees it, bound to what the caller's own layout says. */
#include "core.h"

void
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

int
check_words(const Py_buffer *view, Py_ssize_t offset, Py_ssize_t nbytes)
{
    if (offset < 0 || offset % 64 != 0 || nbytes < 0 || offset > view->len
        || view->len - offset < nbytes) {
        PyErr_SetString(PyExc_ValueError, "layout does not fit its segment");
        return -1;
    }
    return 0;
}

int
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

int
ends_init(ends *self, PyObject *segment, unsigned capacity, Py_ssize_t indices_offset,
          Py_ssize_t controls_offset, Py_ssize_t errors_offset, Py_ssize_t error_nbytes,
          PyObject *columns)
{
    if (get_shared(segment, &self->segment) != 0) {
        return -1;
    }
    Py_ssize_t column_count = PyTuple_Size(columns) - 1;
    if (capacity < 1 || capacity > MAX_CAPACITY || column_count < 0 || column_count > MAX_COLUMNS
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

int
ends_like(ends *self, const ends *other, PyObject *segment)
{
    Py_buffer view;
    if (get_shared(segment, &view) != 0) {
        return -1;
    }
    column *columns = PyMem_Malloc((size_t)(other->column_count + 1) * sizeof(column));
    if (columns == NULL || view.len != other->segment.len) {
        PyBuffer_Release(&view);
        PyMem_Free(columns);
        if (columns == NULL) {
            PyErr_NoMemory();
        } else {
            PyErr_SetString(PyExc_ValueError, "the segments differ in size");
        }
        return -1;
    }
    const char *from = other->segment.buf;
    char *to = view.buf;
    *self = *other;
    self->segment = view;
    self->words.header = (ring_header *)to;
    self->words.indices = (_Atomic uint32_t *)(to + ((const char *)other->words.indices - from));
    self->words.controls = (ring_control *)(to + ((const char *)other->words.controls - from));
    self->errors = to + (other->errors - from);
    self->columns = columns;
    for (Py_ssize_t i = 0; i <= other->column_count; i++) {
        columns[i] = other->columns[i];
        columns[i].base = to + (other->columns[i].base - from);
        Py_XINCREF(columns[i].carrier);
        Py_XINCREF(columns[i].allocate);
    }
    return 0;
}

bool
no_slot(const ends *self, unsigned long index)
{
    if (index < self->words.capacity) {
        return false;
    }
    PyErr_Format(PyExc_ValueError, "there is no slot %lu", index);
    return true;
}
