// CRC-32C and CRC-64/NVME of many buffers in one launch, each cut into segments that warps take.
//
// A buffer is a polynomial over GF(2). It is laid out in rows of 128 bytes, a word for each lane, aligned to 128 bytes of address
// and filled up with zeros at both ends. With y = x^1024, a whole row up, it is a polynomial in y whose coefficients are rows.
// 1024 is a power of two, and squaring is linear over GF(2), so P(y) = P(x)^1024 is a multiple of the CRC's polynomial P: rows may be
// reduced modulo P(y). That costs XORs of whole words alone, 9 three-way ones a word for CRC-32C and 17 for CRC-64, no table and no
// carry-less multiplication, and each lane works by itself on words that lie side by side in memory.
//
//   q[i] = row[i] ^ (q[i - d] for every d with a term x^(degree - d) in P)         the quotient, row by row: `stream`
//   the last `degree` rows, with the quotient taken out of them, are the remainder                          : `remainder`
//
// The remainder is 4 KiB (8 KiB for CRC-64) whatever the segment's length. Each lane folds its column of it (Horner's rule with
// tables for the factor y), lanes are shifted into place and added, and the sum is shifted by what comes after the segment. Sums of
// segments meet in the job by atomic XOR. `finish` takes off the zeros behind the end, adds what the CRC starts and ends with.
//
// Contract: `seg_rows` is a multiple of 64 and segments of a job are counted from its end. Buffers have any address and length below
// 2^38 bytes. Blocks have whole warps; there are at least as many warps as segments. Only bytes of buffers are read.
#include "device.h"

#define ROW_BYTES 128u
// Rows that are loaded ahead of those that are worked on.
#define STEP 16
#define THREADS 128

// One buffer. As `SumJob` in crc.rs.
struct SumJob {
    u64 address;
    u64 len;
    u64 sum;   // 0 before, the CRC after `finish`
    u64 first; // number of its first segment, the one at its end
};

// Values have their bits as the CRC has them: the highest bit is the coefficient of x^0.
struct Crc32c {
    typedef u32 Value;
    static constexpr int BITS = 32, TERMS = 17;
    static constexpr Value POLY = 0x82f63b78u;
};
struct Crc64 {
    typedef u64 Value;
    static constexpr int BITS = 64, TERMS = 32;
    static constexpr Value POLY = 0x9a6c9329ac4bc9b5ull;
};

template <typename F> __device__ constexpr typename F::Value one_of() { return (typename F::Value)1 << (F::BITS - 1); }

template <typename F> __device__ constexpr typename F::Value times_x(typename F::Value a) {
    return (a >> 1) ^ ((a & 1) ? F::POLY : 0);
}

// P ends in 1, so x^-1 is there: undoes times_x.
template <typename F> __device__ constexpr typename F::Value over_x(typename F::Value a) {
    const bool carry = a >> (F::BITS - 1);
    return carry ? (((a ^ F::POLY) << 1) | 1) : (a << 1);
}

template <typename F> __device__ constexpr typename F::Value times(typename F::Value a, typename F::Value b) {
    typename F::Value product = 0;
    for (int i = F::BITS - 1; i >= 0; i--) {
        product ^= ((a >> i) & 1) ? b : 0;
        b = times_x<F>(b);
    }
    return product;
}

// Distances, in rows, of the terms of P(y) from its highest one.
template <typename F> struct Terms {
    static constexpr int COUNT = F::TERMS;
    int distance[COUNT];

    __device__ constexpr Terms() : distance{} {
        for (int d = 1, at = 0; d <= F::BITS; d++) {
            if ((F::POLY >> (d - 1)) & 1) distance[at++] = d;
        }
    }
};

// Constants, all worked out by the compiler.
template <typename F> struct Constants {
    typename F::Value fold[F::BITS];  // a value with only bit i, times y (y^2 for 64 bits)
    typename F::Value lane[LANES];    // what a lane's column lies away from the row's end
    typename F::Value rows[LANES];    // y^(2^i)
    typename F::Value bytes[40];      // x^(8 * 2^i)
    typename F::Value back[7];        // x^(-8 * 2^i)

    __device__ constexpr Constants() : fold{}, lane{}, rows{}, bytes{}, back{} {
        typename F::Value power = one_of<F>() >> 1;
        for (int i = 0; i < 3; i++) power = times<F>(power, power);
        for (int i = 0; i < 40; i++) {
            bytes[i] = power;
            power = times<F>(power, power);
        }
        rows[0] = bytes[7];
        for (int i = 1; i < (int)LANES; i++) rows[i] = times<F>(rows[i - 1], rows[i - 1]);
        typename F::Value less = one_of<F>();
        for (int i = 0; i < 8; i++) less = over_x<F>(less);
        for (int i = 0; i < 7; i++) {
            back[i] = less;
            less = times<F>(less, less);
        }
        typename F::Value at = F::BITS == 32 ? rows[0] : rows[1];
        for (int i = F::BITS - 1; i >= 0; i--) {
            fold[i] = at;
            at = times_x<F>(at);
        }
        // A CRC is the remainder of the buffer times x^degree.
        at = bytes[F::BITS == 32 ? 2 : 3];
        for (int i = (int)LANES - 1; i >= 0; i--) {
            if (F::BITS == 32) {
                lane[i] = at;
                at = times<F>(at, bytes[2]);
            } else if (i % 2 == 1) {
                // Lanes work in pairs, on two words of every other row: the even lane's row comes one row earlier.
                lane[i] = at;
                lane[i - 1] = times<F>(at, rows[0]);
                at = times<F>(at, bytes[3]);
            }
        }
    }
};

__constant__ Constants<Crc32c> CONSTANTS_32 = Constants<Crc32c>();
__constant__ Constants<Crc64> CONSTANTS_64 = Constants<Crc64>();

template <typename F> __device__ __forceinline__ const Constants<F> &constants();
template <> __device__ __forceinline__ const Constants<Crc32c> &constants<Crc32c>() { return CONSTANTS_32; }
template <> __device__ __forceinline__ const Constants<Crc64> &constants<Crc64>() { return CONSTANTS_64; }

__device__ __forceinline__ u32 from_lane(u32 value, u32 mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }
__device__ __forceinline__ u64 from_lane(u64 value, u32 mask) {
    const u32 low = from_lane((u32)value, mask), high = from_lane((u32)(value >> 32), mask);
    return ((u64)high << 32) | low;
}

__device__ __forceinline__ void add_sum(u64 *sum, u64 value) { atomicXor(sum, value); }

// The word at `at`, of whose bytes those outside begin..end count as zero. Called, not written out: it is the rare case of two
// hundred loads.
__device__ __noinline__ u32 word_within(u64 at, u64 begin, u64 end) {
    u32 word = 0;
    for (u64 byte = higher(at, begin); byte < lower(at + 4, end); byte++) word |= load_byte(byte) << (u32)(8 * (byte - at));
    return word;
}

__device__ __forceinline__ u32 edge_word(u64 at, u64 begin, u64 end) {
    return at >= begin && at + 4 <= end ? load_word(at) : word_within(at, begin, end);
}

// Adds rows of the quotient to row `j` of a block, two terms of P at a time.
template <typename F> __device__ __forceinline__ u32 reduce(u32 row, const u32 (&q)[F::BITS], int j) {
    constexpr Terms<F> terms;
#pragma unroll
    for (int i = 0; i + 1 < Terms<F>::COUNT; i += 2) {
        row = xor_three(row, q[(j - terms.distance[i]) & (F::BITS - 1)], q[(j - terms.distance[i + 1]) & (F::BITS - 1)]);
    }
    return Terms<F>::COUNT % 2 == 0 ? row : row ^ q[(j - terms.distance[Terms<F>::COUNT - 1]) & (F::BITS - 1)];
}

// The quotient of whole blocks of BITS rows, all inside the buffer, at..last. What lies at `last` is loaded too.
template <typename F> __device__ __forceinline__ void stream(u32 (&q)[F::BITS], u64 at, u64 last) {
    u32 now[STEP], next[STEP];
#pragma unroll
    for (int j = 0; j < STEP; j++) now[j] = load_word(at + j * ROW_BYTES);
    while (at < last) {
#pragma unroll
        for (int from = 0; from < F::BITS; from += STEP) {
#pragma unroll
            for (int j = 0; j < STEP; j++) next[j] = load_word(at + (STEP + j) * ROW_BYTES);
#pragma unroll
            for (int j = 0; j < STEP; j++) q[from + j] = reduce<F>(now[j], q, from + j);
#pragma unroll
            for (int j = 0; j < STEP; j++) now[j] = next[j];
            at += STEP * ROW_BYTES;
        }
    }
}

// The quotient of one block of which bytes may lie outside.
template <typename F> __device__ __forceinline__ void stream_edge(u32 (&q)[F::BITS], u64 at, u64 begin, u64 end) {
#pragma unroll
    for (int j = 0; j < F::BITS; j++) q[j] = reduce<F>(edge_word(at + j * ROW_BYTES, begin, end), q, j);
}

// The remainder of the last block, in place: row j lacks the terms that reach back before the block, and needs no row of the quotient
// before j.
template <typename F> __device__ __forceinline__ void remainder(u32 (&q)[F::BITS], u64 at, u64 begin, u64 end) {
    constexpr Terms<F> terms;
#pragma unroll
    for (int j = 0; j < F::BITS; j++) {
        u32 row = edge_word(at + j * ROW_BYTES, begin, end);
#pragma unroll
        for (int i = 0; i < Terms<F>::COUNT; i++) {
            if (terms.distance[i] > j) row ^= q[(j - terms.distance[i]) & (F::BITS - 1)];
        }
        q[j] = row;
    }
}

// One table for each byte of a value: that byte, with zeros around it, times the factor of `fold`.
template <typename F> __device__ __forceinline__ void make_tables(typename F::Value (*tables)[256]) {
    for (u32 at = threadIdx.x; at < F::BITS / 8 * 256; at += blockDim.x) {
        typename F::Value value = 0;
        for (u32 bit = 0; bit < 8; bit++) {
            if ((at >> bit) & 1) value ^= constants<F>().fold[at / 256 * 8 + bit];
        }
        tables[at / 256][at % 256] = value;
    }
    __syncthreads();
}

template <typename F>
__device__ __forceinline__ typename F::Value fold(typename F::Value value, typename F::Value (*tables)[256]) {
    typename F::Value folded = 0;
#pragma unroll
    for (int i = 0; i < F::BITS / 8; i++) folded ^= tables[i][(value >> (8 * i)) & 255];
    return folded;
}

// A lane's column of the remainder as one value, which lies `lane[…]` away from the end of the last row.
__device__ __forceinline__ u32 column(const u32 (&rows)[32], u32 (*tables)[256], u32) {
    u32 value = 0;
#pragma unroll
    for (int j = 0; j < 32; j++) value = fold<Crc32c>(value, tables) ^ rows[j];
    return value;
}

// A word is half a value here, so neighbours exchange every other row: half the look-ups.
__device__ __forceinline__ u64 column(const u32 (&rows)[64], u64 (*tables)[256], u32 lane) {
    const bool odd = lane & 1;
    u64 value = 0;
#pragma unroll
    for (int j = 0; j < 64; j += 2) {
        const u32 got = from_lane(odd ? rows[j] : rows[j + 1], 1);
        const u64 pair = odd ? ((u64)rows[j + 1] << 32 | got) : ((u64)got << 32 | rows[j]);
        value = fold<Crc64>(value, tables) ^ pair;
    }
    return value;
}

// y^count, made by all lanes together: each brings the factor of one bit.
template <typename F> __device__ __forceinline__ typename F::Value rows_power(u64 count, u32 lane) {
    typename F::Value power = ((count >> lane) & 1) ? constants<F>().rows[lane] : one_of<F>();
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) power = times<F>(power, from_lane(power, mask));
    return power;
}

template <typename F>
__device__ __forceinline__ void sum_segment(SumJob *job, u64 segment, u64 seg_rows, typename F::Value (*tables)[256]) {
    const u32 lane = lane_of_thread();
    const u64 begin = job->address, end = begin + job->len;
    const u64 block = F::BITS * ROW_BYTES, rows_after = segment * seg_rows;
    const u64 stop = round_up(end, ROW_BYTES) - rows_after * ROW_BYTES;
    u64 at = stop - seg_rows * ROW_BYTES;
    // Blocks of nothing but zeros in front.
    if (at < begin) at += (begin - at) / block * block;
    const u64 last = stop - block, mine = lane * 4;
    u32 q[F::BITS];
#pragma unroll
    for (int j = 0; j < F::BITS; j++) q[j] = 0;
    if (at < begin && at < last) {
        stream_edge<F>(q, at + mine, begin, end);
        at += block;
    }
    if (at < last) stream<F>(q, at + mine, last + mine);
    remainder<F>(q, last + mine, begin, end);
    typename F::Value sum = times<F>(column(q, tables, lane), constants<F>().lane[lane]);
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) sum ^= from_lane(sum, mask);
    if (rows_after != 0) sum = times<F>(sum, rows_power<F>(rows_after, lane));
    if (lane == 0) add_sum(&job->sum, sum);
}

template <typename F> __device__ __forceinline__ void finish_job(SumJob *job) {
    typedef typename F::Value Value;
    const u64 pad = (0 - (job->address + job->len)) % ROW_BYTES;
    Value sum = (Value)job->sum, start = (Value)~(Value)0;
    for (u32 i = 0; i < 7; i++) {
        if ((pad >> i) & 1) sum = times<F>(sum, constants<F>().back[i]);
    }
    for (u32 i = 0; i < 40; i++) {
        if ((job->len >> i) & 1) start = times<F>(start, constants<F>().bytes[i]);
    }
    job->sum = (Value)(sum ^ start ^ (Value)~(Value)0);
}

extern "C" __global__ void __launch_bounds__(THREADS, 5) sw_crc32c_sum(u64 jobs, u64 count, u64 seg_rows, u64 segments) {
    __shared__ u32 tables[4][256];
    make_tables<Crc32c>(tables);
    const u64 piece = warp_of_launch();
    if (piece >= segments) return;
    SumJob *job = place<SumJob>(jobs, count) + job_of_piece(place<const SumJob>(jobs, count), count, piece);
    sum_segment<Crc32c>(job, piece - job->first, seg_rows, tables);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sw_crc64_sum(u64 jobs, u64 count, u64 seg_rows, u64 segments) {
    __shared__ u64 tables[8][256];
    make_tables<Crc64>(tables);
    const u64 piece = warp_of_launch();
    if (piece >= segments) return;
    SumJob *job = place<SumJob>(jobs, count) + job_of_piece(place<const SumJob>(jobs, count), count, piece);
    sum_segment<Crc64>(job, piece - job->first, seg_rows, tables);
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_crc32c_finish(u64 jobs, u64 count) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) finish_job<Crc32c>(place<SumJob>(jobs, count) + at);
}

extern "C" __global__ void __launch_bounds__(THREADS) sw_crc64_finish(u64 jobs, u64 count) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) finish_job<Crc64>(place<SumJob>(jobs, count) + at);
}
