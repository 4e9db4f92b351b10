/* Small planes, sixteen together: adding up the lanes of one alone takes longer than its elements. */

#ifdef __AVX512F__
enum { SMALL = 256 }; /* positions */

/* The sums of sixteen vectors' lanes. Equal lanes are only ever doubled. */
INLINE f16 lane_sums(f16 *v) {
    __m512 t[16];
    memcpy(t, v, sizeof t);
    for (int k = 0; k < 8; k++)
        t[k] = _mm512_add_ps(
            _mm512_shuffle_f32x4(t[k], t[k + 8], 0x44), _mm512_shuffle_f32x4(t[k], t[k + 8], 0xee)
        );
    for (int k = 0; k < 4; k++)
        t[k] = _mm512_add_ps(
            _mm512_shuffle_f32x4(t[k], t[k + 4], 0x88), _mm512_shuffle_f32x4(t[k], t[k + 4], 0xdd)
        );
    for (int k = 0; k < 2; k++)
        t[k] = _mm512_add_ps(
            _mm512_unpacklo_ps(t[k], t[k + 2]), _mm512_unpackhi_ps(t[k], t[k + 2])
        );
    t[0] = _mm512_add_ps(
        _mm512_shuffle_ps(t[0], t[1], 0x44), _mm512_shuffle_ps(t[0], t[1], 0xee)
    );
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return (f16)_mm512_permutexvar_ps(order, t[0]);
}

INLINE void sixteen_planes(
    const float *x, float *y, const float *residual, int64_t n, const float *scale,
    const float *shift, float low, float high, double *mean, double *var, const int apply,
    const int adds
) {
    const f16 lo = spread(low), hi = spread(high);
    const int64_t whole = n - n % SA_LANES;
    const __mmask16 tail = (__mmask16)((1u << (n - whole)) - 1);
    f16 s[16], q[16];
    float middle[16];
    if (n < SA_LANES) {
        for (int k = 0; k < 16; k++) middle[k] = x[k * n];
    } else {
        for (int k = 0; k < 16; k++) s[k] = load(x + k * n);
        store(middle, lane_sums(s) * (1.0f / 16.0f));
    }
    for (int k = 0; k < 16; k++) {
        const float *p = x + k * n, *r = adds ? residual + k * n : NULL;
        float *o = apply ? y + k * n : NULL;
        const f16 c = spread(middle[k]);
        const f16 a = spread(apply ? scale[k] : 0.0f), b = spread(apply ? shift[k] : 0.0f);
        f16 s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
        int64_t i = 0;
#define ONE(i, s, q)                                    \
    do {                                                \
        __builtin_prefetch(p + 16 * n + (i));           \
        f16 v = load(p + (i)), d = v - c;               \
        s += d;                                         \
        q += d * d;                                     \
        if (apply) {                                    \
            f16 w = v * a + b;                          \
            if (adds) w += load(r + (i));               \
            store(o + (i), clamped(w, lo, hi));         \
        }                                               \
    } while (0)
        for (; i + 2 * SA_LANES <= whole; i += 2 * SA_LANES) {
            ONE(i, s0, q0);
            ONE(i + SA_LANES, s1, q1);
        }
        if (i < whole) ONE(i, s0, q0);
#undef ONE
        if (tail) {
            f16 v = (f16)_mm512_maskz_loadu_ps(tail, p + whole);
            f16 d = (f16)_mm512_maskz_mov_ps(tail, (__m512)(v - c));
            s1 += d;
            q1 += d * d;
            if (apply) {
                f16 w = v * a + b;
                if (adds) w += (f16)_mm512_maskz_loadu_ps(tail, r + whole);
                _mm512_mask_storeu_ps(o + whole, tail, (__m512)clamped(w, lo, hi));
            }
        }
        s[k] = s0 + s1;
        q[k] = q0 + q1;
    }
    float sum[16], squares[16];
    store(sum, lane_sums(s));
    store(squares, lane_sums(q));
    const double part = 1.0 / (double)n;
    for (int k = 0; k < 16; k++) {
        double m = (double)sum[k] * part, v = (double)squares[k] * part - m * m;
        mean[k] = (double)middle[k] + m;
        var[k] = v < 0.0 ? 0.0 : v;
    }
}

/* Planes from the `first` on as far as sixteen go together; returns which come next. */
static int64_t small_planes(const sa_layer *layer, int64_t frame, int64_t first, int64_t last, int apply) {
    int64_t n = layer->positions, row = layer->rows ? layer->rows[frame] : 0;
    const float *scale = layer->scale + row * layer->row_stride;
    const float *shift = layer->shift + row * layer->row_stride;
    for (; first + 16 <= last; first += 16) {
        int64_t at = (frame * layer->channels + first) * n;
        const float *x = (const float *)layer->x + at;
        double *mean = layer->mean + frame * layer->frame_stride + first;
        double *var = layer->var + frame * layer->frame_stride + first;
        if (!apply) {
            sixteen_planes(x, NULL, NULL, n, NULL, NULL, 0, 0, mean, var, 0, 0);
            continue;
        }
        float *y = (float *)layer->y + at;
        const float *residual = layer->residual ? (const float *)layer->residual + at : NULL;
        const float *a = scale + first, *b = shift + first;
        if (residual)
            sixteen_planes(x, y, residual, n, a, b, layer->low, layer->high, mean, var, 1, 1);
        else
            sixteen_planes(x, y, NULL, n, a, b, layer->low, layer->high, mean, var, 1, 0);
    }
    return first;
}
#endif
