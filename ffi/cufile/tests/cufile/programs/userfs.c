/* A file system in user space, by its functions. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

#define LENGTH 100000

struct file {
    unsigned char bytes[LENGTH];
    int reads, writes, other;
    ssize_t answer;
};

static const char *kind(const void *handle) {
    (void)handle;
    return "testfs";
}

static int devices(const void *handle, sockaddr_t **addresses) {
    (void)addresses;
    ((struct file *)(uintptr_t)handle)->other++;
    return 0;
}

static int priority(const void *handle, char *memory, size_t size, loff_t offset, const sockaddr_t *address) {
    (void)memory, (void)size, (void)offset, (void)address;
    ((struct file *)(uintptr_t)handle)->other++;
    return 0;
}

static ssize_t reads(const void *handle, char *memory, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    struct file *file = (struct file *)(uintptr_t)handle;
    file->reads++;
    CHECK(info != NULL && info->desc_len == 0 && info->desc_str != NULL);
    if (file->answer) {
        errno = ESTALE;
        return file->answer;
    }
    if (offset >= LENGTH) return 0;
    if ((size_t)(LENGTH - offset) < size) size = (size_t)(LENGTH - offset);
    memcpy(memory, file->bytes + offset, size);
    return (ssize_t)size;
}

static ssize_t writes(const void *handle, const char *memory, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    struct file *file = (struct file *)(uintptr_t)handle;
    file->writes++;
    CHECK(info != NULL && offset + (loff_t)size <= LENGTH);
    memcpy(file->bytes + offset, memory, size);
    return (ssize_t)size;
}

/* A read that takes its time, as others look. */
static atomic_int entered, left;

static ssize_t slowly(const void *handle, char *to, size_t size, loff_t offset, const cufileRDMAInfo_t *info) {
    atomic_store(&entered, 1);
    usleep(100000);
    ssize_t told = reads(handle, to, size, offset, info);
    atomic_store(&left, 1);
    return told;
}

static CUfileBatchHandle_t shared;
static CUfileIOParams_t asked;

static void *submits(void *nothing) {
    OK(cuFileBatchIOSubmit(shared, 1, &asked, 0));
    return nothing;
}

static struct file file;
static unsigned char memory[LENGTH];

int main(int argc, char **argv) {
    static const CUfileFSOps_t ops = {kind, devices, priority, reads, writes}, none = {kind, NULL, NULL, NULL, NULL};
    CUfileFSOps_t only_reads = {NULL, NULL, NULL, reads, NULL};
    CUfileHandle_t fh = NULL, other = NULL;
    CUfileDescr_t descr;
    char text[4096];
    CHECK(argc == 3);
    for (size_t at = 0; at < LENGTH; at++) file.bytes[at] = byte_at(at);
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_USERSPACE_FS;
    descr.handle.handle = &file;
    IS(cuFileHandleRegister(&fh, &descr), CU_FILE_IO_NOT_SUPPORTED);
    descr.fs_ops = &none;
    IS(cuFileHandleRegister(&fh, &descr), CU_FILE_IO_NOT_SUPPORTED);
    descr.fs_ops = &ops;
    OK(cuFileHandleRegister(&fh, &descr));
    if (strcmp(argv[2], "refused") == 0) {
        CHECK(cuFileRead(fh, memory, 100, 0, 0) == -CU_FILE_IO_NOT_SUPPORTED && file.reads == 0);
        CHECK(sw_cufile_last_error(text, sizeof text) > 0 && strstr(text, "policy unmet"));
        return 0;
    }
    CHECK(cuFileRead(fh, memory, 5000, 77, 3) == 5000 && bytes_are(memory + 3, 77, 5000) && file.reads == 1);
    CHECK(strstr(last_path(), "\"route\":\"userspace_fs/staged\""));
    CHECK(cuFileRead(fh, memory, 5000, LENGTH - 10, 0) == 10);
    CHECK(cuFileRead(fh, memory, 5000, LENGTH + 10, 0) == 0);
    memset(memory, 9, 300);
    CHECK(cuFileWrite(fh, memory, 300, 50, 0) == 300 && all_are(file.bytes + 50, 9, 300) && file.writes == 1);
    CUfileIOVec_t of[2] = {{memory, 100}, {memory + 500, 1000}};
    CHECK(cuFileReadv(fh, of, 2, 1000, 0) == 1100 && bytes_are(memory + 500, 1100, 1000));
    /* Its errors are errors: an errno, a code, and never a count that nobody has room for. */
    file.answer = -1;
    errno = 0;
    CHECK(cuFileRead(fh, memory, 100, 0, 0) == -1 && errno == ESTALE);
    file.answer = -CU_FILE_PERMISSION_DENIED;
    CHECK(cuFileRead(fh, memory, 100, 0, 0) == -CU_FILE_PERMISSION_DENIED);
    file.answer = -6002;
    CHECK(cuFileRead(fh, memory, 100, 0, 0) == -6002);
    file.answer = CU_FILE_DRIVER_CLOSING;
    CHECK(cuFileRead(fh, memory, 100, 0, 0) == -CU_FILE_IO_ERROR);
    file.answer = 0;
    /* In a batch. */
    CUfileBatchHandle_t batch = NULL;
    CUfileIOParams_t params = {.mode = CUFILE_BATCH, .fh = fh, .opcode = CUFILE_READ, .cookie = &batch};
    CUfileIOEvents_t event;
    unsigned room = 1;
    params.u.batch.devPtr_base = memory;
    params.u.batch.file_offset = 2000;
    params.u.batch.size = 4000;
    OK(cuFileBatchIOSetUp(&batch, 1));
    OK(cuFileBatchIOSubmit(batch, 1, &params, 0));
    OK(cuFileBatchIOGetStatus(batch, 1, &room, &event, NULL));
    CHECK(room == 1 && event.status == CUFILE_COMPLETE && event.ret == 4000 && bytes_are(memory, 2000, 4000));
    cuFileBatchIODestroy(batch);
    /* Destroyed while another thread submits: what that one began is over, and its memory the caller's. */
    static const CUfileFSOps_t slow = {kind, NULL, NULL, slowly, NULL};
    pthread_t thread;
    descr.fs_ops = &slow;
    OK(cuFileHandleRegister(&other, &descr));
    OK(cuFileBatchIOSetUp(&shared, 1));
    asked = params;
    asked.fh = other;
    CHECK(pthread_create(&thread, NULL, submits, NULL) == 0);
    while (!atomic_load(&entered)) usleep(100);
    cuFileBatchIODestroy(shared);
    CHECK(atomic_load(&left));
    CHECK(pthread_join(thread, NULL) == 0);
    IS(cuFileBatchIOSubmit(shared, 1, &asked, 0), CU_FILE_INVALID_CONTEXT_ERROR);
    cuFileHandleDeregister(other);
    CHECK(sw_cufile_handle_report(fh, text, sizeof text) > 0 && strstr(text, "\"name\":\"testfs 0x"));
    CHECK(file.other == 0);
    descr.fs_ops = &only_reads;
    OK(cuFileHandleRegister(&other, &descr));
    CHECK(cuFileWrite(other, memory, 1, 0, 0) == -CU_FILE_IO_NOT_SUPPORTED);
    cuFileHandleDeregister(other);
    cuFileHandleDeregister(fh);
    OK(cuFileDriverClose());
    return 0;
}
