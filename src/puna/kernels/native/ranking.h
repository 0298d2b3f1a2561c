// The greatest number of a row, and where the greatest allowed one is.
#pragma once
#include <algorithm>
#include <limits>
#include "simd.h"

// Returns the greatest of x [n]. *place: the first place of the greatest of x + bar. NaN counts as the greatest.
inline float greatest(const float* x, const float* bar, int64_t n, int64_t* place) {
    constexpr float LEAST = -std::numeric_limits<float>::infinity();
    __m512 peak = _mm512_set1_ps(LEAST), best = peak;
    __m512i where = _mm512_setzero_si512(), here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 is_nan = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_below(n, i);
        __m512 part = _mm512_mask_loadu_ps(_mm512_set1_ps(LEAST), mask, x + i);
        is_nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
        peak = _mm512_max_ps(peak, part);
        if (bar) part = _mm512_mask_add_ps(part, mask, part, _mm512_maskz_loadu_ps(mask, bar + i));
        const __mmask16 is_better = _mm512_cmp_ps_mask(part, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, is_better, part);
        where = _mm512_mask_mov_epi32(where, is_better, here);
        here = _mm512_add_epi32(here, _mm512_set1_epi32(LANES));
    }
    const __mmask16 is_best = _mm512_cmp_ps_mask(best, _mm512_set1_ps(_mm512_reduce_max_ps(best)), _CMP_EQ_OQ);
    *place = _mm512_mask_reduce_min_epu32(is_best, where);
    if (!is_nan) return _mm512_reduce_max_ps(peak);
    *place = std::find_if(x, x + n, [](float each) { return std::isnan(each); }) - x;
    return x[*place];
}
