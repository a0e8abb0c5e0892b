/* SPDX-License-Identifier: Apache-2.0 */
/* The library under test, loaded from a path as a program that asks for it by name would get it. */
#include "suite.h"

#include <dlfcn.h>

struct api cu;
const char *api_path;

const char *api_load(void) {
    static char text[512];
    cu.library = dlopen(api_path, RTLD_NOW | RTLD_LOCAL);
    if (!cu.library) {
        snprintf(text, sizeof text, "cannot be loaded: %s", dlerror());
        return text;
    }
    /* ISO C has no conversion from an object pointer to a function pointer; POSIX does. */
#define FIND(name) *(void **)&cu.name = dlsym(cu.library, "cuFile" #name);
    API(FIND)
#undef FIND
    *(void **)&cu.DriverClose = dlsym(cu.library, "cuFileDriverClose_v2");
    *(void **)&cu.DriverCloseV1 = dlsym(cu.library, "cuFileDriverClose");
    const char *missing = NULL;
#define CHECK(name)                                                                                                    \
    if (!cu.name) missing = "cuFile" #name;
    API(CHECK)
    CHECK(DriverClose)
    CHECK(DriverCloseV1)
#undef CHECK
    if (!missing) return NULL;
    snprintf(text, sizeof text, "%s is not exported", missing);
    return text;
}
