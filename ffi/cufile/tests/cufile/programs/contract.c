/* What callers get wrong, and what they are told: in the form of the documentation, or in the one that was observed. */
#include "check.h"

#define PAGE 4096
static int observed;
static unsigned char bytes[1 << 20];

/* A transfer that fails with a code of cuFile's. */
static void fails(ssize_t told, int seen_errno, int code, int line) {
    int right = observed ? told == -1 && seen_errno == code : told == -code;
    if (!right) {
        fprintf(stderr, "line %d: %zd with errno %d, not %d; last error: %s\n", line, told, seen_errno, code, last_text());
        exit(1);
    }
}

#define FAILS(call, code)                   \
    do {                                    \
        errno = 0;                          \
        ssize_t moved_ = (call);            \
        fails(moved_, errno, code, __LINE__); \
    } while (0)

/* A transfer that fails with an errno, in both forms. */
#define FAILS_BY_ERRNO(call, number)                 \
    do {                                             \
        errno = 0;                                   \
        CHECK((call) == -1 && errno == (number));    \
    } while (0)

static void before_open(void) {
    CUfileDrvProps_t props;
    CHECK(cuFileUseCount() == 0);
    IS(cuFileDriverClose(), CU_FILE_DRIVER_NOT_INITIALIZED);
    IS(cuFileStatsStart(), CU_FILE_DRIVER_NOT_INITIALIZED);
    IS(cuFileDriverGetProperties(NULL), CU_FILE_INVALID_VALUE);
    OK(cuFileDriverGetProperties(&props));
    CHECK(props.max_batch_io_size == 128 && props.nvfs.major_version == 0 && props.fflags == 15);
    IS(cuFileGetVersion(NULL), CU_FILE_INVALID_VALUE);
    CHECK(cuFileUseCount() == 0);
}

static void files(const char *path) {
    CUfileHandle_t fh = NULL;
    int ends[2];
    IS(cuFileHandleRegister(NULL, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileHandleRegister(&fh, NULL), CU_FILE_INVALID_VALUE);
    IS(try_handle(-1, 1, &fh), CU_FILE_INVALID_VALUE);
    IS(try_handle(987, 1, &fh), CU_FILE_INVALID_VALUE);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    IS(try_handle(fd, 0, &fh), CU_FILE_IO_NOT_SUPPORTED);
    IS(try_handle(fd, 2, &fh), CU_FILE_IO_NOT_SUPPORTED);
    IS(try_handle(fd, 77, &fh), CU_FILE_IO_NOT_SUPPORTED);
    int directory = open("/", O_RDONLY);
    IS(try_handle(directory, 1, &fh), CU_FILE_INVALID_FILE_TYPE);
    CHECK(pipe(ends) == 0);
    IS(try_handle(ends[0], 1, &fh), CU_FILE_INVALID_FILE_TYPE);
    int null = open("/dev/null", O_RDWR);
    IS(try_handle(null, 1, &fh), CU_FILE_INVALID_FILE_TYPE);
    int append = open(path, O_WRONLY | O_APPEND);
    IS(try_handle(append, 1, &fh), CU_FILE_INVALID_FILE_OPEN_FLAG);
    CHECK(fh == NULL);

    fh = handle_of(fd);
    CHECK(cuFileUseCount() == 1);
    CUfileHandle_t again = NULL;
    IS(try_handle(fd, 1, &again), CU_FILE_HANDLE_ALREADY_REGISTERED);
    /* Another descriptor of the same file is another handle. */
    int other = open(path, O_RDONLY);
    CUfileHandle_t reads = handle_of(other);
    FAILS(cuFileWrite(reads, bytes, PAGE, 0, 0), CU_FILE_INVALID_FILE_OPEN_FLAG);
    int writer = open(path, O_WRONLY);
    CUfileHandle_t writes = handle_of(writer);
    FAILS(cuFileRead(writes, bytes, PAGE, 0, 0), CU_FILE_INVALID_FILE_OPEN_FLAG);

    FAILS_BY_ERRNO(cuFileRead(NULL, bytes, PAGE, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileRead(fh, NULL, PAGE, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileRead(fh, NULL, 0, 0, 0), EINVAL);
    CHECK(cuFileRead(fh, bytes, 0, 0, 0) == 0);
    CHECK(cuFileWrite(fh, bytes, 0, 0, 0) == 0);
    FAILS(cuFileRead(fh, bytes, PAGE, -1, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileRead(fh, bytes, PAGE, 0, -1), CU_FILE_INVALID_VALUE);
    FAILS(cuFileRead(fh, bytes, PAGE, INT64_MIN, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileRead(fh, bytes, PAGE, INT64_MAX, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileWrite(fh, bytes, PAGE, INT64_MAX - 100, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileRead(fh, bytes, (size_t)1 << 63, 0, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileRead(fh, bytes, SIZE_MAX, 0, 0), CU_FILE_INVALID_VALUE);
    /* An address that no memory has: the system says so. */
    FAILS_BY_ERRNO(cuFileRead(fh, bytes, PAGE, 0, INT64_MAX), EFAULT);
    CHECK(cuFileRead(fh, bytes, PAGE, INT64_MAX - PAGE, 0) == 0);

    FAILS(cuFileRead((void *)(uintptr_t)0xdead0, bytes, PAGE, 0, 0), CU_FILE_HANDLE_NOT_REGISTERED);
    cuFileHandleDeregister(reads);
    FAILS(cuFileRead(reads, bytes, PAGE, 0, 0), CU_FILE_HANDLE_NOT_REGISTERED);
    cuFileHandleDeregister(reads);
    cuFileHandleDeregister(NULL);
    CHECK(cuFileUseCount() == 1);

    /* A descriptor that the caller closed under its handle: the library has its own. */
    close(fd);
    CHECK(cuFileRead(fh, bytes, PAGE, 0, 0) == PAGE && bytes_are(bytes, 0, PAGE));
    /* Its number may stand for another file by now, which is no file that is registered. */
    char name[4096];
    snprintf(name, sizeof name, "%s.other", path);
    int next = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(next == fd);
    CUfileHandle_t fresh = handle_of(next);
    CHECK(cuFileRead(fresh, bytes, PAGE, 0, 0) == 0);
    unlink(name);
}

static void memory(const char *path) {
    static unsigned char more[1 << 16];
    CUfileHandle_t fh = handle_of(open(path, O_RDONLY));
    IS(cuFileBufRegister(NULL, PAGE, 0), CU_FILE_INVALID_VALUE);
    IS(cuFileBufRegister(bytes, 0, 0), CU_FILE_INVALID_VALUE);
    IS(cuFileBufRegister(bytes, SIZE_MAX, 0), CU_FILE_INVALID_VALUE);
    /* Flags do nothing, unknown ones too. */
    OK(cuFileBufRegister(bytes, PAGE, 99));
    OK(cuFileBufDeregister(bytes));
    OK(cuFileBufRegister(more, 16 * PAGE, CU_FILE_RDMA_REGISTER));
    IS(cuFileBufRegister(more, 16 * PAGE, 0), CU_FILE_MEMORY_ALREADY_REGISTERED);
    IS(cuFileBufRegister(more, PAGE, 0), CU_FILE_MEMORY_ALREADY_REGISTERED);
    /* A range inside, and an address inside. */
    OK(cuFileBufRegister(more + PAGE, PAGE, 0));
    CHECK(cuFileRead(fh, more + 100, 5000, 77, 0) == 5000 && bytes_are(more + 100, 77, 5000));
    CHECK(cuFileRead(fh, more, 5000, 77, 100) == 5000 && bytes_are(more + 100, 77, 5000));
    CHECK(cuFileRead(fh, more + PAGE, 2 * PAGE, 0, 0) == 2 * PAGE);
    FAILS(cuFileRead(fh, more, 16 * PAGE + 1, 0, 0), CU_FILE_INVALID_MAPPING_RANGE);
    FAILS(cuFileRead(fh, more, PAGE, 0, 16 * PAGE), CU_FILE_INVALID_MAPPING_RANGE);
    IS(cuFileBufDeregister(more + 1), CU_FILE_MEMORY_NOT_REGISTERED);
    IS(cuFileBufDeregister(NULL), CU_FILE_INVALID_VALUE);
    OK(cuFileBufDeregister(more));
    IS(cuFileBufDeregister(more), CU_FILE_MEMORY_NOT_REGISTERED);
    OK(cuFileBufDeregister(more + PAGE));
    CHECK(cuFileRead(fh, more, PAGE, 0, 0) == PAGE);
    cuFileHandleDeregister(fh);
}

static void vectors(const char *path) {
    CUfileIOVec_t of[2] = {{bytes, PAGE}, {bytes + 2 * PAGE, 100}};
    CUfileIOVec_t none = {NULL, 5}, empty = {bytes, 0};
    CUfileHandle_t fh = handle_of(open(path, O_RDONLY));
    CHECK(cuFileReadv(fh, of, 2, 50, 0) == PAGE + 100);
    CHECK(bytes_are(bytes, 50, PAGE) && bytes_are(bytes + 2 * PAGE, 50 + PAGE, 100));
    FAILS_BY_ERRNO(cuFileReadv(fh, of, 0, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileReadv(fh, NULL, 2, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileReadv(fh, of, 1025, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileReadv(fh, of, 2, 0, 5), EINVAL);
    FAILS_BY_ERRNO(cuFileReadv(fh, &none, 1, 0, 0), EINVAL);
    FAILS_BY_ERRNO(cuFileReadv(NULL, of, 2, 0, 0), EINVAL);
    CHECK(cuFileReadv(fh, &empty, 1, 0, 0) == 0);
    FAILS(cuFileReadv(fh, of, 2, -1, 0), CU_FILE_INVALID_VALUE);
    FAILS(cuFileWritev(fh, of, 2, 0, 0), CU_FILE_INVALID_FILE_OPEN_FLAG);
    CHECK(cuFileReadv(fh, of, 2, (1 << 20) - PAGE - 1, 0) == PAGE + 1);
    cuFileHandleDeregister(fh);
}

static void parameters(void) {
    size_t value = 0, min = 0, max = 0;
    bool flag = false;
    char text[64];
    IS(cuFileGetParameterSizeT(CUFILE_PARAM_PROFILE_STATS, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterSizeT((CUFileSizeTConfigParameter_t)12, &value), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterSizeT((CUFileSizeTConfigParameter_t)-1, &value), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterBool((CUFileBoolConfigParameter_t)14, &flag), CU_FILE_INVALID_VALUE);
    IS(cuFileSetParameterBool((CUFileBoolConfigParameter_t)99, true), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterString((CUFileStringConfigParameter_t)4, text, sizeof text), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterString(CUFILE_PARAM_LOGGING_LEVEL, NULL, 64), CU_FILE_INVALID_VALUE);
    IS(cuFileSetParameterString(CUFILE_PARAM_LOGGING_LEVEL, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileSetParameterString(CUFILE_PARAM_LOGGING_LEVEL, "LOUD"), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterMinMaxValue((CUFileSizeTConfigParameter_t)40, &min, &max), CU_FILE_INVALID_VALUE);
    OK(cuFileGetParameterMinMaxValue(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &min, &max));
    CHECK(min == 1 && max == 256);
    OK(cuFileSetParameterString(CUFILE_PARAM_LOGGING_LEVEL, "ERROR"));
    IS(cuFileGetParameterString(CUFILE_PARAM_LOGGING_LEVEL, text, 5), CU_FILE_INVALID_VALUE);
    OK(cuFileGetParameterString(CUFILE_PARAM_LOGGING_LEVEL, text, 6));
    CHECK(strcmp(text, "ERROR") == 0);
    OK(cuFileSetParameterString(CUFILE_PARAM_LOGGING_LEVEL, "OFF"));
    /* A range is looked at when the driver is opened. */
    OK(cuFileSetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 100000));
    OK(cuFileGetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &value));
    CHECK(value == 100000);
    IS(cuFileDriverOpen(), CU_FILE_DRIVER_INVALID_PROPS);
    CHECK(cuFileUseCount() == 0);
    sw_cufile_last_error(text, sizeof text);
    OK(cuFileSetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 200));
    /* Slabs are kept as they are. */
    size_t sizes[2] = {8, 4}, counts[2] = {0, 7}, read_sizes[2], read_counts[2];
    OK(cuFileSetParameterGpuBounceBufferSlabArray(sizes, counts, 2));
    IS(cuFileGetParameterGpuBounceBufferSlabArray(read_sizes, read_counts, 3), CU_FILE_INVALID_VALUE);
    OK(cuFileGetParameterGpuBounceBufferSlabArray(read_sizes, read_counts, 2));
    CHECK(memcmp(sizes, read_sizes, sizeof sizes) == 0 && memcmp(counts, read_counts, sizeof counts) == 0);
    IS(cuFileSetParameterPosixPoolSlabArray(NULL, counts, 2), CU_FILE_INVALID_VALUE);
    IS(cuFileSetParameterPosixPoolSlabArray(sizes, counts, 0), CU_FILE_INVALID_VALUE);
    IS(cuFileGetParameterPosixPoolSlabArray(NULL, NULL, 3), CU_FILE_INVALID_VALUE);
}

static void after_open(void) {
    size_t value = 0;
    CUfileDrvProps_t before, props;
    CUfileP2PFlags_t flags;
    IS(cuFileSetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 64), CU_FILE_DRIVER_ALREADY_OPEN);
    IS(cuFileSetParameterBool(CUFILE_PARAM_PREFER_IO_URING, true), CU_FILE_DRIVER_ALREADY_OPEN);
    IS(cuFileSetParameterString(CUFILE_PARAM_LOG_DIR, "/tmp"), CU_FILE_DRIVER_ALREADY_OPEN);
    IS(cuFileDriverSetMaxDirectIOSize(100), CU_FILE_INVALID_VALUE);
    IS(cuFileDriverSetMaxDirectIOSize(32768), CU_FILE_INVALID_VALUE);
    /* What is set while the driver is open does nothing, as documented. */
    OK(cuFileDriverGetProperties(&before));
    OK(cuFileDriverSetMaxDirectIOSize(2048));
    OK(cuFileDriverSetPollMode(true, 8));
    OK(cuFileDriverSetMaxCacheSize(4096));
    OK(cuFileDriverSetMaxPinnedMemSize(8192));
    IS(cuFileDriverSetMaxPinnedMemSize(0), CU_FILE_INVALID_VALUE);
    OK(cuFileDriverGetProperties(&props));
    CHECK(memcmp(&before, &props, sizeof props) == 0);
    CHECK(props.max_batch_io_size == 200);
    OK(cuFileGetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &value));
    CHECK(value == 200);
    IS(cuFileGetBARSizeInKB(0, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileGetBARSizeInKB(0, &value), CU_FILE_CUDA_DRIVER_ERROR);
    OK(cuFileDriverGetP2PFlags(CU_FILE_NVME_SUPPORTED, &flags));
    CHECK((int)flags == 0);
    OK(cuFileDriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, (CUfileP2PFlags_t)(1 << CUFILE_P2PDMA)));
    OK(cuFileDriverGetP2PFlags(CU_FILE_NVME_SUPPORTED, &flags));
    CHECK((int)flags == 1);
    IS(cuFileDriverSetP2PFlags(CU_FILE_NVME_SUPPORTED, (CUfileP2PFlags_t)(1 << CUFILE_NVFS)), CU_FILE_INVALID_VALUE);
    IS(cuFileDriverGetP2PFlags((CUfileDriverStatusFlags_t)15, &flags), CU_FILE_INVALID_VALUE);
    IS(cuFileExportPCIeTopology(NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileExportPCIeTopology(""), CU_FILE_INVALID_VALUE);
    IS(cuFileExportPCIeTopology("/nonexistent/topology"), CU_FILE_INVALID_VALUE);
    IS(cuFileSetStatsLevel(4), CU_FILE_INVALID_VALUE);
    IS(cuFileSetStatsLevel(-1), CU_FILE_INVALID_VALUE);
    IS(cuFileGetStatsL1(NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileGetStatsL3(NULL), CU_FILE_INVALID_VALUE);
}

static void streams(const char *path) {
    size_t size = PAGE;
    off_t offset = 10, at = 20;
    ssize_t moved = 77;
    CUstream stream = (CUstream)(uintptr_t)16;
    CUfileHandle_t fh = handle_of(open(path, O_RDONLY));
    OK(cuFileStreamRegister(stream, 15));
    IS(cuFileStreamRegister(stream, 15), CU_FILE_INVALID_VALUE);
    IS(cuFileStreamRegister((CUstream)(uintptr_t)32, 16), CU_FILE_INVALID_VALUE);
    OK(cuFileStreamDeregister(stream));
    IS(cuFileStreamDeregister(stream), CU_FILE_INVALID_VALUE);
    /* Without a stream it is done at once. */
    OK(cuFileReadAsync(fh, bytes, &size, &offset, &at, &moved, NULL));
    CHECK(moved == PAGE && bytes_are(bytes + 20, 10, PAGE));
    size = 1;
    offset = -5;
    OK(cuFileReadAsync(fh, bytes, &size, &offset, &at, &moved, NULL));
    CHECK(moved == -CU_FILE_INVALID_VALUE);
    IS(cuFileReadAsync(fh, bytes, NULL, &offset, &at, &moved, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileReadAsync(fh, bytes, &size, &offset, &at, NULL, NULL), CU_FILE_INVALID_VALUE);
    IS(cuFileWriteAsync(fh, bytes, &size, &offset, &at, &moved, NULL), CU_FILE_INVALID_FILE_OPEN_FLAG);
    /* No driver, no stream. */
    IS(cuFileReadAsync(fh, bytes, &size, &offset, &at, &moved, stream), CU_FILE_ASYNC_NOT_SUPPORTED);
    cuFileHandleDeregister(fh);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *path = argv[1];
    observed = strcmp(argv[2], "observed") == 0;
    before_open();
    parameters();
    files(path);
    memory(path);
    vectors(path);
    after_open();
    streams(path);
    OK(cuFileDriverOpen());
    CHECK(cuFileUseCount() == 2);
    OK(cuFileDriverClose());
    CUfileHandle_t fh = handle_of(open(path, O_RDONLY));
    OK(cuFileDriverClose());
    CHECK(cuFileUseCount() == 0);
    IS(cuFileDriverClose(), CU_FILE_DRIVER_NOT_INITIALIZED);
    FAILS(cuFileRead(fh, bytes, PAGE, 0, 0), CU_FILE_HANDLE_NOT_REGISTERED);
    OK(cuFileSetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, 128));
    return 0;
}
