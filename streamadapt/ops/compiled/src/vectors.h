/* Vectors of 16 floats, which the compiler splits into what the processor has. */

#ifndef STREAMADAPT_VECTORS_H
#define STREAMADAPT_VECTORS_H

#include "kernels.h"

#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define JOINED(a, b) a##_##b
#define NAMED(a, b) JOINED(a, b)
#define QUOTED(a) #a
#define TEXT(a) QUOTED(a)
#define INLINE static inline __attribute__((always_inline))

typedef float f16 __attribute__((vector_size(64)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));
typedef float f16_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef float f8_any __attribute__((vector_size(32), aligned(4), may_alias));

INLINE f16 load(const float *p) { return *(const f16_any *)p; }
INLINE void store(float *p, f16 v) { *(f16_any *)p = v; }
INLINE f8 load8(const float *p) { return *(const f8_any *)p; }
INLINE void store8(float *p, f8 v) { *(f8_any *)p = v; }

INLINE f16 spread(float value) {
    f16 zero = {0};
    return zero + value;
}

INLINE f8 spread8(float value) {
    f8 zero = {0};
    return zero + value;
}

INLINE d8 folded(f16 x) {
    f8 low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (char *)&x + sizeof low, sizeof high);
    return __builtin_convertvector(low, d8) + __builtin_convertvector(high, d8);
}

INLINE double total_of(d8 x) {
    double p[8];
    memcpy(p, &x, sizeof p);
    return ((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7]));
}

/* By halves, so that sixteen equal values have exactly that mean. */
INLINE float mean_of(f16 x) {
    f8 low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (char *)&x + sizeof low, sizeof high);
    low += high;
    f4 a, b;
    memcpy(&a, &low, sizeof a);
    memcpy(&b, (char *)&low + sizeof a, sizeof b);
    a += b;
    return ((a[0] + a[2]) + (a[1] + a[3])) * (1.0f / 16.0f);
}

INLINE f16 choose(i16 where, f16 one, f16 other) {
    return (f16)(((i16)one & where) | ((i16)other & ~where));
}

/* NaN stays NaN. */
INLINE f16 clamped(f16 y, f16 low, f16 high) {
#ifdef __AVX512F__ /* of two of which one is NaN, or which are both zero, these take the second */
    return (f16)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)y));
#else
    y = choose(y < low, low, y);
    return choose(y > high, high, y);
#endif
}

INLINE f8 clamped8(f8 y, f8 low, f8 high) {
    i8 under = y < low;
    y = (f8)(((i8)low & under) | ((i8)y & ~under));
    i8 over = y > high;
    return (f8)(((i8)high & over) | ((i8)y & ~over));
}

INLINE float clamped1(float y, float low, float high) {
    y = y < low ? low : y;
    return y > high ? high : y;
}

/* log, to about 2 ulp; of positive normal numbers. Cephes' polynomial. */
INLINE f16 log16(f16 x) {
    i16 bits = (i16)x;
    i16 exponent = ((bits >> 23) & 0xff) - 126;
    f16 m = (f16)((bits & 0x807fffff) | 0x3f000000);
    i16 small = m < 0.70710678118654752440f;
    m = choose(small, m + m, m) - 1.0f;
    f16 e = __builtin_convertvector(exponent + small, f16);
    f16 z = m * m;
    f16 y = spread(7.0376836292e-2f);
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z;
    y += e * -2.12194440e-4f - 0.5f * z;
    return m + y + e * 0.693359375f;
}

#endif
