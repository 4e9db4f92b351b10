/* Kernels of layers for one instruction set, SA_SET. Multiplications and additions contract to fused ones where there are
 * such, as in PyTorch's own normalisation, so that the results are the same to the bit.
 *
 * Moments are sums of differences from a value near the mean, the mean of the first 16 elements:
 * since those are part of the data, it is never farther off than a bounded number of standard
 * deviations. Sums run in fp32 over some hundred elements, then in double. Half precision is
 * widened in the first cache, a piece at a time.
 */

#include "vectors.h"

#include <math.h>
#include <stddef.h>

enum {
    CHUNK = 2048,     /* elements of a plane that are added up in fp32 */
#ifdef __AVX512F__
    BESIDE = 4,       /* sums of it that grow beside one another */
#else
    BESIDE = 2,
#endif
    ROUND = 128,      /* positions of which the same is done */
    TILE_BYTES = 1 << 13,
    LEAST_TILE = 8,   /* positions */
    PIECE = 4096,     /* elements in half precision that are widened at a time */
    PIECE_CHANNELS = 256,
};

/* Half precision --------------------------------------------------------------------------------*/

#ifdef __FLT16_MAX__
enum { HALF = 1 };
#else
enum { HALF = 0 };
#endif

static void widen(float *to, const void *from, int64_t first, int64_t n, int dtype) {
    if (dtype == SA_BFLOAT16) {
        const uint16_t *p = (const uint16_t *)from + first;
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)p[i] << 16;
            memcpy(to + i, &bits, sizeof bits);
        }
    } else {
#ifdef __FLT16_MAX__
        const _Float16 *p = (const _Float16 *)from + first;
        for (int64_t i = 0; i < n; i++) to[i] = (float)p[i];
#endif
    }
}

static void narrow(void *to, int64_t first, const float *from, int64_t n, int dtype) {
    if (dtype == SA_BFLOAT16) {
        uint16_t *p = (uint16_t *)to + first;
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, from + i, sizeof bits);
            uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
            p[i] = (uint16_t)(from[i] != from[i] ? 0x7fc0 : rounded);
        }
    } else {
#ifdef __FLT16_MAX__
        _Float16 *p = (_Float16 *)to + first;
        for (int64_t i = 0; i < n; i++) p[i] = (_Float16)from[i];
#endif
    }
}

/* Channel by channel ----------------------------------------------------------------------------*/

typedef struct {
    double sum, squares;
} plane_sums;

/* `n` neighbouring elements that share their statistics; adds to the sums. */
INLINE void plane(
    const float *x, float *y, const float *residual, int64_t n, float scale, float shift, float low,
    float high, float middle, plane_sums *sums
) {
    const f16 a = spread(scale), b = spread(shift), lo = spread(low), hi = spread(high);
    const f16 centre = spread(middle);
    d8 sum = {0}, squares = {0};
    double rest = 0.0, rest_squares = 0.0;
    int64_t whole = n - n % SA_LANES;
#define ONE(i, s, q)                                      \
    do {                                                  \
        f16 v = load(x + (i));                            \
        if (sums) {                                       \
            f16 d = v - centre;                           \
            s += d;                                       \
            q += d * d;                                   \
        }                                                 \
        if (y) {                                          \
            f16 w = v * a + b;                            \
            if (residual) w += load(residual + (i));      \
            store(y + (i), clamped(w, lo, hi));           \
        }                                                 \
    } while (0)
    for (int64_t start = 0; start < whole; start += CHUNK) {
        int64_t stop = whole - start < CHUNK ? whole : start + CHUNK, i = start;
        f16 s[BESIDE] = {{0}}, q[BESIDE] = {{0}};
        for (; i + BESIDE * SA_LANES <= stop; i += BESIDE * SA_LANES)
            for (int u = 0; u < BESIDE; u++) ONE(i + u * SA_LANES, s[u], q[u]);
        for (; i < stop; i += SA_LANES) ONE(i, s[0], q[0]);
        if (sums) {
            for (int u = 1; u < BESIDE; u++) {
                s[0] += s[u];
                q[0] += q[u];
            }
            sum += folded(s[0]);
            squares += folded(q[0]);
        }
    }
#undef ONE
    for (int64_t i = whole; i < n; i++) {
        float v = x[i];
        if (sums) {
            double d = (double)(v - middle);
            rest += d;
            rest_squares += d * d;
        }
        if (y) {
            float w = v * scale + shift;
            if (residual) w += residual[i];
            y[i] = clamped1(w, low, high);
        }
    }
    if (sums) {
        sums->sum += total_of(sum) + rest;
        sums->squares += total_of(squares) + rest_squares;
    }
}

/* Each combination becomes a loop of its own. */
static void any_plane(
    const float *x, float *y, const float *residual, int64_t n, float scale, float shift, float low,
    float high, float middle, plane_sums *sums
) {
    if (!y) plane(x, NULL, NULL, n, 0, 0, 0, 0, middle, sums);
    else if (residual && sums) plane(x, y, residual, n, scale, shift, low, high, middle, sums);
    else if (residual) plane(x, y, residual, n, scale, shift, low, high, 0, NULL);
    else if (sums) plane(x, y, NULL, n, scale, shift, low, high, middle, sums);
    else plane(x, y, NULL, n, scale, shift, low, high, 0, NULL);
}

#include "small.h"

static float middle_of(const float *x, int64_t n) { return n < SA_LANES ? x[0] : mean_of(load(x)); }

static void planes(const sa_layer *layer, int64_t frame, int64_t first, int64_t last, int what) {
    int64_t n = layer->positions, row = layer->rows ? layer->rows[frame] : 0;
    int64_t stride = layer->frame_stride;
    int apply = what & SA_APPLY, dtype = layer->dtype;
    const float *scale = apply ? layer->scale + row * layer->row_stride : NULL;
    const float *shift = apply ? layer->shift + row * layer->row_stride : NULL;
#ifdef __AVX512F__
    if (n <= SMALL && dtype == SA_FLOAT32 && (what & SA_MOMENTS))
        first = small_planes(layer, frame, first, last, apply);
#endif
    for (int64_t c = first; c < last; c++) {
        int64_t at = (frame * layer->channels + c) * n;
        float a = apply ? scale[c] : 0.0f, b = apply ? shift[c] : 0.0f, middle = 0.0f;
        plane_sums total = {0.0, 0.0}, *sums = what & SA_MOMENTS ? &total : NULL;
        if (dtype == SA_FLOAT32) {
            const float *x = (const float *)layer->x + at;
            float *y = apply ? (float *)layer->y + at : NULL;
            const float *residual = apply && layer->residual ? (const float *)layer->residual + at : NULL;
            middle = middle_of(x, n);
            any_plane(x, y, residual, n, a, b, layer->low, layer->high, middle, sums);
        } else {
            float x[PIECE], residual[PIECE];
            for (int64_t i = 0; i < n; i += PIECE) {
                int64_t here = n - i < PIECE ? n - i : PIECE;
                widen(x, layer->x, at + i, here, dtype);
                if (layer->residual && apply) widen(residual, layer->residual, at + i, here, dtype);
                if (i == 0) middle = middle_of(x, here);
                any_plane(
                    x, apply ? x : NULL, layer->residual ? residual : NULL, here, a, b, layer->low,
                    layer->high, middle, sums
                );
                if (apply) narrow(layer->y, at + i, x, here, dtype);
            }
        }
        if (sums) {
            double part = 1.0 / (double)n, s = total.sum * part, v = total.squares * part - s * s;
            layer->mean[frame * stride + c] = (double)middle + s;
            layer->var[frame * stride + c] = v < 0.0 ? 0.0 : v;
        }
    }
}

/* Position by position --------------------------------------------------------------------------*/

/* What a piece of neighbouring positions is worked on with. */
typedef struct {
    const float *x;
    float *y;
    const float *residual;
    const float *scale, *shift, *centre;
    float *sum, *squares;
    int64_t stride; /* from one position to the next */
    int64_t positions;
    float low, high;
} piece;

/* `vectors` * 16 channels from the `c`-th on. Enough positions at a time that four sums grow beside
 * one another: one alone would wait for the addition before. */
INLINE void strip(
    const piece *t, int64_t c, const int vectors, const int apply, const int adds, const int moments
) {
    const int together = 4 / vectors;
    const f16 lo = spread(t->low), hi = spread(t->high);
    const float *x = t->x + c, *residual = adds ? t->residual + c : NULL;
    float *y = apply ? t->y + c : NULL;
    int64_t stride = t->stride, positions = t->positions, p = 0;
    f16 a[4] = {{0}}, b[4] = {{0}}, m[4] = {{0}}, s[4] = {{0}}, q[4] = {{0}};
    for (int k = 0; k < vectors; k++) {
        if (apply) {
            a[k] = load(t->scale + c + k * SA_LANES);
            b[k] = load(t->shift + c + k * SA_LANES);
        }
        if (moments) m[k] = load(t->centre + c + k * SA_LANES);
    }
#define ONE(position, k, to)                                    \
    do {                                                        \
        int64_t i = (position) * stride + (k) * SA_LANES;       \
        f16 v = load(x + i);                                    \
        if (moments) {                                          \
            f16 d = v - m[k];                                   \
            s[to] += d;                                         \
            q[to] += d * d;                                     \
        }                                                       \
        if (apply) {                                            \
            f16 w = v * a[k] + b[k];                            \
            if (adds) w += load(residual + i);                  \
            store(y + i, clamped(w, lo, hi));                   \
        }                                                       \
    } while (0)
    for (; p + together <= positions; p += together)
        for (int u = 0; u < together; u++)
            for (int k = 0; k < vectors; k++) ONE(p + u, k, u * vectors + k);
    for (; p < positions; p++)
        for (int k = 0; k < vectors; k++) ONE(p, k, k);
#undef ONE
    if (!moments) return;
    for (int k = 0; k < vectors; k++) {
        for (int u = 1; u < together; u++) {
            s[k] += s[u * vectors + k];
            q[k] += q[u * vectors + k];
        }
        store(t->sum + c + k * SA_LANES, load(t->sum + c + k * SA_LANES) + s[k]);
        store(t->squares + c + k * SA_LANES, load(t->squares + c + k * SA_LANES) + q[k]);
    }
}

INLINE void strip8(const piece *t, int64_t c, const int apply, const int adds, const int moments) {
    const f8 lo = spread8(t->low), hi = spread8(t->high), zero = {0};
    const float *x = t->x + c, *residual = adds ? t->residual + c : NULL;
    float *y = apply ? t->y + c : NULL;
    int64_t stride = t->stride, positions = t->positions, p = 0;
    f8 a = apply ? load8(t->scale + c) : zero, b = apply ? load8(t->shift + c) : zero;
    f8 m = moments ? load8(t->centre + c) : zero, s[4] = {zero, zero, zero, zero};
    f8 q[4] = {zero, zero, zero, zero};
#define ONE(position, to)                                       \
    do {                                                        \
        int64_t i = (position) * stride;                        \
        f8 v = load8(x + i);                                    \
        if (moments) {                                          \
            f8 d = v - m;                                       \
            s[to] += d;                                         \
            q[to] += d * d;                                     \
        }                                                       \
        if (apply) {                                            \
            f8 w = v * a + b;                                   \
            if (adds) w += load8(residual + i);                 \
            store8(y + i, clamped8(w, lo, hi));                 \
        }                                                       \
    } while (0)
    for (; p + 4 <= positions; p += 4)
        for (int u = 0; u < 4; u++) ONE(p + u, u);
    for (; p < positions; p++) ONE(p, 0);
#undef ONE
    if (!moments) return;
    store8(t->sum + c, load8(t->sum + c) + ((s[0] + s[1]) + (s[2] + s[3])));
    store8(t->squares + c, load8(t->squares + c) + ((q[0] + q[1]) + (q[2] + q[3])));
}

/* Fewer than eight channels. */
static void strip1(const piece *t, int64_t first, int64_t last, int apply, int adds, int moments) {
    for (int64_t c = first; c < last; c++) {
        float s = 0.0f, q = 0.0f;
        for (int64_t p = 0; p < t->positions; p++) {
            int64_t i = p * t->stride + c;
            float v = t->x[i];
            if (moments) {
                float d = v - t->centre[c];
                s += d;
                q += d * d;
            }
            if (apply) {
                float w = v * t->scale[c] + t->shift[c];
                if (adds) w += t->residual[i];
                t->y[i] = clamped1(w, t->low, t->high);
            }
        }
        if (moments) {
            t->sum[c] += s;
            t->squares[c] += q;
        }
    }
}

INLINE void strips(const piece *t, const int apply, const int adds, const int moments) {
    int64_t channels = t->stride, c = 0;
    for (; c + 4 * SA_LANES <= channels; c += 4 * SA_LANES) strip(t, c, 4, apply, adds, moments);
    for (; c + 2 * SA_LANES <= channels; c += 2 * SA_LANES) strip(t, c, 2, apply, adds, moments);
    for (; c + SA_LANES <= channels; c += SA_LANES) strip(t, c, 1, apply, adds, moments);
    if (c + 8 <= channels) {
        strip8(t, c, apply, adds, moments);
        c += 8;
    }
    if (c < channels) strip1(t, c, channels, apply, adds, moments);
}

static void any_strips(const piece *t, int apply, int moments) {
    if (!apply) strips(t, 0, 0, 1);
    else if (t->residual && moments) strips(t, 1, 1, 1);
    else if (t->residual) strips(t, 1, 1, 0);
    else if (moments) strips(t, 1, 0, 1);
    else strips(t, 1, 0, 0);
}

/* The mean of the first 16 positions of a frame, or the first one; added up by halves, so that equal
 * values have exactly that mean. */
static void centres(const sa_layer *layer, int64_t frame, float *centre) {
    int64_t channels = layer->channels, begin = frame * layer->positions * channels, c = 0;
    int64_t some = layer->positions < SA_LANES ? 1 : SA_LANES;
    if (layer->dtype == SA_FLOAT32) {
        const float *x = (const float *)layer->x + begin;
        for (; c + SA_LANES <= channels; c += SA_LANES) {
            f16 part[SA_LANES];
            for (int64_t p = 0; p < some; p++) part[p] = load(x + p * channels + c);
            for (int64_t half = some / 2; half; half /= 2)
                for (int64_t p = 0; p < half; p++) part[p] += part[p + half];
            store(centre + c, part[0] * (1.0f / (float)some));
        }
    }
    for (; c < channels; c++) {
        float part[SA_LANES];
        for (int64_t p = 0; p < some; p++) {
            if (layer->dtype == SA_FLOAT32)
                part[p] = ((const float *)layer->x)[begin + p * channels + c];
            else
                widen(part + p, layer->x, begin + p * channels + c, 1, layer->dtype);
        }
        for (int64_t half = some / 2; half; half /= 2)
            for (int64_t p = 0; p < half; p++) part[p] += part[p + half];
        centre[c] = part[0] * (1.0f / (float)some);
    }
}

/* Sums in fp32 to those in double. */
static void add_up(sa_sums sums, int64_t first, int64_t channels) {
    for (int64_t c = first; c < first + channels; c++) {
        sums.sum[c] += (double)sums.part[c];
        sums.squares[c] += (double)sums.part_squares[c];
        sums.part[c] = sums.part_squares[c] = 0.0f;
    }
}

/* Pieces of positions stay in the first cache while their channels are gone through. */
static void pixels(
    const sa_layer *layer, int64_t frame, int64_t first, int64_t last, sa_sums sums, int what
) {
    int64_t channels = layer->channels, row = layer->rows ? layer->rows[frame] : 0;
    int64_t begin = frame * layer->positions * channels;
    int apply = (what & SA_APPLY) != 0, moments = (what & SA_MOMENTS) != 0;
    int adds = apply && layer->residual, dtype = layer->dtype;
    const float *scale = apply ? layer->scale + row * layer->row_stride : NULL;
    const float *shift = apply ? layer->shift + row * layer->row_stride : NULL;
    piece t = {.low = layer->low, .high = layer->high};
    if (moments)
        for (int64_t c = 0; c < channels; c++) {
            sums.sum[c] = sums.squares[c] = 0.0;
            sums.part[c] = sums.part_squares[c] = 0.0f;
        }
    if (dtype == SA_FLOAT32) {
        int64_t tile = TILE_BYTES / ((int64_t)sizeof(float) * channels) / 4 * 4;
        tile = tile < LEAST_TILE ? LEAST_TILE : tile > ROUND ? ROUND : tile;
        t.scale = scale;
        t.shift = shift;
        t.centre = sums.centre;
        t.sum = sums.part;
        t.squares = sums.part_squares;
        t.stride = channels;
        for (int64_t start = first; start < last; start += ROUND) {
            int64_t stop = last - start < ROUND ? last : start + ROUND;
            for (int64_t p = start; p < stop; p += tile) {
                int64_t i = begin + p * channels;
                t.positions = stop - p < tile ? stop - p : tile;
                t.x = (const float *)layer->x + i;
                t.y = apply ? (float *)layer->y + i : NULL;
                t.residual = adds ? (const float *)layer->residual + i : NULL;
                any_strips(&t, apply, moments);
            }
            if (moments) add_up(sums, 0, channels);
        }
        return;
    }
    /* Some channels of some positions at a time, side by side. */
    float x[PIECE], residual[PIECE];
    t.x = x;
    t.y = apply ? x : NULL;
    t.residual = adds ? residual : NULL;
    for (int64_t c = 0; c < channels; c += PIECE_CHANNELS) {
        int64_t here = channels - c < PIECE_CHANNELS ? channels - c : PIECE_CHANNELS;
        int64_t most = PIECE / here < ROUND ? PIECE / here : ROUND;
        t.stride = here;
        if (apply) {
            t.scale = scale + c;
            t.shift = shift + c;
        }
        if (moments) {
            t.centre = sums.centre + c;
            t.sum = sums.part + c;
            t.squares = sums.part_squares + c;
        }
        for (int64_t p = first; p < last; p += most) {
            t.positions = last - p < most ? last - p : most;
            for (int64_t k = 0; k < t.positions; k++) {
                int64_t i = begin + (p + k) * channels + c;
                widen(x + k * here, layer->x, i, here, dtype);
                if (adds) widen(residual + k * here, layer->residual, i, here, dtype);
            }
            any_strips(&t, apply, moments);
            if (moments) add_up(sums, c, here);
            if (apply)
                for (int64_t k = 0; k < t.positions; k++)
                    narrow(layer->y, begin + (p + k) * channels + c, x + k * here, here, dtype);
        }
    }
}

/* Few values ------------------------------------------------------------------------------------*/

static const float LARGEST_LOG_RATIO = 7.0f; /* as in `ops/correct/reference.py` */

/* Location-scale distance of a frame's moments from its row's, mean over channels. */
static double distance(const sa_layer *layer, int64_t frame) {
    int64_t row = layer->rows ? layer->rows[frame] : 0, channels = layer->channels;
    const double *mean = layer->mean + frame * layer->frame_stride;
    const double *var = layer->var + frame * layer->frame_stride;
    const float *centre = layer->row_mean + row * layer->row_stride;
    const float *precision = layer->row_precision + row * layer->row_stride;
    double total = 0.0;
    for (int64_t c = 0; c < channels; c += SA_LANES) {
        int64_t here = channels - c < SA_LANES ? channels - c : SA_LANES;
        float ratios[SA_LANES], offsets[SA_LANES], apart[SA_LANES];
        for (int64_t k = 0; k < SA_LANES; k++) {
            int64_t at = c + (k < here ? k : 0);
            float offset = (float)mean[at] - centre[at];
            ratios[k] = ((float)var[at] + layer->eps) * precision[at];
            offsets[k] = offset * offset * precision[at];
        }
        f16 log = log16(load(ratios));
        for (int64_t k = 0; k < SA_LANES; k++)
            apart[k] = offsets[k] / sqrtf(ratios[k]) + 0.5f * log[k] * log[k];
        for (int64_t k = 0; k < here; k++) /* log16 is of positive, finite numbers */
            total += ratios[k] > 0.0f && ratios[k] <= 3e38f ? (double)apart[k] : (double)NAN;
    }
    return total / (double)channels;
}

static int lean(const sa_layer *layer, int64_t frame, float *scale, float *shift) {
    int64_t row = layer->rows ? layer->rows[frame] : 0, at = row * layer->row_stride;
    const float *row_scale = layer->scale + at, *row_shift = layer->shift + at;
    const float *row_mean = layer->row_mean + at, *precision = layer->row_precision + at;
    const double *mean = layer->distance ? layer->mean + frame * layer->frame_stride : NULL;
    const double *var = layer->distance ? layer->var + frame * layer->frame_stride : NULL;
    double weight = layer->foreign[frame];
    if (mean) {
        double far = layer->distance[frame], share = layer->usual / far;
        weight = far * 0.0 == 0.0 && share < 1.0 ? 1.0 - share * share : 0.0;
        /* `1 - (2 usual / far)^2`: the same weight for twice the distance. */
        double foreign = 4.0 * weight - 3.0;
        if (foreign > layer->foreign[frame]) layer->foreign[frame] = foreign;
    }
    if (!(weight > 0.0)) return 0;
    for (int64_t c = 0; c < layer->channels; c++) {
        double centre = (double)row_mean[c], factor = (double)row_scale[c];
        double spread_of = mean ? var[c] : (double)layer->source_var[c];
        float ratio = ((float)spread_of + layer->eps) * precision[c];
        float log = clamped1(logf(ratio), -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO);
        double to = mean ? mean[c] : (double)layer->source_mean[c];
        double bias = (double)row_shift[c] + centre * factor;
        double own = factor * (double)expf(-0.5f * (float)weight * log);
        scale[c] = (float)own;
        shift[c] = (float)(bias - (centre + weight * (to - centre)) * own);
    }
    return 1;
}

static void tables(const sa_tables *t, int64_t row, int64_t layer) {
    int64_t start = t->starts[layer];
    const float *mean = t->mean + row * t->row_stride + start;
    const float *var = t->var + row * t->row_stride + start;
    const float *weight = t->weights[layer], *bias = t->biases[layer];
    float *scale = t->scale + row * t->table_stride + start;
    float *shift = t->shift + row * t->table_stride + start;
    float eps = t->eps[layer];
    for (int64_t c = 0; c < t->channels[layer]; c++) {
        float inverse = 1.0f / sqrtf(var[c] + eps);
        float a = weight ? inverse * weight[c] : inverse;
        scale[c] = a;
        shift[c] = (bias ? bias[c] : 0.0f) - mean[c] * a;
    }
    if (layer < t->measured) {
        float *precision = t->precision + row * t->table_stride + start;
        float *centre = t->centre + row * t->table_stride + start;
        for (int64_t c = 0; c < t->channels[layer]; c++) {
            precision[c] = (float)(1.0 / ((double)var[c] + (double)eps));
            centre[c] = mean[c];
        }
    }
}

int NAMED(commit, SA_SET)(const sa_commit *);
int NAMED(propose, SA_SET)(const sa_proposal *);

const sa_kernels NAMED(sa_kernels, SA_SET) = {
    TEXT(SA_SET), planes, centres, pixels, distance, lean, tables, NAMED(commit, SA_SET),
    NAMED(propose, SA_SET), HALF
};
