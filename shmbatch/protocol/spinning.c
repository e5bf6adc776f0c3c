/* spinning.c: Spinning, how long to spin before sleeping, learnt from what spins have brought.
 *
 * After a spin in vain it sleeps 1, 2, 4, ... up to SKIP_MAX times before it tries again; a spin
 * that succeeds resets this. The rule needs no Python: it is asked once a sleep, in cold caches.
 */
#include "core.h"

#define SKIP_MAX 256

PyTypeObject *spinning_type;

/* Spinning(spin_ns, learns): spins for so long, always, or where it *learns* as long as it pays. */
static PyObject *
spinning_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    long long spin_ns;
    int learns;
    if (!PyArg_ParseTuple(args, "Lp:Spinning", &spin_ns, &learns)) {
        return NULL;
    }
    spinning *self = new_self(type);
    if (self != NULL) {
        self->spin_ns = self->paying_ns = spin_ns;
        self->learns = (char)learns;
        self->next_skip = 1;
    }
    return (PyObject *)self;
}

void
spinning_slept(spinning *self)
{
    if (!self->learns) {
        return;
    }
    if (self->vain != self->vain_before) {
        if (self->won != self->won_before) {
            self->won_before = self->won;
            self->next_skip = 1;
        }
        self->vain_before = self->vain;
        self->skip = self->next_skip;
        self->next_skip = self->skip < SKIP_MAX ? 2 * self->skip : SKIP_MAX;
        self->spin_ns = 0;
    } else if (self->spin_ns == 0 && --self->skip == 0) { /* not 0: another thread was first */
        self->spin_ns = self->paying_ns;
    }
}

static PyObject *
spinning_slept_now(spinning *self, PyObject *Py_UNUSED(ignored))
{
    spinning_slept(self);
    Py_RETURN_NONE;
}

static PyMethodDef spinning_methods[] = {
    {"slept", (PyCFunction)spinning_slept_now, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef spinning_members[] = {
    {"spin_ns", T_LONGLONG, offsetof(spinning, spin_ns), READONLY, NULL},
    {"won", T_ULONGLONG, offsetof(spinning, won), 0, NULL},
    {"vain", T_ULONGLONG, offsetof(spinning, vain), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot spinning_slots[] = {
    {Py_tp_new, spinning_new},
    {Py_tp_dealloc, free_self},
    {Py_tp_methods, spinning_methods},
    {Py_tp_members, spinning_members},
    {0, NULL},
};

PyType_Spec spinning_spec = {
    .name = "shmbatch.protocol._core.Spinning",
    .basicsize = sizeof(spinning),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = spinning_slots,
};
