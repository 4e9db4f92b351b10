#ifndef STREAMADAPT_POOL_H
#define STREAMADAPT_POOL_H

#include <stdint.h>

typedef void (*sa_unit)(void *context, int64_t unit);

/* Runs units 0 ... units - 1, on the calling thread and at most `threads - 1` others. */
void sa_parallel(sa_unit run, void *context, int64_t units, int threads);

#endif
