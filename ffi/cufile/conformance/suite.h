/* SPDX-License-Identifier: Apache-2.0 */
/* What the cases share.
 *
 *   suite.c     one child process for each case, with a limit; prints `case NAME VERDICT ...` lines
 *   api.c       the library under test, by dlopen from the path that is given
 *   memory.c    host memory, or memory of a GPU by the libcuda that the loader finds
 *   cases_*.c   the cases, a table in each file
 *
 * A case notes answers (what the library said) and complaints (what it should have said). Answers are compared between
 * libraries, so they hold nothing that changes from run to run. */
#ifndef SUITE_H
#define SUITE_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <cufile.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define PAGE ((size_t)4096)

/* Every function of the header that the library exports under its own name. cuFileDriverClose is a macro there. */
#define API(X)                                                                                                         \
    X(DriverOpen) X(UseCount) X(DriverGetProperties) X(DriverSetPollMode) X(DriverSetMaxDirectIOSize)                  \
    X(DriverSetMaxCacheSize) X(DriverSetMaxPinnedMemSize) X(GetVersion) X(GetBARSizeInKB) X(DriverSetP2PFlags)         \
    X(DriverGetP2PFlags) X(ExportPCIeTopology) X(HandleRegister) X(HandleDeregister) X(BufRegister) X(BufDeregister)   \
    X(Read) X(Write) X(Readv) X(Writev) X(BatchIOSetUp) X(BatchIOSubmit) X(BatchIOGetStatus) X(BatchIOCancel)          \
    X(BatchIODestroy) X(ReadAsync) X(WriteAsync) X(StreamRegister) X(StreamDeregister) X(GetParameterSizeT)            \
    X(GetParameterBool) X(GetParameterString) X(SetParameterSizeT) X(SetParameterBool) X(SetParameterString)           \
    X(GetParameterMinMaxValue) X(SetParameterPosixPoolSlabArray) X(GetParameterPosixPoolSlabArray)                     \
    X(SetParameterGpuBounceBufferSlabArray) X(GetParameterGpuBounceBufferSlabArray) X(SetStatsLevel) X(GetStatsLevel)  \
    X(StatsStart) X(StatsStop) X(StatsReset) X(GetStatsL1) X(GetStatsL2) X(GetStatsL3)

/* The library under test. The types are those of the official header. */
struct api {
    void *library;
#define FIELD(name) __typeof__(cuFile##name) *name;
    API(FIELD)
#undef FIELD
    CUfileError_t (*DriverClose)(void);   /* cuFileDriverClose_v2, as the header's macro says */
    CUfileError_t (*DriverCloseV1)(void); /* the plain name, which older programs call */
};
extern struct api cu;

/* Whether the case wants the library loaded before it begins. */
enum load { LOADED, UNLOADED };

/* Which memory a case may be run with. */
enum kinds { HOST_ONLY, ANY_MEMORY, DEVICE_ONLY };

struct test_case {
    const char *name;
    const char *source; /* "documented: ..." with the place, or "observed: ..." with what was observed */
    const char *rule;
    void (*run)(void);
    enum kinds kinds;
    enum load load;
};

struct table {
    const struct test_case *cases;
    size_t count;
};
#define TABLE(array) ((struct table){(array), sizeof(array) / sizeof((array)[0])})

struct table driver_cases(void);
struct table handle_cases(void);
struct table buffer_cases(void);
struct table read_cases(void);
struct table write_cases(void);
struct table vector_cases(void);
struct table batch_cases(void);
struct table stream_cases(void);
struct table parameter_cases(void);
struct table config_cases(void);
struct table stats_cases(void);
struct table life_cases(void);

/* api.c */
const char *api_load(void); /* NULL, or why not */
extern const char *api_path;

/* suite.c: answers and complaints of the running case. */
void answer(const char *what, const char *format, ...) __attribute__((format(printf, 2, 3)));
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

void is_error(const char *what, CUfileError_t got, int wanted);
void is_number(const char *what, long long got, long long wanted);
void is_true(const char *what, bool holds);
/* Not noted as an answer, as how it is refused is not the point of the case. */
void is_refused(const char *what, CUfileError_t got);
/* A transfer: that many bytes. `code` is errno after the call. */
void is_bytes(const char *what, ssize_t got, int code, ssize_t wanted);
/* A transfer that is refused with a cuFile code: as its negative, or as -1 with the code in errno. The form is an answer. */
void is_refused_with(const char *what, ssize_t got, int code, int wanted);
/* A transfer that is refused, however; the form is an answer. */
void is_no_transfer(const char *what, ssize_t got, int code);
#define CALL(expression) ({ errno = 0; ssize_t got_ = (expression); got_; })

/* Files in the case's own folder, which is the working directory. Byte `at` is byte_at(at). */
unsigned char byte_at(uint64_t at);
int file_new(const char *name, size_t length, int flags);
bool file_has(const char *name, uint64_t from, const unsigned char *bytes, size_t length);
uint64_t file_length(const char *name);
CUfileHandle_t handle_of(int fd); /* gives up if it is refused */
CUfileError_t register_fd(CUfileHandle_t *handle, int fd);
CUfileHandle_t open_file(const char *name, size_t length, int flags); /* file_new and handle_of; O_RDWR is added */
void must_open(void);
uint64_t now_ms(void);

/* memory.c */
#define POISON 0xA5
enum memory { HOST, DEVICE };
extern enum memory memory_kind;
const char *memory_ready(void);       /* NULL, or why there is none of that kind; after fork */
void *memory_new(size_t length);      /* page aligned, filled with POISON */
void memory_put(void *to, const void *from, size_t length);
void memory_get(void *to, const void *from, size_t length);
bool memory_is_file(const void *at, uint64_t from, size_t length);
bool memory_is_poison(const void *at, size_t length);
void memory_fill(void *at, uint64_t from, size_t length); /* with the bytes of a file */
struct CUstream_st *stream_new(void);
int stream_wait(struct CUstream_st *stream);
int stream_set(struct CUstream_st *stream, void *at, unsigned char value, size_t length);

#endif
