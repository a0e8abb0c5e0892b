/* SPDX-License-Identifier: Apache-2.0 */
/* Loaded before NVIDIA's library, which otherwise does not run on a small machine:
 *
 * - without /proc/modules (a kernel without modules) its versions 1.16 to 1.20 read for ever from a stream that did not
 *   open: here the file is there and empty;
 * - without udev it refuses every file (5027), because the block device has no record: here each has one that says
 *   "a file system". Nothing is written to the machine's own /run. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *instead(const char *path) {
    const char *record = getenv("CONFORMANCE_UDEV_RECORD");
    if (!strcmp(path, "/proc/modules") && access(path, R_OK)) return "/dev/null";
    if (record && !strncmp(path, "/run/udev/data/b", 16) && access(path, R_OK)) return record;
    return path;
}

#define OPENER(name)                                                                                                   \
    int name(const char *path, int flags, ...) {                                                                       \
        static int (*real)(const char *, int, ...);                                                                    \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        unsigned mode = va_arg(more, unsigned);                                                                        \
        va_end(more);                                                                                                  \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                                                          \
        return real(instead(path), flags, mode);                                                                       \
    }
OPENER(open)
OPENER(open64)

#define STREAM_OPENER(name)                                                                                            \
    FILE *name(const char *path, const char *mode) {                                                                   \
        static FILE *(*real)(const char *, const char *);                                                              \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                                                          \
        return real(instead(path), mode);                                                                              \
    }
STREAM_OPENER(fopen)
STREAM_OPENER(fopen64)
