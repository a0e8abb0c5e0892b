// What CUDA brings, for the kernels compiled as host C++: one block at a time, each of its threads a fibre on one thread of the host.
//
// Fibres give way only where lanes or threads meet (shuffles, barriers), so a kernel that forgets a barrier runs on with values that
// are not there yet. What this does not show: races between fibres that need no meeting, the order of memory between blocks, speed.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static const
// All in one place, so that no block finds what another left.
#define __shared__ static __attribute__((section("emulated_shared")))
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

// Where `bytes` bytes of device memory at `at` are in this process; ends the kernel if they are not all there.
void *emulate_place(unsigned long long at, unsigned long long bytes);
// Gives way to the other threads of the block until all have come here.
void emulate_block_barrier();
// The value that the lane `mask` away brings to the same place.
unsigned emulate_exchange(unsigned value, unsigned mask);

inline void __syncthreads() { emulate_block_barrier(); }
inline unsigned __shfl_xor_sync(unsigned, unsigned value, unsigned mask) { return emulate_exchange(value, mask); }

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
    const unsigned long long both = ((unsigned long long)high << 32) | low;
    return (unsigned)(both >> (bits & 31));
}

// CUDA Math API, "__byte_perm": each of four selectors names one of the eight bytes of `low` and `high`.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
    const unsigned long long both = ((unsigned long long)high << 32) | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)((both >> (8 * ((selectors >> (4 * i)) & 7))) & 255) << (8 * i);
    return out;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

inline unsigned long long atomicXor(unsigned long long *at, unsigned long long value) {
    return __atomic_fetch_xor(at, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicMin(unsigned long long *at, unsigned long long value) {
    unsigned long long old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
