/* The interface of cuFile, as Straightway's libcufile.so.0 has it: names, numbers and layouts are those of the documentation ("cuFile API
 * Reference Guide") and of measurements; the text is Straightway's own. Programs that were built with another header run as well.
 *
 * Layouts are those of 1.20 unless CUFILE_LAYOUT is set to an earlier version as cuFileGetVersion tells it, such as 1170; the library
 * writes what SW_CUFILE_VERSION says. */
#ifndef SW_CUFILE_COMPATIBLE_H
#define SW_CUFILE_COMPATIBLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#ifndef CUFILE_LAYOUT
#define CUFILE_LAYOUT 1200
#endif

/* Two types of CUDA, which this header does not need. */
#ifdef __cuda_cuda_h__
#define SW_CUFILE_CURESULT CUresult
#else
#define SW_CUFILE_CURESULT int
typedef struct CUstream_st *CUstream;
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Errors */

typedef enum CUfileOpError {
    CU_FILE_SUCCESS = 0,
    CU_FILE_DRIVER_NOT_INITIALIZED = 5001,
    CU_FILE_DRIVER_INVALID_PROPS = 5002,
    CU_FILE_DRIVER_UNSUPPORTED_LIMIT = 5003,
    CU_FILE_DRIVER_VERSION_MISMATCH = 5004,
    CU_FILE_DRIVER_VERSION_READ_ERROR = 5005,
    CU_FILE_DRIVER_CLOSING = 5006,
    CU_FILE_PLATFORM_NOT_SUPPORTED = 5007,
    CU_FILE_IO_NOT_SUPPORTED = 5008,
    CU_FILE_DEVICE_NOT_SUPPORTED = 5009,
    CU_FILE_NVFS_DRIVER_ERROR = 5010,
    CU_FILE_CUDA_DRIVER_ERROR = 5011,
    CU_FILE_CUDA_POINTER_INVALID = 5012,
    CU_FILE_CUDA_MEMORY_TYPE_INVALID = 5013,
    CU_FILE_CUDA_POINTER_RANGE_ERROR = 5014,
    CU_FILE_CUDA_CONTEXT_MISMATCH = 5015,
    CU_FILE_INVALID_MAPPING_SIZE = 5016,
    CU_FILE_INVALID_MAPPING_RANGE = 5017,
    CU_FILE_INVALID_FILE_TYPE = 5018,
    CU_FILE_INVALID_FILE_OPEN_FLAG = 5019,
    CU_FILE_DIO_NOT_SET = 5020,
    CU_FILE_INVALID_VALUE = 5022,
    CU_FILE_MEMORY_ALREADY_REGISTERED = 5023,
    CU_FILE_MEMORY_NOT_REGISTERED = 5024,
    CU_FILE_PERMISSION_DENIED = 5025,
    CU_FILE_DRIVER_ALREADY_OPEN = 5026,
    CU_FILE_HANDLE_NOT_REGISTERED = 5027,
    CU_FILE_HANDLE_ALREADY_REGISTERED = 5028,
    CU_FILE_DEVICE_NOT_FOUND = 5029,
    CU_FILE_INTERNAL_ERROR = 5030,
    CU_FILE_GETNEWFD_FAILED = 5031,
    CU_FILE_NVFS_SETUP_ERROR = 5033,
    CU_FILE_IO_DISABLED = 5034,
    CU_FILE_BATCH_SUBMIT_FAILED = 5035,
    CU_FILE_GPU_MEMORY_PINNING_FAILED = 5036,
    CU_FILE_BATCH_FULL = 5037,
    CU_FILE_ASYNC_NOT_SUPPORTED = 5038,
    CU_FILE_INTERNAL_BATCH_SETUP_ERROR = 5039,
    CU_FILE_INTERNAL_BATCH_SUBMIT_ERROR = 5040,
    CU_FILE_INTERNAL_BATCH_GETSTATUS_ERROR = 5041,
    CU_FILE_INTERNAL_BATCH_CANCEL_ERROR = 5042,
    CU_FILE_NOMEM_ERROR = 5043,
    CU_FILE_IO_ERROR = 5044,
    CU_FILE_INTERNAL_BUF_REGISTER_ERROR = 5045,
    CU_FILE_HASH_OPR_ERROR = 5046,
    CU_FILE_INVALID_CONTEXT_ERROR = 5047,
    CU_FILE_NVFS_INTERNAL_DRIVER_ERROR = 5048,
    CU_FILE_BATCH_NOCOMPAT_ERROR = 5049,
    CU_FILE_IO_MAX_ERROR = 5050
} CUfileOpError;

#define CUFILEOP_BASE_ERR 5000

typedef struct CUfileError {
    CUfileOpError err;
    SW_CUFILE_CURESULT cu_err; /* with CU_FILE_CUDA_DRIVER_ERROR */
} CUfileError_t;

#define IS_CUFILE_ERR(code) (abs((code)) > CUFILEOP_BASE_ERR)
#define IS_CUDA_ERR(status) ((status).err == CU_FILE_CUDA_DRIVER_ERROR)
#define CU_FILE_CUDA_ERR(status) ((status).cu_err)
#define CUFILE_ERRSTR(code) cufileop_status_error((CUfileOpError)abs((code)))

/* A code in a few words. */
static inline const char *cufileop_status_error(CUfileOpError code) {
    switch (code) {
    case CU_FILE_SUCCESS: return "success";
    case CU_FILE_DRIVER_NOT_INITIALIZED: return "the driver is not open";
    case CU_FILE_DRIVER_INVALID_PROPS: return "a setting is wrong";
    case CU_FILE_DRIVER_UNSUPPORTED_LIMIT: return "a limit is out of its range";
    case CU_FILE_DRIVER_VERSION_MISMATCH: return "versions do not fit";
    case CU_FILE_DRIVER_VERSION_READ_ERROR: return "no version can be read";
    case CU_FILE_DRIVER_CLOSING: return "the driver is closing";
    case CU_FILE_PLATFORM_NOT_SUPPORTED: return "this platform is not supported";
    case CU_FILE_IO_NOT_SUPPORTED: return "no transfer is possible with this file";
    case CU_FILE_DEVICE_NOT_SUPPORTED: return "this GPU is not supported";
    case CU_FILE_NVFS_DRIVER_ERROR: return "the kernel module told an error";
    case CU_FILE_CUDA_DRIVER_ERROR: return "CUDA told an error";
    case CU_FILE_CUDA_POINTER_INVALID: return "no such address of a GPU";
    case CU_FILE_CUDA_MEMORY_TYPE_INVALID: return "this kind of memory is not supported";
    case CU_FILE_CUDA_POINTER_RANGE_ERROR: return "the range leaves its memory";
    case CU_FILE_CUDA_CONTEXT_MISMATCH: return "another context of CUDA";
    case CU_FILE_INVALID_MAPPING_SIZE: return "more than a registration can have";
    case CU_FILE_INVALID_MAPPING_RANGE: return "the range leaves its registration";
    case CU_FILE_INVALID_FILE_TYPE: return "not a regular file or a block device";
    case CU_FILE_INVALID_FILE_OPEN_FLAG: return "the file is open for something else";
    case CU_FILE_DIO_NOT_SET: return "the file is open without O_DIRECT";
    case CU_FILE_INVALID_VALUE: return "an argument is wrong";
    case CU_FILE_MEMORY_ALREADY_REGISTERED: return "the memory is registered already";
    case CU_FILE_MEMORY_NOT_REGISTERED: return "the memory is not registered";
    case CU_FILE_PERMISSION_DENIED: return "not permitted";
    case CU_FILE_DRIVER_ALREADY_OPEN: return "the driver is open already";
    case CU_FILE_HANDLE_NOT_REGISTERED: return "the file is not registered";
    case CU_FILE_HANDLE_ALREADY_REGISTERED: return "the file is registered already";
    case CU_FILE_DEVICE_NOT_FOUND: return "no such GPU";
    case CU_FILE_INTERNAL_ERROR: return "an error of the library";
    case CU_FILE_GETNEWFD_FAILED: return "no descriptor can be had";
    case CU_FILE_NVFS_SETUP_ERROR: return "the kernel module could not be set up";
    case CU_FILE_IO_DISABLED: return "transfers are switched off";
    case CU_FILE_BATCH_SUBMIT_FAILED: return "the batch was not taken";
    case CU_FILE_GPU_MEMORY_PINNING_FAILED: return "memory of the GPU could not be pinned";
    case CU_FILE_BATCH_FULL: return "the batch is full";
    case CU_FILE_ASYNC_NOT_SUPPORTED: return "transfers in a stream are not supported";
    case CU_FILE_INTERNAL_BATCH_SETUP_ERROR: return "the batch could not be set up";
    case CU_FILE_INTERNAL_BATCH_SUBMIT_ERROR: return "the batch could not be submitted";
    case CU_FILE_INTERNAL_BATCH_GETSTATUS_ERROR: return "the state of the batch could not be read";
    case CU_FILE_INTERNAL_BATCH_CANCEL_ERROR: return "the batch could not be cancelled";
    case CU_FILE_NOMEM_ERROR: return "no memory";
    case CU_FILE_IO_ERROR: return "the transfer failed";
    case CU_FILE_INTERNAL_BUF_REGISTER_ERROR: return "the memory could not be registered";
    case CU_FILE_HASH_OPR_ERROR: return "a table of the library failed";
    case CU_FILE_INVALID_CONTEXT_ERROR: return "no such context";
    case CU_FILE_NVFS_INTERNAL_DRIVER_ERROR: return "the kernel module failed";
    case CU_FILE_BATCH_NOCOMPAT_ERROR: return "compatibility mode is off";
    case CU_FILE_IO_MAX_ERROR: return "the last code";
    default: return "no code of cuFile";
    }
}

/* Files */

typedef void *CUfileHandle_t;

enum CUfileFileHandleType {
    CU_FILE_HANDLE_TYPE_OPAQUE_FD = 1,
    CU_FILE_HANDLE_TYPE_OPAQUE_WIN32 = 2,
    CU_FILE_HANDLE_TYPE_USERSPACE_FS = 3
};

typedef struct sockaddr sockaddr_t;

typedef struct cufileRDMAInfo {
    int version;
    int desc_len;
    const char *desc_str;
} cufileRDMAInfo_t;

typedef struct CUfileFSOps {
    const char *(*fs_type)(const void *handle);
    int (*getRDMADeviceList)(const void *handle, sockaddr_t **hostaddrs);
    int (*getRDMADevicePriority)(const void *handle, char *, size_t, loff_t, const sockaddr_t *hostaddr);
    ssize_t (*read)(const void *handle, char *, size_t, loff_t, const cufileRDMAInfo_t *);
    ssize_t (*write)(const void *handle, const char *, size_t, loff_t, const cufileRDMAInfo_t *);
} CUfileFSOps_t;

typedef struct CUfileDescr_t {
    enum CUfileFileHandleType type;
    union {
        int fd;
        void *handle;
    } handle;
    const CUfileFSOps_t *fs_ops;
} CUfileDescr_t;

CUfileError_t cuFileHandleRegister(CUfileHandle_t *fh, CUfileDescr_t *descr);
void cuFileHandleDeregister(CUfileHandle_t fh);

/* Memory */

#define CU_FILE_RDMA_REGISTER 1
#define CU_FILE_RDMA_RELAXED_ORDERING 2

/* What the functions of a file system in user space may answer about its RDMA. */
#define CU_FILE_RDMA_ERR_BASE 6000
#define CU_FILE_RDMA_SUCCESS 0
#define CU_FILE_RDMA_RESET_TOKEN (CU_FILE_RDMA_ERR_BASE + 1)
#define CU_FILE_RDMA_RESET_TOKEN_FAILED (CU_FILE_RDMA_ERR_BASE + 2)

CUfileError_t cuFileBufRegister(const void *base, size_t length, int flags);
CUfileError_t cuFileBufDeregister(const void *base);

/* Transfers */

typedef struct CUfileIOVec {
    void *base;
    size_t len;
} CUfileIOVec_t;

ssize_t cuFileRead(CUfileHandle_t fh, void *base, size_t size, off_t file_offset, off_t buffer_offset);
ssize_t cuFileWrite(CUfileHandle_t fh, const void *base, size_t size, off_t file_offset, off_t buffer_offset);
ssize_t cuFileReadv(CUfileHandle_t fh, const CUfileIOVec_t *vectors, size_t count, off_t file_offset, unsigned flags);
ssize_t cuFileWritev(CUfileHandle_t fh, const CUfileIOVec_t *vectors, size_t count, off_t file_offset, unsigned flags);

/* The driver */

typedef struct CUfileDrvProps {
    struct {
        unsigned major_version;
        unsigned minor_version;
        size_t poll_thresh_size;   /* KiB */
        size_t max_direct_io_size; /* KiB */
        unsigned dstatusflags;     /* bits by number: CUfileDriverStatusFlags_t */
        unsigned dcontrolflags;    /* bits by number: CUfileDriverControlFlags_t */
    } nvfs;
    unsigned fflags;                     /* bits by number: CUfileFeatureFlags_t */
    unsigned max_device_cache_size;      /* KiB */
    unsigned per_buffer_cache_size;      /* KiB */
    unsigned max_device_pinned_mem_size; /* KiB */
    unsigned max_batch_io_size;
    unsigned max_batch_io_timeout_msecs;
} CUfileDrvProps_t;

typedef enum CUfileDriverStatusFlags {
    CU_FILE_LUSTRE_SUPPORTED = 0,
    CU_FILE_WEKAFS_SUPPORTED = 1,
    CU_FILE_NFS_SUPPORTED = 2,
    CU_FILE_GPFS_SUPPORTED = 3,
    CU_FILE_NVME_SUPPORTED = 4,
    CU_FILE_NVMEOF_SUPPORTED = 5,
    CU_FILE_SCSI_SUPPORTED = 6,
    CU_FILE_SCALEFLUX_CSD_SUPPORTED = 7,
    CU_FILE_NVMESH_SUPPORTED = 8,
    CU_FILE_BEEGFS_SUPPORTED = 9,
    CU_FILE_NVME_P2P_SUPPORTED = 11, /* deprecated */
    CU_FILE_SCATEFS_SUPPORTED = 12,
    CU_FILE_VIRTIOFS_SUPPORTED = 13,
    CU_FILE_PANFS_SUPPORTED = 14,
    CU_FILE_MAX_TARGET_TYPES = 15
} CUfileDriverStatusFlags_t;

typedef enum CUfileDriverControlFlags {
    CU_FILE_USE_POLL_MODE = 0,
    CU_FILE_ALLOW_COMPAT_MODE = 1,
    CU_FILE_VANILLA_POSIX_IO_MODE = 2,
    CU_FILE_POSIX_IO_MODE = CU_FILE_VANILLA_POSIX_IO_MODE, /* the older name */
    CU_FILE_FALLBACK_IO_MODE = 4
} CUfileDriverControlFlags_t;

typedef enum CUfileFeatureFlags {
    CU_FILE_DYN_ROUTING_SUPPORTED = 0,
    CU_FILE_BATCH_IO_SUPPORTED = 1,
    CU_FILE_STREAMS_SUPPORTED = 2,
    CU_FILE_PARALLEL_IO_SUPPORTED = 3,
    CU_FILE_P2P_SUPPORTED = 4
} CUfileFeatureFlags_t;

/* Numbers of bits; the functions take the bits. */
typedef enum CUfileP2PFlags {
    CUFILE_P2PDMA = 0,
    CUFILE_NVFS = 1,
    CUFILE_DMABUF = 2,
    CUFILE_C2C = 3,
    CUFILE_NVIDIA_PEERMEM = 4
} CUfileP2PFlags_t;
#define CU_FILE_P2P_FLAG_PCI_P2PDMA ((CUfileP2PFlags_t)(1 << CUFILE_P2PDMA))
#define CU_FILE_P2P_FLAG_NVFS ((CUfileP2PFlags_t)(1 << CUFILE_NVFS))
#define CU_FILE_P2P_FLAG_DMABUF ((CUfileP2PFlags_t)(1 << CUFILE_DMABUF))
#define CU_FILE_P2P_FLAG_C2C ((CUfileP2PFlags_t)(1 << CUFILE_C2C))

CUfileError_t cuFileDriverOpen(void);
CUfileError_t cuFileDriverClose_v2(void);
/* Programs of before CUDA 11.4 have this name: the library has both. */
#ifdef CUFILE_OLD_CLOSE
CUfileError_t cuFileDriverClose(void);
#else
#define cuFileDriverClose cuFileDriverClose_v2
#endif
long cuFileUseCount(void);
CUfileError_t cuFileDriverGetProperties(CUfileDrvProps_t *props);
CUfileError_t cuFileDriverSetPollMode(bool poll, size_t threshold_kb);
CUfileError_t cuFileDriverSetMaxDirectIOSize(size_t kb);
CUfileError_t cuFileDriverSetMaxCacheSize(size_t kb);
CUfileError_t cuFileDriverSetMaxPinnedMemSize(size_t kb);
CUfileError_t cuFileGetVersion(int *version);
CUfileError_t cuFileGetBARSizeInKB(int gpu, size_t *kb);
CUfileError_t cuFileDriverSetP2PFlags(CUfileDriverStatusFlags_t kind, CUfileP2PFlags_t flags);
CUfileError_t cuFileDriverGetP2PFlags(CUfileDriverStatusFlags_t kind, CUfileP2PFlags_t *flags);
CUfileError_t cuFileExportPCIeTopology(const char *path);

/* Batches */

typedef void *CUfileBatchHandle_t;
typedef enum CUfileOpcode { CUFILE_READ = 0, CUFILE_WRITE = 1 } CUfileOpcode_t;
typedef enum cufileBatchMode { CUFILE_BATCH = 1 } CUfileBatchMode_t;
typedef enum CUFILEStatus_enum {
    CUFILE_WAITING = 0x1,
    CUFILE_PENDING = 0x2,
    CUFILE_INVALID = 0x4,
    CUFILE_CANCELED = 0x8,
    CUFILE_COMPLETE = 0x10,
    CUFILE_TIMEOUT = 0x20,
    CUFILE_FAILED = 0x40
} CUfileStatus_t;

typedef struct CUfileIOParams {
    CUfileBatchMode_t mode;
    union {
        struct {
            void *devPtr_base;
            off_t file_offset;
            off_t devPtr_offset;
            size_t size;
        } batch;
    } u;
    CUfileHandle_t fh;
    CUfileOpcode_t opcode;
    void *cookie;
} CUfileIOParams_t;

typedef struct CUfileIOEvents {
    void *cookie;
    CUfileStatus_t status;
    size_t ret; /* bytes, or a negative code or errno */
} CUfileIOEvents_t;

CUfileError_t cuFileBatchIOSetUp(CUfileBatchHandle_t *batch, unsigned nr);
CUfileError_t cuFileBatchIOSubmit(CUfileBatchHandle_t batch, unsigned nr, CUfileIOParams_t *params, unsigned flags);
CUfileError_t cuFileBatchIOGetStatus(
    CUfileBatchHandle_t batch, unsigned min_nr, unsigned *nr, CUfileIOEvents_t *events, struct timespec *timeout);
CUfileError_t cuFileBatchIOCancel(CUfileBatchHandle_t batch);
void cuFileBatchIODestroy(CUfileBatchHandle_t batch);

/* Streams */

#define CU_FILE_STREAM_FIXED_BUF_OFFSET 1
#define CU_FILE_STREAM_FIXED_FILE_OFFSET 2
#define CU_FILE_STREAM_FIXED_FILE_SIZE 4
#define CU_FILE_STREAM_PAGE_ALIGNED_INPUTS 8

CUfileError_t cuFileReadAsync(CUfileHandle_t fh, void *base, size_t *size, off_t *file_offset, off_t *buffer_offset,
    ssize_t *moved, CUstream stream);
CUfileError_t cuFileWriteAsync(CUfileHandle_t fh, void *base, size_t *size, off_t *file_offset, off_t *buffer_offset,
    ssize_t *moved, CUstream stream);
CUfileError_t cuFileStreamRegister(CUstream stream, unsigned flags);
CUfileError_t cuFileStreamDeregister(CUstream stream);

/* Parameters */

typedef enum CUFileSizeTConfigParameter_t {
    CUFILE_PARAM_PROFILE_STATS = 0,
    CUFILE_PARAM_EXECUTION_MAX_IO_QUEUE_DEPTH = 1,
    CUFILE_PARAM_EXECUTION_MAX_IO_THREADS = 2,
    CUFILE_PARAM_EXECUTION_MIN_IO_THRESHOLD_SIZE_KB = 3,
    CUFILE_PARAM_EXECUTION_MAX_REQUEST_PARALLELISM = 4,
    CUFILE_PARAM_PROPERTIES_MAX_DIRECT_IO_SIZE_KB = 5,
    CUFILE_PARAM_PROPERTIES_MAX_DEVICE_CACHE_SIZE_KB = 6,
    CUFILE_PARAM_PROPERTIES_PER_BUFFER_CACHE_SIZE_KB = 7,
    CUFILE_PARAM_PROPERTIES_MAX_DEVICE_PINNED_MEM_SIZE_KB = 8,
    CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE = 9,
    CUFILE_PARAM_POLLTHRESHOLD_SIZE_KB = 10,
    CUFILE_PARAM_PROPERTIES_BATCH_IO_TIMEOUT_MS = 11
} CUFileSizeTConfigParameter_t;

typedef enum CUFileBoolConfigParameter_t {
    CUFILE_PARAM_PROPERTIES_USE_POLL_MODE = 0,
    CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE = 1,
    CUFILE_PARAM_FORCE_COMPAT_MODE = 2,
    CUFILE_PARAM_FS_MISC_API_CHECK_AGGRESSIVE = 3,
    CUFILE_PARAM_EXECUTION_PARALLEL_IO = 4,
    CUFILE_PARAM_PROFILE_NVTX = 5,
    CUFILE_PARAM_PROPERTIES_ALLOW_SYSTEM_MEMORY = 6,
    CUFILE_PARAM_USE_PCIP2PDMA = 7,
    CUFILE_PARAM_PREFER_IO_URING = 8,
    CUFILE_PARAM_FORCE_ODIRECT_MODE = 9,
    CUFILE_PARAM_SKIP_TOPOLOGY_DETECTION = 10,
    CUFILE_PARAM_STREAM_MEMOPS_BYPASS = 11,
    CUFILE_PARAM_PROPERTIES_POSIX_IO_MODE = 12,
    CUFILE_PARAM_GDS_FALLBACK_IO = 13
} CUFileBoolConfigParameter_t;

typedef enum CUFileStringConfigParameter_t {
    CUFILE_PARAM_LOGGING_LEVEL = 0,
    CUFILE_PARAM_ENV_LOGFILE_PATH = 1,
    CUFILE_PARAM_LOG_DIR = 2,
    CUFILE_PARAM_RDMA_TRANSPORT = 3
} CUFileStringConfigParameter_t;

typedef enum CUFileArrayConfigParameter_t {
    CUFILE_PARAM_POSIX_POOL_SLAB_SIZE_KB = 0,
    CUFILE_PARAM_POSIX_POOL_SLAB_COUNT = 1,
    CUFILE_PARAM_GPU_BOUNCE_BUFFER_SLAB_SIZE_KB = 2,
    CUFILE_PARAM_GPU_BOUNCE_BUFFER_SLAB_COUNT = 3
} CUFileArrayConfigParameter_t;

CUfileError_t cuFileGetParameterSizeT(CUFileSizeTConfigParameter_t param, size_t *value);
CUfileError_t cuFileSetParameterSizeT(CUFileSizeTConfigParameter_t param, size_t value);
CUfileError_t cuFileGetParameterMinMaxValue(CUFileSizeTConfigParameter_t param, size_t *min, size_t *max);
CUfileError_t cuFileGetParameterBool(CUFileBoolConfigParameter_t param, bool *value);
CUfileError_t cuFileSetParameterBool(CUFileBoolConfigParameter_t param, bool value);
CUfileError_t cuFileGetParameterString(CUFileStringConfigParameter_t param, char *text, int len);
CUfileError_t cuFileSetParameterString(CUFileStringConfigParameter_t param, const char *text);
CUfileError_t cuFileSetParameterPosixPoolSlabArray(const size_t *sizes_kb, const size_t *counts, int len);
CUfileError_t cuFileGetParameterPosixPoolSlabArray(size_t *sizes_kb, size_t *counts, int len);
CUfileError_t cuFileSetParameterGpuBounceBufferSlabArray(const size_t *sizes_kb, const size_t *counts, int len);
CUfileError_t cuFileGetParameterGpuBounceBufferSlabArray(size_t *sizes_kb, size_t *counts, int len);

/* Statistics */

#define CUFILE_GPU_UUID_LEN 16

typedef struct CUfileOpCounter {
    uint64_t ok;
    uint64_t err;
} CUfileOpCounter_t;

typedef struct CUfileStatsLevel1 {
    CUfileOpCounter_t read_ops, write_ops;
    CUfileOpCounter_t hdl_register_ops, hdl_deregister_ops;
    CUfileOpCounter_t buf_register_ops, buf_deregister_ops;
    uint64_t read_bytes, write_bytes;
    uint64_t read_bw_bytes_per_sec, write_bw_bytes_per_sec;
    uint64_t read_lat_avg_us, write_lat_avg_us;
    uint64_t read_ops_per_sec, write_ops_per_sec;
    uint64_t read_lat_sum_us, write_lat_sum_us;
    CUfileOpCounter_t batch_submit_ops, batch_complete_ops, batch_setup_ops, batch_cancel_ops, batch_destroy_ops;
    CUfileOpCounter_t batch_enqueued_ops, batch_posix_enqueued_ops, batch_processed_ops, batch_posix_processed_ops;
    CUfileOpCounter_t batch_nvfs_submit_ops, batch_p2p_submit_ops, batch_aio_submit_ops, batch_iouring_submit_ops;
    CUfileOpCounter_t batch_mixed_io_submit_ops, batch_total_submit_ops;
    uint64_t batch_read_bytes, batch_write_bytes;
    uint64_t batch_read_bw_bytes, batch_write_bw_bytes;
    uint64_t batch_submit_lat_avg_us, batch_completion_lat_avg_us;
    uint64_t batch_submit_ops_per_sec, batch_complete_ops_per_sec;
    uint64_t batch_submit_lat_sum_us, batch_completion_lat_sum_us;
    uint64_t last_batch_read_bytes, last_batch_write_bytes;
#if CUFILE_LAYOUT >= 1190
    CUfileOpCounter_t readv_ops, writev_ops;
    uint64_t readv_bytes, writev_bytes;
    uint64_t readv_bw_bytes_per_sec, writev_bw_bytes_per_sec;
    uint64_t readv_lat_avg_us, writev_lat_avg_us;
    uint64_t readv_ops_per_sec, writev_ops_per_sec;
    uint64_t readv_lat_sum_us, writev_lat_sum_us;
#endif
} CUfileStatsLevel1_t;

typedef struct CUfileStatsLevel2 {
    CUfileStatsLevel1_t basic;
    uint64_t read_size_kb_hist[32];
    uint64_t write_size_kb_hist[32];
} CUfileStatsLevel2_t;

typedef struct CUfilePerGpuStats {
    char uuid[CUFILE_GPU_UUID_LEN];
    uint64_t read_bytes, read_bw_bytes_per_sec, read_utilization, read_duration_us;
    uint64_t n_total_reads, n_p2p_reads, n_nvfs_reads, n_posix_reads, n_unaligned_reads, n_dr_reads;
    uint64_t n_sparse_regions, n_inline_regions, n_reads_err;
    uint64_t writes_bytes, write_bw_bytes_per_sec, write_utilization, write_duration_us;
    uint64_t n_total_writes, n_p2p_writes, n_nvfs_writes, n_posix_writes, n_unaligned_writes, n_dr_writes;
    uint64_t n_writes_err;
    uint64_t n_mmap, n_mmap_ok, n_mmap_err, n_mmap_free;
    uint64_t reg_bytes;
} CUfilePerGpuStats_t;

typedef struct CUfileStatsLevel3 {
    CUfileStatsLevel2_t detailed;
    uint32_t num_gpus;
    CUfilePerGpuStats_t per_gpu_stats[16];
} CUfileStatsLevel3_t;

CUfileError_t cuFileSetStatsLevel(int level);
CUfileError_t cuFileGetStatsLevel(int *level);
CUfileError_t cuFileStatsStart(void);
CUfileError_t cuFileStatsStop(void);
CUfileError_t cuFileStatsReset(void);
CUfileError_t cuFileGetStatsL1(CUfileStatsLevel1_t *stats);
CUfileError_t cuFileGetStatsL2(CUfileStatsLevel2_t *stats);
CUfileError_t cuFileGetStatsL3(CUfileStatsLevel3_t *stats);

#ifdef __cplusplus
}
#endif

#endif
