/* fuzz_driver.c: search for an input that breaks a target, guided by what of it has run.
 *
 * The target is compiled with -fsanitize-coverage=trace-pc, which has it call
 * __sanitizer_cov_trace_pc on every branch; this file is compiled without. An input that reaches a
 * pair of branches, or a number of times, that no other has reached, is kept and changed again.
 *
 * usage: fuzz SEED RUNS       as many inputs; the same ones for the same seed
 *        fuzz replay HEX      that one
 *
 * Prints "runs=... kept=... edges=..." and exits 0. A target that finds something wrong calls
 * fuzz_fail; then, and when a sanitizer does, the input is printed as hexadecimal digits.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz_driver.h"

enum { EDGES = 1 << 14, INPUT_NBYTES = 400, KEPT_MAX = 4096, CHANGES_MAX = 6 };

static uint8_t hits[EDGES];
static uint8_t seen[EDGES]; /* bits: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128 and more hits */
static uintptr_t previous;

typedef struct {
    size_t nbytes;
    uint8_t bytes[INPUT_NBYTES];
} input;

static input kept[KEPT_MAX];
static size_t kept_count;
static input current;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

void
__sanitizer_cov_trace_pc(void)
{
    /* From a place of its own: where a program is loaded differs from run to run. */
    uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)fuzz_target;
    uint8_t *hit = &hits[(here ^ previous) % EDGES];
    *hit += *hit < 255;
    previous = here * 31 >> 1;
}

static void
print_input(void)
{
    fprintf(stderr, "\ninput: ");
    for (size_t i = 0; i < current.nbytes; i++) {
        fprintf(stderr, "%02x", current.bytes[i]);
    }
    fprintf(stderr, "\n");
}

void
fuzz_fail(const char *reason, uint64_t detail)
{
    printf("FAILED: %s (%#" PRIx64 ")\n", reason, detail);
    fflush(stdout);
    print_input();
    _exit(1);
}

static uint64_t
random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 11;
}

static uint8_t
bucket(uint8_t count)
{
    return count < 3    ? (uint8_t)(1 << (count - 1))
           : count == 3  ? 4
           : count < 8   ? 8
           : count < 16  ? 16
           : count < 32  ? 32
           : count < 128 ? 64
                         : 128;
}

/* Run `current`; say whether it has reached something new. */
static int
run(void)
{
    memset(hits, 0, sizeof hits);
    previous = 0;
    fuzz_target(current.bytes, current.nbytes);
    int new = 0;
    for (size_t i = 0; i < EDGES; i++) {
        if (hits[i] != 0 && !(seen[i] & bucket(hits[i]))) {
            seen[i] |= bucket(hits[i]);
            new = 1;
        }
    }
    return new;
}

static void
change(uint64_t *state)
{
    size_t at = current.nbytes ? random_next(state) % current.nbytes : 0;
    size_t length = 1 + random_next(state) % 12;
    switch (random_next(state) % 6) {
    case 0: /* one byte, of those that matter as often as of the others */
        if (current.nbytes) {
            static const uint8_t edges[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7F, 0x80, 0xFE, 0xFF};
            current.bytes[at] = random_next(state) % 2
                                    ? edges[random_next(state) % sizeof edges]
                                    : (uint8_t)random_next(state);
        }
        break;
    case 1: /* one bit */
        if (current.nbytes) {
            current.bytes[at] ^= (uint8_t)(1u << random_next(state) % 8);
        }
        break;
    case 2: /* more at the end */
        for (; length > 0 && current.nbytes < INPUT_NBYTES; length--) {
            current.bytes[current.nbytes++] = (uint8_t)random_next(state);
        }
        break;
    case 3: /* some less */
        length = length < current.nbytes - at ? length : current.nbytes - at;
        memmove(&current.bytes[at], &current.bytes[at + length], current.nbytes - at - length);
        current.nbytes -= length;
        break;
    case 4: /* some of it once more */
        if (current.nbytes + length <= INPUT_NBYTES && at + length <= current.nbytes) {
            memmove(&current.bytes[at + length], &current.bytes[at], current.nbytes - at);
            current.nbytes += length;
        }
        break;
    default: { /* the end of another */
        const input *other = &kept[random_next(state) % kept_count];
        size_t from = other->nbytes ? random_next(state) % other->nbytes : 0;
        size_t room = INPUT_NBYTES - at;
        size_t more = other->nbytes - from < room ? other->nbytes - from : room;
        memcpy(&current.bytes[at], &other->bytes[from], more);
        current.nbytes = at + more;
    }
    }
}

int
main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: fuzz SEED RUNS | fuzz replay HEX\n");
        return 2;
    }
    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(print_input);
    }
    if (strcmp(argv[1], "replay") == 0) {
        for (const char *hex = argv[2]; hex[0] != 0 && hex[1] != 0; hex += 2) {
            char digits[3] = {hex[0], hex[1], 0};
            current.bytes[current.nbytes++] = (uint8_t)strtoul(digits, NULL, 16);
        }
        run();
        return 0;
    }
    uint64_t state = strtoull(argv[1], NULL, 10) * 2 + 1;
    uint64_t runs = strtoull(argv[2], NULL, 10);
    for (int i = 0; i < 16; i++) {
        random_next(&state);
    }
    kept_count = 1; /* the empty one */
    for (uint64_t i = 0; i < runs; i++) {
        /* The latest more often: they have reached farthest. */
        size_t from = random_next(&state) % kept_count;
        size_t later = random_next(&state) % kept_count;
        current = kept[later > from ? later : from];
        for (size_t changes = 1 + random_next(&state) % CHANGES_MAX; changes > 0; changes--) {
            change(&state);
        }
        if (run() && kept_count < KEPT_MAX) {
            kept[kept_count++] = current;
        }
    }
    size_t edges = 0;
    for (size_t i = 0; i < EDGES; i++) {
        edges += seen[i] != 0;
    }
    printf("runs=%" PRIu64 " kept=%zu edges=%zu\n", runs, kept_count, edges);
    fuzz_report();
    return 0;
}
