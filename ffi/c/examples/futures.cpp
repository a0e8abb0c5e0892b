/*
 * Reads a file by futures into memory of the program's own, and tells what the engine would do.
 *
 *     c++ -std=c++17 futures.cpp $(pkg-config --cflags --libs straightway) -o futures
 *     ./futures FILE
 */
#include <algorithm>
#include <cstdio>
#include <straightway.hpp>

int main(int argc, char **argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "usage: futures FILE\n");
        return 2;
    }
    straightway::engine engine("queue_depth=32");
    auto object = engine.open(argv[1]);
    const std::uint64_t size = object.size(), piece = 256 << 10;

    std::vector<std::byte> memory(size);
    auto region = engine.add(memory.data(), memory.size());
    std::vector<std::future<sw_completion>> reads;
    for (std::uint64_t at = 0; at < size; at += piece) {
        reads.push_back(object.read_async(at, region.part(at, std::min(piece, size - at))));
    }
    std::uint64_t bytes = 0;
    for (auto &read : reads) bytes += read.get().bytes;

    // One that must not be bounced: an error says why it cannot be, where it cannot be.
    straightway::io direct;
    direct.policy = "require-core=dma";
    try {
        const sw_completion done = object.read(0, region.part(0, std::min(piece, size)), direct);
        std::printf("direct: %s\n", done.transport);
    } catch (const straightway::error &error) {
        if (error.status() != SW_ERR_POLICY_UNMET) throw;
        std::printf("not direct: %s\n", error.reasons().c_str());
    }
    region.free();
    std::printf("%llu bytes\n", static_cast<unsigned long long>(bytes));
    return 0;
} catch (const straightway::error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
