// Attention over rows of packed documents, for training: forward, and the gradients of queries, keys and values.
//
// Every query sees one stretch of its row. Blocks of 64 queries look at blocks of 64 keys, and those that nobody sees are
// left out. Forward keeps the logarithm of each query's sum, from which the way back makes its weights again.
#pragma once
#include <vector>
#include "products.h"
#include "share.h"

struct AttentionShape {
    int64_t n_rows, row_len, n_heads, n_kv_heads, head_dim;  // head_dim is a multiple of 16
    const int32_t *first, *count;                            // [n_rows row_len]: the keys of its row that each query sees
    float scale;
};

class RowsAttention {
  public:
    explicit RowsAttention(const AttentionShape& shape)
        : a(shape), S(shape.row_len), H(shape.head_dim), group(shape.n_heads / shape.n_kv_heads),
          n_blocks((S + WIDE - 1) / WIDE), n_parts((H + WIDE - 1) / WIDE) {}

    // out bf16 [T N H] of q bf16 [T N H], k and v bf16 [T K H]; sums float32 [n_rows N row_len].
    void forward(const uint8_t* q, const uint8_t* k, const uint8_t* v, uint8_t* out, float* sums, int n_threads) const {
        share(n_threads, a.n_rows * a.n_heads, [&](int64_t i) { forward(i / a.n_heads, i % a.n_heads, q, k, v, out, sums); });
    }

    void backward(const uint8_t* by_out, const uint8_t* q, const uint8_t* k, const uint8_t* v, const uint8_t* out,
                  const float* sums, uint8_t* by_q, uint8_t* by_k, uint8_t* by_v, int n_threads) const {
        share(n_threads, a.n_rows * a.n_kv_heads, [&](int64_t i) {
            backward(i / a.n_kv_heads, i % a.n_kv_heads, by_out, q, k, v, out, sums, by_q, by_k, by_v);
        });
    }

  private:
    const AttentionShape& a;
    const int64_t S, H, group, n_blocks, n_parts;

    // A row's states of one head, bf16, `stride` bytes from one token to the next.
    struct Head {
        uint8_t* at;
        int64_t stride;
        uint8_t* token(int64_t t) const { return at + t * stride; }
    };
    Head head(const uint8_t* x, int64_t row, int64_t n, int64_t n_heads) const {
        return {(uint8_t*)x + (row * S * n_heads + n) * H * 2, n_heads * H * 2};
    }
    int64_t tokens_of(int64_t block) const { return std::min<int64_t>(WIDE, S - block * WIDE); }

    // All tokens of a head as right operands of sums along the head, or (across) along the tokens.
    int64_t along_bytes() const { return n_blocks * H / 2 * LINE; }
    int64_t across_bytes() const { return n_blocks * n_parts * WIDE / 2 * LINE; }
    uint8_t* along(uint8_t* lines, int64_t block) const { return lines + block * H / 2 * LINE; }
    uint8_t* across(uint8_t* lines, int64_t block, int64_t part) const {
        return lines + (block * n_parts + part) * WIDE / 2 * LINE;
    }
    void pack_along(const Head& x, uint8_t* lines) const {
        for (int64_t b = 0; b < n_blocks; ++b)
            pairs_along_rows(x.token(b * WIDE), x.stride, tokens_of(b), H / 2, along(lines, b));
    }
    void pack_across(const Head& x, int64_t block, uint8_t* lines) const {
        for (int64_t p = 0; p < n_parts; ++p)
            pairs_across_rows(x.token(block * WIDE) + p * WIDE * 2, x.stride, tokens_of(block), part_width(p),
                              lines + p * WIDE / 2 * LINE);
    }
    int64_t part_width(int64_t part) const { return std::min<int64_t>(WIDE, H - part * WIDE); }

    // The blocks of keys that a block of queries sees: from, to.
    std::pair<int64_t, int64_t> seen_by(int64_t row, int64_t block) const {
        int64_t from = S, to = 0;
        for (int64_t t = block * WIDE; t < block * WIDE + tokens_of(block); ++t) {
            const int64_t first = a.first[row * S + t];
            from = std::min(from, first);
            to = std::max(to, first + a.count[row * S + t]);
        }
        return {from / WIDE, (to + WIDE - 1) / WIDE};
    }
    // Which of 16 keys from `key` on query t sees.
    __mmask16 seen(int64_t row, int64_t t, int64_t key) const {
        const int64_t first = a.first[row * S + t];
        return lanes_below(first + a.count[row * S + t], key) & ~lanes_below(first, key);
    }

    void forward(int64_t row, int64_t n, const uint8_t* q, const uint8_t* k, const uint8_t* v, uint8_t* out,
                 float* sums) const {
        const int64_t width = n_blocks * WIDE;
        uint8_t* keys = scratch(along_bytes() + across_bytes() + WIDE * width * 6);
        uint8_t* values = keys + along_bytes();
        float* scores = (float*)(values + across_bytes());  // [64 keys]
        bf16* weights = (bf16*)(scores + WIDE * width);     // [64 keys]
        const Head from = head(q, row, n, a.n_heads), to = head(out, row, n, a.n_heads);
        pack_along(head(k, row, n / group, a.n_kv_heads), keys);
        for (int64_t b = 0; b < n_blocks; ++b)
            pack_across(head(v, row, n / group, a.n_kv_heads), b, across(values, b, 0));
        for (int64_t block = 0; block < n_blocks; ++block) {
            const auto [first, end] = seen_by(row, block);
            const int64_t n_queries = tokens_of(block);
            for (int64_t b = first; b < end; ++b)
                product(n_queries, vectors(tokens_of(b)), {from.token(block * WIDE), from.stride, 4}, along(keys, b), H / 2,
                        [&](int64_t i, const auto& s) { put_float(scores + i * width + (b - first) * WIDE, s); });
            for (int64_t i = 0; i < n_queries; ++i)
                sums[(row * a.n_heads + n) * S + block * WIDE + i] =
                    softmax(row, block * WIDE + i, first * WIDE, (end - first) * WIDE, scores + i * width, weights + i * width);
            for (int64_t p = 0; p < n_parts; ++p) {
                const int64_t n_keys = std::min(end * WIDE, S) - first * WIDE;
                const Pieces pieces{(n_keys + 1) / 2, WIDE / 2, WIDE * 2, n_parts * WIDE / 2 * LINE};
                product(n_queries, part_width(p) / LANES, {(uint8_t*)weights, width * 2, 4}, across(values, first, p), pieces,
                        [&](int64_t i, const auto& s) { put_bf16(to.token(block * WIDE + i) + p * WIDE * 2, s); });
            }
        }
    }

    static int vectors(int64_t n) { return (int)((n + LANES - 1) / LANES); }

    // Weights of query t for n keys from `key` on, from their scores. Returns the logarithm of the sum.
    float softmax(int64_t row, int64_t t, int64_t key, int64_t n, const float* scores, bf16* weights) const {
        const __m512 scale = _mm512_set1_ps(a.scale);
        const auto load = [&](int64_t i) {
            return _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), seen(row, t, key + i), _mm512_loadu_ps(scores + i), scale);
        };
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < n; i += LANES) most = _mm512_max_ps(most, load(i));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        for (int64_t i = 0; i < n; i += LANES)
            sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(seen(row, t, key + i), exp(_mm512_sub_ps(load(i), top))));
        const float total = _mm512_cvtss_f32(top) + std::log(_mm512_reduce_add_ps(sum));
        for (int64_t i = 0; i < n; i += LANES) {
            const __m512 weight = exp(_mm512_sub_ps(load(i), _mm512_set1_ps(total)));
            _mm256_storeu_si256((__m256i*)(weights + i), to_bf16(_mm512_maskz_mov_ps(seen(row, t, key + i), weight)));
        }
        return total;
    }

    void backward(int64_t row, int64_t kv, const uint8_t* by_out, const uint8_t* q, const uint8_t* k, const uint8_t* v,
                  const uint8_t* out, const float* sums, uint8_t* by_q, uint8_t* by_k, uint8_t* by_v) const {
        constexpr int64_t SQUARE = WIDE * WIDE;
        const int64_t floats = n_blocks * WIDE * H;
        const int64_t one = n_parts * WIDE / 2 * LINE;  // a block of pairs across tokens
        uint8_t* keys = scratch(2 * along_bytes() + across_bytes() + 2 * one + (2 * floats + WIDE * H + 2 * SQUARE) * 4 +
                                SQUARE * 2 + SQUARE * 4);
        uint8_t* values = keys + along_bytes();
        uint8_t* key_rows = values + along_bytes();
        uint8_t* query_rows = key_rows + across_bytes();
        uint8_t* out_rows = query_rows + one;
        uint8_t* weights = out_rows + one;                 // pairs across queries
        uint8_t* by_pairs = weights + SQUARE * 2;          // likewise
        float* sum_k = (float*)(by_pairs + SQUARE * 2);     // [tokens H]
        float *sum_v = sum_k + floats, *sum_q = sum_v + floats;
        float *scores = sum_q + WIDE * H, *by_weights = scores + SQUARE;  // [64 64]
        bf16* by_scores = (bf16*)(by_weights + SQUARE);                  // [64 64]
        std::fill_n(sum_k, 2 * floats, 0.0f);
        pack_along(head(k, row, kv, a.n_kv_heads), keys);
        pack_along(head(v, row, kv, a.n_kv_heads), values);
        for (int64_t b = 0; b < n_blocks; ++b) pack_across(head(k, row, kv, a.n_kv_heads), b, across(key_rows, b, 0));
        for (int64_t n = kv * group; n < (kv + 1) * group; ++n)
            for (int64_t block = 0; block < n_blocks; ++block) {
                const Head from = head(q, row, n, a.n_heads), by = head(by_out, row, n, a.n_heads);
                const int64_t start = block * WIDE, n_queries = tokens_of(block);
                float turned[WIDE];  // of each query: its gradient times its output
                for (int64_t i = 0; i < n_queries; ++i)
                    turned[i] = dot(by.token(start + i), head(out, row, n, a.n_heads).token(start + i));
                pack_across(from, block, query_rows);
                pack_across(by, block, out_rows);
                std::fill_n(sum_q, WIDE * H, 0.0f);
                const float* logs = sums + (row * a.n_heads + n) * S + start;
                const auto [first, end] = seen_by(row, block);
                for (int64_t b = first; b < end; ++b) {
                    const int64_t n_keys = tokens_of(b);
                    product(n_queries, vectors(n_keys), {from.token(start), from.stride, 4}, along(keys, b), H / 2,
                            [&](int64_t i, const auto& s) { put_float(scores + i * WIDE, s); });
                    product(n_queries, vectors(n_keys), {by.token(start), by.stride, 4}, along(values, b), H / 2,
                            [&](int64_t i, const auto& s) { put_float(by_weights + i * WIDE, s); });
                    for (int64_t i = 0; i < n_queries; i += 2)
                        for (int64_t key = 0; key < vectors(n_keys) * LANES; key += LANES) {
                            __m256i weight[2], by_score[2];
                            for (int j = 0; j < 2; ++j) {
                                const int64_t t = start + i + j;
                                const bool is_there = i + j < n_queries;
                                const __mmask16 mask = is_there ? seen(row, t, b * WIDE + key) : 0;
                                const int64_t at = (i + j) * WIDE + key;
                                const __m512 log = _mm512_set1_ps(is_there ? logs[i + j] : 0);
                                const __m512 p = _mm512_maskz_mov_ps(
                                    mask, exp(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(a.scale), log)));
                                const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(by_weights + at), _mm512_set1_ps(turned[i + j]));
                                weight[j] = to_bf16(p);
                                by_score[j] = to_bf16(
                                    _mm512_maskz_mul_ps(mask, _mm512_mul_ps(p, d), _mm512_set1_ps(a.scale)));
                                _mm256_storeu_si256((__m256i*)(by_scores + at), by_score[j]);
                            }
                            _mm512_storeu_si512(weights + i / 2 * LINE + key * 4, paired(weight[0], weight[1]));
                            _mm512_storeu_si512(by_pairs + i / 2 * LINE + key * 4, paired(by_score[0], by_score[1]));
                        }
                    for (int64_t p = 0; p < n_parts; ++p) {
                        const int n_vectors = part_width(p) / LANES;
                        const int64_t column = p * WIDE, part = p * WIDE / 2 * LINE;
                        const auto add_to = [&](float* rows) {
                            return [=, this](int64_t i, const auto& s) { add(rows + i * H + column, s); };
                        };
                        product(n_queries, n_vectors, {(uint8_t*)by_scores, WIDE * 2, 4}, across(key_rows, b, p),
                                (n_keys + 1) / 2, add_to(sum_q));
                        product(n_keys, n_vectors, {by_pairs, 4, LINE}, query_rows + part, (n_queries + 1) / 2,
                                add_to(sum_k + b * WIDE * H));
                        product(n_keys, n_vectors, {weights, 4, LINE}, out_rows + part, (n_queries + 1) / 2,
                                add_to(sum_v + b * WIDE * H));
                    }
                }
                for (int64_t i = 0; i < n_queries; ++i) round(sum_q + i * H, head(by_q, row, n, a.n_heads).token(start + i));
            }
        for (int64_t t = 0; t < S; ++t) {
            round(sum_k + t * H, head(by_k, row, kv, a.n_kv_heads).token(t));
            round(sum_v + t * H, head(by_v, row, kv, a.n_kv_heads).token(t));
        }
    }

    template <int NB> static void add(float* at, const __m512 (&sums)[NB]) {
#pragma GCC unroll 4
        for (int j = 0; j < NB; ++j) _mm512_storeu_ps(at + j * LANES, _mm512_add_ps(_mm512_loadu_ps(at + j * LANES), sums[j]));
    }
    float dot(const uint8_t* x, const uint8_t* y) const {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t h = 0; h < H; h += LANES) sum = _mm512_fmadd_ps(load_bf16(x + h * 2), load_bf16(y + h * 2), sum);
        return _mm512_reduce_add_ps(sum);
    }
    void round(const float* from, uint8_t* to) const {
        for (int64_t h = 0; h < H; h += LANES) _mm256_storeu_si256((__m256i*)(to + h * 2), to_bf16(_mm512_loadu_ps(from + h)));
    }
};
