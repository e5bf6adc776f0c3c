/* calling.h: what call.c, verb.c and failure.c, and those who make calls, share. */
#ifndef SHMBATCH_CALLING_H
#define SHMBATCH_CALLING_H

#include "producer.h"

#pragma GCC visibility push(hidden)

extern PyTypeObject *call_type, *failure_type, *verb_type; /* set at import, immortal */

/* failure.c */
typedef struct {
    PyObject_HEAD
    PyObject *error;
} failure;

/* Make the exception that is set a Failure, if it is an Exception; NULL with it if not. */
PyObject *failure_of_exception(void);

/* call.c */
/* Publish a call, as producer_begin with SUBMIT_SPAWNED, and return a Call of the type
 * *made*, which there is before it is published: so no call is lost. Else NULL, and *refusal. */
PyObject *call_spawn(PyTypeObject *made, PyObject *connection, PyObject *limits, producer *ring,
                     loan *reserved, PyObject *values, uint64_t deadline_ns, long *refusal);

/* Take the outcome of a call, spinning for it and then, if it *parks*, sleeping; as producer_take.
 * NULL, and *interrupted*, where a signal handler raised: nothing has been taken then. */
PyObject *take_outcome(producer *ring, uint64_t ticket, int64_t spin_ns, bool parks,
                       bool *interrupted);

/* A slot has been freed: somebody may have begun to queue for one while this thread spun. -1 with
 * an exception. */
int tell_queue(PyObject *connection, const producer *ring);

#pragma GCC visibility pop

#endif
