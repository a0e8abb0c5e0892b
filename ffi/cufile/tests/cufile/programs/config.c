/* Where settings come from, and what a demand for a route does. */
#include "check.h"

#define PAGE 4096
#define LENGTH (1u << 20)

static unsigned char *memory;

static void precedence(void) {
    size_t batch = 0, depth = 0, stats = 0;
    bool nvtx = false;
    char text[16384];
    /* The file sets 64 and 3, the environment another level, a call the depth. */
    OK(cuFileSetParameterSizeT(CUFILE_PARAM_EXECUTION_MAX_IO_QUEUE_DEPTH, 32));
    OK(cuFileGetParameterSizeT(CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE, &batch));
    OK(cuFileGetParameterSizeT(CUFILE_PARAM_PROFILE_STATS, &stats));
    OK(cuFileGetParameterSizeT(CUFILE_PARAM_EXECUTION_MAX_IO_QUEUE_DEPTH, &depth));
    OK(cuFileGetParameterBool(CUFILE_PARAM_PROFILE_NVTX, &nvtx));
    CHECK(batch == 64 && stats == 1 && depth == 32 && nvtx);
    OK(cuFileDriverOpen());
    CHECK(sw_cufile_report(text, sizeof text) > 0);
    CHECK(strstr(text, "\"key\":\"properties.io_batchsize\",\"no_effect\":null,\"origin\":\"file\",\"value\":64"));
    CHECK(strstr(text, "\"key\":\"profile.cufile_stats\",\"no_effect\":null,\"origin\":\"environment\",\"value\":1"));
    CHECK(strstr(text, "\"key\":\"execution.max_io_queue_depth\",\"no_effect\":null,\"origin\":\"call\",\"value\":32"));
    /* What does nothing is told, by name. */
    CHECK(strstr(text, "\"name\":\"properties.rdma_dev_addr_list\"") && strstr(text, "\"name\":\"CUFILE_IB_SL\""));
    CHECK(strstr(text, "\"engine\":\"queue_depth=32\""));
    CUfileBatchHandle_t refused = NULL;
    IS(cuFileBatchIOSetUp(&refused, 65), CU_FILE_INVALID_VALUE);
    int level = -1;
    OK(cuFileGetStatsLevel(&level));
    CHECK(level == 1);
    OK(cuFileDriverClose());
}

static void broken(const char *word) {
    char text[1024];
    IS(cuFileDriverOpen(), CU_FILE_DRIVER_INVALID_PROPS);
    CHECK(sw_cufile_last_error(text, sizeof text) > 0);
    CHECK(strstr(text, word) != NULL);
    CHECK(cuFileUseCount() == 0);
    CUfileHandle_t fh = NULL;
    int fd = open("/proc/self/exe", O_RDONLY);
    IS(try_handle(fd, CU_FILE_HANDLE_TYPE_OPAQUE_FD, &fh), CU_FILE_DRIVER_INVALID_PROPS);
    IS(cuFileBufRegister(text, sizeof text, 0), CU_FILE_DRIVER_INVALID_PROPS);
    CHECK(fh == NULL);
}

/* SW_CUFILE_POLICY=require=dma: what would bounce fails and says why. */
static void demanded(const char *path) {
    char text[2048];
    int fd = open(path, O_RDWR | O_DIRECT);
    if (fd < 0) {
        printf("skip: no O_DIRECT where the file is\n");
        return;
    }
    CUfileHandle_t fh = handle_of(fd);
    CHECK(cuFileRead(fh, memory, 16 * PAGE, 0, 0) == 16 * PAGE && bytes_are(memory, 0, 16 * PAGE));
    CHECK(strstr(last_path(), "/dma\"") && strstr(last_path(), "\"bounced_bytes\":0"));
    /* An odd offset bounces its ends. */
    memset(memory, 0xa5, PAGE);
    CHECK(cuFileRead(fh, memory, 1000, 77, 77) == -CU_FILE_IO_NOT_SUPPORTED);
    CHECK(sw_cufile_last_error(text, sizeof text) > 0 && strstr(text, "RAGGED_ENDS"));
    CHECK(all_are(memory, 0xa5, PAGE));
    CUfileBatchHandle_t batch = NULL;
    CUfileIOParams_t params = {.mode = CUFILE_BATCH, .fh = fh, .opcode = CUFILE_READ};
    CUfileIOEvents_t event;
    unsigned room = 1;
    params.u.batch.devPtr_base = memory;
    params.u.batch.file_offset = 77;
    params.u.batch.devPtr_offset = 77;
    params.u.batch.size = 1000;
    OK(cuFileBatchIOSetUp(&batch, 1));
    OK(cuFileBatchIOSubmit(batch, 1, &params, 0));
    OK(cuFileBatchIOGetStatus(batch, 1, &room, &event, NULL));
    CHECK(room == 1 && event.status == CUFILE_FAILED && (ssize_t)event.ret == -CU_FILE_IO_NOT_SUPPORTED);
    cuFileBatchIODestroy(batch);
    CHECK(sw_cufile_handle_report(fh, text, sizeof text) > 0 && strstr(text, "\"failed_operations\":2"));
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    memory = aligned_alloc(PAGE, LENGTH);
    CHECK(memory != NULL);
    if (strcmp(argv[2], "precedence") == 0) precedence();
    else if (strcmp(argv[2], "broken") == 0) broken(argv[3]);
    else demanded(argv[1]);
    free(memory);
    return 0;
}
