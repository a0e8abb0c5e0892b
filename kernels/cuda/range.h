// What kernels over many ranges share: jobs, tiles of a range, and the part of it that may be loaded four words at a time.
#pragma once
#include "device.h"

// Bytes of the destination that one warp writes.
#define TILE_BYTES 16384ull
#define THREADS 256
#define QUAD_BYTES 16ull

// One range. As `RangeJob` in ranges.rs.
struct RangeJob {
    u64 source;
    u64 target;
    u64 len;   // bytes of the target
    u64 first; // number of its first tile
};

// A warp's part of a range, in addresses of the target. Tiles are cut at multiples of TILE_BYTES behind the 16-byte line that the
// target starts in. `low..high` is the tile; of it `wide_low..wide_high` is whole 16-byte lines, the rest is done one by one.
struct Tile {
    u64 low, high;
    u64 wide_low, wide_high;
};

// `near` is the first address of the target, and `far` the one behind the last, between which whole lines may be loaded.
__device__ __forceinline__ Tile tile_of(const RangeJob &job, u64 number, u64 near, u64 far) {
    const u64 start = round_down(job.target, QUAD_BYTES) + number * TILE_BYTES;
    Tile tile;
    tile.low = higher(start, job.target);
    tile.high = lower(start + TILE_BYTES, job.target + job.len);
    tile.wide_low = lower(higher(round_up(near, QUAD_BYTES), start), tile.high);
    tile.wide_high = higher(lower(round_down(far, QUAD_BYTES), tile.high), tile.wide_low);
    if (tile.wide_high > tile.wide_low) {
        tile.wide_high = tile.wide_low + round_down(tile.wide_high - tile.wide_low, QUAD_BYTES);
    }
    return tile;
}

// The 32 bits that start `bits` (0, 8, 16 or 24) into `low`.
__device__ __forceinline__ u32 joined(u32 low, u32 high, u32 bits) { return __funnelshift_r(low, high, bits); }
