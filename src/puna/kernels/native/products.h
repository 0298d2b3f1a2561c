// Products of bfloat16 matrices for training, where every operand comes in whatever order its own product left it.
//
// A sum runs along pairs: four bytes hold two numbers that are neighbours along it. Of the left operand one pair at a
// time goes to all lanes; of the right one the pairs of 64 columns lie side by side. So a weight [out in] can be read as
// it is, and only the activations, of which there are few, change their order. Sums are float32, from first to last.
#pragma once
#include <algorithm>
#include "simd.h"

constexpr int WIDE = 64;                    // columns that are worked on together: four registers
constexpr int64_t LINE = WIDE * 4;          // bytes of their pairs
constexpr int STEPS_OF_A_LINE = 16;         // pairs of a cache line

// Where the pairs of the left operand are: bytes from one row of the result to the next, and from pair to pair.
struct Left {
    const uint8_t* at;
    int64_t row, step;
};

template <int MR, int NB> struct Sums {
    __m512 of[MR][NB];
};

// Adds the products of n_steps pairs. right: a line for each step.
template <int MR, int NB>
[[gnu::always_inline]] inline void add_products(Sums<MR, NB>& sums, Left left, const uint8_t* right, int64_t n_steps) {
    for (int64_t i = 0; i < n_steps; ++i) {
        __m512i b[NB];
#pragma GCC unroll 4
        for (int j = 0; j < NB; ++j) b[j] = _mm512_loadu_si512(right + i * LINE + j * 64);
        const uint8_t* a = left.at + i * left.step;
        if (i % STEPS_OF_A_LINE == 0) {
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) _mm_prefetch(a + (MR + m) * left.row, _MM_HINT_T1);
        }
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const __m512i x = broadcast_pair(a + m * left.row);
#pragma GCC unroll 4
            for (int j = 0; j < NB; ++j) sums.of[m][j] = dot_bf16(sums.of[m][j], b[j], x);
        }
    }
}

// One operand of a sum that is in pieces: bytes from a piece to the next.
struct Pieces {
    int64_t n_steps, each;     // pairs in all, and of every piece but the last
    int64_t left, right;
};

template <int MR, int NB, class Put>
void rows_of_products(Left left, const uint8_t* right, const Pieces& pieces, int64_t row, Put&& put) {
    Sums<MR, NB> sums;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NB; ++j) sums.of[m][j] = _mm512_setzero_ps();
    left.at += row * left.row;
    for (int64_t done = 0; done < pieces.n_steps; done += pieces.each) {
        add_products(sums, left, right, std::min(pieces.each, pieces.n_steps - done));
        left.at += pieces.left;
        right += pieces.right;
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) put(row + m, sums.of[m]);
}

template <int NB, class Put>
void columns_of_products(int64_t n_rows, Left left, const uint8_t* right, const Pieces& pieces, Put&& put) {
    constexpr int MR = NB == 4 ? 6 : 8;  // with the pairs of both sides they fill the registers
    int64_t row = 0;
    for (; row + MR <= n_rows; row += MR) rows_of_products<MR, NB>(left, right, pieces, row, put);
    for (; row + 2 <= n_rows; row += 2) rows_of_products<2, NB>(left, right, pieces, row, put);
    if (row < n_rows) rows_of_products<1, NB>(left, right, pieces, row, put);
}

// Calls put(row, sums of up to 64 columns in n_vectors registers) for each row of the product.
template <class Put>
void product(int64_t n_rows, int n_vectors, Left left, const uint8_t* right, const Pieces& pieces, Put&& put) {
    switch (n_vectors) {
        case 1: return columns_of_products<1>(n_rows, left, right, pieces, put);
        case 2: return columns_of_products<2>(n_rows, left, right, pieces, put);
        case 3: return columns_of_products<3>(n_rows, left, right, pieces, put);
        default: return columns_of_products<4>(n_rows, left, right, pieces, put);
    }
}

template <class Put>
void product(int64_t n_rows, int n_vectors, Left left, const uint8_t* right, int64_t n_steps, Put&& put) {
    product(n_rows, n_vectors, left, right, Pieces{n_steps, n_steps, 0, 0}, put);
}

// What becomes of sums ------------------------------------------------------------------------------------------------

template <int NB> inline void put_bf16(uint8_t* at, const __m512 (&sums)[NB]) {
#pragma GCC unroll 4
    for (int j = 0; j < NB; ++j) _mm256_storeu_si256((__m256i*)at + j, to_bf16(sums[j]));
}

template <int NB> inline void put_float(float* at, const __m512 (&sums)[NB]) {
#pragma GCC unroll 4
    for (int j = 0; j < NB; ++j) _mm512_storeu_ps(at + j * LANES, sums[j]);
}

inline __m512 load_bf16(const uint8_t* at) { return from_bf16(_mm256_loadu_si256((const __m256i*)at)); }

// Orders ------------------------------------------------------------------------------------------------------------

// Exchanges rows and columns of 16 x 16 numbers of four bytes.
inline void exchange(__m512i (&x)[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

// Pairs along the rows of x [n_rows .. n_pairs], one below the other: line i of `lines` has pair i of up to 64 rows. Rows
// that do not exist, up to a full register, are zero. row: bytes from a row to the next.
inline void pairs_along_rows(const uint8_t* x, int64_t row, int64_t n_rows, int64_t n_pairs, uint8_t* lines) {
    for (int64_t first = 0; first < n_rows; first += 16)
        for (int64_t i = 0; i < n_pairs; i += 16) {
            __m512i block[16];
            for (int r = 0; r < 16; ++r)
                block[r] = _mm512_maskz_loadu_epi32(first + r < n_rows ? lanes_below(n_pairs, i) : 0,
                                                    x + (first + r) * row + i * 4);
            exchange(block);
            for (int j = 0; j < 16 && i + j < n_pairs; ++j)
                _mm512_storeu_si512(lines + (i + j) * LINE + first * 4, block[j]);
        }
}

// Two rows of 16 numbers as pairs.
inline __m512i paired(__m256i upper, __m256i lower) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(upper), _mm512_slli_epi32(_mm512_cvtepu16_epi32(lower), 16));
}

// Pairs across neighbouring rows of x [n_rows .. WIDE columns]: line i has rows 2i and 2i + 1. An odd row is paired with 0.
inline void pairs_across_rows(const uint8_t* x, int64_t row, int64_t n_rows, int64_t n_columns, uint8_t* lines) {
    for (int64_t r = 0; r < n_rows; r += 2) {
        const uint8_t *upper = x + r * row, *lower = upper + row;
        for (int64_t c = 0; c < n_columns; c += LANES) {
            const __m256i odd = r + 1 < n_rows ? _mm256_loadu_si256((const __m256i*)(lower + c * 2)) : _mm256_setzero_si256();
            const __m512i pairs = paired(_mm256_loadu_si256((const __m256i*)(upper + c * 2)), odd);
            _mm512_storeu_si512(lines + r / 2 * LINE + c * 4, pairs);
        }
    }
}

// x float32 [16 of WIDE .. n_rows columns] the other way round, rounded: rows [n_rows 16] of `out`, `row` bytes apart.
inline void round_columns(const float* x, int64_t n_rows, uint8_t* out, int64_t row) {
    for (int64_t first = 0; first < n_rows; first += 16) {
        __m512i block[16];
        for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(x + i * WIDE + first);
        exchange(block);
        for (int64_t r = first; r < std::min(n_rows, first + 16); ++r)
            _mm256_storeu_si256((__m256i*)(out + r * row), to_bf16(_mm512_castsi512_ps(block[r - first])));
    }
}
