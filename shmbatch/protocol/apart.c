/* apart.c: how a descriptor is closed without waiting for what that takes.
 *
 *   caller                                  a thread for this
 *                                           takes a table of descriptors of its own, a copy
 *   closes the descriptor, which is         waits
 *   in the other table still: no wait
 *                                           ends, and its table with it
 *
 * To close the last reference to some files takes as long as somebody else likes: a TCP socket
 * that lingers waits for a reader. A task that ends does not wait for them, so what is closed with
 * a thread's own table is closed at once. The thread holds whatever else is open, too, but only
 * for the moment that it lives.
 *
 * Before Linux 5.9, or where a sandbox forbids close_range, the thread closes the descriptor itself,
 * and waits as long as that takes.
 */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436 /* of every architecture */
#endif
#define UNSHARE (1u << 1) /* CLOSE_RANGE_UNSHARE of <linux/close_range.h> */

typedef struct {
    int fd;
    bool has_table; /* of its own */
    sem_t told;     /* has_table is true or not */
    sem_t closed;   /* by the caller; only where it has */
} closing;

static void
wait_for(sem_t *event)
{
    while (sem_wait(event) != 0 && errno == EINTR) {
    }
}

static void *
close_it(void *argument)
{
    closing *each = argument; /* on the stack of the caller, who waits until `told` */
    int fd = each->fd;
    bool has_table = syscall(SYS_close_range, (unsigned)fd + 1, ~0u, UNSHARE) == 0;
    each->has_table = has_table;
    sem_post(&each->told);
    if (has_table) {
        wait_for(&each->closed);
    } else {
        close(fd);
    }
    return NULL;
}

/* close_apart(fd): as above; OSError, and fd is still open, if there is no thread to be had. */
PyObject *
core_close_apart(PyObject *Py_UNUSED(module), PyObject *descriptor)
{
    closing each = {.fd = PyObject_AsFileDescriptor(descriptor)};
    if (each.fd < 0) {
        return NULL;
    }
    sem_init(&each.told, 0, 0);
    sem_init(&each.closed, 0, 0);
    sigset_t all, before;
    sigfillset(&all);
    pthread_t thread;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    pthread_sigmask(SIG_SETMASK, &all, &before); /* which a thread starts with */
    failed = pthread_create(&thread, NULL, close_it, &each);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed == 0) {
        wait_for(&each.told);
        if (each.has_table) {
            close(each.fd);
            sem_post(&each.closed);
            pthread_join(thread, NULL); /* which waits for nothing that it closes */
        } else {
            pthread_detach(thread);
        }
    }
    Py_END_ALLOW_THREADS
    if (failed != 0) {
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}
