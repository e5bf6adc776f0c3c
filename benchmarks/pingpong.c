/* pingpong.c: what one round trip between two processes costs at the very least.
 *
 *     ping (CPU a)                    pong (CPU b)
 *     word = 2k + 1  --one cache-->   sees an odd value
 *     sees 2k + 2    <---line-----    word = 2k + 2
 *
 * usage: pingpong spin|pause|futex CPU_A CPU_B WARMUP_MS MEASURE_MS
 *
 * spin   both sides only load the word, over and over, without system calls. A sample is the
 *        mean of SPIN_BLOCK round trips, so that reading the clock does not show in it.
 * pause  the same with the processor's spin-wait hint between two loads: much faster where the
 *        two CPUs are threads of one core, which a virtual machine may hide, else alike.
 * futex  both sides sleep in the kernel until the other one wakes them; they never spin. A
 *        sample is one round trip.
 *
 * Prints one sample per line, in nanoseconds. Every answer is checked. The two processes share
 * nothing but the word, and pong dies with ping.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_BLOCK = 1000, MAX_SAMPLES = 1 << 20 };
enum mode { UNKNOWN, SPIN, PAUSE, FUTEX };

typedef _Atomic uint32_t word_t;

static void fail(const char *what) {
    fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fail("sched_setaffinity");
}

static void spin_hint(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* The await_... functions return the word's first value that differs from `old`. */
static uint32_t await_spin(word_t *word, uint32_t old) {
    uint32_t value;
    while ((value = atomic_load_explicit(word, memory_order_acquire)) == old)
        ;
    return value;
}

static uint32_t await_pause(word_t *word, uint32_t old) {
    uint32_t value;
    while ((value = atomic_load_explicit(word, memory_order_acquire)) == old)
        spin_hint();
    return value;
}

static uint32_t await_futex(word_t *word, uint32_t old) {
    uint32_t value;
    while ((value = atomic_load_explicit(word, memory_order_acquire)) == old)
        syscall(SYS_futex, word, FUTEX_WAIT, old, NULL, NULL, 0);
    return value;
}

static void wake(word_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Inlined into one loop per mode, so that the mode costs nothing inside it. */
static inline __attribute__((always_inline)) uint32_t await_change(word_t *word, uint32_t old,
                                                                   enum mode mode) {
    switch (mode) {
    case SPIN:
        return await_spin(word, old);
    case PAUSE:
        return await_pause(word, old);
    default:
        return await_futex(word, old);
    }
}

static inline __attribute__((always_inline)) void pong(word_t *word, enum mode mode) {
    uint32_t seen = 0;
    for (;;) {
        seen = await_change(word, seen, mode) + 1;
        atomic_store_explicit(word, seen, memory_order_release);
        if (mode == FUTEX)
            wake(word);
    }
}

/* Fills `samples`, returns how many; what ends before `begin` is warm-up. */
static inline __attribute__((always_inline)) int ping(word_t *word, int64_t *samples,
                                                      int64_t begin, int64_t end,
                                                      enum mode mode) {
    int per_sample = mode == FUTEX ? 1 : SPIN_BLOCK, count = 0;
    uint32_t mine = 1;
    for (int64_t last = now_ns(); last < end && count < MAX_SAMPLES;) {
        for (int i = 0; i < per_sample; i++, mine += 2) {
            atomic_store_explicit(word, mine, memory_order_release);
            if (mode == FUTEX)
                wake(word);
            if (await_change(word, mine, mode) != mine + 1) {
                fprintf(stderr, "pingpong: wrong answer to %u\n", mine);
                exit(1);
            }
        }
        int64_t now = now_ns();
        if (last >= begin)
            samples[count++] = (now - last) / per_sample;
        last = now;
    }
    return count;
}

int main(int argc, char **argv) {
    enum mode mode = argc < 2                         ? UNKNOWN
                     : strcmp(argv[1], "spin") == 0   ? SPIN
                     : strcmp(argv[1], "pause") == 0  ? PAUSE
                     : strcmp(argv[1], "futex") == 0  ? FUTEX
                                                      : UNKNOWN;
    if (argc != 6 || mode == UNKNOWN) {
        fprintf(stderr, "usage: pingpong spin|pause|futex CPU_A CPU_B WARMUP_MS MEASURE_MS\n");
        return 2;
    }
    int64_t warmup_ns = atoll(argv[4]) * 1000000, measure_ns = atoll(argv[5]) * 1000000;

    /* A page of its own, so the word has its cache line to itself. */
    word_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (word == MAP_FAILED)
        fail("mmap");
    int64_t *samples = malloc(MAX_SAMPLES * sizeof *samples);
    if (samples == NULL)
        fail("malloc");
    memset(samples, 0, MAX_SAMPLES * sizeof *samples); /* touched before it is timed */

    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
            fail("prctl");
        if (getppid() != parent)
            return 1;
        pin(atoi(argv[3]));
        if (mode == SPIN)
            pong(word, SPIN);
        else if (mode == PAUSE)
            pong(word, PAUSE);
        else
            pong(word, FUTEX);
    }
    pin(atoi(argv[2]));

    int64_t begin = now_ns() + warmup_ns, end = begin + measure_ns;
    int count = mode == SPIN    ? ping(word, samples, begin, end, SPIN)
                : mode == PAUSE ? ping(word, samples, begin, end, PAUSE)
                                : ping(word, samples, begin, end, FUTEX);

    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (int i = 0; i < count; i++)
        printf("%lld\n", (long long)samples[i]);
    return 0;
}
