/* The C++ layer: who owns what, errors, futures, spans. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <straightway.hpp>

namespace sw = straightway;

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                  \
        }                                                                                  \
    } while (0)

/* The status that a call throws. */
template <class Call> static sw_status thrown(Call call) {
    try {
        call();
    } catch (const sw::error &error) {
        CHECK(std::strlen(error.what()) > 0);
        return error.status();
    }
    return SW_OK;
}

static std::byte byte_at(std::uint64_t at) { return static_cast<std::byte>(at * 31 + at / 4093); }

static bool bytes_are(sw::bytes got, std::uint64_t from) {
    for (std::size_t at = 0; at < got.size(); at++) {
        if (got[at] != byte_at(from + at)) return false;
    }
    return true;
}

static void reads(const sw::engine &engine, const std::string &file) {
    const sw::object object = engine.open(file);
    CHECK(object.size() == 1 << 20);
    sw::region region = engine.allocate(1 << 20);
    sw::io how;
    how.checksum = SW_CHECKSUM_CRC64_NVME;
    how.poison = 0xee;
    const sw_completion done = object.read(0, region.all(), how);
    CHECK(done.bytes == 1 << 20 && done.has_checksum == 1 && bytes_are(region.bytes(), 0));
    CHECK(object.read({{4096, region.part(0, 10)}, {8192, region.part(100, 10)}}).bytes == 20);
    CHECK(bytes_are({region.bytes().data(), 10}, 4096) && bytes_are({region.bytes().data() + 100, 10}, 8192));
    char four[4];
    region.copy_in(7, "abcd", 4);
    region.copy_out(7, four, 4);
    CHECK(std::memcmp(four, "abcd", 4) == 0);
    /* Moved: one owner. */
    sw::region moved = std::move(region);
    CHECK(region.get() == nullptr && moved.info().length == 1 << 20);
    moved.free();
    CHECK(moved.get() == nullptr);
    CHECK(thrown([&] { moved.free(); }) == SW_ERR_API_MISUSE);
    CHECK(object.plan(SW_VERB_READ).find("straightway.plan/1") != std::string::npos);
    CHECK(engine.doctor().find("straightway.doctor/1") != std::string::npos);
}

static void errors(const sw::engine &engine, const std::string &file) {
    try {
        engine.open("/no/such/file");
        CHECK(false);
    } catch (const sw::error &error) {
        CHECK(error.status() == SW_ERR_NOT_FOUND && error.system_code() == 2 && error.place() == "/no/such/file");
        CHECK(error.outcome() == SW_OUTCOME_NONE && error.retry() == SW_RETRY_NEVER && error.reasons().empty());
    }
    CHECK(thrown([] { sw::engine wrong("queue_depth=0"); }) == SW_ERR_API_MISUSE);
    const sw::object object = engine.open(file);
    const sw::region region = engine.allocate(4096);
    CHECK(thrown([&] { object.read(1 << 20, region.all()); }) == SW_ERR_OUT_OF_RANGE);
    CHECK(thrown([&] { object.read_async(0, {}); }) == SW_ERR_API_MISUSE);
    sw::io how;
    how.policy = "require=nvme";
    sw::io ordered;
    ordered.stream = sw::stream{};
    CHECK(thrown([&] { object.read_start(0, region.all(), ordered); }) == SW_ERR_NO_DEVICE);
    CHECK(thrown([&] { object.read(0, region.all(), ordered); }) == SW_ERR_API_MISUSE);
    auto future = object.read_async(0, region.all(), how);
    CHECK(thrown([&] { future.get(); }) == SW_ERR_POLICY_UNMET);
}

static void started(const sw::engine &engine, const std::string &file) {
    const sw::object object = engine.open(file);
    const sw::region region = engine.allocate(1 << 20);
    sw::operation one = object.read_start(0, region.part(0, 4096));
    CHECK(one.wait().bytes == 4096 && one.poll()->bytes == 4096);
    CHECK(one.wait_for(std::chrono::milliseconds(1))->bytes == 4096);
    one.cancel();
    std::vector<std::future<sw_completion>> futures;
    for (std::uint64_t at = 0; at < 1 << 20; at += 4096) futures.push_back(object.read_async(at, region.part(at, 4096)));
    std::uint64_t bytes = 0;
    for (auto &future : futures) bytes += future.get().bytes;
    CHECK(bytes == 1 << 20 && bytes_are(region.bytes(), 0));
    /* Given up before their end; the region outlives them by itself. */
    for (int turn = 0; turn < 20; turn++) object.read_start(0, region.all());
}

static void writes(const sw::engine &engine, const std::string &file) {
    const std::string name = file + ".cpp";
    std::remove(name.c_str());
    std::vector<std::byte> memory(5000);
    for (std::size_t at = 0; at < memory.size(); at++) memory[at] = byte_at(at);
    int released = 0;
    {
        sw::region region = engine.add(memory.data(), memory.size(), "host", [&] { released++; });
        sw::object fresh = engine.create(name, memory.size());
        CHECK(fresh.write(0, region.all()).bytes == 5000);
        fresh.commit();
        CHECK(fresh.get() == nullptr);
        sw::object again = engine.open(name, SW_MODE_UPDATE);
        CHECK(again.write_async(10, engine.find(memory.data() + 10, 20)).get().bytes == 20);
        CHECK(again.write({{0, region.part(0, 10)}, {4990, region.part(4990, 10)}}).bytes == 20);
        CHECK(again.write_start(0, region.part(0, 5)).wait().bytes == 5);
        again.flush();
        CHECK(thrown([&] { again.commit(); }) == SW_ERR_API_MISUSE);
        CHECK(released == 0);
    }
    CHECK(released == 1);
    CHECK(thrown([&] { engine.find(memory.data(), 1); }) == SW_ERR_NOT_REGISTERED);
    CHECK(thrown([&] { engine.add(nullptr, 5, "host", [&] { released++; }); }) == SW_ERR_API_MISUSE);
    CHECK(released == 1);
    std::remove(name.c_str());
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    sw::engine engine("gpu=off reactors=2");
    reads(engine, argv[1]);
    errors(engine, argv[1]);
    started(engine, argv[1]);
    writes(engine, argv[1]);
    engine.close();
    CHECK(thrown([&] { engine.close(); }) == SW_ERR_API_MISUSE);
    return 0;
}
