/*
 * straightway.hpp: straightway.h for C++17. Header only; link the same library.
 *
 *   straightway::engine engine;
 *   auto object = engine.open("/data/shard-0");
 *   auto region = engine.allocate(1 << 20, "gpu0");
 *   auto done = object.read(0, region.all());              // waits; throws straightway::error
 *   auto later = object.read_async(0, region.part(0, 4096)); // std::future<sw_completion>
 *
 * Every class here owns one handle and gives it back when it goes; they move and do not copy. Objects, regions and operations may
 * outlive their engine: calls with them then throw SW_ERR_CLOSED. Threads: as straightway.h says.
 */
#ifndef STRAIGHTWAY_HPP
#define STRAIGHTWAY_HPP

#include <straightway.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace straightway {

/** What went wrong: the texts of sw_error, which live as long as this. */
class error : public std::runtime_error {
public:
    /** The last error of the calling thread. */
    static error last(sw_status status) {
        sw_error info = SW_ERROR_INIT;
        if (sw_error_last(&info) != SW_OK || info.message == nullptr) return error(status, sw_status_name(status));
        return error(status, info);
    }

    /** The status. */
    sw_status status() const noexcept { return status_; }
    /** Code of the layer below, such as an errno; 0 if there is none. */
    std::int32_t system_code() const noexcept { return system_code_; }
    /** What became of a write. */
    sw_outcome outcome() const noexcept { return outcome_; }
    /** Whether trying again can help. */
    sw_retry retry() const noexcept { return retry_; }
    /** The object, device or setting that it is about. */
    const std::string &place() const noexcept { return place_; }
    /** What to do about it; empty if nothing is known. */
    const std::string &remedy() const noexcept { return remedy_; }
    /** Codes of the reasons why routes were refused. */
    const std::string &reasons() const noexcept { return reasons_; }

private:
    error(sw_status status, const char *message) : std::runtime_error(message), status_(status) {}
    error(sw_status status, const sw_error &info)
        : std::runtime_error(info.message), status_(status), system_code_(info.system_code), outcome_(info.outcome),
          retry_(info.retry), place_(info.place), remedy_(info.remedy), reasons_(info.reasons) {}

    sw_status status_;
    std::int32_t system_code_ = 0;
    sw_outcome outcome_ = SW_OUTCOME_NONE;
    sw_retry retry_ = SW_RETRY_NEVER;
    std::string place_, remedy_, reasons_;
};

/** Throws unless it is SW_OK. */
inline void check(sw_status status) {
    if (status != SW_OK) throw error::last(status);
}

/** A stream of a GPU, a `CUstream` or `cudaStream_t`: see SW_IO_STREAM. */
struct stream {
    void *handle = nullptr;
    /** Whose it is, counted as the driver counts. */
    std::uint32_t gpu = 0;
};

/** How an operation is done. */
struct io {
    /** `any`, `prefer=ROUTE`, `require=ROUTE`, `require-core=ROUTE`; empty: any. */
    std::string policy;
    /** When the caller's wait ends; zero: never. */
    std::chrono::nanoseconds deadline{0};
    /** Which checksum to compute. */
    sw_checksum checksum = SW_CHECKSUM_NONE;
    /** The byte that host memory is filled with before a read. */
    std::optional<std::uint8_t> poison;
    /** An eventfd that is told of the end; only for operations that are started. */
    std::optional<int> event_fd;
    /** The stream that it takes its place in; only for operations that are started. */
    std::optional<straightway::stream> stream;
};

namespace detail {

/** A handle, with what gives it back. */
template <class Handle, sw_status (*Close)(Handle *)>
class owned {
public:
    owned() noexcept = default;
    explicit owned(Handle *handle) noexcept : handle_(handle) {}
    owned(owned &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    owned &operator=(owned &&other) noexcept {
        if (this != &other) {
            reset();
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    owned(const owned &) = delete;
    owned &operator=(const owned &) = delete;
    ~owned() { reset(); }

    Handle *get() const noexcept { return handle_; }
    Handle *give() noexcept { return std::exchange(handle_, nullptr); }
    Handle **place() noexcept {
        reset();
        return &handle_;
    }
    void reset() noexcept {
        if (handle_ != nullptr) Close(std::exchange(handle_, nullptr));
    }

private:
    Handle *handle_ = nullptr;
};

/** The options in C; they point into `from`. */
inline sw_io_options options_of(const io &from) {
    sw_io_options options = SW_IO_OPTIONS_INIT;
    options.policy = from.policy.empty() ? nullptr : from.policy.c_str();
    options.deadline_ns = static_cast<std::uint64_t>(from.deadline.count() > 0 ? from.deadline.count() : 0);
    options.checksum = from.checksum;
    if (from.poison) {
        options.flags |= SW_IO_POISON;
        options.poison = *from.poison;
    }
    if (from.event_fd) {
        options.flags |= SW_IO_EVENT_FD;
        options.event_fd = *from.event_fd;
    }
    if (from.stream) {
        options.flags |= SW_IO_STREAM;
        options.stream = from.stream->handle;
        options.stream_gpu = from.stream->gpu;
    }
    return options;
}

/** A text of the library's, which is freed. */
inline std::string taken(sw_text *text) {
    owned<sw_text, sw_text_free> owner(text);
    const char *data = nullptr;
    std::size_t length = 0;
    check(sw_text_data(text, &data, &length));
    return std::string(data, length);
}

} // namespace detail

/** A range of a region, for operations. It owns nothing. */
struct slice {
    sw_region *region = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
};

/** A slice and where it belongs in the object: a part of a vectored operation. */
struct part {
    std::uint64_t offset = 0;
    slice memory;
};

/** Bytes of host memory. It owns nothing. */
struct bytes {
    std::byte *first = nullptr;
    std::size_t count = 0;

    std::byte *data() const noexcept { return first; }
    std::size_t size() const noexcept { return count; }
    std::byte *begin() const noexcept { return first; }
    std::byte *end() const noexcept { return first + count; }
    std::byte &operator[](std::size_t index) const { return first[index]; }
};

/** Memory that the engine may use. When it goes it is given up: its memory ends when no operation and no device uses it. */
class region {
public:
    explicit region(sw_region *handle) noexcept : handle_(handle) {}

    sw_region *get() const noexcept { return handle_.get(); }
    /** All of it. */
    slice all() const { return {get(), 0, info().length}; }
    /** `length` bytes from byte `offset`. */
    slice part(std::uint64_t offset, std::uint64_t length) const noexcept { return {get(), offset, length}; }
    /** Its facts. The text in it is valid until the region goes. */
    sw_region_info info() const {
        sw_region_info info = SW_REGION_INFO_INIT;
        check(sw_region_info_get(get(), &info));
        return info;
    }
    /** Its bytes, of host memory. */
    straightway::bytes bytes() const {
        const sw_region_info known = info();
        if (std::string(known.destination) != "host") throw std::logic_error("memory of a device has no bytes here");
        return {static_cast<std::byte *>(known.address), static_cast<std::size_t>(known.length)};
    }
    /** Copies bytes out, also of device memory. Not the fast path. */
    void copy_out(std::uint64_t offset, void *to, std::uint64_t length) const {
        check(sw_region_get(get(), offset, length, to));
    }
    /** Copies bytes in, also to device memory. Not the fast path. */
    void copy_in(std::uint64_t offset, const void *from, std::uint64_t length) const {
        check(sw_region_put(get(), offset, length, from));
    }
    /** Frees it now; throws SW_ERR_IN_USE, and keeps it, while an operation or a device uses it. */
    void free() {
        check(sw_region_free(get()));
        handle_.give();
    }

private:
    detail::owned<sw_region, sw_region_release> handle_;
};

/** An operation that was started. When it goes before its end, it is ended early. */
class operation {
public:
    explicit operation(sw_op *handle) noexcept : handle_(handle) {}

    sw_op *get() const noexcept { return handle_.get(); }
    /** Its end, if it is there. Throws the operation's error. */
    std::optional<sw_completion> poll() const { return wait_ns(0); }
    /** Waits for its end. Throws the operation's error. */
    sw_completion wait() const { return *wait_ns(SW_FOREVER); }
    /** Waits for at most so long. Throws the operation's error. */
    std::optional<sw_completion> wait_for(std::chrono::nanoseconds timeout) const {
        return wait_ns(static_cast<std::uint64_t>(timeout.count() > 0 ? timeout.count() : 0));
    }
    /** Asks for an early end. */
    void cancel() const { check(sw_op_cancel(get())); }

private:
    std::optional<sw_completion> wait_ns(std::uint64_t timeout) const {
        sw_completion done = SW_COMPLETION_INIT;
        const sw_status status = sw_op_wait(get(), timeout, &done);
        if (status == SW_PENDING) return std::nullopt;
        check(status);
        return done;
    }

    detail::owned<sw_op, sw_op_free> handle_;
};

/** Something with bytes at offsets. */
class object {
public:
    explicit object(sw_object *handle) noexcept : handle_(handle) {}

    sw_object *get() const noexcept { return handle_.get(); }
    /** Its facts. */
    sw_object_info info() const {
        sw_object_info info = SW_OBJECT_INFO_INIT;
        check(sw_object_info_get(get(), &info));
        return info;
    }
    /** Length in bytes when it was opened. */
    std::uint64_t size() const { return info().length; }

    /** Reads and waits. */
    sw_completion read(std::uint64_t offset, slice to, const io &how = {}) const {
        const sw_io_options options = detail::options_of(how);
        sw_completion done = SW_COMPLETION_INIT;
        check(sw_read(get(), offset, to.region, to.offset, to.length, &options, &done));
        return done;
    }
    /** Writes and waits. */
    sw_completion write(std::uint64_t offset, slice from, const io &how = {}) const {
        const sw_io_options options = detail::options_of(how);
        sw_completion done = SW_COMPLETION_INIT;
        check(sw_write(get(), offset, from.region, from.offset, from.length, &options, &done));
        return done;
    }
    /** Reads each part from its own offset: one operation. */
    sw_completion read(const std::vector<part> &parts, const io &how = {}) const { return vectored(sw_readv, parts, how); }
    /** Writes each part at its own offset: one operation. */
    sw_completion write(const std::vector<part> &parts, const io &how = {}) const { return vectored(sw_writev, parts, how); }
    /** Makes completed writes durable. */
    sw_completion flush() const {
        sw_completion done = SW_COMPLETION_INIT;
        check(sw_flush(get(), nullptr, &done));
        return done;
    }

    /** Starts a read. The memory must stay until its end. */
    operation read_start(std::uint64_t offset, slice to, const io &how = {}) const {
        const sw_io_options options = detail::options_of(how);
        sw_op *op = nullptr;
        check(sw_read_start(get(), offset, to.region, to.offset, to.length, &options, &op));
        return operation(op);
    }
    /** Starts a write. The memory must stay, and stay as it is, until its end. */
    operation write_start(std::uint64_t offset, slice from, const io &how = {}) const {
        const sw_io_options options = detail::options_of(how);
        sw_op *op = nullptr;
        check(sw_write_start(get(), offset, from.region, from.offset, from.length, &options, &op));
        return operation(op);
    }
    /** Starts a read whose end is a future: the completion, or the error. */
    std::future<sw_completion> read_async(std::uint64_t offset, slice to, const io &how = {}) const {
        return async(sw_read_start, offset, to, how);
    }
    /** Starts a write whose end is a future: the completion, or the error. */
    std::future<sw_completion> write_async(std::uint64_t offset, slice from, const io &how = {}) const {
        return async(sw_write_start, offset, from, how);
    }

    /** Every route that a transfer could take, as JSON. */
    std::string plan(sw_verb verb, const std::string &destination = "host", const std::string &policy = "any") const {
        sw_text *text = nullptr;
        check(sw_object_plan(get(), verb, destination.c_str(), policy.c_str(), &text));
        return detail::taken(text);
    }
    /** Makes a new object durable under its name, and ends this. */
    void commit() { check(sw_object_commit(handle_.give())); }

private:
    using start_call = sw_status (*)(sw_object *, std::uint64_t, sw_region *, std::uint64_t, std::uint64_t,
                                     const sw_io_options *, sw_op **);
    using parts_call = sw_status (*)(sw_object *, const sw_part *, std::size_t, const sw_io_options *, sw_completion *);

    sw_completion vectored(parts_call call, const std::vector<part> &parts, const io &how) const {
        const sw_io_options options = detail::options_of(how);
        std::vector<sw_part> list;
        list.reserve(parts.size());
        for (const part &each : parts) list.push_back({each.offset, each.memory.region, each.memory.offset, each.memory.length});
        sw_completion done = SW_COMPLETION_INIT;
        check(call(get(), list.data(), list.size(), &options, &done));
        return done;
    }

    std::future<sw_completion> async(start_call start, std::uint64_t offset, slice memory, const io &how) const {
        sw_io_options options = detail::options_of(how);
        auto promise = std::make_unique<std::promise<sw_completion>>();
        std::future<sw_completion> future = promise->get_future();
        options.callback = on_end;
        options.user = promise.get();
        check(start(get(), offset, memory.region, memory.offset, memory.length, &options, nullptr));
        promise.release(); // The callback has it now.
        return future;
    }

    static void on_end(sw_op *, const sw_completion *done, void *user) noexcept {
        std::unique_ptr<std::promise<sw_completion>> promise(static_cast<std::promise<sw_completion> *>(user));
        if (done->status == SW_OK) {
            promise->set_value(*done);
        } else {
            promise->set_exception(std::make_exception_ptr(error::last(done->status)));
        }
    }

    detail::owned<sw_object, sw_object_close> handle_;
};

/** Moves bytes between objects and memory. */
class engine {
public:
    /** With settings such as `queue_depth=128 gpu=off`. */
    explicit engine(const std::string &settings = {}) {
        sw_engine_options options = SW_ENGINE_OPTIONS_INIT;
        options.settings = settings.c_str();
        check(sw_engine_open(&options, handle_.place()));
    }

    sw_engine *get() const noexcept { return handle_.get(); }
    /** Opens a path or an address. */
    object open(const std::string &uri, sw_mode mode = SW_MODE_READ) const {
        sw_object_options options = SW_OBJECT_OPTIONS_INIT;
        options.mode = mode;
        sw_object *handle = nullptr;
        check(sw_object_open(get(), uri.c_str(), &options, &handle));
        return object(handle);
    }
    /** Starts a new file: object::commit puts it in place as a whole. */
    object create(const std::string &uri, std::uint64_t length) const {
        sw_object *handle = nullptr;
        check(sw_object_create(get(), uri.c_str(), length, &handle));
        return object(handle);
    }
    /** Fresh memory. */
    region allocate(std::uint64_t length, const std::string &destination = "host", std::uint64_t phase = 0) const {
        sw_region *handle = nullptr;
        check(sw_region_allocate(get(), destination.c_str(), length, phase, &handle));
        return region(handle);
    }
    /**
     * Makes memory of the caller's known. It stays in use until `release` was called, or region::free returned. `release`
     * must not throw.
     */
    region add(void *address, std::uint64_t length, const std::string &destination = "host",
               std::function<void()> release = {}) const {
        sw_region_options options = SW_REGION_OPTIONS_INIT;
        options.destination = destination.c_str();
        auto told = std::make_unique<std::function<void()>>(std::move(release));
        if (*told) {
            options.release = on_release;
            options.user = told.get();
        }
        sw_region *handle = nullptr;
        check(sw_region_register(get(), address, length, &options, &handle));
        if (*told) told.release(); // The callback has it now.
        return region(handle);
    }
    /** The slice of the region that has these bytes. Throws SW_ERR_NOT_REGISTERED. */
    slice find(const void *address, std::uint64_t length) const {
        slice found;
        found.length = length;
        check(sw_region_find(get(), address, length, &found.region, &found.offset));
        return found;
    }
    /** What this machine can do, as JSON. */
    std::string doctor() const {
        sw_text *text = nullptr;
        check(sw_engine_doctor(get(), &text));
        return detail::taken(text);
    }
    /** Ends everything in flight. Throws SW_ERR_PROTOCOL if a device did not let go of memory in time. */
    void close() { check(sw_engine_close(handle_.give())); }

private:
    static void on_release(void *user) noexcept {
        std::unique_ptr<std::function<void()>> told(static_cast<std::function<void()> *>(user));
        (*told)();
    }

    detail::owned<sw_engine, sw_engine_close> handle_;
};

} // namespace straightway

#endif /* STRAIGHTWAY_HPP */
