// What the kernels share: types, wide loads and stores, the search for a warp's piece of work.
//
// The same sources are compiled by a CUDA compiler, and as host C++ against emulate/host.h, which is how they are run where there
// is no GPU. Nothing is included from a toolkit, so that the compiler alone is enough to make the committed PTX.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef __CUDACC__
#include "host.h"
#endif

// Lanes of a warp. Kernels are launched with whole warps.
#define LANES 32u
#define ALL_LANES 0xffffffffu

// Four words: the widest load and store.
struct alignas(16) Quad {
    u32 w[4];
};

__device__ __forceinline__ u32 lane_of_thread() { return threadIdx.x % LANES; }

// Number of this warp in the launch.
__device__ __forceinline__ u64 warp_of_launch() {
    return (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
}

// Addresses come out of memory as numbers, so the compiler does not know that they are of global memory: it is said here. The order
// of these is kept as written.
#ifdef __CUDACC__
#define LOAD(kind, constraint, type) \
    type value; \
    asm volatile("ld.global." kind " %0, [%1];" : constraint(value) : "l"(at)); \
    return value
#define STORE(kind, constraint) asm volatile("st.global." kind " [%0], %1;" ::"l"(at), constraint(value))
__device__ __forceinline__ u32 load_byte(u64 at) { LOAD("u8", "=r", u32); }
__device__ __forceinline__ u32 load_word(u64 at) { LOAD("u32", "=r", u32); }
__device__ __forceinline__ u64 load_long(u64 at) { LOAD("u64", "=l", u64); }
__device__ __forceinline__ void store_byte(u64 at, u32 value) { STORE("u8", "r"); }
__device__ __forceinline__ void store_word(u64 at, u32 value) { STORE("u32", "r"); }
__device__ __forceinline__ void store_long(u64 at, u64 value) { STORE("u64", "l"); }
__device__ __forceinline__ Quad load_quad(u64 at) {
    Quad q;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.w[0]), "=r"(q.w[1]), "=r"(q.w[2]), "=r"(q.w[3])
                 : "l"(at));
    return q;
}
__device__ __forceinline__ void store_quad(u64 at, const Quad &q) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(q.w[0]), "r"(q.w[1]), "r"(q.w[2]), "r"(q.w[3]));
}
template <typename T> __device__ __forceinline__ T *place(u64 at, u64) { return reinterpret_cast<T *>(at); }
#else
// The host asks where device memory is, and whether all of it is there.
template <typename T> inline T *place(u64 at, u64 count) { return (T *)emulate_place(at, count * sizeof(T)); }
inline u32 load_byte(u64 at) { return *place<const u8>(at, 1); }
inline u32 load_word(u64 at) { return *place<const u32>(at, 1); }
inline u64 load_long(u64 at) { return *place<const u64>(at, 1); }
inline Quad load_quad(u64 at) { return *place<const Quad>(at, 1); }
inline void store_byte(u64 at, u32 value) { *place<u8>(at, 1) = (u8)value; }
inline void store_word(u64 at, u32 value) { *place<u32>(at, 1) = value; }
inline void store_long(u64 at, u64 value) { *place<u64>(at, 1) = value; }
inline void store_quad(u64 at, const Quad &value) { *place<Quad>(at, 1) = value; }
#endif

// One instruction; compilers make it of two XORs too, but the PTX is shorter.
__device__ __forceinline__ u32 xor_three(u32 a, u32 b, u32 c) {
#ifdef __CUDACC__
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    return a ^ b ^ c;
#endif
}

__device__ __forceinline__ u64 lower(u64 a, u64 b) { return a < b ? a : b; }
__device__ __forceinline__ u64 higher(u64 a, u64 b) { return a > b ? a : b; }
__device__ __forceinline__ u64 round_down(u64 value, u64 step) { return value & ~(step - 1); }
__device__ __forceinline__ u64 round_up(u64 value, u64 step) { return (value + step - 1) & ~(step - 1); }

// The job that piece `piece` belongs to: the last whose `first` is not above it. Jobs without a piece share their `first` with the
// one behind them. `count` is above 0 and the first job's `first` is 0.
template <typename Job> __device__ __forceinline__ u64 job_of_piece(const Job *jobs, u64 count, u64 piece) {
    u64 low = 0, high = count;
    while (high - low > 1) {
        const u64 middle = low + (high - low) / 2;
        if (jobs[middle].first <= piece) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
