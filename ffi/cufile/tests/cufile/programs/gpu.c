/* Memory and streams of a GPU, by the driver that is given (the project's stand-in, or a real one). */
#include <stdatomic.h>

#include "check.h"
#include "driver.h"

#define PAGE 4096
#define LENGTH (1u << 20)

static unsigned char host[2 * LENGTH];

static void *at(uint64_t device) { return (void *)(uintptr_t)device; }

/* Registered or not, from its base or from inside: the bytes are there when the call returns, and no others changed. */
static void memory(CUfileHandle_t fh, uint64_t device) {
    for (int registered = 0; registered < 2; registered++) {
        if (registered) OK(cuFileBufRegister(at(device), LENGTH, 0));
        CHECK(cuMemsetD8(device, 0xa5, LENGTH) == 0);
        CHECK(cuFileRead(fh, at(device), 300000, 77, 4099) == 300000);
        CHECK(strstr(last_path(), "/staged\"") && strstr(last_path(), "\"reason\":\"NO_P2PDMA\""));
        CHECK(cuFileRead(fh, at(device + 500000), 4096, LENGTH - 1000, 0) == 1000);
        CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0);
        CHECK(all_are(host, 0xa5, 4099) && bytes_are(host + 4099, 77, 300000) && all_are(host + 304099, 0xa5, 195901));
        CHECK(bytes_are(host + 500000, LENGTH - 1000, 1000) && all_are(host + 501000, 0xa5, LENGTH - 501000));
    }
    CHECK(cuFileRead(fh, at(device), LENGTH + 1, 0, 0) == -CU_FILE_INVALID_MAPPING_RANGE);
    OK(cuFileBufDeregister(at(device)));
    CHECK(cuFileRead(fh, at(device), 2 * LENGTH, 0, 1) < 0);
    IS(cuFileBufRegister(at(device), 64 * LENGTH, 0), CU_FILE_INVALID_MAPPING_RANGE);
}

static void writes(const char *path, uint64_t device) {
    char name[4096];
    snprintf(name, sizeof name, "%s.device", path);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CUfileHandle_t fh = handle_of(fd);
    for (size_t byte = 0; byte < LENGTH; byte++) host[byte] = byte_at(byte);
    CHECK(cuMemcpyHtoD(device, host, LENGTH) == 0);
    CHECK(cuFileWrite(fh, at(device), LENGTH - 4000, 0, 1000) == LENGTH - 4000);
    CHECK(pread(fd, host, LENGTH, 0) == LENGTH - 4000 && bytes_are(host, 1000, LENGTH - 4000));
    /* Of host and device memory in one call. */
    CUfileIOVec_t in[3] = {{host, 100}, {at(device + 10), 5000}, {host + 200, 7}};
    CHECK(cuFileReadv(fh, in, 3, 0, 0) == 5107 && bytes_are(host, 1000, 100) && bytes_are(host + 200, 6100, 7));
    CHECK(cuMemcpyDtoH(host, device + 10, 5000) == 0 && bytes_are(host, 1100, 5000));
    close(fd);
    unlink(name);
}

static void batches(CUfileHandle_t fh, uint64_t device) {
    CUfileBatchHandle_t batch = NULL;
    CUfileIOParams_t params[32];
    CUfileIOEvents_t events[32];
    unsigned room = 32;
    memset(params, 0, sizeof params);
    OK(cuFileBatchIOSetUp(&batch, 32));
    for (unsigned index = 0; index < 32; index++) {
        params[index].mode = CUFILE_BATCH;
        params[index].u.batch.devPtr_base = at(device);
        params[index].u.batch.devPtr_offset = index * PAGE;
        params[index].u.batch.file_offset = (31 - index) * PAGE;
        params[index].u.batch.size = PAGE;
        params[index].fh = fh;
    }
    OK(cuFileBatchIOSubmit(batch, 32, params, 0));
    OK(cuFileBatchIOGetStatus(batch, 32, &room, events, NULL));
    CHECK(room == 32);
    CHECK(cuMemcpyDtoH(host, device, 32 * PAGE) == 0);
    for (unsigned index = 0; index < 32; index++) CHECK(bytes_are(host + index * PAGE, (31 - index) * PAGE, PAGE));
    cuFileBatchIODestroy(batch);
}

static void full(CUfileHandle_t fh, uint64_t device);

/* In the order of the stream: what was before is done before, what is after waits; numbers are read late unless they are fixed. */
static void streams(const char *path, CUfileHandle_t fh, uint64_t device) {
    CUstream stream = NULL;
    ssize_t moved[3] = {7, 7, 7};
    size_t size[3] = {LENGTH / 2, LENGTH / 2, 100};
    off_t offset[3] = {0, 0, 500}, place[3] = {0, LENGTH / 2, 0};
    char name[4096];
    snprintf(name, sizeof name, "%s.stream", path);
    CHECK(cuStreamCreate(&stream, 1) == 0);
    CHECK(cuMemsetD8Async(device, 1, LENGTH, stream) == 0);
    OK(cuFileReadAsync(fh, at(device), &size[0], &offset[0], &place[0], &moved[0], stream));
    CHECK(cuMemsetD8Async(device, 2, 1000, stream) == 0);
    CHECK(cuStreamSynchronize(stream) == 0);
    CHECK(moved[0] == LENGTH / 2);
    CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0);
    CHECK(all_are(host, 2, 1000) && bytes_are(host + 1000, 1000, LENGTH / 2 - 1000));
    CHECK(all_are(host + LENGTH / 2, 1, LENGTH / 2));

    /* The file's offset is fixed when it is asked for, and the size is not. */
    OK(cuFileStreamRegister(stream, CU_FILE_STREAM_FIXED_FILE_OFFSET));
    OK(cuFileReadAsync(fh, at(device), &size[0], &offset[0], &place[0], &moved[0], stream));
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CUfileHandle_t written = handle_of(fd);
    offset[1] = 100;
    OK(cuFileReadAsync(fh, at(device), &size[1], &offset[1], &place[1], &moved[1], stream));
    offset[1] = 999999;
    OK(cuFileWriteAsync(written, at(device), &size[2], &offset[2], &place[2], &moved[2], stream));
    CHECK(cuStreamSynchronize(stream) == 0);
    CHECK(moved[0] == LENGTH / 2 && moved[1] == LENGTH / 2 && moved[2] == 100);
    CHECK(cuMemcpyDtoH(host, device, LENGTH) == 0);
    CHECK(bytes_are(host, 0, LENGTH / 2) && bytes_are(host + LENGTH / 2, 100, LENGTH / 2));
    CHECK(pread(fd, host, 1000, 0) == 600 && all_are(host, 0, 500) && bytes_are(host + 500, 0, 100));

    /* What fails is told in its variable, and the stream goes on. */
    offset[0] = -3;
    OK(cuFileReadAsync(fh, at(device), &size[0], &offset[0], &place[0], &moved[0], stream));
    CHECK(cuStreamSynchronize(stream) == 0 && moved[0] == -CU_FILE_INVALID_VALUE);
    /* Host memory in a stream. */
    size[1] = 3000;
    offset[1] = 11;
    place[1] = 5;
    OK(cuFileReadAsync(fh, host, &size[1], &offset[1], &place[1], &moved[1], stream));
    CHECK(cuStreamSynchronize(stream) == 0 && moved[1] == 3000 && bytes_are(host + 5, 11, 3000));
    OK(cuFileStreamDeregister(stream));
    /* More than streams carry at a time: the caller waits for a place. A driver that runs nothing by itself would wait for ever. */
    const char *mode = getenv("STANDIN_MODE");
    if (!mode || strcmp(mode, "lazy") != 0) {
        static ssize_t each[1500];
        size[1] = 8;
        for (int round = 0; round < 1500; round++) {
            OK(cuFileReadAsync(fh, at(device), &size[1], &offset[1], &place[1], &each[round], stream));
        }
        CHECK(cuStreamSynchronize(stream) == 0);
        for (int round = 0; round < 1500; round++) CHECK(each[round] == 8);
        full(fh, device);
    }
    /* Closed with a transfer in a stream: the stream goes on. */
    offset[0] = 0;
    OK(cuFileReadAsync(fh, at(device), &size[0], &offset[0], &place[0], &moved[0], stream));
    while (cuFileUseCount() > 0) OK(cuFileDriverClose());
    CHECK(cuStreamSynchronize(stream) == 0);
    CHECK(moved[0] == LENGTH / 2 || moved[0] < 0);
    CHECK(cuStreamDestroy(stream) == 0);
    close(fd);
    unlink(name);
}

static ssize_t answers(const void *handle, char *to, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    (void)handle, (void)info;
    for (size_t byte = 0; byte < size; byte++) to[byte] = (char)byte_at((size_t)offset + byte);
    return (ssize_t)size;
}

static ssize_t takes(const void *handle, const char *from, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    (void)handle, (void)info;
    CHECK(bytes_are((const unsigned char *)from, (size_t)offset, size));
    return (ssize_t)size;
}

/* The functions of a file system in user space see host memory only. */
static void user_space(uint64_t device) {
    static const CUfileFSOps_t ops = {NULL, NULL, NULL, answers, takes};
    CUfileHandle_t fh = NULL;
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_USERSPACE_FS;
    descr.fs_ops = &ops;
    OK(cuFileHandleRegister(&fh, &descr));
    CHECK(cuFileRead(fh, at(device), LENGTH - 100, 40, 100) == LENGTH - 100);
    CHECK(strstr(last_path(), "\"route\":\"userspace_fs/staged\"") && strstr(last_path(), "MEMORY_UNREACHABLE"));
    CHECK(cuMemcpyDtoH(host, device + 100, LENGTH - 100) == 0 && bytes_are(host, 40, LENGTH - 100));
    CHECK(cuFileWrite(fh, at(device), LENGTH - 100, 40, 100) == LENGTH - 100);
    cuFileHandleDeregister(fh);
}

static atomic_int entered;
static CUfileOpError inside;

/* Asks for the driver from within a transfer in a stream, while another thread closes it. */
static ssize_t asks(const void *handle, char *to, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    (void)handle, (void)to, (void)offset, (void)info;
    IS(cuFileDriverClose(), CU_FILE_DRIVER_CLOSING);
    atomic_store(&entered, 1);
    usleep(200000);
    inside = cuFileDriverOpen().err;
    return (ssize_t)size;
}

static ssize_t sleeps(const void *handle, char *to, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    (void)handle, (void)to, (void)offset, (void)info;
    usleep(300000);
    return (ssize_t)size;
}

static CUfileHandle_t user_handle(const CUfileFSOps_t *ops) {
    CUfileHandle_t fh = NULL;
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_USERSPACE_FS;
    descr.fs_ops = ops;
    OK(cuFileHandleRegister(&fh, &descr));
    return fh;
}

/* Functions that take long hold up the transfers of streams, and whoever asks for more than streams carry waits all the same. */
static void full(CUfileHandle_t fh, uint64_t device) {
    static const CUfileFSOps_t slow = {NULL, NULL, NULL, sleeps, NULL};
    static ssize_t each[1500], slept[2];
    CUfileHandle_t user = user_handle(&slow);
    CUstream stream[3];
    size_t size = 8;
    off_t zero = 0;
    for (int at = 0; at < 3; at++) CHECK(cuStreamCreate(&stream[at], 1) == 0);
    OK(cuFileReadAsync(user, host, &size, &zero, &zero, &slept[0], stream[0]));
    usleep(50000);
    OK(cuFileReadAsync(user, host, &size, &zero, &zero, &slept[1], stream[1]));
    for (int round = 0; round < 1500; round++) {
        OK(cuFileReadAsync(fh, at(device), &size, &zero, &zero, &each[round], stream[2]));
    }
    for (int at = 0; at < 3; at++) CHECK(cuStreamSynchronize(stream[at]) == 0 && cuStreamDestroy(stream[at]) == 0);
    CHECK(slept[0] == 8 && slept[1] == 8);
    for (int round = 0; round < 1500; round++) CHECK(each[round] == 8);
    cuFileHandleDeregister(user);
}

/* The driver is closed while a function of the program's runs in a stream and asks for it. */
static void closed_inside(void) {
    static const CUfileFSOps_t ops = {NULL, NULL, NULL, asks, NULL};
    CUfileHandle_t user = user_handle(&ops);
    CUstream stream = NULL;
    size_t size = 8;
    off_t zero = 0;
    ssize_t moved = 0;
    CHECK(cuStreamCreate(&stream, 1) == 0 && cuFileUseCount() == 1);
    OK(cuFileReadAsync(user, host, &size, &zero, &zero, &moved, stream));
    while (!atomic_load(&entered)) usleep(1000);
    OK(cuFileDriverClose());
    CHECK(inside == CU_FILE_DRIVER_CLOSING && cuFileUseCount() == 0);
    CHECK(cuStreamSynchronize(stream) == 0 && cuStreamDestroy(stream) == 0 && moved == 8);
}

static void counted(uint64_t device) {
    static CUfileStatsLevel3_t stats;
    OK(cuFileGetStatsL3(&stats));
    CHECK(stats.num_gpus == 1 && stats.per_gpu_stats[0].n_posix_reads > 3 && stats.per_gpu_stats[0].n_p2p_reads == 0);
    CHECK(stats.per_gpu_stats[0].read_bytes > 300000 && stats.per_gpu_stats[0].n_mmap_ok == 1);
    CHECK(stats.per_gpu_stats[0].reg_bytes == 0);
    (void)device;
}

int main(int argc, char **argv) {
    uint64_t device = 0;
    CHECK(argc == 3);
    OK(cuFileSetStatsLevel(3));
    CUfileHandle_t fh = handle_of(open(argv[1], O_RDONLY));
    /* Before the driver is loaded by anybody. */
    CHECK(cuFileRead(fh, host, PAGE, 0, 0) == PAGE && bytes_are(host, 0, PAGE));
    load(argv[2]);
    CHECK(cuMemAlloc(&device, LENGTH) == 0);
    memory(fh, device);
    counted(device);
    writes(argv[1], device);
    batches(fh, device);
    user_space(device);
    streams(argv[1], fh, device);
    /* Freed before it is deregistered. */
    fh = handle_of(open(argv[1], O_RDONLY));
    OK(cuFileBufRegister(at(device), LENGTH, 0));
    CHECK(cuMemFree(device) == 0);
    OK(cuFileBufDeregister(at(device)));
    CHECK(cuFileRead(fh, at(device), 3000, 5, 100) == -CU_FILE_CUDA_POINTER_INVALID);
    if (!getenv("STANDIN_MODE") || strcmp(getenv("STANDIN_MODE"), "lazy") != 0) closed_inside();
    else OK(cuFileDriverClose());
    return 0;
}
