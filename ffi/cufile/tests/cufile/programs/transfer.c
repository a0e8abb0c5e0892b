/* Bytes of files and memory of this process, in every shape, beside what pread and pwrite do. */
#include "check.h"

#define PAGE 4096
#define LENGTH (1u << 20)

static unsigned char *memory, *twin;
static char name[4096];

static uint64_t state = 88172645463325252u;

static size_t any(size_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % below);
}

/* Reads that end in the file, at its end and past it, into memory at any place. */
static void reads(CUfileHandle_t fh) {
    for (int round = 0; round < 300; round++) {
        size_t offset = any(4) == 0 ? any(LENGTH + 5000) : any(LENGTH / PAGE) * PAGE;
        size_t size = any(4) == 0 ? any(200000) : any(40) * PAGE;
        size_t at = any(3) == 0 ? any(PAGE) : 0;
        size_t want = offset >= LENGTH ? 0 : (LENGTH - offset < size ? LENGTH - offset : size);
        memset(memory, 0xa5, at + size + PAGE);
        CHECK(cuFileRead(fh, memory, size, (off_t)offset, (off_t)at) == (ssize_t)want);
        CHECK(bytes_are(memory + at, offset, want));
        /* What was not read is not touched, before and behind: also where the file ends. */
        CHECK(all_are(memory, 0xa5, at) && all_are(memory + at + want, 0xa5, size - want + PAGE));
    }
}

/* Writes of any shape, past the end too: the file is what pwrite makes of a twin. */
static void writes(const char *path, int flags) {
    char other[4200];
    snprintf(name, sizeof name, "%s.written", path);
    snprintf(other, sizeof other, "%s.twin", path);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | flags, 0600);
    if (fd < 0) return;
    int beside = open(other, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CUfileHandle_t fh = handle_of(fd);
    size_t end = 0;
    for (int round = 0; round < 120; round++) {
        size_t offset = any(3) == 0 ? any(300000) : any(64) * PAGE;
        size_t size = any(3) == 0 ? 1 + any(100000) : (1 + any(16)) * PAGE;
        size_t at = any(3) == 0 ? any(PAGE) : 0;
        for (size_t byte = 0; byte < size; byte++) memory[at + byte] = (unsigned char)(any(256));
        CHECK(cuFileWrite(fh, memory, size, (off_t)offset, (off_t)at) == (ssize_t)size);
        CHECK(pwrite(beside, memory + at, size, (off_t)offset) == (ssize_t)size);
        if (offset + size > end) end = offset + size;
        /* What was written is read by the same handle. */
        CHECK(cuFileRead(fh, twin, size, (off_t)offset, 0) == (ssize_t)size);
        CHECK(memcmp(twin, memory + at, size) == 0);
    }
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0 && (size_t)stat.st_size == end);
    CHECK(pread(beside, twin, end, 0) == (ssize_t)end);
    CHECK(cuFileRead(fh, memory, end + PAGE, 0, 0) == (ssize_t)end && memcmp(memory, twin, end) == 0);
    /* A file that gets shorter under its handle. */
    CHECK(ftruncate(fd, 5000) == 0);
    memset(memory, 0xa5, 100000);
    CHECK(cuFileRead(fh, memory, 100000, 0, 0) == 5000 && memcmp(memory, twin, 5000) == 0);
    /* A device that reads past the end writes zeros there, so it must not be asked to. */
    CHECK(all_are(memory + 5000, 0xa5, 100000 - 5000));
    /* One that appends by now: a write would land at its end, whatever its offset. */
    int had = fcntl(fd, F_GETFL);
    CHECK(fcntl(fd, F_SETFL, had | O_APPEND) == 0);
    CHECK(cuFileWrite(fh, memory, PAGE, 0, 0) == -CU_FILE_INVALID_FILE_OPEN_FLAG);
    CHECK(fstat(fd, &stat) == 0 && stat.st_size == 5000 && cuFileRead(fh, memory, 100, 0, 0) == 100);
    CHECK(fcntl(fd, F_SETFL, had) == 0 && cuFileWrite(fh, memory, PAGE, 0, 0) == PAGE);
    cuFileHandleDeregister(fh);
    close(fd);
    close(beside);
    unlink(name);
    unlink(other);
}

static void vectors(const char *path) {
    snprintf(name, sizeof name, "%s.vectors", path);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CUfileHandle_t fh = handle_of(fd);
    CUfileIOVec_t out[3] = {{memory, 5000}, {memory + 8192, 1}, {memory + 16384, 4096}};
    CUfileIOVec_t in[3] = {{twin + 3, 1}, {twin + 8192, 9000}, {twin + 30000, 9000}};
    for (size_t at = 0; at < 40000; at++) memory[at] = (unsigned char)(at * 7);
    CHECK(cuFileWritev(fh, out, 3, 10, 0) == 9097);
    CHECK(cuFileReadv(fh, in, 3, 10, 0) == 9097);
    CHECK(twin[3] == memory[0] && memcmp(twin + 8192, memory + 1, 4999) == 0 && twin[8192 + 4999] == memory[8192]);
    CHECK(memcmp(twin + 8192 + 5000, memory + 16384, 4000) == 0);
    CHECK(memcmp(twin + 30000, memory + 16384 + 4000, 96) == 0);
    cuFileHandleDeregister(fh);
    close(fd);
    unlink(name);
}

static void ways(CUfileHandle_t fh, int fd) {
    char text[16384];
    CHECK(cuFileRead(fh, memory, 64 * 1024, 0, 0) == 64 * 1024);
    const char *path = last_path();
    CHECK(strstr(path, "\"schema\":\"straightway.cufile.path/1\"") && strstr(path, "\"verb\":\"read\""));
    CHECK(strstr(path, "/dma\"") || strstr(path, "/kernel-copy\"") || strstr(path, "/staged\""));
    CHECK(strstr(path, "\"reason\":\""));
    CHECK(sw_cufile_handle_report(fh, text, sizeof text) > 0);
    CHECK(strstr(text, "\"schema\":\"straightway.cufile.handle/1\"") && strstr(text, "\"operations\":"));
    /* Too little room says how much it takes, and writes nothing. */
    text[0] = 'x';
    ssize_t length = sw_cufile_handle_report(fh, text, 3);
    CHECK(length > 100 && text[0] == 'x' && sw_cufile_handle_report(fh, NULL, 0) == length);
    CHECK(sw_cufile_handle_report(NULL, text, sizeof text) == -CU_FILE_INVALID_VALUE);
    CHECK(sw_cufile_report(text, sizeof text) > 0 && strstr(text, "\"policy\":\"any\""));
    CHECK(strstr(text, "\"key\":\"properties.io_batchsize\""));
    (void)fd;
}

static void counted(CUfileHandle_t fh) {
    static CUfileStatsLevel2_t before, after;
    OK(cuFileSetStatsLevel(2));
    OK(cuFileStatsReset());
    OK(cuFileGetStatsL2(&before));
    CHECK(before.basic.read_bytes == 0 && before.basic.read_ops.ok == 0);
    CHECK(cuFileRead(fh, memory, PAGE, 0, 0) == PAGE);
    CHECK(cuFileRead(fh, memory, 3 * PAGE, 0, 0) == 3 * PAGE);
    CHECK(cuFileRead(fh, memory, PAGE, -1, 0) < 0);
    OK(cuFileGetStatsL2(&after));
    CHECK(after.basic.read_bytes == 4 * PAGE && after.basic.read_ops.ok == 2 && after.basic.read_ops.err == 1);
    CHECK(after.read_size_kb_hist[0] == 1 && after.read_size_kb_hist[2] == 1 && after.basic.read_bw_bytes_per_sec > 0);
    OK(cuFileStatsStop());
    CHECK(cuFileRead(fh, memory, PAGE, 0, 0) == PAGE);
    OK(cuFileGetStatsL2(&before));
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    OK(cuFileStatsStart());
    CHECK(cuFileRead(fh, memory, PAGE, 0, 0) == PAGE);
    OK(cuFileGetStatsL2(&before));
    CHECK(before.basic.read_ops.ok == 3);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    memory = aligned_alloc(PAGE, 2 * LENGTH);
    twin = aligned_alloc(PAGE, 2 * LENGTH);
    CHECK(memory && twin);
    int modes[2] = {0, O_DIRECT};
    for (int mode = 0; mode < 2; mode++) {
        int fd = open(argv[1], O_RDONLY | modes[mode]);
        if (fd < 0) continue;
        CUfileHandle_t fh = handle_of(fd);
        reads(fh);
        ways(fh, fd);
        counted(fh);
        OK(cuFileBufRegister(memory, 2 * LENGTH, 0));
        reads(fh);
        OK(cuFileBufDeregister(memory));
        cuFileHandleDeregister(fh);
        close(fd);
        writes(argv[1], modes[mode]);
    }
    vectors(argv[1]);
    free(memory);
    free(twin);
    return 0;
}
