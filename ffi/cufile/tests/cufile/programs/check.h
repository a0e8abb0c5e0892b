/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cufile.h>
#include <sw_cufile.h>

static inline void words_of_last_error(void) {
    char text[1024] = "";
    sw_cufile_last_error(text, sizeof text);
    fprintf(stderr, "  last error: %s\n", text);
}

#define CHECK(what)                                                                  \
    do {                                                                             \
        if (!(what)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #what); \
            words_of_last_error();                                                   \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

/* The call answers with this code. */
#define IS(call, code)                                                                            \
    do {                                                                                          \
        CUfileError_t told_ = (call);                                                             \
        if (told_.err != (code)) {                                                                \
            fprintf(stderr, "%s:%d: %s is %d, not %d\n", __FILE__, __LINE__, #call, (int)told_.err, (int)(code)); \
            words_of_last_error();                                                                \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

#define OK(call) IS(call, CU_FILE_SUCCESS)

/* The byte at a place of the file that the tests make. */
static inline unsigned char byte_at(size_t at) { return (unsigned char)(at * 31 + at / 4093); }

static inline int bytes_are(const unsigned char *bytes, size_t from, size_t length) {
    for (size_t at = 0; at < length; at++) {
        if (bytes[at] != byte_at(from + at)) {
            fprintf(stderr, "byte %zu is %d, not %d\n", from + at, bytes[at], byte_at(from + at));
            return 0;
        }
    }
    return 1;
}

static inline int all_are(const unsigned char *bytes, unsigned char byte, size_t length) {
    for (size_t at = 0; at < length; at++) {
        if (bytes[at] != byte) return 0;
    }
    return 1;
}

static inline CUfileHandle_t handle_of(int fd) {
    CUfileHandle_t fh = NULL;
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    descr.handle.fd = fd;
    OK(cuFileHandleRegister(&fh, &descr));
    CHECK(fh != NULL);
    return fh;
}

static inline CUfileError_t try_handle(int fd, int type, CUfileHandle_t *fh) {
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = (enum CUfileFileHandleType)type;
    descr.handle.fd = fd;
    return cuFileHandleRegister(fh, &descr);
}

/* The way of the last transfer as text. */
static inline const char *last_path(void) {
    static _Thread_local char text[4096];
    ssize_t length = sw_cufile_last_path(text, sizeof text);
    CHECK(length > 0 && length < (ssize_t)sizeof text);
    return text;
}

#endif
