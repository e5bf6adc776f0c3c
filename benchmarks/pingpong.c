/* pingpong.c: what one round trip between two processes costs at the very least.
 *
 *     ping (CPU a)                    pong (CPU b)
 *     word = 2k + 1  --one cache-->   sees an odd value
 *     sees 2k + 2    <---line-----    word = 2k + 2
 *
 * usage: pingpong spin|pause|futex|semaphore CPU_A CPU_B WARMUP_MS MEASURE_MS
 *
 * spin   both sides only load the word, over and over, without system calls. A sample is the
 *        mean of SPIN_BLOCK round trips, so that reading the clock does not show in it.
 * pause  the same with the processor's spin-wait hint between two loads: much faster where the
 *        two CPUs are threads of one core, which a virtual machine may hide, else alike.
 * futex  both sides sleep in the kernel until the other one wakes them; they never spin. A
 *        sample is one round trip.
 * semaphore  the same with two POSIX semaphores, one for each side.
 *
 * Prints one sample per line, in nanoseconds. Every answer is checked. The two processes share
 * nothing but the word, and pong dies with ping.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <semaphore.h>
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
enum mode { UNKNOWN, SPIN, PAUSE, FUTEX, SEMAPHORE };

typedef _Atomic uint32_t word_t;

/* What the processes share: each part on a cache line of its own. */
struct shared {
    _Alignas(64) word_t word;
    _Alignas(64) sem_t ping_sleeps;
    _Alignas(64) sem_t pong_sleeps;
};

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

static uint32_t await_semaphore(word_t *word, uint32_t old, sem_t *semaphore) {
    uint32_t value;
    while ((value = atomic_load_explicit(word, memory_order_acquire)) == old)
        sem_wait(semaphore);
    return value;
}

static void wake(word_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Inlined into one loop per mode, so that the mode costs nothing inside it. */
static inline __attribute__((always_inline)) uint32_t
await_change(word_t *word, uint32_t old, sem_t *semaphore, enum mode mode) {
    switch (mode) {
    case SPIN:
        return await_spin(word, old);
    case PAUSE:
        return await_pause(word, old);
    case SEMAPHORE:
        return await_semaphore(word, old, semaphore);
    default:
        return await_futex(word, old);
    }
}

static inline __attribute__((always_inline)) void pong(struct shared *shared, enum mode mode) {
    word_t *word = &shared->word;
    uint32_t seen = 0;
    for (;;) {
        seen = await_change(word, seen, &shared->pong_sleeps, mode) + 1;
        atomic_store_explicit(word, seen, memory_order_release);
        if (mode == FUTEX)
            wake(word);
        else if (mode == SEMAPHORE)
            sem_post(&shared->ping_sleeps);
    }
}

/* Fills `samples`, returns how many; what ends before `begin` is warm-up. */
static inline __attribute__((always_inline)) int ping(struct shared *shared, int64_t *samples,
                                                      int64_t begin, int64_t end,
                                                      enum mode mode) {
    word_t *word = &shared->word;
    int per_sample = mode == FUTEX || mode == SEMAPHORE ? 1 : SPIN_BLOCK, count = 0;
    uint32_t mine = 1;
    for (int64_t last = now_ns(); last < end && count < MAX_SAMPLES;) {
        for (int i = 0; i < per_sample; i++, mine += 2) {
            atomic_store_explicit(word, mine, memory_order_release);
            if (mode == FUTEX)
                wake(word);
            else if (mode == SEMAPHORE)
                sem_post(&shared->pong_sleeps);
            if (await_change(word, mine, &shared->ping_sleeps, mode) != mine + 1) {
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
    enum mode mode = argc < 2                             ? UNKNOWN
                     : strcmp(argv[1], "spin") == 0       ? SPIN
                     : strcmp(argv[1], "pause") == 0      ? PAUSE
                     : strcmp(argv[1], "futex") == 0      ? FUTEX
                     : strcmp(argv[1], "semaphore") == 0  ? SEMAPHORE
                                                          : UNKNOWN;
    if (argc != 6 || mode == UNKNOWN) {
        fprintf(stderr, "usage: pingpong spin|pause|futex|semaphore CPU_A CPU_B WARMUP_MS MEASURE_MS\n");
        return 2;
    }
    int64_t warmup_ns = atoll(argv[4]) * 1000000, measure_ns = atoll(argv[5]) * 1000000;

    struct shared *shared =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    if (sem_init(&shared->ping_sleeps, 1, 0) != 0 || sem_init(&shared->pong_sleeps, 1, 0) != 0)
        fail("sem_init");
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
            pong(shared, SPIN);
        else if (mode == PAUSE)
            pong(shared, PAUSE);
        else if (mode == SEMAPHORE)
            pong(shared, SEMAPHORE);
        else
            pong(shared, FUTEX);
    }
    pin(atoi(argv[2]));

    int64_t begin = now_ns() + warmup_ns, end = begin + measure_ns;
    int count = mode == SPIN        ? ping(shared, samples, begin, end, SPIN)
                : mode == PAUSE     ? ping(shared, samples, begin, end, PAUSE)
                : mode == SEMAPHORE ? ping(shared, samples, begin, end, SEMAPHORE)
                                    : ping(shared, samples, begin, end, FUTEX);

    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (int i = 0; i < count; i++)
        printf("%lld\n", (long long)samples[i]);
    return 0;
}
