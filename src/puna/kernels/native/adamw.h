// AdamW in one pass over memory: gradient in, masters, moments and rounded parameters out.
#pragma once
#include "simd.h"

constexpr int64_t PIECE = 1 << 15;  // numbers that one thread takes at a time

struct AdamW {
    float scale;                // of gradients
    float beta1, beta2, eps;
    float kept;                 // share of a master that weight decay leaves
    float rate;                 // learning rate over 1 - beta1^t
    float correction;           // square root of 1 - beta2^t
};

inline __m512 load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
inline __m512 load(const bf16* x, __mmask16 mask) { return from_bf16(_mm256_maskz_loadu_epi16(mask, x)); }
inline void store(float* to, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(to, mask, x); }
inline void store(bf16* to, __mmask16 mask, __m512 x) { _mm256_mask_storeu_epi16(to, mask, to_bf16(x)); }

template <class Number> inline float squares(const Number* x, int64_t n) {
    __m512 sums[4] = {};
    for (int64_t i = 0; i < n; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) {
            const __m512 part = load(x + i + j * LANES, lanes_below(n, i + j * LANES));
            sums[j] = _mm512_fmadd_ps(part, part, sums[j]);
        }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// n numbers; masters and moments float32.
template <class Number>
void update(const AdamW& step, const Number* gradient, Number* rounded, int64_t n, float* master, float* first, float* second) {
    const auto all = [](float x) { return _mm512_set1_ps(x); };
    const __m512 scale = all(step.scale), new1 = all(1 - step.beta1), beta2 = all(step.beta2), new2 = all(1 - step.beta2);
    const __m512 eps = all(step.eps), kept = all(step.kept), rate = all(step.rate), inverse = all(1 / step.correction);
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_below(n, i);
        const __m512 g = _mm512_mul_ps(load(gradient + i, mask), scale);
        __m512 m = load(first + i, mask), v = load(second + i, mask);
        m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), new1, m);
        v = _mm512_fmadd_ps(v, beta2, _mm512_mul_ps(_mm512_mul_ps(g, g), new2));
        const __m512 root = _mm512_fmadd_ps(_mm512_sqrt_ps(v), inverse, eps);
        const __m512 w = _mm512_fnmadd_ps(rate, _mm512_div_ps(m, root), _mm512_mul_ps(load(master + i, mask), kept));
        store(first + i, mask, m);
        store(second + i, mask, v);
        store(master + i, mask, w);
        store(rounded + i, mask, w);
    }
}
