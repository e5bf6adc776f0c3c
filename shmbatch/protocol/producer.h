/* producer.h: a producer's end, as all know it that do something with calls. */
#ifndef SHMBATCH_PRODUCER_H
#define SHMBATCH_PRODUCER_H

#include "core.h"

#pragma GCC visibility push(hidden)

/* What the producer itself knows of a slot. */
enum { OWN_FREE = 0, OWN_WRITING, OWN_PUBLISHED, OWN_READING, OWN_WITHDRAWN, OWN_LENT };

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
    uint64_t *free;       /* a bit for each slot, 64 in a word: it is free */
    uint32_t free_word;   /* in no word before this one is there any */
    uint32_t free_count;
    uint32_t *withdrawn; /* slots the executor has yet to hand back */
    uint32_t withdrawn_count;
    uint32_t lent; /* slots that are lent */
    unsigned threads_joined; /* sleepers on completions, of this process */
    unsigned loops_joined;
    uint32_t moves;               /* to another segment, so far */
    char dead;                    /* no call is to be made over it any more: Python says so */
    char queueing;                /* somebody waits for a slot: Python says who is next */
    spinning *spinning;           /* how long to spin for a result; NULL: not at all */
    long long park_ns;            /* how long to sleep without Python; 0: it sleeps, and wakes */
    unsigned long long looked_ns; /* when Python last looked at the executor's life */
    unsigned inside;              /* threads that may hold pointers into the memory without the GIL */
    left_behind *left;            /* unmapped when nobody is inside */
} producer;

/* A slot that is lent to its own process: lending.c. */
typedef struct loan loan;

static inline bool
producer_forked(const producer *self)
{
    return *fork_word != self->token;
}

static inline int64_t
producer_spin_ns(const producer *self)
{
    return self->spinning != NULL ? self->spinning->spin_ns : 0;
}

/* Make a slot free, for whoever claims the next one. */
static inline void
producer_free(producer *self, uint32_t index)
{
    uint32_t word = index / 64;
    self->free[word] |= UINT64_C(1) << index % 64;
    self->free_word = word < self->free_word ? word : self->free_word;
    self->free_count++;
}

/* Claim the lowest free slot; there must be one. So calls that follow each other have neighbouring
 * slots, which the executor copies in one go, and as few of them as there are calls in flight. */
static inline uint32_t
producer_claim(producer *self)
{
    while (self->free[self->free_word] == 0) {
        self->free_word++;
    }
    uint64_t *word = &self->free[self->free_word];
    uint32_t index = self->free_word * 64 + (uint32_t)__builtin_ctzll(*word);
    *word &= *word - 1;
    self->free_count--;
    return index;
}

/* The same of a slot that a call of ours had; tells whoever waits for one. */
void producer_put_back(producer *self, uint32_t index);

/* Collect withdrawn slots that the executor has handed back. */
void producer_reclaim(producer *self);

static inline bool
producer_has_free(producer *self)
{
    if (self->free_count == 0) {
        producer_reclaim(self);
    }
    return self->free_count > 0;
}

/* Publish one call, whose arguments are the tuple *values*, in the slot that was *reserved*, if
 * that is not NULL. 0: *ticket is its; below 0: it was refused, SUBMIT_...; SUBMIT_RAISED: there is
 * an exception. */
long producer_begin(producer *self, loan *reserved, PyObject *values, unsigned long flags,
                    uint64_t deadline_ns, uint64_t *ticket);
enum { SUBMIT_RAISED = 1 };

/* The slot of a live ticket, -1 if the ticket is over. */
static inline int64_t
producer_find(const producer *self, uint64_t ticket)
{
    uint32_t index = ticket & TICKET_SLOT_MASK;
    if (index >= self->shared.words.capacity
        || self->generations[index] != ticket >> TICKET_SLOT_BITS
        || (self->own[index] != OWN_PUBLISHED && self->own[index] != OWN_READING)) {
        return -1;
    }
    return index;
}

/* The result of the call in a slot, copied out, and the slot is free again; or PENDING, after
 * spinning for at most *spin_ns*; or FAILED, which keeps the slot; or a Failure, if `finish` raised
 * an Exception; or NULL. */
PyObject *producer_take(producer *self, uint32_t index, int64_t spin_ns);

/* Sleep once for a call that is not done, and learn from it how long to spin next time. 1: it is
 * now; 0: it is not, or it is for Python to sleep, or to look at the executor's life before; -1: a
 * signal handler raised. */
int producer_sleep(producer *self, uint64_t ticket);

/* moving.c */
PyObject *producer_move(producer *self, PyObject *const *args, Py_ssize_t nargs);
void producer_unmap_left(producer *self);

/* lending.c */
/* The method `reserve` of a ring: a Loan, or why there is none, SUBMIT_...; *tell* as of `loan`. */
PyObject *producer_reserve(producer *self, PyObject *tell);
/* A Lent of the result in a slot, whose call is over then; PENDING as producer_take; None if it
 * is not for lending, and has to be taken. */
PyObject *producer_lend(producer *self, uint32_t index, int64_t spin_ns, PyObject *tell);
/* Take the slot that was reserved, to publish it: the loan is over. False if it is not there. */
bool loan_take(loan *self, uint32_t *index);
extern PyTypeObject *loan_type, *lent_type;

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

/* Whether the call in a slot is done, having spun for it at most *spin_ns*, without the GIL. No
 * where another thread is taking it, or has changed something meanwhile. */
static inline bool
producer_done(producer *self, uint32_t index, int64_t spin_ns)
{
    if (self->own[index] == OWN_READING) {
        return false;
    }
    bool done = ring_state(ring_look(&self->ring, index)) == RING_DONE;
    if (done || spin_ns <= 0) {
        return done;
    }
    uint32_t generation = self->generations[index], moves = self->moves;
    ring_producer ring = self->ring;
    producer_enter(self);
    Py_BEGIN_ALLOW_THREADS
    uint64_t until_ns = now_ns() + (uint64_t)spin_ns;
    do {
        for (int i = 0; i < 32 && !done; i++) {
            pause_cpu();
            done = ring_state(ring_look(&ring, index)) == RING_DONE;
        }
    } while (!done && now_ns() < until_ns);
    Py_END_ALLOW_THREADS
    producer_leave(self);
    if (self->generations[index] != generation || self->own[index] != OWN_PUBLISHED
        || self->moves != moves) {
        return false; /* another thread got there first */
    }
    if (self->spinning != NULL) {
        spinning_count(self->spinning, done);
    }
    return done;
}

/* Whether a call that is done has a result, and not an error. */
static inline bool
producer_has_value(const producer *self, uint32_t index)
{
    const ring_control *control = &self->ring.words.controls[index];
    return atomic_load_explicit(&control->outcome, memory_order_relaxed) == RING_VALUE;
}

#pragma GCC visibility pop

#endif
