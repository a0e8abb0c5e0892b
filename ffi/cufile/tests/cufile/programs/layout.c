/* Sizes and offsets as measured from the official libraries, and that each version writes its own layout and no byte more. */
#include "check.h"

#define SIZE(type, size) _Static_assert(sizeof(type) == (size), "size of " #type)
#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), "offset of " #field)

SIZE(CUfileError_t, 8);
AT(CUfileError_t, cu_err, 4);
SIZE(CUfileDescr_t, 24);
AT(CUfileDescr_t, handle, 8);
AT(CUfileDescr_t, fs_ops, 16);
SIZE(CUfileFSOps_t, 40);
AT(CUfileFSOps_t, read, 24);
SIZE(cufileRDMAInfo_t, 16);
AT(cufileRDMAInfo_t, desc_str, 8);
SIZE(CUfileIOParams_t, 64);
AT(CUfileIOParams_t, u.batch.devPtr_base, 8);
AT(CUfileIOParams_t, u.batch.file_offset, 16);
AT(CUfileIOParams_t, u.batch.devPtr_offset, 24);
AT(CUfileIOParams_t, u.batch.size, 32);
AT(CUfileIOParams_t, fh, 40);
AT(CUfileIOParams_t, opcode, 48);
AT(CUfileIOParams_t, cookie, 56);
SIZE(CUfileIOEvents_t, 24);
AT(CUfileIOEvents_t, status, 8);
AT(CUfileIOEvents_t, ret, 16);
SIZE(CUfileDrvProps_t, 56);
AT(CUfileDrvProps_t, nvfs.poll_thresh_size, 8);
AT(CUfileDrvProps_t, nvfs.max_direct_io_size, 16);
AT(CUfileDrvProps_t, nvfs.dstatusflags, 24);
AT(CUfileDrvProps_t, nvfs.dcontrolflags, 28);
AT(CUfileDrvProps_t, fflags, 32);
AT(CUfileDrvProps_t, max_device_cache_size, 36);
AT(CUfileDrvProps_t, max_batch_io_size, 48);
AT(CUfileDrvProps_t, max_batch_io_timeout_msecs, 52);
SIZE(CUfileIOVec_t, 16);
SIZE(CUfileOpCounter_t, 16);
AT(CUfileStatsLevel1_t, read_bytes, 96);
AT(CUfileStatsLevel1_t, read_bw_bytes_per_sec, 112);
AT(CUfileStatsLevel1_t, read_lat_avg_us, 128);
AT(CUfileStatsLevel1_t, read_ops_per_sec, 144);
AT(CUfileStatsLevel1_t, read_lat_sum_us, 160);
AT(CUfileStatsLevel1_t, batch_submit_ops, 176);
AT(CUfileStatsLevel1_t, batch_read_bytes, 416);
SIZE(CUfilePerGpuStats_t, 248);
AT(CUfilePerGpuStats_t, read_bytes, 16);
AT(CUfilePerGpuStats_t, writes_bytes, 120);
AT(CUfilePerGpuStats_t, n_mmap, 208);
AT(CUfilePerGpuStats_t, reg_bytes, 240);
#if CUFILE_LAYOUT >= 1190
SIZE(CUfileStatsLevel1_t, 624);
AT(CUfileStatsLevel1_t, readv_ops, 512);
AT(CUfileStatsLevel1_t, readv_bytes, 544);
AT(CUfileStatsLevel1_t, readv_lat_sum_us, 608);
SIZE(CUfileStatsLevel2_t, 1136);
SIZE(CUfileStatsLevel3_t, 5112);
AT(CUfileStatsLevel3_t, num_gpus, 1136);
AT(CUfileStatsLevel3_t, per_gpu_stats, 1144);
#else
SIZE(CUfileStatsLevel1_t, 512);
SIZE(CUfileStatsLevel2_t, 1024);
SIZE(CUfileStatsLevel3_t, 5000);
AT(CUfileStatsLevel3_t, num_gpus, 1024);
AT(CUfileStatsLevel3_t, per_gpu_stats, 1032);
#endif

static unsigned char room[8192];

static size_t written(void) {
    size_t end = sizeof room;
    while (end > 0 && room[end - 1] == 0xa5) end--;
    return end;
}

int main(int argc, char **argv) {
    int version = 0;
    CHECK(argc == 2);
    OK(cuFileGetVersion(&version));
    CHECK(version == atoi(argv[1]));
    /* Not before the driver is open, and not above the level. */
    IS(cuFileGetStatsL1((CUfileStatsLevel1_t *)room), CU_FILE_DRIVER_NOT_INITIALIZED);
    OK(cuFileDriverOpen());
    IS(cuFileGetStatsL1((CUfileStatsLevel1_t *)room), CU_FILE_INVALID_VALUE);
    OK(cuFileSetStatsLevel(2));
    IS(cuFileGetStatsL3((CUfileStatsLevel3_t *)room), CU_FILE_INVALID_VALUE);
    OK(cuFileSetStatsLevel(3));
    memset(room, 0xa5, sizeof room);
    OK(cuFileGetStatsL1((CUfileStatsLevel1_t *)room));
    CHECK(written() == sizeof(CUfileStatsLevel1_t));
    memset(room, 0xa5, sizeof room);
    OK(cuFileGetStatsL2((CUfileStatsLevel2_t *)room));
    CHECK(written() == sizeof(CUfileStatsLevel2_t));
    memset(room, 0xa5, sizeof room);
    OK(cuFileGetStatsL3((CUfileStatsLevel3_t *)room));
    CHECK(written() == sizeof(CUfileStatsLevel3_t));
    return 0;
}
