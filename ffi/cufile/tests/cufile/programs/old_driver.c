/* A driver that lacks names: host memory works, its own memory (which the processor cannot read) is refused in words, and nothing crashes. */
#include <dlfcn.h>
#include <sys/mman.h>

#include "check.h"

int main(int argc, char **argv) {
    static unsigned char bytes[8192];
    size_t size = 4096;
    off_t offset = 0, place = 0;
    ssize_t moved = 7;
    CHECK(argc == 3);
    CHECK(dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL) != NULL);
    CUfileHandle_t fh = handle_of(open(argv[1], O_RDONLY));
    CHECK(cuFileRead(fh, bytes, 8192, 5, 0) == 8192 && bytes_are(bytes, 5, 8192));
    OK(cuFileBufRegister(bytes, sizeof bytes, 0));
    CHECK(cuFileRead(fh, bytes, 4096, 0, 0) == 4096);
    OK(cuFileReadAsync(fh, bytes, &size, &offset, &place, &moved, NULL));
    CHECK(moved == 4096);
    IS(cuFileReadAsync(fh, bytes, &size, &offset, &place, &moved, (CUstream)(uintptr_t)16), CU_FILE_ASYNC_NOT_SUPPORTED);
    OK(cuFileBufDeregister(bytes));
    /* As memory of a device looks to the processor. Ends that fit no block would be copied. */
    unsigned char *device = mmap(NULL, sizeof bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char text[1024];
    CHECK(device != MAP_FAILED);
    for (int direct = 0; direct < 2; direct++) {
        CUfileHandle_t other = direct ? handle_of(open(argv[1], O_RDONLY | O_DIRECT)) : fh;
        CHECK(cuFileRead(other, device, 3000, 5, 100) == -CU_FILE_IO_NOT_SUPPORTED);
        CHECK(sw_cufile_last_error(text, sizeof text) > 0 && strstr(text, "the processor cannot read"));
        IS(cuFileBufRegister(device, sizeof bytes, 0), CU_FILE_IO_NOT_SUPPORTED);
    }
    OK(cuFileDriverClose());
    return 0;
}
