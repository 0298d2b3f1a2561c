// Routed experts for training: forward, and all gradients, from weights and to gradients in torch's own order.
//
// The rows of an expert are taken 64 at a time, a panel. Within one a row is a lane: weights [out in] are read as they
// are, and what has been computed lies column after column, so that it can be read as pairs along either axis.
// Gradients of weights are sums over all panels of an expert, and each is written once.
#pragma once
#include <vector>
#include "products.h"
#include "share.h"

struct Experts {
    const uint8_t *gate_up, *down;  // bf16 [E 2F D] and [E D F]; D and F are multiples of 32
    int64_t n_experts, width, hidden;
};

struct Panel {
    int64_t expert, first, n_rows;
    int64_t n_vectors() const { return (n_rows + LANES - 1) / LANES; }
};

inline std::vector<Panel> panels_of(const int32_t* ends, int64_t n_experts) {
    std::vector<Panel> panels;
    for (int64_t e = 0, first = 0; e < n_experts; first = ends[e++])
        for (int64_t row = first; row < ends[e]; row += WIDE)
            panels.push_back({e, row, std::min<int64_t>(WIDE, ends[e] - row)});
    return panels;
}

class SwiGLU {
  public:
    static constexpr int64_t COLUMN = WIDE * 2;  // bytes of one column of a panel in bf16

    SwiGLU(const Experts& weights, const int32_t* ends)
        : w(weights), D(weights.width), F(weights.hidden), panels(panels_of(ends, weights.n_experts)) {}

    // out bf16 [R D] of x bf16 [R D]. hidden: bf16 [2F 64] for every panel, which the way back wants.
    void forward(const uint8_t* x, uint8_t* out, uint8_t* hidden, int n_threads) const {
        share(n_threads, panels.size(), [&](int64_t i) { forward(i, x, out, hidden); });
    }

    // Gradients of x, gate_up and down in their own shapes, bf16, from that of the output. by_hidden bf16 [2F 64] and
    // mixed bf16 [F 64] for every panel are room for what is between: gradients of gate and up, and what `down` read.
    void backward(const uint8_t* by_out, const uint8_t* x, const uint8_t* hidden, uint8_t* by_hidden, uint8_t* mixed,
                  uint8_t* by_x, uint8_t* by_gate_up, uint8_t* by_down, int n_threads) const {
        share(n_threads, panels.size(), [&](int64_t i) { backward(i, by_out, hidden, by_hidden, mixed, by_x); });
        share(n_threads, w.n_experts * 3, [&](int64_t i) {
            const int64_t e = i / 3, part = i % 3;
            if (part < 2) gate_up_gradient(e, part * F, x, by_hidden, by_gate_up);
            else down_gradient(e, by_out, mixed, by_down);
        });
    }

  private:
    const Experts& w;
    const int64_t D, F;
    const std::vector<Panel> panels;

    const uint8_t* gate_up(int64_t e) const { return w.gate_up + e * 2 * F * D * 2; }
    const uint8_t* down(int64_t e) const { return w.down + e * D * F * 2; }

    void forward(int64_t number, const uint8_t* x, uint8_t* out, uint8_t* hidden) const {
        const Panel& panel = panels[number];
        uint8_t* rows = scratch((D / 2 + F / 2 + LANES) * LINE);
        uint8_t* mixed = rows + D / 2 * LINE;
        float* block = (float*)(mixed + F / 2 * LINE);
        uint8_t* kept = hidden + number * 2 * F * COLUMN;
        pairs_along_rows(x + panel.first * D * 2, D * 2, panel.n_rows, D / 2, rows);
        product(2 * F, panel.n_vectors(), {gate_up(panel.expert), D * 2, 4}, rows, D / 2,
                [&](int64_t o, const auto& sums) { put_bf16(kept + o * COLUMN, sums); });
        for (int64_t f = 0; f < F; f += 2)
            for (int64_t v = 0; v < panel.n_vectors(); ++v) {
                __m256i two[2];
                for (int i = 0; i < 2; ++i) {
                    const uint8_t* gate = kept + (f + i) * COLUMN + v * 32;
                    two[i] = to_bf16(_mm512_mul_ps(silu(load_bf16(gate)), load_bf16(gate + F * COLUMN)));
                }
                _mm512_storeu_si512(mixed + f / 2 * LINE + v * 64, paired(two[0], two[1]));
            }
        uint8_t* to = out + panel.first * D * 2;
        for (int64_t d = 0; d < D; d += LANES) {
            product(LANES, panel.n_vectors(), {down(panel.expert) + d * F * 2, F * 2, 4}, mixed, F / 2,
                    [&](int64_t i, const auto& sums) { put_float(block + i * WIDE, sums); });
            round_columns(block, panel.n_rows, to + d * 2, D * 2);
        }
    }

    void backward(int64_t number, const uint8_t* by_out, const uint8_t* hidden, uint8_t* by_hidden, uint8_t* mixed,
                  uint8_t* by_x) const {
        const Panel& panel = panels[number];
        const int n_vectors = panel.n_vectors();
        uint8_t* rows = scratch((D / 2 + F + std::max(D / 2, F)) * LINE + WIDE * LINE);
        uint8_t* by_pairs = rows + D / 2 * LINE;         // pairs along 2F
        uint8_t* weight = by_pairs + F * LINE;            // pairs of a weight across its rows, of 64 columns
        float* block = (float*)(weight + std::max(D / 2, F) * LINE);
        const uint8_t* kept = hidden + number * 2 * F * COLUMN;
        by_hidden += number * 2 * F * COLUMN;
        mixed += number * F * COLUMN;
        pairs_along_rows(by_out + panel.first * D * 2, D * 2, panel.n_rows, D / 2, rows);
        for (int64_t first = 0; first < F; first += WIDE) {
            const int64_t n = std::min<int64_t>(WIDE, F - first);
            pairs_across_rows(down(panel.expert) + first * 2, F * 2, D, n, weight);
            product(n, n_vectors, {weight, 4, LINE}, rows, D / 2,
                    [&](int64_t i, const auto& sums) { put_float(block + i * WIDE, sums); });
            for (int64_t i = 0; i < n; i += 2)
                for (int64_t v = 0; v < n_vectors; ++v) {
                    __m256i by_gate[2], by_up[2];
                    for (int j = 0; j < 2; ++j) {
                        const int64_t at = (first + i + j) * COLUMN + v * 32;
                        const __m512 gate = load_bf16(kept + at), up = load_bf16(kept + F * COLUMN + at);
                        const __m512 by = _mm512_loadu_ps(block + (i + j) * WIDE + v * LANES);
                        const __m512 one = _mm512_set1_ps(1.0f);
                        const __m512 share = sigmoid(gate), open = _mm512_mul_ps(gate, share);
                        const __m512 slope = _mm512_mul_ps(share, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, share), one));
                        by_gate[j] = to_bf16(_mm512_mul_ps(_mm512_mul_ps(by, up), slope));
                        by_up[j] = to_bf16(_mm512_mul_ps(by, open));
                        _mm256_storeu_si256((__m256i*)(mixed + at), to_bf16(_mm512_mul_ps(open, up)));
                        _mm256_storeu_si256((__m256i*)(by_hidden + at), by_gate[j]);
                        _mm256_storeu_si256((__m256i*)(by_hidden + F * COLUMN + at), by_up[j]);
                    }
                    uint8_t* to = by_pairs + (first + i) / 2 * LINE + v * 64;
                    _mm512_storeu_si512(to, paired(by_gate[0], by_gate[1]));
                    _mm512_storeu_si512(to + F / 2 * LINE, paired(by_up[0], by_up[1]));
                }
        }
        for (int64_t first = 0; first < D; first += WIDE) {
            const int64_t n = std::min<int64_t>(WIDE, D - first);
            pairs_across_rows(gate_up(panel.expert) + first * 2, D * 2, 2 * F, n, weight);
            product(n, n_vectors, {weight, 4, LINE}, by_pairs, F,
                    [&](int64_t i, const auto& sums) { put_float(block + i * WIDE, sums); });
            for (int64_t i = 0; i < n; i += LANES)
                round_columns(block + i * WIDE, panel.n_rows, by_x + panel.first * D * 2 + (first + i) * 2, D * 2);
        }
    }

    // The panels of an expert: the first one, and how many rows they have together.
    std::pair<int64_t, int64_t> rows_of(int64_t expert) const {
        int64_t first = -1, n = 0;
        for (int64_t i = 0; i < (int64_t)panels.size(); ++i)
            if (panels[i].expert == expert) {
                if (first < 0) first = i;
                n += panels[i].n_rows;
            }
        return {first, n};
    }

    // Rows first to first + F of the gradient of gate_up [2F D]: by_hidden [2F R] times x [R D].
    void gate_up_gradient(int64_t expert, int64_t first, const uint8_t* x, const uint8_t* by_hidden, uint8_t* out) const {
        const auto [panel, n_rows] = rows_of(expert);
        out += (expert * 2 * F + first) * D * 2;
        if (!n_rows) return (void)std::memset(out, 0, F * D * 2);
        const int64_t n_steps = (n_rows + 1) / 2;
        uint8_t* lines = scratch(n_steps * LINE);
        const Left left{by_hidden + (panel * 2 * F + first) * COLUMN, COLUMN, 4};
        const Pieces pieces{n_steps, WIDE / 2, 2 * F * COLUMN, WIDE / 2 * LINE};
        for (int64_t d = 0; d < D; d += WIDE) {
            const int64_t n = std::min<int64_t>(WIDE, D - d);
            pairs_across_rows(x + panels[panel].first * D * 2 + d * 2, D * 2, n_rows, n, lines);
            product(F, n / LANES, left, lines, pieces,
                    [&](int64_t o, const auto& sums) { put_bf16(out + (o * D + d) * 2, sums); });
        }
    }

    // The gradient of down [D F]: by_out [D R] times mixed [R F].
    void down_gradient(int64_t expert, const uint8_t* by_out, const uint8_t* mixed, uint8_t* out) const {
        const auto [panel, n_rows] = rows_of(expert);
        out += expert * D * F * 2;
        if (!n_rows) return (void)std::memset(out, 0, D * F * 2);
        const int64_t n_steps = (n_rows + 1) / 2, n_blocks = (D + WIDE - 1) / WIDE;
        uint8_t* by_lines = scratch((n_blocks + 1) * n_steps * LINE);
        uint8_t* lines = by_lines + n_blocks * n_steps * LINE;
        for (int64_t d = 0; d < D; d += WIDE)
            pairs_across_rows(by_out + panels[panel].first * D * 2 + d * 2, D * 2, n_rows, std::min<int64_t>(WIDE, D - d),
                              by_lines + d / WIDE * n_steps * LINE);
        for (int64_t f = 0; f < F; f += WIDE) {
            const int64_t n = std::min<int64_t>(WIDE, F - f);
            for (int64_t done = 0, i = panel; done < n_steps; done += WIDE / 2, ++i)
                pairs_along_rows(mixed + (i * F + f) * COLUMN, COLUMN, n, std::min<int64_t>(WIDE / 2, n_steps - done),
                                 lines + done * LINE);
            for (int64_t d = 0; d < D; d += WIDE)
                product(std::min<int64_t>(WIDE, D - d), n / LANES, {by_lines + d / WIDE * n_steps * LINE, 4, LINE}, lines,
                        n_steps, [&](int64_t i, const auto& sums) { put_bf16(out + ((d + i) * F + f) * 2, sums); });
        }
    }
};
