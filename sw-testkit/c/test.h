/* What programs share that test a library of ours: a check, and the bytes of the file that `native.rs` makes. */
#ifndef TEST_H
#define TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The words of the library's last error; each library's `check.h` has it. */
static inline const char *last_text(void);

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition, last_text()); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The byte that the file has at a place. */
static inline unsigned char byte_at(uint64_t at) { return (unsigned char)(at * 31 + at / 4093); }

static inline int bytes_are(const unsigned char *got, uint64_t from, uint64_t length) {
    for (uint64_t at = 0; at < length; at++) {
        if (got[at] != byte_at(from + at)) {
            fprintf(stderr, "byte %llu is %d, not %d\n", (unsigned long long)(from + at), got[at], byte_at(from + at));
            return 0;
        }
    }
    return 1;
}

static inline int all_are(const unsigned char *bytes, unsigned char byte, uint64_t length) {
    for (uint64_t at = 0; at < length; at++) {
        if (bytes[at] != byte) return 0;
    }
    return 1;
}

#endif
