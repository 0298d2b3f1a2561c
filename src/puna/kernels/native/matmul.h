// Matrix products with weights that are packed once in the order in which they are read.
//
// A weight [out in] is cut into blocks of 16 outputs. Within a block the 16 outputs of one step along `in` lie side by
// side, one in each lane of a register, so a sum runs along `in` in one lane: no lanes are ever added up, and a row's
// result does not depend, bit for bit, on how many other rows there are.
//
// What a row of activations must look like for a weight is its `record`: float32, bfloat16, or (for all integer kinds)
// int8 in groups of 32, each with a float32 scale and the sum of its integers.
#pragma once
#include <algorithm>
#include <vector>
#include "simd.h"

enum Kind : int32_t { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3, INT6 = 4 };
enum Mode : int32_t { SET = 0, ADD = 1 };  // what a product does with what is there

constexpr int GROUP = 32;         // inputs that share a scale; `in` is filled up with zeros to a multiple of it, of floats of 16
constexpr int AHEAD = 3072;        // bytes that are asked for before they are needed, where few rows wait for memory
constexpr int PANEL = 4;          // blocks of 16 outputs that are worked on together
constexpr int MOST_ROWS = 6;      // rows of a tile of floats: 6 x 4 sums, 4 weights and 1 activation fill the registers
constexpr int MOST_INT_ROWS = 8;  // rows of a tile of integers, over one block
constexpr int64_t INT6_CODES = GROUP * LANES * 6 / 8;  // as for four bits, and then two lines of upper bits
constexpr int64_t INT4_CODES = GROUP * LANES / 2;  // bytes of one group of a block
constexpr int64_t INT4_PAIR = 2 * INT4_CODES + 2 * LANES * 2;  // two groups' codes and then their scales: one stream
constexpr int64_t IN_BLOCK = 2048;  // inputs of a float panel at once: 64 x 2048 x 2 bytes stay in the second cache

struct Matrix {
    const uint8_t* data;    // nullptr where a layer has no such matrix
    int64_t expert_bytes;   // from one expert to the next
    int32_t kind, n_out, n_in, n_experts;
};

// Inputs that a packed weight and a record have, the zeros at the end included.
inline int64_t filled(int32_t kind, int64_t n_in) { return padded(n_in, kind == FP32 || kind == BF16 ? LANES : GROUP); }

inline int64_t block_bytes(int32_t kind, int64_t n_in) {
    const int64_t in = filled(kind, n_in);
    switch (kind) {
        case FP32: return in * LANES * 4;
        case BF16: return in * LANES * 2;
        case INT8: return in * LANES + LANES * 4;
        case INT6: return in / GROUP * INT6_CODES + LANES * 4;
        default: return padded(in, 2 * GROUP) / (2 * GROUP) * INT4_PAIR;
    }
}

inline int64_t matrix_bytes(int32_t kind, int64_t n_out, int64_t n_in) {
    return padded(n_out, LANES) / LANES * block_bytes(kind, n_in);
}

inline int64_t record_bytes(int32_t kind, int64_t n_in) {
    const int64_t in = filled(kind, n_in);
    switch (kind) {
        case FP32: return in * 4;
        case BF16: return padded(in * 2, 64);
        default: return padded(in + in / GROUP * 8, 64);
    }
}

// Writes the record of a row of `n` numbers, each times `factor`.
inline void make_record(int32_t kind, const float* row, int64_t n, float factor, uint8_t* record) {
    const int64_t in = filled(kind, n);
    const __m512 f = _mm512_set1_ps(factor);
    if (kind == FP32 || kind == BF16) {
        for (int64_t i = 0; i < in; i += LANES) {
            const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes_below(n, i), row + i), f);
            if (kind == FP32) _mm512_storeu_ps((float*)record + i, x);
            else _mm256_storeu_si256((__m256i*)((bf16*)record + i), to_bf16(x));
        }
        return;
    }
    int8_t* codes = (int8_t*)record;
    float* scales = (float*)(record + in);
    int32_t* sums = (int32_t*)(scales + in / GROUP);
    const __m512 sign = _mm512_set1_ps(-0.0f);
    for (int64_t g = 0; g < in / GROUP; ++g) {
        const int64_t i = g * GROUP;
        const __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes_below(n, i), row + i), f);
        const __m512 b = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes_below(n, i + LANES), row + i + LANES), f);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_andnot_ps(sign, a), _mm512_andnot_ps(sign, b)));
        const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
        const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
        const __m512i qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        _mm_storeu_si128((__m128i*)(codes + i), _mm512_cvtsepi32_epi8(qa));
        _mm_storeu_si128((__m128i*)(codes + i + LANES), _mm512_cvtsepi32_epi8(qb));
        scales[g] = most / 127.0f;
        sums[g] = _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
    }
}

// Rows of bytes or floats that one thread or all of them fill; kept between calls.
template <class T> struct Rows {
    std::vector<T, std::allocator<T>> memory;
    T* first = nullptr;
    int64_t stride = 0;

    void shape(int64_t n, int64_t width) {
        const int64_t unit = 64 / sizeof(T);
        stride = padded(width, unit);
        if ((int64_t)memory.size() < n * stride + unit) memory.resize(n * stride + unit);
        first = (T*)padded((int64_t)memory.data(), 64);
    }
    T* operator[](int64_t i) const { return first + i * stride; }
};

// Tiles ---------------------------------------------------------------------------------------------------------------
// rows: the records of the tile's rows. out: where each row's first output of the tile goes. mask: lanes of the last
// block that exist.

template <int MODE> inline void put(float* out, __mmask16 mask, __m512 sum) {
    if (MODE == ADD) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
    _mm512_mask_storeu_ps(out, mask, sum);
}

// Floats: inputs `from` to `to` of NB neighbouring blocks.
template <int KIND, int MODE, int MR, int NB>
void float_tile(const uint8_t* const* rows, const uint8_t* block, int64_t bytes, int64_t from, int64_t to,
                float* const* out, __mmask16 mask) {
    constexpr int WIDTH = KIND == BF16 ? 2 : 1;  // inputs of one step
    __m512 sums[MR][NB];
    for (int m = 0; m < MR; ++m)
        for (int j = 0; j < NB; ++j) sums[m][j] = _mm512_setzero_ps();
    const uint8_t* a[MR];
    for (int m = 0; m < MR; ++m) a[m] = rows[m];
    for (int64_t i = from / WIDTH; i < to / WIDTH; ++i) {
        __m512i w[NB];
        for (int j = 0; j < NB; ++j) {
            w[j] = _mm512_load_si512(block + j * bytes + i * 64);
            if (MR <= 2) _mm_prefetch(block + j * bytes + i * 64 + AHEAD, _MM_HINT_T0);
        }
        for (int m = 0; m < MR; ++m) {
            const __m512i x = broadcast_pair(a[m] + i * 4);
            for (int j = 0; j < NB; ++j) {
                if (KIND == BF16) sums[m][j] = dot_bf16(sums[m][j], w[j], x);
                else sums[m][j] = _mm512_fmadd_ps(_mm512_castsi512_ps(w[j]), _mm512_castsi512_ps(x), sums[m][j]);
            }
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int j = 0; j < NB; ++j) put<MODE>(out[m] + j * LANES, j == NB - 1 ? mask : (__mmask16)0xffff, sums[m][j]);
}

constexpr int STEPS = GROUP / 4;  // of four inputs; two of them share their bytes where a code has four bits

// The codes, without sign, of one group of a block: a register for each step.
template <int KIND> inline void load_codes(const uint8_t* codes, __m512i (&w)[STEPS]) {
    if (KIND == INT8) {
        for (int i = 0; i < STEPS; ++i) w[i] = _mm512_load_si512(codes + i * 64);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < STEPS / 2; ++i) {
        const __m512i both = _mm512_load_si512(codes + i * 64);
        w[2 * i] = _mm512_and_si512(both, low);
        w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    if (KIND != INT6) return;
    const __m512i high = _mm512_set1_epi8(0x30);  // a line has the two upper bits of four steps
    for (int i = 0; i < STEPS; i += 4) {
        const __m512i upper = _mm512_load_si512(codes + INT4_CODES + i / 4 * 64);
        const __m512i shifted[] = {_mm512_slli_epi16(upper, 4), _mm512_slli_epi16(upper, 2), upper, _mm512_srli_epi16(upper, 2)};
        for (int j = 0; j < 4; ++j) w[i + j] = _mm512_ternarylogic_epi32(w[i + j], shifted[j], high, 0xf8);  // a | b & c
    }
}

// Integers: one block, all inputs. The codes of a weight are stored without sign; what their offset adds is taken away
// by way of the record's sums.
template <int KIND, int MODE, int MR>
void int_tile(const uint8_t* const* rows, const uint8_t* block, int64_t in, float* const* out, __mmask16 mask) {
    constexpr int LINES = KIND == INT4 ? 5 : KIND == INT6 ? 6 : 8;
    constexpr int OFFSET = KIND == INT4 ? 8 : KIND == INT6 ? 32 : 128;
    constexpr int64_t EACH = KIND == INT6 ? INT6_CODES : GROUP * LANES;
    const int64_t n_groups = in / GROUP;
    __m512 sums[MR];
    for (int m = 0; m < MR; ++m) sums[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < n_groups; ++g) {
        const uint8_t* pair = block + g / 2 * INT4_PAIR;
        const uint8_t* codes = KIND == INT4 ? pair + g % 2 * INT4_CODES : block + g * EACH;
        for (int i = 0; MR <= 4 && i < LINES; ++i) _mm_prefetch(codes + i * 64 + AHEAD, _MM_HINT_T0);
        __m512i w[STEPS];
        load_codes<KIND>(codes, w);
        __m512 scale = _mm512_setzero_ps();
        if (KIND == INT4) scale = from_bf16(_mm256_load_si256((const __m256i*)(pair + 2 * INT4_CODES + g % 2 * LANES * 2)));
        for (int m = 0; m < MR; ++m) {
            const uint8_t* x = rows[m] + g * GROUP;
            const float* x_scales = (const float*)(rows[m] + in);
            const int32_t* x_sums = (const int32_t*)(x_scales + n_groups);
            __m512i even = _mm512_set1_epi32(-OFFSET * x_sums[g]);
            __m512i odd = _mm512_setzero_si512();
            for (int i = 0; i < STEPS; i += 2) {
                even = _mm512_dpbusd_epi32(even, w[i], broadcast_pair(x + 4 * i));
                odd = _mm512_dpbusd_epi32(odd, w[i + 1], broadcast_pair(x + 4 * i + 4));
            }
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
            __m512 factor = _mm512_set1_ps(x_scales[g]);
            if (KIND == INT4) factor = _mm512_mul_ps(scale, factor);
            sums[m] = _mm512_fmadd_ps(sum, factor, sums[m]);
        }
    }
    for (int m = 0; m < MR; ++m) {
        if (KIND != INT4) sums[m] = _mm512_mul_ps(sums[m], _mm512_load_ps((const float*)(block + n_groups * EACH)));
        put<MODE>(out[m], mask, sums[m]);
    }
}

template <int KIND, int MODE, int NB>
void float_rows(int n, const uint8_t* const* rows, const uint8_t* block, int64_t bytes, int64_t from, int64_t to,
                float* const* out, __mmask16 mask) {
    switch (n) {
        case 1: return float_tile<KIND, MODE, 1, NB>(rows, block, bytes, from, to, out, mask);
        case 2: return float_tile<KIND, MODE, 2, NB>(rows, block, bytes, from, to, out, mask);
        case 3: return float_tile<KIND, MODE, 3, NB>(rows, block, bytes, from, to, out, mask);
        case 4: return float_tile<KIND, MODE, 4, NB>(rows, block, bytes, from, to, out, mask);
        case 5: return float_tile<KIND, MODE, 5, NB>(rows, block, bytes, from, to, out, mask);
        default: return float_tile<KIND, MODE, 6, NB>(rows, block, bytes, from, to, out, mask);
    }
}

template <int KIND, int MODE>
void int_rows(int n, const uint8_t* const* rows, const uint8_t* block, int64_t in, float* const* out, __mmask16 mask) {
    switch (n) {
        case 1: return int_tile<KIND, MODE, 1>(rows, block, in, out, mask);
        case 2: return int_tile<KIND, MODE, 2>(rows, block, in, out, mask);
        case 3: return int_tile<KIND, MODE, 3>(rows, block, in, out, mask);
        case 4: return int_tile<KIND, MODE, 4>(rows, block, in, out, mask);
        case 5: return int_tile<KIND, MODE, 5>(rows, block, in, out, mask);
        case 6: return int_tile<KIND, MODE, 6>(rows, block, in, out, mask);
        case 7: return int_tile<KIND, MODE, 7>(rows, block, in, out, mask);
        default: return int_tile<KIND, MODE, 8>(rows, block, in, out, mask);
    }
}

inline int64_t n_panels(const Matrix& w) { return (w.n_out + PANEL * LANES - 1) / (PANEL * LANES); }

template <int KIND, int MODE>
void float_panel(const Matrix& w, const uint8_t* first, int64_t column, int64_t n_rows, const uint8_t* const* rows,
                 float* const* out) {
    const int64_t bytes = block_bytes(KIND, w.n_in), in = filled(KIND, w.n_in);
    const int n_blocks = (int)std::min<int64_t>(PANEL, (w.n_out - column + LANES - 1) / LANES);
    float* at[MOST_ROWS];
    for (int64_t from = 0; from < in; from += IN_BLOCK) {
        const int64_t to = std::min(in, from + IN_BLOCK);
        for (int64_t m = 0; m < n_rows; m += MOST_ROWS) {
            const int n = (int)std::min<int64_t>(MOST_ROWS, n_rows - m);
            for (int i = 0; i < n; ++i) at[i] = out[m + i] + column;
            if (n_blocks == PANEL) {
                const __mmask16 mask = lanes_below(w.n_out, column + (PANEL - 1) * LANES);
                if (from == 0) float_rows<KIND, MODE, PANEL>(n, rows + m, first, bytes, from, to, at, mask);
                else float_rows<KIND, ADD, PANEL>(n, rows + m, first, bytes, from, to, at, mask);
                continue;
            }
            for (int j = 0; j < n_blocks; ++j) {
                const __mmask16 mask = lanes_below(w.n_out, column + j * LANES);
                const uint8_t* block = first + j * bytes;
                if (from == 0) float_rows<KIND, MODE, 1>(n, rows + m, block, bytes, from, to, at, mask);
                else float_rows<KIND, ADD, 1>(n, rows + m, block, bytes, from, to, at, mask);
                for (int i = 0; i < n; ++i) at[i] += LANES;
            }
        }
    }
}

template <int KIND, int MODE>
void int_panel(const Matrix& w, const uint8_t* first, int64_t column, int64_t n_rows, const uint8_t* const* rows,
               float* const* out) {
    const int64_t bytes = block_bytes(KIND, w.n_in), in = padded(w.n_in, GROUP);
    float* at[MOST_INT_ROWS];
    for (int j = 0; j < PANEL && column + j * LANES < w.n_out; ++j) {
        const __mmask16 mask = lanes_below(w.n_out, column + j * LANES);
        for (int64_t m = 0; m < n_rows; m += MOST_INT_ROWS) {
            const int n = (int)std::min<int64_t>(MOST_INT_ROWS, n_rows - m);
            for (int i = 0; i < n; ++i) at[i] = out[m + i] + column + j * LANES;
            int_rows<KIND, MODE>(n, rows + m, first + j * bytes, in, at, mask);
        }
    }
}

// out[i][c] = or += records i times the weight of `expert`, for the outputs c of one panel. rows and out: one pointer a
// row, so that rows need not be neighbours.
template <int MODE>
void panel(const Matrix& w, int64_t expert, int64_t number, int64_t n_rows, const uint8_t* const* rows,
           float* const* out) {
    const int64_t column = number * PANEL * LANES;
    const uint8_t* first = w.data + expert * w.expert_bytes + number * PANEL * block_bytes(w.kind, w.n_in);
    switch (w.kind) {
        case FP32: return float_panel<FP32, MODE>(w, first, column, n_rows, rows, out);
        case BF16: return float_panel<BF16, MODE>(w, first, column, n_rows, rows, out);
        case INT8: return int_panel<INT8, MODE>(w, first, column, n_rows, rows, out);
        case INT6: return int_panel<INT6, MODE>(w, first, column, n_rows, rows, out);
        default: return int_panel<INT4, MODE>(w, first, column, n_rows, rows, out);
    }
}

// Packing -------------------------------------------------------------------------------------------------------------

// source: for FP32 float, BF16 bfloat16, INT8 and INT6 signed codes in bytes, each [out in]; for INT4 nibbles [out in/2],
// low one first. scales: INT8 and INT6 float32 [out], INT4 bfloat16 [out in/32]. Fills block number `block` of `target`.
inline void pack_block(int32_t kind, const uint8_t* source, const uint8_t* scales, int64_t n_out, int64_t n_in,
                       int64_t block, uint8_t* target) {
    const int64_t in = filled(kind, n_in), bytes = block_bytes(kind, n_in);
    uint8_t* out = target + block * bytes;
    std::memset(out, 0, bytes);
    if (kind == INT8) std::memset(out, 128, in * LANES);
    for (int64_t g = 0; kind == INT6 && g < in / GROUP; ++g)
        std::memset(out + g * INT6_CODES + INT4_CODES, 0xaa, INT6_CODES - INT4_CODES);  // the upper bits of 0 and its offset
    for (int64_t pair = 0; kind == INT4 && pair < bytes; pair += INT4_PAIR) std::memset(out + pair, 0x88, 2 * INT4_CODES);
    for (int64_t lane = 0; lane < LANES && block * LANES + lane < n_out; ++lane) {
        const int64_t row = block * LANES + lane;
        if (kind == FP32) {
            const uint32_t* from = (const uint32_t*)source + row * n_in;
            for (int64_t i = 0; i < n_in; ++i) ((uint32_t*)out)[i * LANES + lane] = from[i];
        } else if (kind == BF16) {
            const bf16* from = (const bf16*)source + row * n_in;
            for (int64_t i = 0; i < n_in; ++i) ((bf16*)out)[(i / 2 * LANES + lane) * 2 + i % 2] = from[i];
        } else if (kind == INT8) {
            const uint8_t* from = source + row * n_in;
            for (int64_t i = 0; i < n_in; ++i) out[(i / 4 * LANES + lane) * 4 + i % 4] = from[i] + 128;
            ((float*)(out + in * LANES))[lane] = ((const float*)scales)[row];
        } else if (kind == INT6) {
            const int8_t* from = (const int8_t*)source + row * n_in;
            for (int64_t i = 0; i < n_in; ++i) {
                const int64_t step = i % GROUP / 4, place = lane * 4 + i % 4;
                uint8_t* codes = out + i / GROUP * INT6_CODES;
                uint8_t& upper = codes[INT4_CODES + step / 4 * 64 + place];
                const int code = from[i] + 32, shift = step % 4 * 2;
                codes[step / 2 * 64 + place] |= (uint8_t)((code & 15) << step % 2 * 4);
                upper = (uint8_t)((upper & ~(3 << shift)) | (code >> 4) << shift);
            }
            ((float*)(out + in / GROUP * INT6_CODES))[lane] = ((const float*)scales)[row];
        } else {
            const uint8_t* from = source + row * (n_in / 2);
            const bf16* from_scales = (const bf16*)scales + row * (n_in / GROUP);
            for (int64_t g = 0; g < n_in / GROUP; ++g) {
                uint8_t* pair = out + g / 2 * INT4_PAIR;
                uint8_t* codes = pair + g % 2 * INT4_CODES;
                for (int64_t i = 0; i < GROUP; i += 8) {  // steps of four inputs; two of them share their bytes
                    const uint8_t* eight = from + (g * GROUP + i) / 2;
                    uint8_t* place = codes + (i / 8 * LANES + lane) * 4;
                    for (int j = 0; j < 4; ++j) {
                        const uint8_t first = eight[j / 2] >> j % 2 * 4 & 15, second = eight[2 + j / 2] >> j % 2 * 4 & 15;
                        place[j] = (uint8_t)(first | second << 4);
                    }
                }
                ((bf16*)(pair + 2 * INT4_CODES))[g % 2 * LANES + lane] = from_scales[g];
            }
        }
    }
}
