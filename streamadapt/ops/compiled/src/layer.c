/* How the frames and channels of a layer are shared out. What is computed does not depend on it:
 * where a frame is divided follows from its shape alone. */

#include "kernels.h"
#include "pool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LEAST_BYTES = 1 << 22,   /* that a thread is woken for */
    UNIT_BYTES = 1 << 15,    /* of channels that are done together */
    SEGMENT_BYTES = 1 << 18, /* of a frame whose channels lie side by side */
    MOST_SEGMENTS = 16,
};

static const sa_kernels *chosen_kernels(void) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    const char *most = getenv("STREAMADAPT_CPU");
    int level = most && !strcmp(most, "portable") ? 0 : most && !strcmp(most, "avx2") ? 1 : 2;
    if (level > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &sa_kernels_avx512;
    if (level > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &sa_kernels_avx2;
#endif
    return &sa_kernels_portable;
}

static const sa_kernels *kernels(void) {
    static const sa_kernels *found; /* whoever comes first, the answer is the same */
    const sa_kernels *now = __atomic_load_n(&found, __ATOMIC_RELAXED);
    if (!now) {
        now = chosen_kernels();
        __atomic_store_n(&found, now, __ATOMIC_RELAXED);
    }
    return now;
}

const char *sa_instruction_set(void) { return kernels()->name; }

#ifndef SA_DIGEST
#define SA_DIGEST ""
#endif
const char *sa_source_digest(void) { return SA_DIGEST; }

typedef struct {
    const sa_layer *layer;
    const sa_kernels *run;
    int what;
    int64_t frame;          /* that all units belong to */
    int64_t blocks, block;  /* channels of a unit; positions where channels lie side by side */
    float *centre;
    double *sums;           /* [segments, 3, channels], the last in two halves */
    uint8_t *far;           /* of each frame */
    int64_t segments;
    volatile int *failed;   /* out of memory */
} job;

static int64_t at_most(int64_t value, int64_t most) { return value < most ? value : most; }

/* Kernels may read on to the next vector. */
static int64_t padded(int64_t channels) { return (channels + 31) / 32 * 32; }

static int64_t row_of(const sa_layer *layer, int64_t frame) {
    return layer->backwards ? layer->frames - 1 - frame : frame;
}

/* Sums of all segments, in their order. */
static void merge(const job *j, int64_t frame) {
    const sa_layer *layer = j->layer;
    int64_t channels = layer->channels;
    double count = (double)layer->positions;
    double *mean = layer->mean + frame * layer->frame_stride;
    double *var = layer->var + frame * layer->frame_stride;
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0.0, squares = 0.0;
        for (int64_t s = 0; s < j->segments; s++) {
            sum += j->sums[3 * s * channels + c];
            squares += j->sums[(3 * s + 1) * channels + c];
        }
        double m = sum / count, v = squares / count - m * m;
        mean[c] = (double)j->centre[c] + m;
        var[c] = v < 0.0 ? 0.0 : v;
    }
}

static void segment(const job *j, int64_t frame, int64_t number, int what) {
    const sa_layer *layer = j->layer;
    int64_t first = number * j->block, last = at_most(first + j->block, layer->positions);
    sa_sums sums = {.centre = j->centre};
    if (what & SA_MOMENTS) {
        sums.sum = j->sums + 3 * number * layer->channels;
        sums.squares = sums.sum + layer->channels;
        sums.part = (float *)(sums.squares + layer->channels);
        sums.part_squares = sums.part + layer->channels;
    }
    j->run->pixels(layer, frame, first, last, sums, what);
}

/* A whole frame on one thread; backwards after a pass whose end is still in the cache. */
static void whole(const job *j, int64_t frame, int what, int backwards) {
    const sa_layer *layer = j->layer;
    int moments = layer->channels_last && (what & SA_MOMENTS);
    if (moments) j->run->centres(layer, frame, j->centre);
    for (int64_t k = 0; k < j->blocks; k++) {
        int64_t block = backwards ? j->blocks - 1 - k : k, first = block * j->block;
        if (layer->channels_last)
            segment(j, frame, block, what);
        else
            j->run->planes(layer, frame, first, at_most(first + j->block, layer->channels), what);
    }
    if (moments) merge(j, frame);
}

static int is_far(const job *j, int64_t frame) {
    const sa_layer *layer = j->layer;
    if (layer->foreign && layer->begins) layer->foreign[frame] = 0.0;
    double distance = layer->distance[frame] = j->run->distance(layer, frame);
    return distance > layer->usual;
}

/* Where sums of a frame are kept, where that is needed; 0: out of memory. */
static int with_scratch(job *j, void **scratch) {
    const sa_layer *layer = j->layer;
    if (!layer->channels_last || !(j->what & SA_MOMENTS)) return 1;
    size_t doubles = 3 * (size_t)j->segments * (size_t)layer->channels;
    j->sums = malloc(doubles * sizeof(double) + (size_t)layer->channels * sizeof(float));
    if (!j->sums) return 0;
    j->centre = (float *)(j->sums + doubles);
    *scratch = j->sums;
    return 1;
}

/* The layer as it is applied to a frame, with `room` for a scale and a shift of its own. */
static const sa_layer *corrected(const job *j, int64_t frame, sa_layer *own, float *room) {
    const sa_layer *layer = j->layer;
    if (!room || !(layer->distance ? j->far[frame] : layer->foreign[frame] > 0.0)) return layer;
    float *shift = room + padded(layer->channels);
    if (!j->run->lean(layer, frame, room, shift)) return layer;
    *own = *layer;
    own->scale = room;
    own->shift = shift;
    own->rows = NULL;
    return own;
}

/* Room for `corrected`; 0: out of memory. */
static int with_room(const job *j, float **room) {
    const sa_layer *layer = j->layer;
    *room = NULL;
    if (!layer->foreign || !(j->what & SA_APPLY)) return 1;
    *room = malloc(2 * (size_t)padded(layer->channels) * sizeof(float));
    return *room != NULL;
}

static void frame_unit(void *context, int64_t unit) {
    job own = *(const job *)context;
    const sa_layer *layer = own.layer;
    sa_layer leant;
    int64_t frame = row_of(layer, unit);
    void *scratch = NULL;
    float *room = NULL;
    if (!with_scratch(&own, &scratch) || !with_room(&own, &room)) {
        *own.failed = 1;
        free(scratch);
        return;
    }
    int what = own.what;
    if (layer->distance) {
        whole(&own, frame, SA_MOMENTS, 0);
        own.far[frame] = (uint8_t)is_far(&own, frame);
        what &= SA_APPLY;
    }
    own.layer = corrected(&own, frame, &leant, room);
    if (what) whole(&own, frame, what, layer->distance != NULL);
    free(scratch);
    free(room);
}

static void part_unit(void *context, int64_t unit) {
    const job *j = context;
    const sa_layer *layer = j->layer;
    if (layer->channels_last) {
        segment(j, j->frame, unit, j->what);
    } else {
        int64_t first = unit * j->block;
        j->run->planes(layer, j->frame, first, at_most(first + j->block, layer->channels), j->what);
    }
}

static void parts(job *j, int64_t frame, int what, int threads) {
    j->frame = frame;
    j->what = what;
    if (j->layer->channels_last && (what & SA_MOMENTS))
        j->run->centres(j->layer, frame, j->centre);
    sa_parallel(part_unit, j, j->blocks, threads);
    if (j->layer->channels_last && (what & SA_MOMENTS)) merge(j, frame);
}

int64_t sa_run_layer(const sa_layer *layer) {
    static const int64_t sizes[] = {4, 2, 2};
    const sa_kernels *run = kernels();
    if (layer->dtype < 0 || layer->dtype > SA_FLOAT16) return -1;
    if (layer->dtype == SA_FLOAT16 && !run->has_float16) return -1;
    int64_t frames = layer->frames, channels = layer->channels, positions = layer->positions;
    if (frames <= 0 || channels <= 0 || positions <= 0) return 0;
    int64_t frame_bytes = channels * positions * sizes[layer->dtype];
    int threads = (int)at_most(layer->threads, 1 + frames * frame_bytes / LEAST_BYTES);
    int what = (layer->y ? SA_APPLY : 0) | (layer->mean ? SA_MOMENTS : 0);
    job j = {.layer = layer, .run = run, .what = what, .segments = 1, .block = positions};
    if (layer->channels_last) {
        j.segments = at_most(1 + (frame_bytes - 1) / SEGMENT_BYTES, MOST_SEGMENTS);
        j.block = (positions + j.segments - 1) / j.segments;
        j.segments = j.blocks = (positions + j.block - 1) / j.block;
    } else {
        int64_t bytes = positions * sizes[layer->dtype];
        j.block = 1 + (UNIT_BYTES - 1) / bytes;
        if (j.block > 16) j.block = (j.block + 15) / 16 * 16; /* sixteen go together */
        j.blocks = (channels + j.block - 1) / j.block;
    }
    uint8_t few[64], *far = few;
    volatile int failed = 0;
    j.failed = &failed;
    if (layer->distance) {
        if (frames > (int64_t)sizeof few && !(far = malloc((size_t)frames))) return -2;
        memset(far, 0, (size_t)frames);
    }
    j.far = far;
    if (frames >= threads) {
        sa_parallel(frame_unit, &j, frames, threads);
    } else {
        void *scratch = NULL;
        float *room = NULL;
        sa_layer leant;
        if (!with_scratch(&j, &scratch) || !with_room(&j, &room)) {
            free(scratch);
            if (far != few) free(far);
            return -2;
        }
        for (int64_t k = 0; k < frames; k++) {
            int64_t frame = row_of(layer, k);
            int now = what;
            if (layer->distance) {
                parts(&j, frame, SA_MOMENTS, threads);
                far[frame] = (uint8_t)is_far(&j, frame);
                now &= SA_APPLY;
            }
            j.layer = corrected(&j, frame, &leant, room);
            if (now) parts(&j, frame, now, threads);
            j.layer = layer;
        }
        free(scratch);
        free(room);
    }
    int64_t left = 0;
    if (layer->distance)
        for (int64_t k = 0; k < frames; k++) left += far[k];
    if (far != few) free(far);
    return failed ? -2 : left;
}

void sa_fill_tables(const sa_tables *tables) {
    const sa_kernels *run = kernels();
    for (int64_t row = 0; row < tables->rows; row++)
        for (int64_t layer = 0; layer < tables->layers; layer++) run->tables(tables, row, layer);
}

int32_t sa_same_words(const int32_t *const *words, const int32_t *known, int64_t count) {
    int32_t differ = 0; /* no early end: so the loads do not wait for one another */
    for (int64_t k = 0; k < count; k++) differ |= *words[k] ^ known[k];
    return !differ;
}

int64_t sa_run_commit(const sa_commit *commit) { return kernels()->commit(commit); }

int64_t sa_run_proposal(const sa_proposal *proposal) { return kernels()->propose(proposal); }
