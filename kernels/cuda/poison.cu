// Poison: a pattern that no data has by chance, written before a read, and looked for after it: bytes that never arrived.
//
// The pattern is made of 64-bit words, each a function of its place and of a seed. A word of data equals it once in 2^64.
// What is smaller than a word cannot be told: a word counts as written if one of its bytes differs. The bytes behind the last whole
// word count with the word before them, as too few of them would be equal by chance.
//
// Contract: `address` is a multiple of 8. Blocks have whole warps; the grid has any size. `found` holds 0 and 2^64 - 1 before.
#include "device.h"

#define THREADS 256

struct Found {
    u64 bytes; // that are poison
    u64 first; // offset of the first of them
};

// Multipliers: the golden ratio's fraction, and the first of SplitMix64's finaliser.
__device__ __forceinline__ u64 poison_word(u64 number, u64 seed) {
    u64 word = (number + 1) * 0x9e3779b97f4a7c15ull + seed;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    return word ^ (word >> 27);
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_poison_fill(u64 address, u64 len, u64 seed) {
    const u64 words = len / 8, threads = (u64)gridDim.x * blockDim.x;
    for (u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x; at <= words; at += threads) {
        const u64 word = poison_word(at, seed);
        if (at < words) {
            store_long(address + at * 8, word);
        } else {
            for (u32 i = 0; i < len % 8; i++) store_byte(address + at * 8 + i, (u32)(word >> (8 * i)) & 255);
        }
    }
}

// Whether the bytes behind the last whole word are poison, and the word before them.
__device__ __forceinline__ bool tail_is_poison(u64 address, u64 len, u64 seed) {
    const u64 words = len / 8;
    if (len % 8 == 0 || (words > 0 && load_long(address + (words - 1) * 8) != poison_word(words - 1, seed))) return false;
    const u64 word = poison_word(words, seed);
    for (u32 i = 0; i < len % 8; i++) {
        if (load_byte(address + words * 8 + i) != ((word >> (8 * i)) & 255)) return false;
    }
    return true;
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_poison_find(u64 address, u64 len, u64 seed, u64 found) {
    const u64 words = len / 8, threads = (u64)gridDim.x * blockDim.x;
    const u64 start = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 bytes = 0, first = ~0ull;
#pragma unroll 4
    for (u64 at = start; at < words; at += threads) {
        if (load_long(address + at * 8) == poison_word(at, seed)) {
            bytes += 8;
            first = lower(first, at * 8);
        }
    }
    if (start == 0 && tail_is_poison(address, len, seed)) {
        bytes += len % 8;
        first = lower(first, words * 8);
    }
    // Data that arrived takes no atomic at all.
    if (bytes != 0) {
        Found *into = place<Found>(found, 1);
        atomicAdd(&into->bytes, bytes);
        atomicMin(&into->first, first);
    }
}
