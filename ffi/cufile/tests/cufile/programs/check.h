/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cufile.h>
#include <sw_cufile.h>
#include <test.h>

static inline const char *last_text(void) {
    static _Thread_local char text[1024];
    text[0] = 0;
    sw_cufile_last_error(text, sizeof text);
    return text;
}

/* The call answers with this code. */
#define IS(call, code)                                                                                                 \
    do {                                                                                                               \
        CUfileError_t told_ = (call);                                                                                  \
        if (told_.err != (code)) {                                                                                     \
            fprintf(stderr, "%s:%d: %s is %d, not %d; last error: %s\n", __FILE__, __LINE__, #call, (int)told_.err,    \
                    (int)(code), last_text());                                                                         \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define OK(call) IS(call, CU_FILE_SUCCESS)

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
