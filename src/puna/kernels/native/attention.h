// Attention over keys and values in blocks: the same arithmetic for one query and for thousands.
//
// Keys are walked in tiles of 32 positions, counted from where the query's chunk (or text) begins. A tile of keys lies
// with the keys side by side in the lanes, a tile of values with the channels side by side, so that scores and mixed
// values are sums in one lane each. The softmax runs along (the largest score so far, and everything scaled by it). What
// a query gets depends only on its own tiles, bit for bit, whatever other queries are worked on with it.
//
// Storage of one block of 32 positions and one key head, H channels (in the memory of [32 H] numbers):
//   bfloat16, int8   keys [H/2][32][2], values [16][H][2]     float32   keys [H][32], values [32][H]
// Blocks of other lengths, and heads whose H is no multiple of 16, are stored as plain rows [len][H] and turned into
// such tiles when they are read: right for any model, fast for none.
// int8 numbers are multiplied with a float32 scale for each position and key head.
#pragma once
#include "simd.h"

constexpr int TILE = 32;
constexpr int MOST_QUERIES = 8;

enum Numbers : int32_t { KV_FP32 = 0, KV_BF16 = 1, KV_INT8 = 2 };

inline int64_t number_bytes(int32_t numbers) { return numbers == KV_FP32 ? 4 : numbers == KV_BF16 ? 2 : 1; }

// Keys and values of one layer.
struct Store {
    uint8_t* keys;        // [blocks][K][block_len][H]
    uint8_t* values;
    float* key_scales;    // [blocks][K][block_len], int8 only
    float* value_scales;
    int32_t numbers, n_kv_heads, block_len, head_dim;

    bool is_tiled() const { return block_len == TILE && head_dim % LANES == 0; }
    int64_t head_bytes() const { return (int64_t)block_len * head_dim * number_bytes(numbers); }
    int64_t at(int64_t block, int64_t head) const { return (block * n_kv_heads + head) * head_bytes(); }
    int64_t scale_at(int64_t block, int64_t head) const { return (block * n_kv_heads + head) * block_len; }
};

inline int8_t code_of(float x, float inverse) { return (int8_t)std::lrintf(x * inverse); }

// Where channel `h` of position `slot` lies, as a number of numbers from the start of its block and head.
inline int64_t key_place(const Store& s, int64_t slot, int64_t h) {
    if (!s.is_tiled()) return slot * s.head_dim + h;
    return s.numbers == KV_FP32 ? h * TILE + slot : (h / 2 * TILE + slot) * 2 + h % 2;
}

inline int64_t value_place(const Store& s, int64_t slot, int64_t h) {
    if (!s.is_tiled() || s.numbers == KV_FP32) return slot * s.head_dim + h;
    return (slot / 2 * s.head_dim + h) * 2 + slot % 2;
}

// Stores the key and the value (each H floats) of one position and head.
inline void write_position(const Store& s, int64_t block, int64_t head, int64_t slot, const float* key,
                           const float* value) {
    const int64_t H = s.head_dim, base = s.at(block, head);
    if (s.numbers == KV_FP32) {
        for (int64_t h = 0; h < H; ++h) {
            ((float*)(s.keys + base))[key_place(s, slot, h)] = key[h];
            ((float*)(s.values + base))[value_place(s, slot, h)] = value[h];
        }
        return;
    }
    if (s.numbers == KV_BF16 && !s.is_tiled()) {
        for (int64_t h = 0; h < H; ++h) {
            ((bf16*)(s.keys + base))[slot * H + h] = to_bf16(key[h]);
            ((bf16*)(s.values + base))[slot * H + h] = to_bf16(value[h]);
        }
        return;
    }
    if (s.numbers == KV_BF16) {
        const __m256i rows = _mm256_setr_epi32(0, TILE, 2 * TILE, 3 * TILE, 4 * TILE, 5 * TILE, 6 * TILE, 7 * TILE);
        const __m512i low = _mm512_set1_epi32(0xffff);
        for (int64_t h = 0; h < H; h += LANES) {
            const __m256i pairs = to_bf16(_mm512_loadu_ps(key + h));  // eight pairs of channels, a tile's row apart
            bf16* keys = (bf16*)(s.keys + base) + key_place(s, slot, h);
            _mm256_i32scatter_epi32(keys, rows, pairs, 4);
            // A value shares its four bytes with its neighbour's. The second of a pair must be a number, for it is
            // multiplied by 0 until it is written.
            __m512i* values = (__m512i*)((bf16*)(s.values + base) + value_place(s, slot / 2 * 2, h));
            const __m512i wide = _mm512_cvtepu16_epi32(to_bf16(_mm512_loadu_ps(value + h)));
            if (slot % 2 == 0) _mm512_storeu_si512(values, wide);
            else _mm512_storeu_si512(values, _mm512_or_si512(_mm512_and_si512(_mm512_loadu_si512(values), low),
                                                             _mm512_slli_epi32(wide, 16)));
        }
        return;
    }
    float most_key = 0, most_value = 0;
    for (int64_t h = 0; h < H; ++h) {
        most_key = std::max(most_key, std::fabs(key[h]));
        most_value = std::max(most_value, std::fabs(value[h]));
    }
    const int64_t scale = s.scale_at(block, head) + slot;
    s.key_scales[scale] = most_key / 127;
    s.value_scales[scale] = most_value / 127;
    const float key_inverse = most_key > 0 ? 127 / most_key : 0, value_inverse = most_value > 0 ? 127 / most_value : 0;
    for (int64_t h = 0; h < H; ++h) {
        ((int8_t*)s.keys + base)[key_place(s, slot, h)] = code_of(key[h], key_inverse);
        ((int8_t*)s.values + base)[value_place(s, slot, h)] = code_of(value[h], value_inverse);
    }
}

// Memory of one thread for the tiles that have to be made: channels filled up to a multiple of 16.
struct TileRoom {
    std::vector<uint8_t> keys, values;
    float key_scales[TILE], value_scales[TILE];
};

struct Tile {
    const uint8_t* keys;
    const uint8_t* values;
    const float* key_scales;
    const float* value_scales;
};

// Tile number `t` of the positions whose blocks are `blocks`; its first `n` positions have been written.
inline Tile tile_of(const Store& s, const int32_t* blocks, int64_t head, int64_t t, int64_t n, TileRoom& room) {
    if (s.is_tiled()) {
        const int64_t base = s.at(blocks[t], head), scale = s.scale_at(blocks[t], head);
        return {s.keys + base, s.values + base, s.key_scales + scale, s.value_scales + scale};
    }
    const int64_t H = s.head_dim, Hp = padded(H, LANES), width = number_bytes(s.numbers);
    room.keys.assign(TILE * Hp * width, 0);
    room.values.assign(TILE * Hp * width, 0);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t position = t * TILE + i, slot = position % s.block_len, block = blocks[position / s.block_len];
        const int64_t base = s.at(block, head);
        for (int64_t h = 0; h < H; ++h) {
            const int64_t from = base + (slot * H + h) * width;
            const bool pairs = s.numbers != KV_FP32;
            const int64_t key = pairs ? (h / 2 * TILE + i) * 2 + h % 2 : h * TILE + i;
            const int64_t value = pairs ? (i / 2 * Hp + h) * 2 + i % 2 : i * Hp + h;
            std::memcpy(room.keys.data() + key * width, s.keys + from, width);
            std::memcpy(room.values.data() + value * width, s.values + from, width);
        }
        if (s.numbers == KV_INT8) {
            room.key_scales[i] = s.key_scales[s.scale_at(block, head) + slot];
            room.value_scales[i] = s.value_scales[s.scale_at(block, head) + slot];
        }
    }
    return {room.keys.data(), room.values.data(), room.key_scales, room.value_scales};
}

// 16 steps of a tile in the form in which they are multiplied: float32 numbers or pairs of bfloat16.
template <int NUMBERS> inline __m512i step_at(const uint8_t* tile, int64_t number) {
    if (NUMBERS != KV_INT8) return _mm512_loadu_si512(tile + number * 64);
    const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(tile + number * 32)));
    const __m512 lower = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(words)));
    const __m512 upper = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(words, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(upper, lower);  // integers up to 127 are bfloat16 numbers
}

template <int NUMBERS> inline __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    if (NUMBERS == KV_FP32) return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    return dot_bf16(sum, a, b);
}

// M queries over the positions of `blocks`. query: each [H], float32 for KV_FP32 and bfloat16 otherwise, filled up with
// zeros to an even number. n_seen: how many positions each query sees, at least one. out: each [padded H] floats.
template <int NUMBERS, int M>
void attend(const Store& s, const int32_t* blocks, int64_t head, const uint8_t* const* query, const int64_t* n_seen,
            float* const* out, TileRoom& room) {
    constexpr int WIDTH = NUMBERS == KV_FP32 ? 1 : 2;
    const int64_t H = s.head_dim, n_parts = padded(H, LANES) / LANES;
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt((float)H));
    alignas(64) float weights[M][TILE];
    alignas(64) bf16 weight_pairs[M][TILE];
    float largest[M], total[M];
    int64_t most_seen = 0;
    for (int m = 0; m < M; ++m) {
        largest[m] = -1e30f;
        total[m] = 0;
        most_seen = std::max(most_seen, n_seen[m]);
        for (int64_t p = 0; p < n_parts; ++p) _mm512_storeu_ps(out[m] + p * LANES, _mm512_setzero_ps());
    }
    for (int64_t t = 0; t * TILE < most_seen; ++t) {
        const int64_t n_here = std::min<int64_t>(TILE, most_seen - t * TILE);
        const Tile tile = tile_of(s, blocks, head, t, n_here, room);
        const bool has_next = s.is_tiled() && (t + 1) * TILE < most_seen;  // what comes next is asked for in between
        const int64_t ahead = has_next ? s.at(blocks[t + 1], head) : 0, lines = s.head_bytes() / 64;
        __m512 sums[M][2];
        for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
        for (int64_t h = 0; h < H / WIDTH; ++h) {
            const __m512i left = step_at<NUMBERS>(tile.keys, 2 * h), right = step_at<NUMBERS>(tile.keys, 2 * h + 1);
            if (has_next && 2 * h < lines) {
                _mm_prefetch(s.keys + ahead + h * 128, _MM_HINT_T1);
                _mm_prefetch(s.keys + ahead + h * 128 + 64, _MM_HINT_T1);
                _mm_prefetch(s.values + ahead + h * 128, _MM_HINT_T1);
                _mm_prefetch(s.values + ahead + h * 128 + 64, _MM_HINT_T1);
            }
            for (int m = 0; m < M; ++m) {
                const __m512i q = broadcast_pair(query[m] + h * 4);
                sums[m][0] = multiply_add<NUMBERS>(sums[m][0], left, q);
                sums[m][1] = multiply_add<NUMBERS>(sums[m][1], right, q);
            }
        }
        for (int m = 0; m < M; ++m) {
            const int64_t seen = n_seen[m] - t * TILE;
            const __mmask16 seen_left = lanes_below(seen, 0), seen_right = lanes_below(seen, LANES);
            __m512 a = _mm512_mul_ps(sums[m][0], scale), b = _mm512_mul_ps(sums[m][1], scale);
            if (NUMBERS == KV_INT8) {
                a = _mm512_mul_ps(a, _mm512_loadu_ps(tile.key_scales));
                b = _mm512_mul_ps(b, _mm512_loadu_ps(tile.key_scales + LANES));
            }
            const __m512 lowest = _mm512_set1_ps(-1e30f);
            a = _mm512_mask_blend_ps(seen_left, lowest, a);
            b = _mm512_mask_blend_ps(seen_right, lowest, b);
            const float now = std::max(largest[m], _mm512_reduce_max_ps(_mm512_max_ps(a, b)));
            if (now > largest[m]) {
                const float shrink = largest[m] == -1e30f ? 0.0f : std::exp(largest[m] - now);
                total[m] *= shrink;
                for (int64_t p = 0; p < n_parts; ++p) {
                    float* part = out[m] + p * LANES;
                    _mm512_storeu_ps(part, _mm512_mul_ps(_mm512_loadu_ps(part), _mm512_set1_ps(shrink)));
                }
                largest[m] = now;
            }
            const __m512 top = _mm512_set1_ps(now);
            a = _mm512_maskz_mov_ps(seen_left, exp(_mm512_sub_ps(a, top)));
            b = _mm512_maskz_mov_ps(seen_right, exp(_mm512_sub_ps(b, top)));
            total[m] += _mm512_reduce_add_ps(_mm512_add_ps(a, b));
            if (NUMBERS == KV_INT8) {
                a = _mm512_maskz_mul_ps(seen_left, a, _mm512_loadu_ps(tile.value_scales));
                b = _mm512_maskz_mul_ps(seen_right, b, _mm512_loadu_ps(tile.value_scales + LANES));
            }
            if (NUMBERS == KV_FP32) {
                _mm512_store_ps(weights[m], a);
                _mm512_store_ps(weights[m] + LANES, b);
            } else {
                _mm256_store_si256((__m256i*)weight_pairs[m], to_bf16(a));
                _mm256_store_si256((__m256i*)(weight_pairs[m] + LANES), to_bf16(b));
            }
        }
        const int64_t n_steps = (n_here + WIDTH - 1) / WIDTH;
        for (int64_t p = 0; p < n_parts; p += 2) {
            const bool has_two = p + 1 < n_parts;
            __m512 mixed[M][2];
            for (int m = 0; m < M; ++m) {
                mixed[m][0] = _mm512_loadu_ps(out[m] + p * LANES);
                mixed[m][1] = has_two ? _mm512_loadu_ps(out[m] + (p + 1) * LANES) : _mm512_setzero_ps();
            }
            for (int64_t i = 0; i < n_steps; ++i) {
                const __m512i left = step_at<NUMBERS>(tile.values, i * n_parts + p);
                const __m512i right = has_two ? step_at<NUMBERS>(tile.values, i * n_parts + p + 1) : left;
                for (int m = 0; m < M; ++m) {
                    const void* weight = NUMBERS == KV_FP32 ? (const void*)&weights[m][i] : &weight_pairs[m][2 * i];
                    const __m512i w = broadcast_pair(weight);
                    mixed[m][0] = multiply_add<NUMBERS>(mixed[m][0], left, w);
                    mixed[m][1] = multiply_add<NUMBERS>(mixed[m][1], right, w);
                }
            }
            for (int m = 0; m < M; ++m) {
                _mm512_storeu_ps(out[m] + p * LANES, mixed[m][0]);
                if (has_two) _mm512_storeu_ps(out[m] + (p + 1) * LANES, mixed[m][1]);
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        const __m512 share = _mm512_set1_ps(1.0f / total[m]);
        for (int64_t p = 0; p < n_parts; ++p) {
            float* part = out[m] + p * LANES;
            _mm512_storeu_ps(part, _mm512_mul_ps(_mm512_loadu_ps(part), share));
        }
    }
}

template <int NUMBERS>
void attend_some(int n, const Store& s, const int32_t* blocks, int64_t head, const uint8_t* const* query,
                 const int64_t* n_seen, float* const* out, TileRoom& room) {
    switch (n) {
        case 1: return attend<NUMBERS, 1>(s, blocks, head, query, n_seen, out, room);
        case 2: return attend<NUMBERS, 2>(s, blocks, head, query, n_seen, out, room);
        case 3: return attend<NUMBERS, 3>(s, blocks, head, query, n_seen, out, room);
        case 4: return attend<NUMBERS, 4>(s, blocks, head, query, n_seen, out, room);
        case 5: return attend<NUMBERS, 5>(s, blocks, head, query, n_seen, out, room);
        case 6: return attend<NUMBERS, 6>(s, blocks, head, query, n_seen, out, room);
        case 7: return attend<NUMBERS, 7>(s, blocks, head, query, n_seen, out, room);
        default: return attend<NUMBERS, 8>(s, blocks, head, query, n_seen, out, room);
    }
}

inline void attend_some(int n, const Store& s, const int32_t* blocks, int64_t head, const uint8_t* const* query,
                        const int64_t* n_seen, float* const* out, TileRoom& room) {
    switch (s.numbers) {
        case KV_FP32: return attend_some<KV_FP32>(n, s, blocks, head, query, n_seen, out, room);
        case KV_BF16: return attend_some<KV_BF16>(n, s, blocks, head, query, n_seen, out, room);
        default: return attend_some<KV_INT8>(n, s, blocks, head, query, n_seen, out, room);
    }
}
