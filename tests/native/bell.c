/* bell.c: the bell's arithmetic, for a test to call. One thread, so nothing here is about order.
 */
#include "ring.h"

static ring_bell bell;

void
bell_set(uint32_t word)
{
    atomic_store(&bell.word, word);
}

/* Whether sleep until *calls* more rings could be announced on *seen*. */
int
bell_arm(uint32_t seen, uint32_t bit, uint32_t calls)
{
    return ring_bell_arm(&bell, seen, bit, calls);
}

uint32_t
bell_ring(int urgent)
{
    return ring_bell_ring(&bell, urgent != 0);
}

uint32_t
bell_quorum(void)
{
    return atomic_load(&bell.quorum);
}

void
bell_disarm(void)
{
    ring_bell_disarm(&bell);
}

uint32_t
bell_look(void)
{
    return ring_bell_look(&bell);
}
