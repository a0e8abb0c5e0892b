/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <straightway.h>
#include <test.h>

#define IS(status, call)                                                                                               \
    do {                                                                                                               \
        sw_status got_ = (call);                                                                                       \
        if (got_ != (status)) {                                                                                        \
            fprintf(stderr, "%s:%d: %s is %s, not %s; last error: %s\n", __FILE__, __LINE__, #call,                    \
                    sw_status_name(got_), sw_status_name(status), last_text());                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define OK(call) IS(SW_OK, call)
#define MISUSE(call) IS(SW_ERR_API_MISUSE, call)

static inline const char *last_text(void) {
    sw_error error = SW_ERROR_INIT;
    return sw_error_last(&error) == SW_OK ? error.message : "none";
}

/* Whether the last error has the words. */
static inline int says(const char *words) { return strstr(last_text(), words) != NULL; }

static inline unsigned char *bytes_of(sw_region *region) {
    sw_region_info info = SW_REGION_INFO_INIT;
    OK(sw_region_info_get(region, &info));
    return (unsigned char *)info.address;
}

#endif
