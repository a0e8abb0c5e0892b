/* SPDX-License-Identifier: Apache-2.0 */
/* Registering files. */
#include "suite.h"

#include <sys/socket.h>

static void registers(int flags) {
    must_open();
    CUfileHandle_t handle = NULL;
    is_error("register", register_fd(&handle, file_new("file", 3 * PAGE, flags)), 0);
    is_true("a handle", handle != NULL);
    cu.HandleDeregister(handle);
}

static void direct(void) { registers(O_RDWR | O_DIRECT); }
static void buffered(void) { registers(O_RDWR); }
static void read_only(void) { registers(O_RDONLY | O_DIRECT); }
static void write_only(void) { registers(O_WRONLY | O_DIRECT); }

static void empty_file(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", 0, 0);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_bytes("read", got, errno, 0);
}

static void null_arguments(void) {
    CUfileHandle_t handle = NULL;
    CUfileDescr_t description;
    must_open();
    memset(&description, 0, sizeof description);
    description.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    description.handle.fd = file_new("file", PAGE, O_RDWR);
    is_error("no place for the handle", cu.HandleRegister(NULL, &description), CU_FILE_INVALID_VALUE);
    is_error("no description", cu.HandleRegister(&handle, NULL), CU_FILE_INVALID_VALUE);
}

static void bad_type(void) {
    CUfileHandle_t handle = NULL;
    CUfileDescr_t description;
    must_open();
    memset(&description, 0, sizeof description);
    description.handle.fd = file_new("file", PAGE, O_RDWR);
    const int types[] = {0, CU_FILE_HANDLE_TYPE_OPAQUE_WIN32, 99};
    const char *const names[] = {"0", "Windows", "99"};
    for (int index = 0; index < 3; index++) {
        description.type = (enum CUfileFileHandleType)types[index];
        is_refused(names[index], cu.HandleRegister(&handle, &description));
    }
}

static void bad_descriptor(void) {
    CUfileHandle_t handle = NULL;
    must_open();
    is_refused("-1", register_fd(&handle, -1));
    is_refused("never opened", register_fd(&handle, 999));
    int fd = file_new("file", PAGE, O_RDWR);
    close(fd);
    is_refused("closed", register_fd(&handle, fd));
}

static void directory(void) {
    CUfileHandle_t handle = NULL;
    must_open();
    is_error("directory", register_fd(&handle, open(".", O_RDONLY | O_DIRECTORY)), CU_FILE_INVALID_FILE_TYPE);
}

static void pipe_end(void) {
    CUfileHandle_t handle = NULL;
    int ends[2];
    must_open();
    if (pipe(ends)) give_up("no pipe");
    is_error("pipe", register_fd(&handle, ends[0]), CU_FILE_INVALID_FILE_TYPE);
}

static void other_kinds(void) {
    CUfileHandle_t handle = NULL;
    must_open();
    is_refused("socket", register_fd(&handle, socket(AF_UNIX, SOCK_STREAM, 0)));
    is_refused("character device", register_fd(&handle, open("/dev/null", O_RDWR)));
}

static void append_mode(void) {
    CUfileHandle_t handle = NULL;
    must_open();
    int fd = file_new("file", PAGE, O_WRONLY | O_APPEND);
    is_error("O_APPEND", register_fd(&handle, fd), CU_FILE_INVALID_FILE_OPEN_FLAG);
}

static void path_only(void) {
    CUfileHandle_t handle = NULL;
    must_open();
    CUfileError_t got = register_fd(&handle, file_new("file", PAGE, O_PATH));
    answer("register", "%d", (int)got.err);
    if (got.err) return;
    unsigned char *memory = memory_new(PAGE);
    ssize_t read = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_no_transfer("read", read, errno);
}

static void same_descriptor_twice(void) {
    CUfileHandle_t first = NULL, second = NULL;
    must_open();
    int fd = file_new("file", PAGE, O_RDWR | O_DIRECT);
    is_error("first", register_fd(&first, fd), 0);
    is_error("second", register_fd(&second, fd), CU_FILE_HANDLE_ALREADY_REGISTERED);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(first, memory, PAGE, 0, 0));
    is_bytes("the first still reads", got, errno, (ssize_t)PAGE);
    cu.HandleDeregister(first);
    is_error("after deregistering", register_fd(&second, fd), 0);
}

static void same_file_twice(void) {
    CUfileHandle_t first = NULL, second = NULL;
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    is_error("first", register_fd(&first, fd), 0);
    is_error("opened again", register_fd(&second, open("file", O_RDWR)), 0);
    is_true("two handles", first != second);
}

static void duplicate_descriptor(void) {
    CUfileHandle_t first = NULL, second = NULL;
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    is_error("first", register_fd(&first, fd), 0);
    is_error("its duplicate", register_fd(&second, dup(fd)), 0);
}

static void deregister_nonsense(void) {
    must_open();
    cu.HandleDeregister(NULL);
    cu.HandleDeregister((CUfileHandle_t)(uintptr_t)0x5A5A5000);
    is_number("use count", cu.UseCount(), 1);
}

static void deregister_twice(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    CUfileHandle_t other = open_file("other", PAGE, 0);
    cu.HandleDeregister(handle);
    cu.HandleDeregister(handle);
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(other, memory, PAGE, 0, 0));
    is_bytes("another handle reads", got, errno, (ssize_t)PAGE);
}

static void dead_handle(void) {
    must_open();
    CUfileHandle_t handle = open_file("file", PAGE, 0);
    unsigned char *memory = memory_new(PAGE);
    cu.HandleDeregister(handle);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    is_refused_with("read", got, errno, CU_FILE_HANDLE_NOT_REGISTERED);
    got = CALL(cu.Write(handle, memory, PAGE, 0, 0));
    is_refused_with("write", got, errno, CU_FILE_HANDLE_NOT_REGISTERED);
    is_true("memory is untouched", memory_is_poison(memory, PAGE));
}

static void never_issued(void) {
    must_open();
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read((CUfileHandle_t)(uintptr_t)0x5A5A5000, memory, PAGE, 0, 0));
    is_no_transfer("read", got, errno);
}

static void null_handle(void) {
    must_open();
    unsigned char *memory = memory_new(PAGE);
    ssize_t got = CALL(cu.Read(NULL, memory, PAGE, 0, 0));
    is_no_transfer("read", got, errno);
    got = CALL(cu.Write(NULL, memory, PAGE, 0, 0));
    is_no_transfer("write", got, errno);
}

static void closed_under_handle(void) {
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(PAGE);
    close(fd);
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    answer("read", "%s", got < 0 ? "refused" : "done");
    is_true("its bytes or none", got < 0 ? memory_is_poison(memory, PAGE) : memory_is_file(memory, 0, PAGE));
}

static void another_under_handle(void) {
    static unsigned char others[PAGE];
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(PAGE);
    int other = file_new("other", PAGE, O_RDWR);
    if (pwrite(other, others, PAGE, 0) != (ssize_t)PAGE || dup2(other, fd) != fd) give_up("cannot put a file under the number");
    ssize_t got = CALL(cu.Read(handle, memory, PAGE, 0, 0));
    answer("read", "%s", got < 0 ? "refused" : "done");
    is_true("not the other's bytes", got < 0 ? memory_is_poison(memory, PAGE) : memory_is_file(memory, 0, PAGE));
}

static void number_used_again(void) {
    must_open();
    int fd = file_new("file", PAGE, O_RDWR);
    CUfileHandle_t handle = handle_of(fd);
    unsigned char *memory = memory_new(2 * PAGE);
    cu.HandleDeregister(handle);
    close(fd);
    int again = file_new("longer", 2 * PAGE, O_RDWR);
    if (again != fd) skip("the number was not given out again");
    handle = handle_of(again);
    ssize_t got = CALL(cu.Read(handle, memory, 2 * PAGE, 0, 0));
    is_bytes("read of the second file", got, errno, (ssize_t)(2 * PAGE));
}

static void many(void) {
    enum { COUNT = 500 };
    static CUfileHandle_t handles[COUNT];
    int refused = 0, wrong = 0;
    must_open();
    file_new("file", PAGE, O_RDWR);
    unsigned char *memory = memory_new(PAGE);
    for (int index = 0; index < COUNT; index++) refused += register_fd(&handles[index], open("file", O_RDONLY)).err != 0;
    for (int index = 0; index < COUNT; index += 50) wrong += cu.Read(handles[index], memory, PAGE, 0, 0) != (ssize_t)PAGE;
    for (int index = 0; index < COUNT; index++) cu.HandleDeregister(handles[index]);
    is_number("refused", refused, 0);
    is_number("bad reads", wrong, 0);
}

static const char *no_kind(const void *handle) {
    (void)handle;
    return NULL;
}

static ssize_t user_read(const void *handle, char *to, size_t length, loff_t from, const cufileRDMAInfo_t *info) {
    (void)handle, (void)from, (void)info;
    if (to) memset(to, 7, length);
    return (ssize_t)length;
}

static ssize_t user_write(const void *handle, const char *at, size_t length, loff_t from, const cufileRDMAInfo_t *info) {
    (void)handle, (void)at, (void)from, (void)info;
    return (ssize_t)length;
}

static void user_space_without_ops(void) {
    CUfileHandle_t handle = NULL;
    CUfileDescr_t description;
    int object = 0;
    must_open();
    memset(&description, 0, sizeof description);
    description.type = CU_FILE_HANDLE_TYPE_USERSPACE_FS;
    description.handle.handle = &object;
    is_refused("register", cu.HandleRegister(&handle, &description));
}

static void user_space_read(void) {
    CUfileHandle_t handle = NULL;
    CUfileDescr_t description;
    static const CUfileFSOps_t ops = {no_kind, NULL, NULL, user_read, user_write};
    int object = 0;
    must_open();
    memset(&description, 0, sizeof description);
    description.type = CU_FILE_HANDLE_TYPE_USERSPACE_FS;
    description.handle.handle = &object;
    description.fs_ops = &ops;
    CUfileError_t registered = cu.HandleRegister(&handle, &description);
    answer("register", "%d", (int)registered.err);
    if (registered.err) return; /* A refusal is an honest answer too. */
    unsigned char *memory = memory_new(2 * PAGE);
    ssize_t got = CALL(cu.Read(handle, memory, 2 * PAGE, 0, 0));
    answer("read", "%s", got < 0 ? "refused" : "bytes");
    bool honest = got < 0 || (got == (ssize_t)(2 * PAGE) && !memory_is_poison(memory, 2 * PAGE));
    is_true("a read that tells bytes has read them", honest);
}

#define REGISTER "documented: cufile.h, cuFileHandleRegister"
static const struct test_case cases[] = {
    {"handle.direct", REGISTER, "a file that is open with O_DIRECT is accepted", direct, HOST_ONLY, LOADED},
    {"handle.buffered", "documented: release notes 1.7, compatibility mode", "a file that is open without O_DIRECT is accepted too", buffered, HOST_ONLY, LOADED},
    {"handle.read_only", REGISTER, "a file that is open for reading is accepted", read_only, HOST_ONLY, LOADED},
    {"handle.write_only", REGISTER, "a file that is open for writing is accepted", write_only, HOST_ONLY, LOADED},
    {"handle.empty_file", REGISTER, "an empty file is accepted and has no bytes", empty_file, HOST_ONLY, LOADED},
    {"handle.null", REGISTER, "NULL is 5022", null_arguments, HOST_ONLY, LOADED},
    {"handle.bad_type", REGISTER, "a kind of handle that does not exist on Linux is refused", bad_type, HOST_ONLY, LOADED},
    {"handle.bad_descriptor", REGISTER, "what is no open descriptor is refused", bad_descriptor, HOST_ONLY, LOADED},
    {"handle.directory", REGISTER, "5018: not a regular file", directory, HOST_ONLY, LOADED},
    {"handle.pipe", REGISTER, "5018: not a regular file", pipe_end, HOST_ONLY, LOADED},
    {"handle.other_kinds", REGISTER, "sockets and character devices are refused", other_kinds, HOST_ONLY, LOADED},
    {"handle.append", "observed: 1.15 and 1.17", "O_APPEND is 5019", append_mode, HOST_ONLY, LOADED},
    {"handle.path_only", REGISTER, "a file that is open with O_PATH is refused, at the latest when it is read", path_only, HOST_ONLY, LOADED},
    {"handle.twice", REGISTER, "5028 for a descriptor that is registered, until it is not", same_descriptor_twice, HOST_ONLY, LOADED},
    {"handle.file_twice", REGISTER, "a file that was opened twice has two handles", same_file_twice, HOST_ONLY, LOADED},
    {"handle.duplicate", REGISTER, "a duplicate of a registered descriptor is another one", duplicate_descriptor, HOST_ONLY, LOADED},
    {"handle.deregister_nonsense", "observed: 1.15 and 1.17", "deregistering what is no handle does nothing", deregister_nonsense, HOST_ONLY, LOADED},
    {"handle.deregister_twice", "observed: 1.15 and 1.17", "deregistering twice does nothing to others", deregister_twice, HOST_ONLY, LOADED},
    {"handle.dead", "observed: 1.16 to 1.20", "I/O by a handle that was deregistered is 5027", dead_handle, HOST_ONLY, LOADED},
    {"handle.never_issued", "observed: 1.15 and 1.17", "I/O by what never was a handle is refused", never_issued, HOST_ONLY, LOADED},
    {"handle.null_io", "observed: 1.11 to 1.20", "I/O by NULL is refused", null_handle, HOST_ONLY, LOADED},
    {"handle.closed_under", "documented: cufile.h, cuFileHandleDeregister", "closed before it was deregistered: reads, or is refused", closed_under_handle, HOST_ONLY, LOADED},
    {"handle.another_under", "documented: cufile.h, cuFileHandleRegister", "a handle is never another file's whose number is the same", another_under_handle, HOST_ONLY, LOADED},
    {"handle.number_again", REGISTER, "a number that is given out again is the new file", number_used_again, HOST_ONLY, LOADED},
    {"handle.many", REGISTER, "500 handles at once", many, HOST_ONLY, LOADED},
    {"handle.user_space_no_ops", REGISTER, "a file of a user-space file system without its functions is refused", user_space_without_ops, HOST_ONLY, LOADED},
    {"handle.user_space_read", "documented: cufile.h, CUfileFSOps_t and cuFileRead", "no error is told as a number of bytes", user_space_read, HOST_ONLY, LOADED},
};

struct table handle_cases(void) { return TABLE(cases); }
