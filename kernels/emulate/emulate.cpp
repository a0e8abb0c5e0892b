// Runs the kernels on the host: see host.h. Built two ways:
//
//   a library    sw_emulate(entry, blocks, threads, arguments, …): the stand-in driver of the tests calls it, whose device memory is
//                elsewhere than its addresses say
//   a program    (-DEMULATE_PROGRAM) a device of its own behind its standard input and output, so that the address sanitizer can
//                watch every load and store of a kernel while the test that asks is another process
//
// The program's commands, each a line, numbers in decimal:
//   alloc OFFSET LEN                 -> ADDRESS      LEN bytes, OFFSET bytes behind a multiple of 256, fenced by the sanitizer
//   write ADDRESS LEN  + LEN bytes
//   read ADDRESS LEN                 -> LEN bytes
//   launch ENTRY BLOCKS THREADS ARGUMENT...  -> "ok" or "no such entry"
//   free                             everything that was allocated
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "host.h"

#include "crc.cu"
#undef THREADS
#include "move.cu"
#undef THREADS
#include "poison.cu"
#undef THREADS
#include "widen.cu"

Index threadIdx, blockIdx, blockDim, gridDim;

// The ends of the section, as the linker names them.
extern "C" char __start_emulated_shared[], __stop_emulated_shared[];

namespace {

typedef void (*Kernel)(const u64 *);

// Finds the allocation that `at` is in: its first address, its length, and where its bytes are. Answers whether there is one.
typedef int (*Find)(void *context, u64 at, u64 *base, u64 *len, u64 *bytes);

const size_t STACK_BYTES = 256 << 10;
const unsigned THREADS_MAX = 1024;

struct Meeting {
    unsigned arrived, round;
};

struct Fibre {
    ucontext_t context;
    char *stack;
    bool over;
};

// One block in progress.
Fibre fibres[THREADS_MAX];
ucontext_t scheduler;
unsigned running;
Kernel kernel;
const u64 *arguments;
bool strayed;
Find find;
void *find_context;
// The allocations asked for last.
struct Known {
    u64 base, len, bytes;
} known[4];
unsigned oldest;
Meeting block_meeting, warp_meetings[THREADS_MAX / LANES];
unsigned slots[2][THREADS_MAX];
#ifdef __SANITIZE_ADDRESS__
const void *scheduler_stack;
size_t scheduler_bytes;
void *scheduler_fake;
void *fibre_fake[THREADS_MAX];
#endif

void to_scheduler(bool for_good) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fibre_fake[running], scheduler_stack, scheduler_bytes);
#endif
    swapcontext(&fibres[running].context, &scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fibre_fake[running], nullptr, nullptr);
#endif
    (void)for_good;
}

struct Stray {};

void to_fibre(unsigned thread) {
    running = thread;
    threadIdx = {thread, 0, 0};
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake, fibres[thread].stack, STACK_BYTES);
#endif
    swapcontext(&scheduler, &fibres[thread].context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

void body() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes);
#endif
    try {
        kernel(arguments);
    } catch (const Stray &) {
        strayed = true;
    }
    fibres[running].over = true;
    to_scheduler(true);
}

void meet(Meeting &meeting, unsigned members) {
    const unsigned round = meeting.round;
    if (++meeting.arrived == members) {
        meeting.arrived = 0;
        meeting.round++;
        return;
    }
    while (meeting.round == round) to_scheduler(false);
}

void run_block(unsigned threads) {
    memset(__start_emulated_shared, 0xee, (size_t)(__stop_emulated_shared - __start_emulated_shared));
    block_meeting = Meeting();
    for (unsigned i = 0; i < threads / LANES; i++) warp_meetings[i] = Meeting();
    for (unsigned i = 0; i < threads; i++) {
        Fibre &fibre = fibres[i];
        if (!fibre.stack) fibre.stack = (char *)malloc(STACK_BYTES);
        fibre.over = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack;
        fibre.context.uc_stack.ss_size = STACK_BYTES;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, body, 0);
    }
    // A kernel in which some threads never come to a meeting would go round here for ever; the caller has a limit of time.
    for (unsigned left = threads; left > 0;) {
        left = 0;
        for (unsigned i = 0; i < threads; i++) {
            if (fibres[i].over) continue;
            to_fibre(i);
            // The others may wait for the one that is gone: they are left where they are, and hold nothing.
            if (strayed) return;
            left += !fibres[i].over;
        }
    }
}

struct Entry {
    const char *name;
    Kernel run;
    unsigned arguments;
};

template <void (*FUNCTION)(u64, u64)> void with_two(const u64 *a) { FUNCTION(a[0], a[1]); }
template <void (*FUNCTION)(u64, u64, u64)> void with_three(const u64 *a) { FUNCTION(a[0], a[1], a[2]); }
template <void (*FUNCTION)(u64, u64, u64, u64)> void with_four(const u64 *a) { FUNCTION(a[0], a[1], a[2], a[3]); }

const Entry ENTRIES[] = {
    {"sw_crc32c_sum", with_four<sw_crc32c_sum>, 4},
    {"sw_crc64_sum", with_four<sw_crc64_sum>, 4},
    {"sw_crc32c_finish", with_two<sw_crc32c_finish>, 2},
    {"sw_crc64_finish", with_two<sw_crc64_finish>, 2},
    {"sw_move", with_three<sw_move>, 3},
    {"sw_swap2", with_three<sw_swap2>, 3},
    {"sw_swap4", with_three<sw_swap4>, 3},
    {"sw_swap8", with_three<sw_swap8>, 3},
    {"sw_widen_bf16", with_three<sw_widen_bf16>, 3},
    {"sw_widen_f16", with_three<sw_widen_f16>, 3},
    {"sw_widen_e4m3", with_three<sw_widen_e4m3>, 3},
    {"sw_widen_e5m2", with_three<sw_widen_e5m2>, 3},
    {"sw_poison_fill", with_three<sw_poison_fill>, 3},
    {"sw_poison_find", with_four<sw_poison_find>, 4},
};

} // namespace

void *emulate_place(u64 at, u64 bytes) {
    if (!find) return (void *)at;
    for (int again = 0; again < 2; again++) {
        for (const Known &range : known) {
            if (at - range.base < range.len && bytes <= range.len - (at - range.base)) return (void *)(range.bytes + (at - range.base));
        }
        Known &fresh = known[oldest++ % 4];
        if (again || !find(find_context, at, &fresh.base, &fresh.len, &fresh.bytes)) break;
    }
    throw Stray();
}

void emulate_block_barrier() { meet(block_meeting, blockDim.x); }

unsigned emulate_exchange(unsigned value, unsigned mask) {
    const unsigned me = running;
    Meeting &meeting = warp_meetings[me / LANES];
    // Two sets, in turn: a lane that is ahead writes the next round's.
    unsigned *set = slots[meeting.round % 2];
    set[me] = value;
    meet(meeting, LANES);
    return set[me ^ mask];
}

// Runs a kernel to its end. Answers 0, 1 for a name that is none, 2 for a shape that the kernels are not made for, 3 if a thread touched
// memory that `finder` (may be null: addresses are what they say) does not know. One at a time.
extern "C" __attribute__((visibility("default"))) int sw_emulate(const char *entry, unsigned blocks, unsigned threads, const u64 *values, unsigned count, Find finder,
                          void *context) {
    for (const Entry &candidate : ENTRIES) {
        if (strcmp(candidate.name, entry) != 0) continue;
        if (threads == 0 || threads > THREADS_MAX || threads % LANES != 0 || blocks == 0 || count != candidate.arguments) return 2;
        kernel = candidate.run;
        arguments = values;
        find = finder;
        find_context = context;
        for (Known &range : known) range = Known();
        strayed = false;
        blockDim = {threads, 1, 1};
        gridDim = {blocks, 1, 1};
        for (unsigned block = 0; block < blocks && !strayed; block++) {
            blockIdx = {block, 0, 0};
            run_block(threads);
        }
        return strayed ? 3 : 0;
    }
    return 1;
}

#ifdef EMULATE_PROGRAM
namespace {

std::vector<char *> allocated;

u64 allocate(size_t offset, size_t len) {
    // The sanitizer fences what lies behind; in front it can be told to.
    char *memory = (char *)aligned_alloc(256, (offset + len + 255) / 256 * 256 + 256);
    allocated.push_back(memory);
#ifdef __SANITIZE_ADDRESS__
    const size_t whole = (offset + len + 255) / 256 * 256 + 256;
    __asan_poison_memory_region(memory, whole);
    __asan_unpoison_memory_region(memory + offset, len);
#endif
    return (u64)(memory + offset);
}

void free_all() {
    for (char *memory : allocated) {
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(memory, 256);
#endif
        free(memory);
    }
    allocated.clear();
}

[[noreturn]] void bad(const char *line) {
    fprintf(stderr, "bad command: %s\n", line);
    exit(2);
}

void launch(const char *line) {
    char entry[64];
    unsigned blocks, threads, count = 0;
    int used = 0;
    if (sscanf(line, "launch %63s %u %u%n", entry, &blocks, &threads, &used) != 3) bad(line);
    u64 values[8] = {};
    const char *rest = line + used;
    for (int more; count < 8 && sscanf(rest, "%llu%n", &values[count], &more) == 1; count++) rest += more;
    const int answer = sw_emulate(entry, blocks, threads, values, count, nullptr, nullptr);
    puts(answer == 0 ? "ok" : answer == 1 ? "no such entry" : "bad shape");
}

} // namespace

int main() {
    char line[512];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long a, b;
        if (sscanf(line, "alloc %llu %llu", &a, &b) == 2) {
            printf("%llu\n", allocate(a, b));
        } else if (sscanf(line, "write %llu %llu", &a, &b) == 2) {
            if (fread((void *)a, 1, b, stdin) != b) bad(line);
        } else if (sscanf(line, "read %llu %llu", &a, &b) == 2) {
            if (fwrite((void *)a, 1, b, stdout) != b) bad(line);
        } else if (strncmp(line, "launch ", 7) == 0) {
            launch(line);
        } else if (strcmp(line, "free\n") == 0) {
            free_all();
        } else {
            bad(line);
        }
        fflush(stdout);
    }
    free_all();
    return 0;
}
#endif
