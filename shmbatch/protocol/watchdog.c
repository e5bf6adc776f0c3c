/* watchdog.c: Watchdog, a thread that ends a process in which one execution takes too long.
 *
 *   the executor's thread         the watchdog's, which needs no GIL      a thread of Python's
 *   enter, leave, done            looks every so often
 *                                 one is over its limit      -- byte -->  reads, accept()
 *                                 accepted in time: waits                 tells, logs, ends all
 *                                 else, as somebody holds the GIL,
 *                                 or nothing ends in spite of that:
 *                                 tells, logs, ends all
 *
 * What is over its limit is decided here, by the clock of each entry:
 *
 *   - The clock of an entry runs from `enter`, and anew from each `enter` or `done` that leaves
 *     something in flight: what else is in flight could not be seen to be over before.
 *   - While the executor's thread is inside one function, only that one can be over its limit; the
 *     clocks of the others stand still, for nothing of theirs could be completed.
 *   - A device does one batch after the other, in the order in which they were left to land. Of
 *     the entries that have batches there, only that of the first one can be over its limit, and
 *     the clocks of all begin anew with each `done` of one of them.
 *   - The code of a function on a device may wait for what is there before it. So while the thread
 *     is inside, it may take as long as the limits of all that say, on top of its own. What has
 *     none adds nothing: else whatever comes behind it could be stuck without end.
 *   - Clocks stand still while the watchdog itself is not run, as in a stopped process; it looks
 *     eight times within the shortest limit to see that. What was entered while it was asleep for
 *     good begins when it is awake: it may have been stopped before it was.
 *
 * The thread that enters makes no system call but when the watchdog has been asleep for good: it
 * sleeps for a part of the shortest limit, looks again, and for good only when nothing was entered
 * since.
 */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define LATE_NS 50000000u /* by which the watchdog may be late without it meaning anything */
#define FDS_MAX (1 << 20)

typedef struct {
    uint64_t limit_ns; /* 0: none */
    uint64_t since_ns; /* 0: nothing is in flight */
    bool on_device;
    /* The oldest and the youngest of its batches that are landing, by the order in which all were
     * left; 0: none is. */
    uint64_t first, last;
    PyObject *told;    /* bytes: the packet that producers get */
    PyObject *logged;  /* bytes: what stderr gets */
} entry;

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock; /* of all that follows; held for moments, and at the end for good */
    pthread_cond_t changed;
    pthread_t thread;
    uint64_t token; /* of the process that has it */
    bool running;
    bool asleep;   /* for good */
    bool closing;
    bool entered;  /* something with a limit, since the watchdog looked last */
    unsigned count, room;
    entry *entries;
    uint64_t shortest_ns; /* of all limits */
    int inside;           /* the entry in which the executor's thread is; -1: in none */
    uint64_t inside_ns;   /* since then */
    uint64_t ahead_ns;    /* which it may take for what was on its device then */
    uint64_t landings;    /* so far */
    int over;             /* the entry that is over its limit; -1 */
    uint64_t until_ns;    /* so long Python has to do something about it */
    int notice_fd;        /* gets a byte then */
    int signal_number;    /* has stacks dumped; 0: nothing does */
    uint64_t grace_ns;    /* for Python to accept, and at the end for standard error */
    uint64_t patience_ns; /* for Python to end the process when it has accepted */
    struct sockaddr_un name; /* of the executor's ends of its connections */
    socklen_t name_nbytes;
} watchdog;

/* ---- without the GIL: touches no Python object but the bytes of entries, which only dealloc frees */

static void
watchdog_say(const char *text, size_t nbytes)
{
    while (nbytes > 0) {
        ssize_t written = write(STDERR_FILENO, text, nbytes);
        if (written <= 0) {
            return;
        }
        text += written;
        nbytes -= (size_t)written;
    }
}

/* Send to whoever is connected. Whose sockets those are, the kernel knows: no list of ours, which
 * the thread that is stuck may have been changing, and no memory from its allocator. */
static void
watchdog_tell(const watchdog *self, const char *packet, size_t nbytes)
{
    struct rlimit most;
    int fds = getrlimit(RLIMIT_NOFILE, &most) == 0 && most.rlim_cur < FDS_MAX ? (int)most.rlim_cur
                                                                              : FDS_MAX;
    for (int fd = 0; fd < fds; fd++) {
        struct sockaddr_un name;
        socklen_t name_nbytes = sizeof(name);
        int listens = 1;
        socklen_t listens_nbytes = sizeof(listens);
        if (getsockname(fd, (struct sockaddr *)&name, &name_nbytes) == 0
            && name_nbytes == self->name_nbytes && memcmp(&name, &self->name, name_nbytes) == 0
            && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_nbytes) == 0
            && !listens) {
            (void)!send(fd, packet, nbytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
}

/* The entry that is over its limit, or -1; *next_ns is when to look again, 0 for never. */
static int
watchdog_look(watchdog *self, uint64_t at_ns, uint64_t *next_ns)
{
    uint64_t head = UINT64_MAX; /* what the device is at */
    for (unsigned i = 0; i < self->count; i++) {
        uint64_t first = self->entries[i].first;
        head = first != 0 && first < head ? first : head;
    }
    *next_ns = self->entered ? at_ns + self->shortest_ns : 0;
    self->entered = false;
    for (unsigned i = 0; i < self->count; i++) {
        const entry *each = &self->entries[i];
        if (each->limit_ns == 0 || each->since_ns == 0) {
            continue;
        }
        bool is_inside = self->inside == (int)i;
        bool stands = self->inside >= 0 ? !is_inside : each->first > head;
        uint64_t until_ns = each->since_ns + each->limit_ns + (is_inside ? self->ahead_ns : 0);
        if (!stands && until_ns <= at_ns) {
            return (int)i;
        }
        uint64_t again_ns = at_ns + self->shortest_ns; /* others may begin and be over before */
        if (!stands && until_ns < again_ns) {
            again_ns = until_ns;
        }
        if (*next_ns == 0 || again_ns < *next_ns) {
            *next_ns = again_ns;
        }
    }
    return -1;
}

/* Have no clock run for the last *late_ns*: nor for longer than it did. */
static void
watchdog_hold(watchdog *self, uint64_t at_ns, uint64_t late_ns)
{
    for (unsigned i = 0; i < self->count; i++) {
        entry *each = &self->entries[i];
        if (each->since_ns != 0) {
            uint64_t ran_ns = at_ns - each->since_ns;
            each->since_ns += late_ns < ran_ns ? late_ns : ran_ns;
        }
    }
}

static void
watchdog_wait(watchdog *self, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_cond_timedwait(&self->changed, &self->lock, &until);
}

static void
watchdog_exit(int Py_UNUSED(number))
{
    _exit(1);
}

/* Python does not answer, as somebody holds the GIL, or has not come to an end. */
static void
watchdog_end(watchdog *self)
{
    /* Standard error may be a pipe that nobody reads: then what follows is cut short. */
    struct sigaction last = {.sa_handler = watchdog_exit};
    struct itimerval grace = {
        .it_value = {.tv_sec = (time_t)(self->grace_ns / 1000000000u),
                     .tv_usec = (suseconds_t)(self->grace_ns % 1000000000u / 1000u)}};
    sigset_t unblocked;
    sigemptyset(&unblocked);
    sigaddset(&unblocked, SIGALRM);
    sigaction(SIGALRM, &last, NULL);
    pthread_sigmask(SIG_UNBLOCK, &unblocked, NULL);
    setitimer(ITIMER_REAL, &grace, NULL);

    const entry *over = &self->entries[self->over];
    watchdog_tell(self, PyBytes_AsString(over->told), (size_t)PyBytes_Size(over->told));
    watchdog_say(PyBytes_AsString(over->logged), (size_t)PyBytes_Size(over->logged));
    if (self->signal_number > 0) {
        raise(self->signal_number); /* its handler, faulthandler's, dumps the stacks and returns */
    }
    _exit(1);
}

static void *
watchdog_main(void *argument)
{
    watchdog *self = argument;
    sigset_t blocked;
    sigfillset(&blocked); /* signals are for threads that Python knows */
    if (self->signal_number > 0) {
        sigdelset(&blocked, self->signal_number);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    pthread_mutex_lock(&self->lock);
    /* The clock is read once a turn: between two readings it could be stopped unnoticed. */
    uint64_t at_ns = now_ns();
    while (!self->closing) {
        uint64_t next_ns;
        self->over = watchdog_look(self, at_ns, &next_ns);
        if (self->over >= 0) {
            self->until_ns = now_ns() + self->grace_ns;
            (void)!write(self->notice_fd, "!", 1);
            while (!self->closing && now_ns() < self->until_ns) {
                watchdog_wait(self, self->until_ns);
            }
            if (!self->closing) {
                watchdog_end(self);
            }
            break;
        }
        if (next_ns == 0) {
            self->asleep = true;
            pthread_cond_wait(&self->changed, &self->lock);
            self->asleep = false;
        } else {
            /* Often, as what is late by much was stopped, and that does not count. */
            uint64_t soon_ns = at_ns + self->shortest_ns / 8;
            next_ns = next_ns < soon_ns ? next_ns : soon_ns;
            watchdog_wait(self, next_ns);
        }
        at_ns = now_ns();
        if (at_ns > next_ns + LATE_NS) { /* who was to look at 0 is late by all that has run */
            watchdog_hold(self, at_ns, at_ns - next_ns);
        }
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

/* ---- with it ---------------------------------------------------------------------------- */

static void
watchdog_stop(watchdog *self)
{
    if (!self->running) {
        return;
    }
    self->running = false;
    if (self->token != process_token()) {
        return; /* a fork of the process whose thread it was */
    }
    pthread_mutex_lock(&self->lock);
    self->closing = true;
    pthread_cond_signal(&self->changed);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL); /* it waits for nothing else than that */
}

static void
watchdog_dealloc(watchdog *self)
{
    watchdog_stop(self);
    for (unsigned i = 0; i < self->count; i++) {
        Py_DECREF(self->entries[i].told);
        Py_DECREF(self->entries[i].logged);
    }
    free(self->entries);
    if (self->token == process_token()) { /* a fork's copy would wait for a thread that is not there */
        pthread_cond_destroy(&self->changed);
        pthread_mutex_destroy(&self->lock);
    }
    free_self((PyObject *)self);
}

/* Watchdog(notice_fd, socket_fd, signal_number, grace_ns, patience_ns): starts the thread. */
static PyObject *
watchdog_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    int notice_fd, socket_fd, signal_number;
    unsigned long long grace_ns, patience_ns;
    if (!PyArg_ParseTuple(args, "iiiKK:Watchdog", &notice_fd, &socket_fd, &signal_number,
                          &grace_ns, &patience_ns)) {
        return NULL;
    }
    watchdog *self = new_self(type);
    if (self == NULL) {
        return NULL;
    }
    pthread_condattr_t monotonic;
    pthread_mutex_init(&self->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&self->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    self->token = process_token();
    self->inside = self->over = -1;
    self->shortest_ns = UINT64_MAX;
    self->notice_fd = notice_fd;
    self->signal_number = signal_number;
    self->grace_ns = grace_ns;
    self->patience_ns = patience_ns;
    self->name_nbytes = sizeof(self->name);
    if (getsockname(socket_fd, (struct sockaddr *)&self->name, &self->name_nbytes) != 0) {
        Py_DECREF(self);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    int failed = pthread_create(&self->thread, NULL, watchdog_main, self);
    if (failed) {
        Py_DECREF(self);
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->running = true;
    return (PyObject *)self;
}

/* add(limit_ns, told, logged, on_device) -> int: another function, by its number from now on. */
static PyObject *
watchdog_add(watchdog *self, PyObject *args)
{
    unsigned long long limit_ns;
    PyObject *told, *logged;
    int on_device;
    if (!PyArg_ParseTuple(args, "KSSp:add", &limit_ns, &told, &logged, &on_device)) {
        return NULL;
    }
    int number = -1;
    pthread_mutex_lock(&self->lock);
    if (self->count == self->room) {
        unsigned room = self->room ? self->room * 2 : 8;
        entry *entries = realloc(self->entries, room * sizeof(*entries));
        if (entries != NULL) {
            self->entries = entries;
            self->room = room;
        }
    }
    if (self->count < self->room) {
        self->entries[self->count] = (entry){.limit_ns = limit_ns,
                                             .on_device = on_device,
                                             .told = Py_NewRef(told),
                                             .logged = Py_NewRef(logged)};
        number = (int)self->count++;
        if (limit_ns > 0 && limit_ns < self->shortest_ns) {
            self->shortest_ns = limit_ns;
            pthread_cond_signal(&self->changed); /* it may be about to sleep for longer */
        }
    }
    pthread_mutex_unlock(&self->lock);
    return number < 0 ? PyErr_NoMemory() : PyLong_FromLong(number);
}

static entry *
watchdog_entry(watchdog *self, PyObject *number)
{
    long i = PyLong_AsLong(number);
    if (i < 0 || i >= (long)self->count) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_IndexError, "no such function");
        }
        return NULL;
    }
    return &self->entries[i];
}

/* enter(number): the executor's thread goes into a function, for another batch. */
static PyObject *
watchdog_enter(watchdog *self, PyObject *number)
{
    entry *each = watchdog_entry(self, number);
    if (each == NULL) {
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    self->inside = (int)(each - self->entries);
    self->inside_ns = each->since_ns = now_ns();
    self->ahead_ns = 0;
    for (unsigned i = 0; each->on_device && i < self->count; i++) {
        const entry *other = &self->entries[i];
        self->ahead_ns += other->limit_ns * ((other->first != 0) + (other->first != other->last));
    }
    if (each->limit_ns > 0) {
        self->entered = true;
        if (self->asleep) {
            pthread_cond_signal(&self->changed);
        }
    }
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

/* The executor's thread is out of what it was in: clocks that have stood still go on. */
static void
watchdog_out(watchdog *self, uint64_t at_ns)
{
    for (unsigned i = 0; self->inside >= 0 && i < self->count; i++) {
        entry *other = &self->entries[i];
        if (self->inside != (int)i && other->since_ns != 0) {
            uint64_t since_ns = other->since_ns + (at_ns - self->inside_ns);
            other->since_ns = since_ns < at_ns ? since_ns : at_ns;
        }
    }
    self->inside = -1;
}

/* leave(number, in_flight, lands): it is out again; what it began goes on by itself, or does not.
 * If it lands, it is over on the device when all is that was left to land before. */
static PyObject *
watchdog_leave(watchdog *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 3) != 0) {
        return NULL;
    }
    entry *each = watchdog_entry(self, args[0]);
    int in_flight = each == NULL ? -1 : PyObject_IsTrue(args[1]);
    int lands = in_flight < 0 ? -1 : PyObject_IsTrue(args[2]);
    if (lands < 0) {
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    watchdog_out(self, now_ns());
    each->since_ns = in_flight ? each->since_ns : 0;
    if (lands) {
        each->last = ++self->landings;
        each->first = each->first ? each->first : each->last;
    }
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

/* done(number, in_flight): the oldest batch is over; another one is in flight, or none is. The
 * thread is out again, if it went in to deliver results. */
static PyObject *
watchdog_done(watchdog *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments(nargs, 2) != 0) {
        return NULL;
    }
    entry *each = watchdog_entry(self, args[0]);
    int in_flight = each == NULL ? -1 : PyObject_IsTrue(args[1]);
    if (in_flight < 0) {
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    uint64_t at_ns = now_ns();
    watchdog_out(self, at_ns);
    for (unsigned i = 0; each->first != 0 && i < self->count; i++) {
        entry *other = &self->entries[i];
        other->since_ns = other->first != 0 ? at_ns : other->since_ns;
    }
    each->since_ns = in_flight ? at_ns : 0;
    each->last = in_flight ? each->last : 0;
    each->first = each->last;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

/* accept() -> int: take over to end this process; return the number that is over its limit. */
static PyObject *
watchdog_accept(watchdog *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&self->lock);
    int over = self->over;
    self->until_ns = now_ns() + self->patience_ns; /* by then this process is to be over */
    pthread_cond_signal(&self->changed);
    pthread_mutex_unlock(&self->lock);
    return PyLong_FromLong(over);
}

/* close(): end the thread. Idempotent. */
static PyObject *
watchdog_close(watchdog *self, PyObject *Py_UNUSED(ignored))
{
    watchdog_stop(self);
    Py_RETURN_NONE;
}

static PyMethodDef watchdog_methods[] = {
    {"add", (PyCFunction)watchdog_add, METH_VARARGS, NULL},
    {"enter", (PyCFunction)watchdog_enter, METH_O, NULL},
    {"leave", (PyCFunction)(void (*)(void))watchdog_leave, METH_FASTCALL, NULL},
    {"done", (PyCFunction)(void (*)(void))watchdog_done, METH_FASTCALL, NULL},
    {"accept", (PyCFunction)watchdog_accept, METH_NOARGS, NULL},
    {"close", (PyCFunction)watchdog_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot watchdog_slots[] = {
    {Py_tp_new, watchdog_new},
    {Py_tp_dealloc, watchdog_dealloc},
    {Py_tp_methods, watchdog_methods},
    {0, NULL},
};

PyType_Spec watchdog_spec = {
    .name = "shmbatch.protocol._core.Watchdog",
    .basicsize = sizeof(watchdog),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watchdog_slots,
};
