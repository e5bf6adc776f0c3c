/* faults.c: counts the points that a process passes, and kills it at the n-th; see faults.h. */
#include "faults.h"

#include <signal.h>

extern fault_site __start_fault_sites[], __stop_fault_sites[];

static fault_page *fault_counting; /* NULL: nothing is counted */
static uint64_t fault_at;

void
fault_arm(fault_page *page, uint64_t n)
{
    fault_at = n;
    fault_counting = page;
}

void
fault_disarm(void)
{
    fault_counting = NULL;
}

void
fault_point(const fault_site *site, uint64_t after)
{
    fault_page *page = fault_counting;
    if (page == NULL) {
        return;
    }
    size_t number = (size_t)(site - __start_fault_sites);
    page->seen[number] = 1;
    if (__atomic_fetch_add(&page->passed, 1, __ATOMIC_RELAXED) + 1 == fault_at) {
        page->after = after;
        page->site = number + 1;
        kill(getpid(), SIGKILL);
    }
}

void *
fault_copy(const fault_site *site, void *to, const void *from, size_t nbytes)
{
    size_t half = nbytes / 2;
    __builtin_memcpy(to, from, half);
    fault_point(site, 0);
    __builtin_memcpy((char *)to + half, (const char *)from + half, nbytes - half);
    fault_point(site, 1);
    return to;
}

size_t
fault_site_count(void)
{
    return (size_t)(__stop_fault_sites - __start_fault_sites);
}

const fault_site *
fault_site_at(size_t number)
{
    return &__start_fault_sites[number];
}
