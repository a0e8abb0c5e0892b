// Gather and scatter: many ranges, any address to any address, in one launch; and the same with the bytes of each element turned.
//
// A misaligned tensor lands where the drive can put it, in an aligned buffer, and is moved to its place here, so that no ragged end
// goes through the host. Stores are 16 bytes wide wherever the target has a whole line. Loads are as wide: of a source that lies
// otherwise within its lines two neighbouring lines are loaded (the second is the next lane's first, so it comes from the cache),
// and shifted together, words by a choice that is the same for the whole range, bytes by the funnel shifter.
//
// Contract: sources and targets do not overlap, but for turning bytes in place. Only bytes of sources are read and only bytes of
// targets are written. Elements of 2, 4 and 8 bytes: the target and its length are multiples of the size; sources need not be.
// Blocks have whole warps; there are at least as many warps as tiles.
#include "range.h"

template <int SIZE> __device__ __forceinline__ Quad turned(Quad in) {
    if (SIZE == 1) return in;
    Quad out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 word = in.w[SIZE == 8 ? i ^ 1 : i];
        out.w[i] = __byte_perm(word, 0, SIZE == 2 ? 0x2301 : 0x0123);
    }
    return out;
}

// A line of the target from the two lines of the source that it lies in, `WORDS` words and `bits` bits into the first.
template <int WORDS> __device__ __forceinline__ Quad shifted(const Quad &first, const Quad &second, u32 bits) {
    u32 words[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = first.w[i];
        words[4 + i] = second.w[i];
    }
    Quad out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.w[i] = joined(words[WORDS + i], words[WORDS + i + 1], bits);
    }
    return out;
}

// Lines that a lane has on their way at a time.
#define UNROLL 4

template <int SIZE> __device__ __forceinline__ void same_lines(u64 at, u64 high, u64 distance) {
    const u64 step = LANES * QUAD_BYTES;
    for (; at + (UNROLL - 1) * step < high; at += UNROLL * step) {
        Quad lines[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) lines[i] = load_quad(at + i * step + distance);
#pragma unroll
        for (int i = 0; i < UNROLL; i++) store_quad(at + i * step, turned<SIZE>(lines[i]));
    }
    for (; at < high; at += step) store_quad(at, turned<SIZE>(load_quad(at + distance)));
}

template <int SIZE, int WORDS> __device__ __forceinline__ void other_lines(u64 at, u64 high, u64 distance, u32 bits) {
    const u64 step = LANES * QUAD_BYTES;
    for (; at + (UNROLL - 1) * step < high; at += UNROLL * step) {
        Quad first[UNROLL], second[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            first[i] = load_quad(at + i * step + distance);
            second[i] = load_quad(at + i * step + distance + QUAD_BYTES);
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) store_quad(at + i * step, turned<SIZE>(shifted<WORDS>(first[i], second[i], bits)));
    }
    for (; at < high; at += step) {
        const Quad first = load_quad(at + distance), second = load_quad(at + distance + QUAD_BYTES);
        store_quad(at, turned<SIZE>(shifted<WORDS>(first, second, bits)));
    }
}

// One by one: what is left at the ends.
template <int SIZE> __device__ __forceinline__ void single(u64 low, u64 high, u64 distance) {
    for (u64 at = low + lane_of_thread() * SIZE; at < high; at += LANES * SIZE) {
        u32 bytes[SIZE];
#pragma unroll
        for (int i = 0; i < SIZE; i++) bytes[i] = load_byte(at + distance + i);
#pragma unroll
        for (int i = 0; i < SIZE; i++) store_byte(at + i, bytes[SIZE - 1 - i]);
    }
}

template <int SIZE> __device__ __forceinline__ void move_tile(const RangeJob &job, u64 number) {
    const u64 distance = job.source - job.target;
    const u32 off = (u32)(distance % QUAD_BYTES);
    // With the source elsewhere in its lines, a line of the target takes 32 bytes from `off` before its own place.
    const u64 far = job.target + job.len;
    const u64 near = off == 0 ? job.target : job.target + off;
    const Tile tile = tile_of(job, number, near, off == 0 ? far : higher(far + off, QUAD_BYTES) - QUAD_BYTES);
    single<SIZE>(tile.low, tile.wide_low, distance);
    const u64 at = tile.wide_low + lane_of_thread() * QUAD_BYTES;
    const u32 bits = off % 4 * 8;
    if (off == 0) {
        same_lines<SIZE>(at, tile.wide_high, distance);
    } else if (off < 4) {
        other_lines<SIZE, 0>(at, tile.wide_high, distance - off, bits);
    } else if (off < 8) {
        other_lines<SIZE, 1>(at, tile.wide_high, distance - off, bits);
    } else if (off < 12) {
        other_lines<SIZE, 2>(at, tile.wide_high, distance - off, bits);
    } else {
        other_lines<SIZE, 3>(at, tile.wide_high, distance - off, bits);
    }
    single<SIZE>(tile.wide_high, tile.high, distance);
}

template <int SIZE> __device__ __forceinline__ void move_all(u64 jobs, u64 count, u64 tiles) {
    const u64 piece = warp_of_launch();
    if (piece >= tiles) return;
    const RangeJob *all = place<const RangeJob>(jobs, count);
    const RangeJob job = all[job_of_piece(all, count, piece)];
    move_tile<SIZE>(job, piece - job.first);
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_move(u64 jobs, u64 count, u64 tiles) {
    move_all<1>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_swap2(u64 jobs, u64 count, u64 tiles) {
    move_all<2>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_swap4(u64 jobs, u64 count, u64 tiles) {
    move_all<4>(jobs, count, tiles);
}
extern "C" __global__ void __launch_bounds__(THREADS) sw_swap8(u64 jobs, u64 count, u64 tiles) {
    move_all<8>(jobs, count, tiles);
}
