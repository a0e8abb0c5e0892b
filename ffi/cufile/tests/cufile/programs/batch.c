/* Batches: every entry ends once, whatever the engine's queues have room for. */
#include <pthread.h>

#include "check.h"

#define PAGE 4096
#define ENTRIES 128
#define LENGTH (1u << 20)

static unsigned char memory[ENTRIES * PAGE];
static CUfileIOParams_t params[ENTRIES];
static CUfileIOEvents_t events[ENTRIES];

static void fill(CUfileHandle_t fh, unsigned count, CUfileOpcode_t opcode) {
    memset(params, 0, sizeof params);
    for (unsigned index = 0; index < count; index++) {
        params[index].mode = CUFILE_BATCH;
        params[index].u.batch.devPtr_base = memory;
        params[index].u.batch.devPtr_offset = (off_t)index * PAGE;
        params[index].u.batch.file_offset = (off_t)((index * 37) % ENTRIES) * PAGE;
        params[index].u.batch.size = PAGE;
        params[index].fh = fh;
        params[index].opcode = opcode;
        params[index].cookie = &params[index];
    }
}

/* Takes the ends of so many entries; each comes once. */
static void take(CUfileBatchHandle_t batch, unsigned count, CUfileStatus_t status) {
    int seen[ENTRIES] = {0};
    unsigned taken = 0;
    while (taken < count) {
        unsigned room = 40;
        OK(cuFileBatchIOGetStatus(batch, 1, &room, events, NULL));
        CHECK(room >= 1 && room <= 40);
        for (unsigned index = 0; index < room; index++) {
            size_t entry = (size_t)((CUfileIOParams_t *)events[index].cookie - params);
            CHECK(entry < count && !seen[entry]++);
            CHECK(events[index].status == status && events[index].ret == PAGE);
        }
        taken += room;
    }
    CHECK(taken == count);
}

static void rounds(CUfileHandle_t fh) {
    CUfileBatchHandle_t batch = NULL;
    OK(cuFileBatchIOSetUp(&batch, ENTRIES));
    for (int round = 0; round < 20; round++) {
        memset(memory, 0xa5, sizeof memory);
        fill(fh, ENTRIES, CUFILE_READ);
        OK(cuFileBatchIOSubmit(batch, ENTRIES, params, 0));
        take(batch, ENTRIES, CUFILE_COMPLETE);
        for (unsigned index = 0; index < ENTRIES; index++) {
            CHECK(bytes_are(memory + index * PAGE, ((index * 37) % ENTRIES) * PAGE, PAGE));
        }
    }
    /* Nothing is in flight: nothing is waited for. */
    unsigned room = ENTRIES;
    OK(cuFileBatchIOGetStatus(batch, ENTRIES, &room, events, NULL));
    CHECK(room == 0);
    cuFileBatchIODestroy(batch);
}

static void refused(CUfileHandle_t fh) {
    CUfileBatchHandle_t batch = NULL;
    struct timespec now = {0, 0}, odd = {-1, 0};
    unsigned room = 4;
    IS(cuFileBatchIOSetUp(NULL, 4), CU_FILE_INVALID_VALUE);
    IS(cuFileBatchIOSetUp(&batch, 0), CU_FILE_INVALID_VALUE);
    IS(cuFileBatchIOSetUp(&batch, ENTRIES + 1), CU_FILE_INVALID_VALUE);
    OK(cuFileBatchIOSetUp(&batch, 4));
    fill(fh, 5, CUFILE_READ);
    IS(cuFileBatchIOSubmit(batch, 5, params, 0), CU_FILE_INTERNAL_BATCH_SUBMIT_ERROR);
    IS(cuFileBatchIOSubmit(batch, 0, params, 0), CU_FILE_INTERNAL_BATCH_SUBMIT_ERROR);
    IS(cuFileBatchIOSubmit(batch, 1, NULL, 0), CU_FILE_INVALID_VALUE);
    IS(cuFileBatchIOSubmit(NULL, 1, params, 0), CU_FILE_INVALID_CONTEXT_ERROR);
    /* One wrong entry, and none begins. */
    params[2].fh = (void *)(uintptr_t)0xdead0;
    IS(cuFileBatchIOSubmit(batch, 3, params, 0), CU_FILE_HANDLE_NOT_REGISTERED);
    fill(fh, 4, CUFILE_READ);
    params[1].opcode = (CUfileOpcode_t)7;
    IS(cuFileBatchIOSubmit(batch, 3, params, 0), CU_FILE_INVALID_VALUE);
    fill(fh, 4, CUFILE_READ);
    params[1].u.batch.file_offset = -1;
    IS(cuFileBatchIOSubmit(batch, 3, params, 0), CU_FILE_INVALID_VALUE);
    fill(fh, 4, CUFILE_WRITE);
    IS(cuFileBatchIOSubmit(batch, 3, params, 0), CU_FILE_INVALID_FILE_OPEN_FLAG);
    OK(cuFileBatchIOGetStatus(batch, 0, &room, events, &now));
    CHECK(room == 0);
    room = 2;
    IS(cuFileBatchIOGetStatus(batch, 3, &room, events, &now), CU_FILE_INVALID_VALUE);
    IS(cuFileBatchIOGetStatus(batch, 1, &room, events, &odd), CU_FILE_INVALID_VALUE);
    IS(cuFileBatchIOGetStatus(batch, 0, NULL, events, NULL), CU_FILE_INVALID_VALUE);
    /* Places are free again when their ends were told. */
    fill(fh, 4, CUFILE_READ);
    OK(cuFileBatchIOSubmit(batch, 4, params, 0));
    IS(cuFileBatchIOSubmit(batch, 1, params, 0), CU_FILE_BATCH_FULL);
    take(batch, 4, CUFILE_COMPLETE);
    OK(cuFileBatchIOSubmit(batch, 1, params, 0));
    take(batch, 1, CUFILE_COMPLETE);
    /* At the end of the file. */
    params[0].u.batch.file_offset = LENGTH + 5;
    OK(cuFileBatchIOSubmit(batch, 1, params, 0));
    room = 1;
    OK(cuFileBatchIOGetStatus(batch, 1, &room, events, NULL));
    CHECK(room == 1 && events[0].status == CUFILE_COMPLETE && events[0].ret == 0);
    cuFileBatchIODestroy(batch);
    IS(cuFileBatchIOCancel(batch), CU_FILE_INVALID_CONTEXT_ERROR);
    IS(cuFileBatchIOSubmit(batch, 1, params, 0), CU_FILE_INVALID_CONTEXT_ERROR);
    cuFileBatchIODestroy(batch);
    cuFileBatchIODestroy(NULL);
}

static void *cancels(void *batch) {
    for (int round = 0; round < 50; round++) cuFileBatchIOCancel(batch);
    return NULL;
}

/* Cancelled by another thread while it runs: every entry has one end, and says which. */
static void races(CUfileHandle_t fh) {
    for (int round = 0; round < 30; round++) {
        CUfileBatchHandle_t batch = NULL;
        pthread_t thread;
        OK(cuFileBatchIOSetUp(&batch, ENTRIES));
        fill(fh, ENTRIES, CUFILE_READ);
        OK(cuFileBatchIOSubmit(batch, ENTRIES, params, 0));
        CHECK(pthread_create(&thread, NULL, cancels, batch) == 0);
        unsigned taken = 0;
        while (taken < ENTRIES) {
            unsigned room = ENTRIES;
            OK(cuFileBatchIOGetStatus(batch, 1, &room, events, NULL));
            CHECK(room > 0);
            for (unsigned index = 0; index < room; index++) {
                int whole = events[index].status == CUFILE_COMPLETE && events[index].ret == PAGE;
                int cancelled = events[index].status == CUFILE_CANCELED && (ssize_t)events[index].ret == -ECANCELED;
                CHECK(whole || cancelled);
            }
            taken += room;
        }
        CHECK(pthread_join(thread, NULL) == 0);
        cuFileBatchIODestroy(batch);
    }
}

/* Given up with everything in flight: the memory is the caller's again. */
static void given_up(CUfileHandle_t fh) {
    for (int round = 0; round < 20; round++) {
        CUfileBatchHandle_t batch = NULL;
        unsigned char *own = malloc(ENTRIES * PAGE);
        OK(cuFileBatchIOSetUp(&batch, ENTRIES));
        fill(fh, ENTRIES, CUFILE_READ);
        for (unsigned index = 0; index < ENTRIES; index++) params[index].u.batch.devPtr_base = own;
        OK(cuFileBatchIOSubmit(batch, ENTRIES, params, 0));
        cuFileBatchIODestroy(batch);
        memset(own, 7, ENTRIES * PAGE);
        CHECK(all_are(own, 7, ENTRIES * PAGE));
        free(own);
    }
}

/* Memory is deregistered while transfers into it run: they go on. */
static void deregistered(CUfileHandle_t fh) {
    CUfileBatchHandle_t batch = NULL;
    OK(cuFileBatchIOSetUp(&batch, ENTRIES));
    OK(cuFileBufRegister(memory, sizeof memory, 0));
    fill(fh, ENTRIES, CUFILE_READ);
    OK(cuFileBatchIOSubmit(batch, ENTRIES, params, 0));
    OK(cuFileBufDeregister(memory));
    cuFileHandleDeregister(fh);
    take(batch, ENTRIES, CUFILE_COMPLETE);
    cuFileBatchIODestroy(batch);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CUfileHandle_t fh = handle_of(open(argv[1], O_RDONLY));
    rounds(fh);
    refused(fh);
    races(fh);
    given_up(fh);
    deregistered(fh);
    OK(cuFileDriverClose());
    return 0;
}
