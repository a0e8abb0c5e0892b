/*
 * straightway.h: GPU-direct storage, for C and C++.
 *
 * Made from the sources of the library by its tests; changes here are lost.
 *
 *   sw_engine *engine = NULL;
 *   sw_object *object = NULL;
 *   sw_region *region = NULL;
 *   sw_completion done = SW_COMPLETION_INIT;
 *
 *   sw_engine_open(NULL, &engine);
 *   sw_object_open(engine, "/data/shard-0", NULL, &object);
 *   sw_region_allocate(engine, "gpu0", 1 << 20, 0, &region);
 *   sw_read(object, 0, region, 0, 1 << 20, NULL, &done);
 *   printf("%llu bytes by %s: %s\n", (unsigned long long)done.bytes, done.transport, done.reason);
 *
 * Rules that hold for all functions:
 *
 * - A function that can fail returns a status. Outputs are the last parameters. They are written only if there is something to
 *   tell: after an error of the arguments they are as before.
 * - Handles are pointers that nobody may follow. NULL, a handle of another kind, and one that was closed before are
 *   SW_ERR_API_MISUSE, and nothing is done.
 * - Structures that begin with `size` are passed with their size set: start from the _INIT value. A program that was compiled with
 *   an older header goes on working with a newer library, and the other way round as long as it sets no field that the library
 *   does not know.
 * - Texts are UTF-8 and end with a zero byte.
 * - Lengths and offsets are bytes, times are nanoseconds.
 * - Every function may be called by any thread at any time, unless its text says otherwise. A process that was forked makes
 *   an engine of its own.
 */
#ifndef STRAIGHTWAY_H
#define STRAIGHTWAY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define SW_API __attribute__((visibility("default")))
#else
#define SW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

