/* What Straightway's libcufile.so.0 tells besides cuFile: the way of every byte, and errors in words.
 *
 * A program may ask for these by dlsym, so that it runs on other libraries too. Each function writes a text with its zero byte into
 * `room` bytes and returns its length without that byte. If that is `room` or more, nothing was written: ask again with more room.
 * 0: there is nothing to tell. Negative: minus a cuFile code. docs/cufile.md lists the fields of the JSON. */
#ifndef SW_CUFILE_H
#define SW_CUFILE_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The way of the calling thread's last transfer: JSON straightway.cufile.path/1. */
ssize_t sw_cufile_last_path(char *text, size_t room);
/* The ways of all transfers of a handle: JSON straightway.cufile.handle/1. */
ssize_t sw_cufile_handle_report(void *fh, char *text, size_t room);
/* Settings with their origins, and the ways of all transfers of the process: JSON straightway.cufile/1. */
ssize_t sw_cufile_report(char *text, size_t room);
/* The calling thread's last failure in words; it stays until another call fails. */
ssize_t sw_cufile_last_error(char *text, size_t room);

#ifdef __cplusplus
}
#endif

#endif
