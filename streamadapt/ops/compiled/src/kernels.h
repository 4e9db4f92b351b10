/* What is compiled once for each instruction set. */

#ifndef STREAMADAPT_KERNELS_H
#define STREAMADAPT_KERNELS_H

#include "streamadapt.h"

/* Sums of x - centre and of its square over some positions, `[channels]`. */
typedef struct {
    const float *centre;
    double *sum;
    double *squares;
    float *part; /* of the latest positions, in fp32 */
    float *part_squares;
} sa_sums;

typedef struct {
    const char *name;
    /* Channels [first, last) of a frame that lie position by position. */
    void (*planes)(const sa_layer *, int64_t frame, int64_t first, int64_t last, int what);
    /* What the sums of a frame are taken from, of each channel. */
    void (*centres)(const sa_layer *, int64_t frame, float *centre);
    /* Positions [first, last) of a frame whose channels lie side by side. */
    void (*pixels)(const sa_layer *, int64_t frame, int64_t first, int64_t last, sa_sums, int what);
    double (*distance)(const sa_layer *, int64_t frame);
    /* Scale and shift of a frame that is corrected, `[channels]` each; 0: it is not. */
    int (*lean)(const sa_layer *, int64_t frame, float *scale, float *shift);
    void (*tables)(const sa_tables *, int64_t row, int64_t layer);
    int (*commit)(const sa_commit *);
    int (*propose)(const sa_proposal *);
    int has_float16;
} sa_kernels;

extern const sa_kernels sa_kernels_portable;
extern const sa_kernels sa_kernels_avx2;
extern const sa_kernels sa_kernels_avx512;

enum { SA_LANES = 16 };
enum { SA_APPLY = 1, SA_MOMENTS = 2 };

#endif
