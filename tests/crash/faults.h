/* faults.h: where a process can be killed, and at which of these points it is.
 *
 * Given to the compiler ahead of the core's own files (-include), which know nothing of it. There
 * is a point after every store and read-modify-write of an atomic word, which is before the next
 * one; one halfway and one after every memcpy; one before and one after every system call, most
 * of them of a futex, since others go on while it sleeps. A process passes points, which are counted from fault_arm on, by
 * all of its threads together; at the n-th it kills itself.
 */
#ifndef SHMBATCH_FAULTS_H
#define SHMBATCH_FAULTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h> /* first: its own copies and stores are no sites */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *file;
    const char *what;
    int line;
    const char *function;
} fault_site;

/* What the killed process leaves for others to read; in memory that it shares with them. */
typedef struct {
    _Atomic uint64_t passed;
    uint64_t site;  /* at which it was killed, counted from 1; 0: it was not */
    uint64_t after; /* 0: halfway, or before */
    char seen[512]; /* for each site, whether it was passed */
} fault_page;

/* Kill this process at the n-th point from here on; 0: never, but count. */
void fault_arm(fault_page *page, uint64_t n);
void fault_disarm(void);
void fault_point(const fault_site *site, uint64_t after);
void *fault_copy(const fault_site *site, void *to, const void *from, size_t nbytes);

/* All sites, in the order of the linker. */
size_t fault_site_count(void);
const fault_site *fault_site_at(size_t number);

/* ---- what the core's files see instead ---------------------------------------------------- */

/* An atomic word cannot be assigned, only written by what is defined below. */
#define _Atomic const
#define FAULT_WORD(at) ((__typeof__((void)0, *(at)) *)(at))

#define FAULT_SITE(what)                                                                           \
    static fault_site fault_here __attribute__((section("fault_sites"), aligned(8), used)) = {     \
        __FILE__, what, __LINE__, __func__}

#undef atomic_store_explicit
#define atomic_store_explicit(at, value, order)                                                    \
    __extension__({                                                                                \
        FAULT_SITE("store");                                                                       \
        __auto_type fault_at = (at);                                                               \
        __typeof__((void)0, *fault_at) fault_value = (value);                                      \
        __atomic_store(FAULT_WORD(fault_at), &fault_value, (order));                               \
        fault_point(&fault_here, 1);                                                               \
    })

#define FAULT_FETCH(what, operation)                                                               \
    __extension__({                                                                                \
        FAULT_SITE(what);                                                                          \
        __auto_type fault_before = operation;                                                      \
        fault_point(&fault_here, 1);                                                               \
        fault_before;                                                                              \
    })

#undef atomic_fetch_add_explicit
#define atomic_fetch_add_explicit(at, by, order)                                                   \
    FAULT_FETCH("add", __atomic_fetch_add(FAULT_WORD(at), (by), (order)))
#undef atomic_fetch_sub_explicit
#define atomic_fetch_sub_explicit(at, by, order)                                                   \
    FAULT_FETCH("subtract", __atomic_fetch_sub(FAULT_WORD(at), (by), (order)))
#undef atomic_fetch_or_explicit
#define atomic_fetch_or_explicit(at, by, order)                                                    \
    FAULT_FETCH("or", __atomic_fetch_or(FAULT_WORD(at), (by), (order)))
#undef atomic_fetch_and_explicit
#define atomic_fetch_and_explicit(at, by, order)                                                   \
    FAULT_FETCH("and", __atomic_fetch_and(FAULT_WORD(at), (by), (order)))

#undef atomic_exchange_explicit
#define atomic_exchange_explicit(at, value, order)                                                 \
    FAULT_FETCH("exchange", __atomic_exchange_n(FAULT_WORD(at), (value), (order)))

#define FAULT_COMPARE(what, at, expected, value, weak, order, otherwise)                          \
    __extension__({                                                                                \
        FAULT_SITE(what);                                                                          \
        __auto_type fault_at = (at);                                                               \
        __typeof__((void)0, *fault_at) fault_value = (value);                                      \
        _Bool fault_done = __atomic_compare_exchange(                                              \
            FAULT_WORD(fault_at), (expected), &fault_value, weak, (order), (otherwise));           \
        fault_point(&fault_here, 1);                                                               \
        fault_done;                                                                                \
    })

#undef atomic_compare_exchange_weak_explicit
#define atomic_compare_exchange_weak_explicit(at, expected, value, order, otherwise)               \
    FAULT_COMPARE("compare", at, expected, value, 1, order, otherwise)
#undef atomic_compare_exchange_strong_explicit
#define atomic_compare_exchange_strong_explicit(at, expected, value, order, otherwise)             \
    FAULT_COMPARE("compare", at, expected, value, 0, order, otherwise)

/* Nor by anything else of <stdatomic.h>, and nothing is copied but with memcpy. */
#undef atomic_store
#undef atomic_exchange
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_fetch_or
#undef atomic_fetch_and
#undef atomic_fetch_xor
#undef atomic_fetch_xor_explicit
#undef atomic_compare_exchange_weak
#undef atomic_compare_exchange_strong
#pragma GCC poison atomic_store atomic_exchange
#pragma GCC poison atomic_fetch_add atomic_fetch_sub atomic_fetch_or atomic_fetch_and
#pragma GCC poison atomic_fetch_xor atomic_fetch_xor_explicit
#pragma GCC poison atomic_compare_exchange_weak atomic_compare_exchange_strong

#undef memcpy
#define memcpy(to, from, nbytes)                                                                   \
    __extension__({                                                                                \
        FAULT_SITE("copy");                                                                        \
        fault_copy(&fault_here, (to), (from), (nbytes));                                           \
    })

#define syscall(...)                                                                               \
    __extension__({                                                                                \
        FAULT_SITE("system call");                                                                       \
        fault_point(&fault_here, 0);                                                               \
        long fault_status = (syscall)(__VA_ARGS__);                                                \
        fault_point(&fault_here, 1);                                                               \
        fault_status;                                                                              \
    })

#endif
