/* SPDX-License-Identifier: Apache-2.0 */
/* The six functions of the CUDA runtime that fio's engine calls, over the driver. The real runtime wants tables of the real
 * driver, which the stand-in does not have. On a machine with a GPU the real one is used. */
#include <cuda.h>
#include <cuda_runtime_api.h>

static cudaError_t as_runtime(CUresult result) { return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorUnknown; }

static CUdeviceptr device(const void *at) { return (CUdeviceptr)(unsigned long)at; }

cudaError_t cudaSetDevice(int index) {
    CUdevice found;
    CUcontext context;
    CUresult result = cuInit(0);
    if (!result) result = cuDeviceGet(&found, index);
    if (!result) result = cuDevicePrimaryCtxRetain(&context, found);
    if (!result) result = cuCtxSetCurrent(context);
    return as_runtime(result);
}

cudaError_t cudaMalloc(void **place, size_t size) {
    CUdeviceptr at = 0;
    CUresult result = cuMemAlloc(&at, size);
    *place = (void *)(unsigned long)at;
    return as_runtime(result);
}

cudaError_t cudaFree(void *at) { return as_runtime(cuMemFree(device(at))); }

cudaError_t cudaMemset(void *at, int value, size_t count) {
    return as_runtime(cuMemsetD8(device(at), (unsigned char)value, count));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t count, enum cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToDevice:
        return as_runtime(cuMemcpyHtoD(device(to), from, count));
    case cudaMemcpyDeviceToHost:
        return as_runtime(cuMemcpyDtoH(to, device(from), count));
    default:
        return cudaErrorInvalidValue;
    }
}

const char *cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "an error of the driver"; }
