/* A client as it is met in the field: it knows no library but by name, and asks for what it needs. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cufile.h>

#define NEEDED(name) void *name##_ = dlsym(library, #name); if (!name##_) return 4

int main(int argc, char **argv) {
    static unsigned char bytes[1 << 20];
    static char text[1 << 16];
    if (argc != 2) return 2;
    void *library = dlopen("libcufile.so.0", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 3;
    }
    NEEDED(cuFileDriverOpen);
    NEEDED(cuFileDriverClose_v2);
    NEEDED(cuFileHandleRegister);
    NEEDED(cuFileHandleDeregister);
    NEEDED(cuFileRead);
    CUfileHandle_t fh;
    CUfileDescr_t descr;
    memset(&descr, 0, sizeof descr);
    descr.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    descr.handle.fd = open(argv[1], O_RDONLY);
    if (((CUfileError_t(*)(void))cuFileDriverOpen_)().err) return 5;
    if (((CUfileError_t(*)(CUfileHandle_t *, CUfileDescr_t *))cuFileHandleRegister_)(&fh, &descr).err) return 6;
    ssize_t length = ((ssize_t(*)(CUfileHandle_t, void *, size_t, off_t, off_t))cuFileRead_)(fh, bytes, sizeof bytes, 0, 0);
    if (length < 0) return 7;
    unsigned long sum = 0;
    for (ssize_t at = 0; at < length; at++) sum += bytes[at];
    printf("sum %lu\n", sum);
    /* What another library does not have is not missed. */
    void *report = dlsym(library, "sw_cufile_report");
    if (report && ((ssize_t(*)(char *, size_t))report)(text, sizeof text) > 0) puts(text);
    ((void (*)(CUfileHandle_t))cuFileHandleDeregister_)(fh);
    return ((CUfileError_t(*)(void))cuFileDriverClose_v2_)().err ? 8 : 0;
}
