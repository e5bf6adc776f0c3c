/* producer.h: what producer.c and moving.c know of a producer's end. */
#ifndef SHMBATCH_PRODUCER_H
#define SHMBATCH_PRODUCER_H

#include "core.h"

#pragma GCC visibility push(hidden)

/* What the producer itself knows of a slot. */
enum { OWN_FREE = 0, OWN_WRITING, OWN_PUBLISHED, OWN_READING, OWN_WITHDRAWN };

/* A segment that the ring has moved out of, and the next such. */
typedef struct left_behind {
    ends shared;
    struct left_behind *next;
} left_behind;

typedef struct {
    PyObject_HEAD
    ends shared;
    ring_producer ring;
    Py_buffer bell_memory;
    ring_bell *bell;
    PyObject *wake;   /* called with the bell's bits when the executor sleeps */
    PyObject *finish; /* makes of a result what the caller gets; None: it is that */
    uint64_t token; /* the process that may use this end */
    uint32_t *generations;
    uint8_t *own;
    uint8_t *spawned; /* whether the result may be copied out before its caller asks */
    uint8_t *runs;    /* how many executors have died while they ran the slot's call */
    uint32_t *free;   /* stack of free slots */
    uint32_t free_count;
    uint32_t *withdrawn; /* slots the executor has yet to hand back */
    uint32_t withdrawn_count;
    unsigned threads_joined; /* sleepers on completions, of this process */
    unsigned loops_joined;
    unsigned long long spins_won; /* polls that spun and got their result */
    uint32_t moves;               /* to another segment, so far */
    unsigned inside;              /* threads that may hold pointers into the memory without the GIL */
    left_behind *left;            /* unmapped when nobody is inside */
} producer;

static inline bool
producer_forked(const producer *self)
{
    return *fork_word != self->token;
}

void producer_put_back(producer *self, uint32_t index);

/* moving.c */
PyObject *producer_move(producer *self, PyObject *const *args, Py_ssize_t nargs);
void producer_unmap_left(producer *self);

/* Between these the memory stays mapped, although the ring may move when the GIL is released. */
static inline void
producer_enter(producer *self)
{
    self->inside++;
}

static inline void
producer_leave(producer *self)
{
    if (--self->inside == 0 && self->left != NULL) {
        producer_unmap_left(self);
    }
}

#pragma GCC visibility pop

#endif
