/* Kernels on raw pointers: no Python, no PyTorch, no OpenMP. */

#ifndef STREAMADAPT_H
#define STREAMADAPT_H

#include <stdint.h>

#define SA_EXPORT __attribute__((visibility("default")))

/* How elements are stored. */
enum { SA_FLOAT32 = 0, SA_BFLOAT16 = 1, SA_FLOAT16 = 2 };

/* What to do with one BatchNorm input of [frames, channels, positions].
 *
 * Moments (`mean` is not NULL): mean and population variance of every (frame, channel).
 *
 * Application (`y` is not NULL): y = clamp(scale[row, c] * x + shift[row, c] + residual), where
 * `row` is that of the frame. `y` may be `x`.
 *
 * Distance (`distance` is not NULL; needs moments): of every frame from its row, see
 * `location_scale_distance`, mean over channels. Frames farther than `usual` are told in the return
 * value.
 *
 * Correction (`foreign` is not NULL; see `ops/correct`): with `distance`, frames that are far are
 * normalised with statistics of their own in part, and what that says of them is put down in
 * `foreign`; without, as far as `foreign` says with the source's.
 */
typedef struct {
    const void *x;
    void *y;
    const void *residual;
    const float *scale;
    const float *shift;
    const int64_t *rows;      /* of each frame; NULL: row 0 */
    double *mean;
    double *var;
    double *distance;         /* [frames] */
    const float *row_mean;
    const float *row_precision;
    double *foreign;          /* [frames], 0 to 1 */
    const float *source_mean; /* [channels] */
    const float *source_var;
    int64_t frames, channels, positions;
    int64_t row_stride;       /* of what rows have, in elements */
    int64_t frame_stride;     /* of mean, var */
    float low, high;          /* clamp */
    float eps;
    double usual;
    int32_t dtype;
    int32_t channels_last;
    int32_t backwards;        /* last frame first */
    int32_t begins;           /* nothing was put down in `foreign` before */
    int32_t threads;
} sa_layer;

/* Statistics of all layers as scale and shift. */
typedef struct {
    const float *mean;        /* [rows, *], row_stride apart */
    const float *var;
    float *scale;             /* [rows, *], table_stride apart */
    float *shift;
    float *precision;         /* 1 / (var + eps) of the first `measured` layers */
    float *centre;            /* and their mean */
    const float *const *weights; /* of each layer; NULL: ones */
    const float *const *biases;  /* of each layer; NULL: zeros */
    const int64_t *starts;
    const int64_t *channels;
    const float *eps;
    int64_t layers, measured, rows, row_stride, table_stride;
} sa_tables;

/* The columns of a row's tallies that `Restarting` remembers things in. */
enum {
    SA_PHASE,
    SA_SETTLED_FRAMES,
    SA_SETTLED_SECONDS,
    SA_PENDING_FRAMES,
    SA_PENDING_SECONDS,
    SA_BLOCKS,
    SA_EXCESS,
    SA_NEARER,
    SA_RECENT,
    SA_INSISTS,
    SA_LEVEL,
    SA_MATERIAL,
    SA_RESTS,
    SA_SCALARS,
};

/* A step's moments to the bank, or a settling pass's, by the rule of `Restarting`; only where every
 * layer was executed. Channels lie as in the bank, padding included. */
typedef struct {
    const double *mean;       /* [frames, channels] */
    const double *var;
    const double *weights;    /* [rows, frames]: which frames are of which row */
    const double *elapsed;    /* [rows], seconds */
    const double *allowed;    /* [rows], 0 where a row is held; NULL: none is */
    const int64_t *rows;      /* their places in the bank */
    float *data;              /* [*, 4, channels]: mean, var, and both aside */
    double *tallies;          /* [*, width]: frames, updates, positions of layers, scalars */
    const float *source;      /* [2, channels] */
    const double *positions;  /* of a frame, [layers] */
    const double *eps;        /* [layers] */
    const double *memory;     /* seconds, [layers] */
    const double *prior;      /* seconds, of settling passes, [layers] */
    const double *given;      /* [batch], trust of a settling pass; NULL: frames count alike */
    const double *healthy;    /* [rows], 0 where a settling pass says less; NULL: nowhere */
    const int64_t *starts;
    const int64_t *sizes;     /* channels of each layer, without padding */
    const int64_t *columns;   /* [SA_SCALARS] */
    double *pooled_mean;      /* [rows, channels], of the accepted frames */
    double *pooled_var;
    double *frames;           /* [rows], accepted */
    double *trust;            /* [batch] */
    double *verdict;          /* [rows] */
    double *phase;            /* [rows] */
    int64_t batch, row_count, channels, layers, width, watched, settles;
    double block_frames, block_seconds, alarm, clip, max_weight, level, unlike;
    double material, noise, settling_seconds, longer;
} sa_commit;

/* What `Restarting` makes of one layer in a settling pass. Pointers to channels are to the layer's
 * first; `stride` and `channels` are those of the whole step and of the bank. */
typedef struct {
    const double *mean;    /* [frames, stride] */
    const double *var;
    const double *weights; /* [rows, frames]: which frames are of which row */
    const double *trust;   /* [frames]; NULL: they count alike */
    const double *elapsed; /* [rows], seconds */
    const double *allowed; /* [rows], 0 where a row is held; NULL: none is */
    const int64_t *rows;   /* their places in the bank */
    const float *data;     /* [*, 4, channels] */
    const double *tallies; /* [*, width] */
    const float *source;   /* [2, channels] */
    double *wanted_mean;   /* [rows, size] */
    double *wanted_var;
    float *scale;          /* the same as what to normalise with, [rows, table_stride]; or NULL */
    float *shift;
    const float *gain;     /* the layer's own weight and bias; NULL: ones, zeros */
    const float *bias;
    int64_t batch, row_count, stride, channels, size, width, phase, settled_seconds;
    int64_t table_stride;
    double eps, prior;
} sa_proposal;

/* The number of frames that are far; -1: the dtype is not supported; -2: out of memory. */
SA_EXPORT int64_t sa_run_layer(const sa_layer *layer);
/* 0; -2: out of memory, and nothing was changed. */
SA_EXPORT int64_t sa_run_commit(const sa_commit *commit);
/* 0; -2: out of memory. */
SA_EXPORT int64_t sa_run_proposal(const sa_proposal *proposal);
SA_EXPORT void sa_fill_tables(const sa_tables *tables);
/* Whether words in memory are still what they were. */
SA_EXPORT int32_t sa_same_words(const int32_t *const *words, const int32_t *known, int64_t count);
SA_EXPORT const char *sa_instruction_set(void);
SA_EXPORT const char *sa_source_digest(void);

#endif
