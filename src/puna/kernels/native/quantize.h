// Four bits a weight on the processor: what quant/int4.py does with one group of 32 after the other, and its twin.
#pragma once
#include <cfloat>
#include "simd.h"

struct Halves {
    __m512 a, b;
};

inline Halves times(Halves x, float factor) {
    const __m512 f = _mm512_set1_ps(factor);
    return {_mm512_mul_ps(x.a, f), _mm512_mul_ps(x.b, f)};
}

inline float dot(Halves x, Halves y) { return _mm512_reduce_add_ps(_mm512_fmadd_ps(x.b, y.b, _mm512_mul_ps(x.a, y.a))); }

inline float round_bf16(float x) { return from_bf16(to_bf16(x)); }

inline float reciprocal(float x) { return std::copysign(1.0f / std::max(std::fabs(x), FLT_MIN), x); }  // finite at 0

// The codes -8..7 that come nearest to the numbers under a scale, given as its reciprocal.
inline Halves codes_of(Halves x, float inverse) {
    const __m512 low = _mm512_set1_ps(-8), high = _mm512_set1_ps(7);
    const auto code = [&](__m512 y) { return _mm512_min_ps(_mm512_max_ps(_mm512_roundscale_ps(y, 0), low), high); };
    const Halves y = times(x, inverse);
    return {code(y.a), code(y.b)};
}

inline float squared_error(Halves x, float scale) {
    const Halves y = times(codes_of(x, reciprocal(scale)), scale);
    const Halves off = {_mm512_sub_ps(y.a, x.a), _mm512_sub_ps(y.b, x.b)};
    return dot(off, off);
}

// Quantises one group of finite numbers: 16 bytes of codes, and the scale.
inline void quantize_group(Halves x, const float* reaches, int n_reaches, uint8_t* codes, bf16* scale) {
    const float lowest = std::min(_mm512_reduce_min_ps(x.a), _mm512_reduce_min_ps(x.b));
    const float highest = std::max(_mm512_reduce_max_ps(x.a), _mm512_reduce_max_ps(x.b));
    const float extreme = highest > -lowest ? highest : lowest;  // of equals the negative one
    const Halves unit = times(x, reciprocal(extreme));
    const auto rounded = [&](float s) { return round_bf16(s * extreme) * reciprocal(extreme); };
    float best = -1.0f / 8, best_gain = -1;
    for (int i = 0; i < n_reaches; ++i) {
        const Halves q = codes_of(unit, -reaches[i]);
        const float along = dot(q, unit), fit = along / std::max(dot(q, q), FLT_MIN);
        if (along * fit > best_gain) {
            best_gain = along * fit;
            best = fit;
        }
    }
    best = rounded(best);
    const Halves q = codes_of(unit, reciprocal(best));
    best = rounded(dot(q, unit) / std::max(dot(q, q), FLT_MIN));
    for (const float rule : {-1.0f / 8, 1.0f / 8})
        if (squared_error(unit, rounded(rule)) < squared_error(unit, best)) best = rounded(rule);
    *scale = to_bf16(best * extreme);
    const Halves chosen = codes_of(x, reciprocal(from_bf16(*scale)));
    alignas(64) int32_t nibbles[32];
    const __m512i offset = _mm512_set1_epi32(8);
    _mm512_store_si512(nibbles, _mm512_add_epi32(_mm512_cvtps_epi32(chosen.a), offset));
    _mm512_store_si512(nibbles + LANES, _mm512_add_epi32(_mm512_cvtps_epi32(chosen.b), offset));
    for (int i = 0; i < 16; ++i) codes[i] = (uint8_t)(nibbles[2 * i] | nibbles[2 * i + 1] << 4);
}
