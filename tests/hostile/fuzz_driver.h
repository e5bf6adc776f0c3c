/* fuzz_driver.h: what a target offers to the driver, and the driver to a target. */
#ifndef FUZZ_DRIVER_H
#define FUZZ_DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* Of the target: do what *bytes* say. */
void fuzz_target(const uint8_t *bytes, size_t nbytes);
/* Of the target: print what was reached, as "name=value ...". */
void fuzz_report(void);

/* Of the driver: say what is wrong, print the input, and end. */
void fuzz_fail(const char *reason, uint64_t detail) __attribute__((noreturn));

#endif
