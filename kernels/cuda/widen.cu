// Elements of bf16, f16, f8 e4m3fn and f8 e5m2 to f32, many ranges in one launch. Every value of the narrow types is one of f32.
//
// A NaN stays one, with its sign and payload; f16 and f8 e5m2 come out quiet, as IEEE 754 asks of a conversion and processors do;
// bf16 keeps all its bits, as frameworks do. e4m3fn has no infinities and one NaN (OCP 8-bit floating point, revision 1.0, section 5).
//
// Contract: targets lie at multiples of 4 and do not overlap sources; sources have any address. `len` of a job is in bytes of the
// target. Only bytes of sources are read. Blocks have whole warps; there are at least as many warps as tiles.
#include "range.h"

struct Bf16 {
    static constexpr u32 SIZE = 2;
    static __device__ __forceinline__ u32 widen(u32 v) { return v << 16; }
};

// exponent of 5 bits, bias 15; `v` is 16 bits.
struct F16 {
    static constexpr u32 SIZE = 2;
    static __device__ __forceinline__ u32 widen(u32 v) {
        const u32 sign = (v & 0x8000u) << 16, rest = v & 0x7fffu;
        if (rest >= 0x7c00u) {
            const u32 quiet = rest > 0x7c00u ? 0x00400000u : 0;
            return sign | 0x7f800000u | (rest & 0x3ffu) << 13 | quiet;
        }
        // Below the normal range: the fraction counts units of 2^-24, which f32 has as normal numbers.
        if (rest < 0x400u) return sign | __float_as_uint((float)rest * 5.9604644775390625e-8f);
        return sign | ((rest << 13) + ((127u - 15u) << 23));
    }
};

// The upper half of an f16.
struct E5m2 {
    static constexpr u32 SIZE = 1;
    static __device__ __forceinline__ u32 widen(u32 v) { return F16::widen(v << 8); }
};

// exponent of 4 bits, bias 7.
struct E4m3 {
    static constexpr u32 SIZE = 1;
    static __device__ __forceinline__ u32 widen(u32 v) {
        const u32 sign = (v & 0x80u) << 24, rest = v & 0x7fu;
        if (rest == 0x7fu) return sign | 0x7fc00000u;
        // Units of 2^-9.
        if (rest < 8u) return sign | __float_as_uint((float)rest * 0.001953125f);
        return sign | ((rest << 20) + ((127u - 7u) << 23));
    }
};

template <typename T> __device__ __forceinline__ u32 load_narrow(u64 at) {
    return T::SIZE == 1 ? load_byte(at) : load_byte(at) | load_byte(at + 1) << 8;
}

// The next four elements from the words that they lie in.
template <typename T> __device__ __forceinline__ Quad widen_four(u64 source) {
    const u64 line = round_down(source, 4);
    const u32 bits = (u32)(source - line) * 8;
    const u32 w0 = load_word(line), w1 = bits == 0 && T::SIZE == 1 ? 0 : load_word(line + 4);
    const u32 low = joined(w0, w1, bits);
    Quad out;
    if (T::SIZE == 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) out.w[i] = T::widen((low >> (8 * i)) & 255);
    } else {
        const u32 w2 = bits == 0 ? 0 : load_word(line + 8);
        const u32 high = joined(w1, w2, bits);
        out.w[0] = T::widen(low & 0xffffu);
        out.w[1] = T::widen(low >> 16);
        out.w[2] = T::widen(high & 0xffffu);
        out.w[3] = T::widen(high >> 16);
    }
    return out;
}

template <typename T> __device__ __forceinline__ void widen_single(const RangeJob &job, u64 low, u64 high) {
    for (u64 at = low + lane_of_thread() * 4; at < high; at += LANES * 4) {
        store_word(at, T::widen(load_narrow<T>(job.source + (at - job.target) / 4 * T::SIZE)));
    }
}

template <typename T> __device__ __forceinline__ void widen_all(u64 jobs, u64 count, u64 tiles) {
    const u64 piece = warp_of_launch();
    if (piece >= tiles) return;
    const RangeJob *all = place<const RangeJob>(jobs, count);
    const RangeJob job = all[job_of_piece(all, count, piece)];
    // A source between words: the first and the last line of four elements would load bytes that are not its own.
    const u64 far = job.target + job.len, slack = job.source % 4 == 0 ? 0 : QUAD_BYTES;
    const Tile tile = tile_of(job, piece - job.first, job.target + slack, higher(far, slack) - slack);
    widen_single<T>(job, tile.low, tile.wide_low);
#pragma unroll 4
    for (u64 at = tile.wide_low + lane_of_thread() * QUAD_BYTES; at < tile.wide_high; at += LANES * QUAD_BYTES) {
        store_quad(at, widen_four<T>(job.source + (at - job.target) / 4 * T::SIZE));
    }
    widen_single<T>(job, tile.wide_high, tile.high);
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_widen_bf16(u64 jobs, u64 count, u64 tiles) {
    widen_all<Bf16>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_widen_f16(u64 jobs, u64 count, u64 tiles) {
    widen_all<F16>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_widen_e4m3(u64 jobs, u64 count, u64 tiles) {
    widen_all<E4m3>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_widen_e5m2(u64 jobs, u64 count, u64 tiles) {
    widen_all<E5m2>(jobs, count, tiles);
}
