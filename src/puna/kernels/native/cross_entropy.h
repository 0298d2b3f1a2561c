// Cross entropy of one row of logits and its gradient, while the row is in the cache.
#pragma once
#include <algorithm>
#include <cmath>
#include "simd.h"

// Returns -log softmax(logits)[target] of n numbers, in whose place it leaves its gradient times weight, rounded. All of
// it is NaN where one of them is not finite.
inline float cross_entropy(bf16* logits, int64_t n, int64_t target, float weight) {
    const auto load = [&](int64_t i) {
        const __mmask16 mask = lanes_below(n, i);
        return _mm512_mask_blend_ps(mask, _mm512_set1_ps(-INFINITY), from_bf16(_mm256_maskz_loadu_epi16(mask, logits + i)));
    };
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    __mmask16 strange = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        const __m512 x = load(i);
        strange |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        most = _mm512_max_ps(most, x);
    }
    const float top = _mm512_reduce_max_ps(most);
    if (strange || !std::isfinite(top)) {
        std::fill_n(logits, n, to_bf16(NAN));
        return NAN;
    }
    for (int64_t i = 0; i < n; i += LANES) sum = _mm512_add_ps(sum, exp(_mm512_sub_ps(load(i), _mm512_set1_ps(top))));
    const float normaliser = top + std::log(_mm512_reduce_add_ps(sum)), of_target = from_bf16(logits[target]);
    for (int64_t i = 0; i < n; i += LANES) {
        const __m512 share = exp(_mm512_sub_ps(load(i), _mm512_set1_ps(normaliser)));
        _mm256_mask_storeu_epi16(logits + i, lanes_below(n, i), to_bf16(_mm512_mul_ps(share, _mm512_set1_ps(weight))));
    }
    logits[target] = to_bf16((std::exp(of_target - normaliser) - 1) * weight);
    return normaliser - of_target;
}
