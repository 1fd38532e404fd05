// Sixteen numbers at a time, in the vector types of GCC and Clang: any CPU runs them, one with AVX-512 runs them best.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Codes __attribute__((vector_size(16)));

constexpr int LANES = 16;

struct bf16 {
    uint16_t bits;
};

template <class Vector> static inline Vector load(const void *from) {
    Vector loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

static inline Floats all(float value) { return Floats{} + value; }

static inline Floats floats(const float *from) { return load<Floats>(from); }

// bf16 is the upper half of a float.
static inline Floats floats(const bf16 *from) {
#ifdef __AVX512F__  // GCC makes four instructions of the conversion
    return (Floats)((Bits)_mm512_cvtepu16_epi32((__m256i)load<Halves>(from)) << 16);
#else
    return (Floats)(__builtin_convertvector(load<Halves>(from), Bits) << 16);
#endif
}

static inline float number(float value) { return value; }

static inline float number(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline void keep(float *to, float value) { *to = value; }

// To the nearest; of two equally near ones to the even.
static inline void keep(bf16 *to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    to->bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Half onto half, because a loop over the lanes would wait for each addition.
static inline float sum(Floats values) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eights[2];
    Four fours[2];
    memcpy(eights, &values, sizeof eights);
    Eight eight = eights[0] + eights[1];
    memcpy(fours, &eight, sizeof fours);
    Four four = fours[0] + fours[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline int32_t sum(Ints values) {
    int32_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

static inline float largest(Floats values) {
    float found = values[0];
    for (int lane = 1; lane < LANES; ++lane) found = values[lane] > found ? values[lane] : found;
    return found;
}

static inline Floats absolute(Floats values) { return (Floats)((Bits)values & 0x7fffffffu); }

// The nearest integers, of numbers below 2^22: added to so large a float they have no bits behind the point.
static inline Ints rounded(Floats values) { return (Ints)(values + 12582912.0f) - (Ints)all(12582912.0f); }

// e^x = 2^n e^r, n an integer and r within half of ln 2, where a polynomial is exact to the last bits.
static inline Floats exponential(Floats x) {
    x = x > 88.0f ? all(88.0f) : x < -87.0f ? all(-87.0f) : x;
    Ints power = rounded(x * 1.44269504f);
    Floats whole = __builtin_convertvector(power, Floats), rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats series = all(1.0f / 5040);
    for (float divisor : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) series = series * rest + 1 / divisor;
    return (Floats)((Ints)series + (power << 23));
}

static inline Floats hyperbolic_tangent(Floats x) { return 1 - 2 / (exponential(2 * x) + 1); }

// `sum` plus, in every lane, the products of its four bytes of `weights` with the four signed bytes at `four`.
static inline Ints add_products(Ints sum, Bytes weights, const int8_t *four) {
#ifdef __AVX512VNNI__
    int32_t together;
    memcpy(&together, four, sizeof together);
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(together));
#else
    for (int lane = 0; lane < LANES; ++lane)
        for (int part = 0; part < 4; ++part) sum[lane] += weights[4 * lane + part] * four[part];
    return sum;
#endif
}
