// One forward of the decoder over a flat batch: ids in, logits out, keys and values stored on the way.
//
// The same mathematics as puna/model/transformer.py, which is its twin. Sums and everything between the matrices are
// float32; activations are rounded to what a matrix asks for (bfloat16 or int8) just before it. A layer is five phases
// that all threads go through together, a few more where there are many rows or adapters. Structures are laid out for Python's ctypes: see native.py.
#pragma once
#include <cmath>
#include <numeric>
#include <vector>
#include "adapted.h"
#include "attention.h"
#include "team.h"

constexpr int64_t SMALL_ROUTER = 1 << 17;  // weights of a router that is not worth a phase of its own

struct Layer {
    const float* attention_norm;     // [D]
    const float* feed_forward_norm;  // [D]
    Matrix query, key, value, output;
    Matrix router, gate_up, down;               // routed experts; data is nullptr in dense layers
    Matrix shared_gate, shared_up, shared_down;  // the shared expert, or a dense layer's feed-forward
    const Deltas* deltas;                        // nullptr: no adapter is known
    Store store;
    int32_t uses_rope, uses_qk_norm, uses_temperature, is_chunked;
};

struct Model {
    const Layer* layers;
    const float* frequencies;  // [H/2]
    const float* norm;         // [D]
    const void* embedding;     // [V D]
    Matrix head;
    const Delta* head_delta;  // as `Layer::deltas`
    int64_t floor_len;  // of the queries' temperature
    double temperature_scale;
    float norm_eps;
    int32_t embedding_is_bf16, n_layers, width, n_heads, n_kv_heads, head_dim, n_experts, n_active_experts;
    int64_t chunk_len;  // 0 for none
};

struct Entry {  // new tokens of one sequence
    const int32_t* global_blocks;  // position p lies in global_blocks[p / block_len]
    const int32_t* chunk_blocks;   // and in chunk_blocks[(p - chunk_base) / block_len]
    int64_t n_new, start, chunk_base;
};

struct Batch {
    const int64_t* ids;          // [T]
    const float* features;       // [M D]
    const int64_t* feature_row;  // [T]: the feature that takes an id's place, or -1
    const Entry* entries;
    const int64_t* wanted;       // [R]: rows whose logits are needed
    const int32_t* adapters;     // [T]: the number of each row's adapter, -1 for none; nullptr where no row has any
    float* logits;               // [R V]
    int32_t* routes;             // [layers, T, active experts], or nullptr
    int64_t n_tokens, n_entries, n_wanted;
};

// A product that is part of a phase: some rows times one matrix (of one expert).
struct Product {
    const Matrix* w;
    int64_t expert, n_rows;
    const uint8_t* const* rows;
    float* const* out;
};

// Tokens of one sequence and one chunk: positions count from the chunk's first.
struct Piece {
    const Entry* entry;
    int64_t first_row, n_rows, base, first_position;  // base: position that the blocks begin with
};

class Forward {
  public:
    Forward(const Model& model, const Batch& batch) : m(model), b(batch), T(batch.n_tokens) {}

    void run(int n_threads) {
        prepare();
        together(n_threads, (size_t)m.n_layers * 24 + 8, [&](Member& team) {
            team.each(T, [&](int64_t t) { embed(t); }, n_begin(0), [&](int64_t t) { begin(0, t); });
            for (int32_t i = 0; i < m.n_layers; ++i) layer(team, m.layers[i], i);
            logits(team);
        });
    }

  private:
    const Model& m;
    const Batch& b;
    const int64_t T;

    static inline thread_local TileRoom room;
    // All of this is memory for one call; it is kept for the next one, which is made under the same lock (`together`).
    struct Scratch {
        Rows<float> x, q, k, v, mixed, gate_up, shared_hidden, angles, normed, router;
        Rows<uint8_t> records, router_records, shared_records, hidden_records, shared_hidden_records, queries;
        std::vector<const uint8_t*> record_at, router_record_at, shared_record_at, routed_at, hidden_at, shared_hidden_at;
        std::vector<float*> x_at, q_at, k_at, v_at, gate_up_at, shared_gate_at, shared_up_at, target_at, router_at, logits_at;
        std::vector<float> temperatures, scores, row_scores;
        std::vector<int32_t> chosen, token_of_row;
        // Rows by adapter, those without one first; which of them have one; and pointers to what these read and give.
        std::vector<int64_t> by_adapter;
        std::vector<Run> runs, expert_runs, wanted_runs;
        Rows<uint8_t> inner;
        std::vector<uint8_t*> inner_at;
        std::vector<float*> normed_by, q_by, k_by, v_by, mixed_by, x_by, router_by, shared_gate_by, shared_up_by;
        std::vector<float*> normed_of_row, wanted_by, logits_by;
        std::vector<int64_t> expert_begins, active, position;  // active: experts that somebody chose
        std::vector<Piece> whole, chunked;
    };
    static inline Scratch s;
    static inline thread_local Corrections corrections;

    template <class P, class R> static void point(std::vector<P>& at, const R& rows, int64_t n, int64_t offset = 0) {
        at.resize(n);
        for (int64_t i = 0; i < n; ++i) at[i] = rows[i] + offset;
    }

    template <class P, class R> static void point(std::vector<P>& at, const R& rows, const std::vector<int64_t>& which) {
        at.clear();
        for (const int64_t i : which) at.push_back(rows[i]);
    }

    void prepare() {
        const int64_t H = m.head_dim, k = m.n_active_experts, R = T * k;
        int64_t hidden = 0, shared = 0;  // widest rows, and widest records, of all layers
        int64_t plain = record_bytes(m.head.kind, m.width), router = 0, of_shared = 0, of_hidden = 0, of_shared_hidden = 0;
        const auto widen = [](int64_t& most, int64_t n) { most = std::max(most, n); };
        for (int32_t i = 0; i < m.n_layers; ++i) {
            const Layer& y = m.layers[i];
            for (const Matrix* w : {&y.query, &y.output, &y.gate_up}) widen(plain, record_bytes(w->kind, w->n_in));
            widen(router, record_bytes(y.router.kind, y.router.n_in));
            widen(of_shared, record_bytes(y.shared_gate.kind, y.shared_gate.n_in));
            widen(of_hidden, record_bytes(y.down.kind, y.down.n_in));
            widen(of_shared_hidden, record_bytes(y.shared_down.kind, y.shared_down.n_in));
            widen(hidden, y.gate_up.n_out);
            widen(shared, 2 * (int64_t)y.shared_gate.n_out);
        }
        s.x.shape(T, m.width);
        s.normed.shape(std::max(T, b.n_wanted), m.width);
        s.q.shape(T, m.n_heads * H);
        s.k.shape(T, m.n_kv_heads * H);
        s.v.shape(T, m.n_kv_heads * H);
        s.mixed.shape(T, m.n_heads * padded(H, LANES));
        s.queries.shape(T, m.n_heads * padded(H, 2) * 4);
        s.angles.shape(T, 2 * H);
        s.gate_up.shape(R, hidden);
        s.shared_hidden.shape(T, shared);
        s.router.shape(T, std::max(1, m.n_experts));
        s.records.shape(std::max(T, b.n_wanted), plain);
        s.router_records.shape(T, router);
        s.shared_records.shape(T, of_shared);
        s.hidden_records.shape(R, of_hidden);
        s.shared_hidden_records.shape(T, of_shared_hidden);
        point(s.record_at, s.records, std::max(T, b.n_wanted));
        point(s.router_record_at, s.router_records, T);
        point(s.shared_record_at, s.shared_records, T);
        point(s.hidden_at, s.hidden_records, R);
        point(s.shared_hidden_at, s.shared_hidden_records, T);
        point(s.x_at, s.x, T);
        point(s.q_at, s.q, T);
        point(s.k_at, s.k, T);
        point(s.v_at, s.v, T);
        point(s.gate_up_at, s.gate_up, R);
        point(s.shared_gate_at, s.shared_hidden, T);
        point(s.router_at, s.router, T);
        s.logits_at.resize(b.n_wanted);
        for (int64_t i = 0; i < b.n_wanted; ++i) s.logits_at[i] = b.logits + i * (int64_t)m.head.n_out;
        prepare_adapters();
        s.temperatures.resize(T);
        s.scores.resize(R);
        s.row_scores.resize(R);
        s.chosen.resize(R);
        s.token_of_row.resize(R);
        s.routed_at.resize(R);
        s.target_at.resize(R);
        s.expert_begins.resize(m.n_experts + 1);
        s.position.resize(T);
        s.whole.clear();
        s.chunked.clear();
        int64_t row = 0;
        for (int64_t e = 0; e < b.n_entries; ++e) {
            const Entry& entry = b.entries[e];
            for (int64_t i = 0; i < entry.n_new; ++i) s.position[row + i] = entry.start + i;
            s.whole.push_back({&entry, row, entry.n_new, 0, entry.start});
            const int64_t end = entry.start + entry.n_new;
            for (int64_t p = entry.start; p < end && m.chunk_len;) {
                const int64_t base = p / m.chunk_len * m.chunk_len;
                const int64_t n = std::min(end, base + m.chunk_len) - p;
                s.chunked.push_back({&entry, row + p - entry.start, n, base, p});
                p += n;
            }
            row += entry.n_new;
        }
    }

    // Sorts rows by their adapters. Without any, rows stay as they are, and nothing else happens.
    void prepare_adapters() {
        s.by_adapter.resize(T);
        std::iota(s.by_adapter.begin(), s.by_adapter.end(), 0);
        s.runs.clear();
        s.expert_runs.clear();
        s.wanted_runs.clear();
        if (!b.adapters) return;
        const auto before = [&](int64_t i, int64_t j) { return b.adapters[i] < b.adapters[j]; };
        std::stable_sort(s.by_adapter.begin(), s.by_adapter.end(), before);
        find_runs(s.runs, 0, 0, T, [&](int64_t i) { return b.adapters[s.by_adapter[i]]; });
        std::vector<int64_t> wanted(b.n_wanted);
        std::iota(wanted.begin(), wanted.end(), 0);
        std::stable_sort(wanted.begin(), wanted.end(), [&](int64_t i, int64_t j) { return before(b.wanted[i], b.wanted[j]); });
        find_runs(s.wanted_runs, 0, 0, b.n_wanted, [&](int64_t i) { return b.adapters[b.wanted[wanted[i]]]; });
        point(s.normed_by, s.normed, s.by_adapter);
        point(s.q_by, s.q, s.by_adapter);
        point(s.k_by, s.k, s.by_adapter);
        point(s.v_by, s.v, s.by_adapter);
        point(s.mixed_by, s.mixed, s.by_adapter);
        point(s.x_by, s.x, s.by_adapter);
        point(s.router_by, s.router, s.by_adapter);
        point(s.shared_gate_by, s.shared_hidden, s.by_adapter);
        point(s.wanted_by, s.normed, wanted);
        s.logits_by.resize(b.n_wanted);
        for (int64_t i = 0; i < b.n_wanted; ++i) s.logits_by[i] = s.logits_at[wanted[i]];
        s.normed_of_row.resize(T * m.n_active_experts);
        int64_t inner = 0, n = T * std::max(3, 2 + m.n_active_experts);
        const auto widen = [&](const Delta& delta) {
            if (delta.a.data) inner = std::max(inner, record_bytes(delta.b.kind, delta.b.n_in));
        };
        for (int32_t i = 0; i < m.n_layers; ++i) {
            const Deltas& y = *m.layers[i].deltas;
            for (const Delta* delta : {&y.query, &y.key, &y.value, &y.output, &y.router, &y.gate_up, &y.down, &y.shared_gate,
                                       &y.shared_up, &y.shared_down})
                widen(*delta);
        }
        widen(*m.head_delta);
        s.inner.shape(n, inner);
        point(s.inner_at, s.inner, n);
    }

    // Finds neighbours among the rows `first` to `end` that have the same adapter; adapter(i) is that of row i.
    template <class Adapter>
    static void find_runs(std::vector<Run>& runs, int64_t expert, int64_t first, int64_t end, Adapter&& adapter) {
        for (int64_t i = first, next; i < end; i = next) {
            for (next = i + 1; next < end && adapter(next) == adapter(i);) ++next;
            if (adapter(i) >= 0) runs.push_back({adapter(i), expert, i, next - i});
        }
    }

    void embed(int64_t t) {
        const int64_t D = m.width, H = m.head_dim, feature = b.feature_row ? b.feature_row[t] : -1;
        for (int64_t d = 0; d < D; d += LANES) {
            const __mmask16 mask = lanes_below(D, d);
            __m512 part;
            if (feature >= 0) part = _mm512_maskz_loadu_ps(mask, b.features + feature * D + d);
            else if (m.embedding_is_bf16)
                part = from_bf16(_mm256_maskz_loadu_epi16(mask, (const bf16*)m.embedding + b.ids[t] * D + d));
            else part = _mm512_maskz_loadu_ps(mask, (const float*)m.embedding + b.ids[t] * D + d);
            _mm512_storeu_ps(s.x[t] + d, part);
        }
        // Angles are exact to ten million positions: an integer times a float32 frequency, in float64. They are kept as
        // `rotate` wants them: cosines twice each, then sines twice each, the first of them with the other sign.
        for (int64_t i = 0; i < H / 2; ++i) {
            const double angle = (double)s.position[t] * (double)m.frequencies[i];
            s.angles[t][2 * i] = s.angles[t][2 * i + 1] = (float)std::cos(angle);
            s.angles[t][H + 2 * i + 1] = (float)std::sin(angle);
            s.angles[t][H + 2 * i] = -s.angles[t][H + 2 * i + 1];
        }
        s.temperatures[t] = m.floor_len
            ? (float)(1 + m.temperature_scale * std::log1p((double)((s.position[t] + 1) / m.floor_len))) : 1.0f;
    }

    // What the layer of this number, or the head after the last one, reads: rows of normed numbers.
    int64_t n_begin(int32_t number) const { return number < m.n_layers ? T : b.n_wanted; }

    void begin(int32_t number, int64_t i) {
        const bool is_layer = number < m.n_layers;
        const float* x = s.x[is_layer ? i : b.wanted[i]];
        rms_norm(x, is_layer ? m.layers[number].attention_norm : m.norm, m.norm_eps, m.width, s.normed[i]);
        make_record(first_matrix(number).kind, s.normed[i], m.width, 1.0f, s.records[i]);
    }

    const Matrix& first_matrix(int32_t number) const { return number < m.n_layers ? m.layers[number].query : m.head; }

    // A thread's first panel of a matrix, most likely.
    static void expect(Member& team, const Matrix& w) {
        const int64_t bytes = PANEL * block_bytes(w.kind, w.n_in), panel = std::min<int64_t>(team.id, n_panels(w) - 1);
        team.expect(w.data + panel * bytes, std::min(bytes, matrix_bytes(w.kind, w.n_out, w.n_in) - panel * bytes));
    }

    static void rms_norm(const float* x, const float* gain, float eps, int64_t n, float* out) {
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < n; i += LANES) {
            const __m512 part = _mm512_maskz_loadu_ps(lanes_below(n, i), x + i);
            squares = _mm512_fmadd_ps(part, part, squares);
        }
        const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / (float)n + eps));
        for (int64_t i = 0; i < n; i += LANES) {
            const __mmask16 mask = lanes_below(n, i);
            __m512 part = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
            if (gain) part = _mm512_mul_ps(part, _mm512_maskz_loadu_ps(mask, gain + i));
            _mm512_mask_storeu_ps(out + i, mask, part);
        }
    }

    // A phase whose products are corrected, then rows and last as `Member::each` has them.
    template <class Task, class Row, class Last>
    static void corrected(Member& team, const Corrections& more, int64_t n_tasks, Task&& task, int64_t n_rows, Row&& row,
                          Last&& last) {
        const int64_t n = more.n_narrow();
        if (n == 0) return team.each(n_tasks, task, n_rows, row, last);
        team.each(n_tasks + n, [&](int64_t i) { i < n_tasks ? task(i) : more.narrow(i - n_tasks); });
        team.each(more.n_widen(), [&](int64_t i) { more.widen(i); }, n_rows, row, last);
    }

    // Runs some products as one phase, corrected.
    template <int MODE, size_t N, class Row, class Last>
    static void products(Member& team, const Product (&list)[N], const Corrections& more, int64_t n_rows, Row&& row,
                         Last&& last) {
        int64_t n_tasks = 0;
        for (const Product& p : list) n_tasks += n_panels(*p.w);
        const auto task = [&](int64_t i) {
            for (const Product& p : list) {
                const int64_t n = n_panels(*p.w);
                if (i < n) return panel<MODE>(*p.w, p.expert, i, p.n_rows, p.rows, p.out);
                i -= n;
            }
        };
        corrected(team, more, n_tasks, task, n_rows, row, last);
    }

    template <int MODE, size_t N> static void products(Member& team, const Product (&list)[N], const Corrections& more) {
        products<MODE>(team, list, more, 0, [](int64_t) {}, [] {});
    }

    // A map of a layer that adapters may correct: what their rows read, and what it gave them.
    struct Map {
        Delta Deltas::*which;
        const std::vector<float*>&read, &out;
    };

    static const Corrections& of_dense(const Layer& y, std::initializer_list<Map> maps) {
        corrections.clear(s.inner_at.data());
        if (s.runs.empty()) return corrections;
        for (const Map& map : maps) corrections.add(y.deltas->*map.which, s.runs, map.read.data(), map.out.data());
        return corrections;
    }

    // The same, and besides the experts' map `which`, whose rows lie by expert.
    static const Corrections& of_experts(const Layer& y, std::initializer_list<Map> maps, const Map& experts) {
        of_dense(y, maps);
        if (s.expert_runs.empty()) return corrections;
        corrections.add(y.deltas->*experts.which, s.expert_runs, experts.read.data(), experts.out.data());
        return corrections;
    }

    void layer(Member& team, const Layer& y, int32_t number) {
        products<SET>(team,
                      {{&y.query, 0, T, s.record_at.data(), s.q_at.data()},
                       {&y.key, 0, T, s.record_at.data(), s.k_at.data()},
                       {&y.value, 0, T, s.record_at.data(), s.v_at.data()}},
                      of_dense(y, {{&Deltas::query, s.normed_by, s.q_by},
                                   {&Deltas::key, s.normed_by, s.k_by},
                                   {&Deltas::value, s.normed_by, s.v_by}}));
        expect(team, y.output);
        attention(team, y);
        expect(team, y.shared_gate);
        if (y.gate_up.data) experts(team, y, number);
        else dense(team, y, number);
    }

    // The mixed values of all heads of one token, without the lanes that filled heads up, as a record.
    void record_heads(const Layer& y, int64_t t) {
        const int64_t H = m.head_dim, Hp = padded(H, LANES);
        if (H != Hp)
            for (int64_t n = 1; n < m.n_heads; ++n) std::memmove(s.mixed[t] + n * H, s.mixed[t] + n * Hp, H * 4);
        make_record(y.output.kind, s.mixed[t], (int64_t)m.n_heads * H, 1.0f, s.records[t]);
    }

    void rotate(float* x, const float* angles) const {
        const int64_t H = m.head_dim;
        for (int64_t i = 0; i < H; i += LANES) {
            const __mmask16 mask = lanes_below(H, i);
            const __m512 part = _mm512_maskz_loadu_ps(mask, x + i), swapped = _mm512_permute_ps(part, 0xb1);
            const __m512 turned = _mm512_mul_ps(swapped, _mm512_maskz_loadu_ps(mask, angles + H + i));
            _mm512_mask_storeu_ps(x + i, mask, _mm512_fmadd_ps(part, _mm512_maskz_loadu_ps(mask, angles + i), turned));
        }
    }

    // Rotates and norms one key head of a token and the queries that look at it, or scales these.
    void turn(const Layer& y, int64_t t, int64_t head) {
        const int64_t H = m.head_dim, G = m.n_heads / m.n_kv_heads;
        for (int64_t n = 0; n <= G; ++n) {
            const bool is_query = n < G;
            const int64_t which = head * G + n;
            float* x = is_query ? s.q[t] + which * H : s.k[t] + head * H;
            if (y.uses_rope) {
                rotate(x, s.angles[t]);
                if (y.uses_qk_norm) rms_norm(x, nullptr, m.norm_eps, H, x);
            } else if (is_query && y.uses_temperature) {
                for (int64_t h = 0; h < H; ++h) x[h] *= s.temperatures[t];
            }
            if (!is_query) continue;
            uint8_t* query = s.queries[t] + which * padded(H, 2) * 4;
            if (y.store.numbers == KV_FP32) std::memcpy(query, x, H * 4);
            else
                for (int64_t h = 0; h < H; h += LANES) {
                    const __mmask16 mask = lanes_below(H, h);
                    _mm256_mask_storeu_epi16((bf16*)query + h, mask, to_bf16(_mm512_maskz_loadu_ps(mask, x + h)));
                }
        }
    }

    // Stores keys and values of one head of a piece.
    void remember(const Layer& y, const Piece& piece, int64_t head) {
        const int64_t H = m.head_dim, len = y.store.block_len;
        const int32_t* blocks = blocks_of(piece, y);
        for (int64_t r = 0; r < piece.n_rows; ++r) {
            const int64_t offset = piece.first_position + r - piece.base, row = piece.first_row + r;
            write_position(y.store, blocks[offset / len], head, offset % len, s.k[row] + head * H, s.v[row] + head * H);
        }
    }

    static const int32_t* blocks_of(const Piece& piece, const Layer& y) {
        if (!y.is_chunked) return piece.entry->global_blocks;
        return piece.entry->chunk_blocks + (piece.base - piece.entry->chunk_base) / y.store.block_len;
    }

    void attention(Member& team, const Layer& y) {
        const std::vector<Piece>& pieces = y.is_chunked ? s.chunked : s.whole;
        const int64_t K = m.n_kv_heads, n_pieces = (int64_t)pieces.size();
        const auto record = [&](int64_t t) { record_heads(y, t); };
        if (n_pieces == T) {  // single tokens: all that one head does is one task
            const auto task = [&](int64_t i) {
                const Piece& piece = pieces[i / K];
                turn(y, piece.first_row, i % K);
                remember(y, piece, i % K);
                for (int64_t eight = 0; eight < n_eights(piece); ++eight) look(y, piece, i % K, eight);
            };
            return team.each(n_pieces * K, task, T, record);
        }
        team.each(T, [&](int64_t t) {
            for (int64_t head = 0; head < K; ++head) turn(y, t, head);
        });
        team.each(n_pieces * K, [&](int64_t i) { remember(y, pieces[i / K], i % K); });
        int64_t n_tasks = 0;
        for (const Piece& p : pieces) n_tasks += n_eights(p) * K;
        const auto task = [&](int64_t i) {
            const Piece* p = pieces.data();
            for (; i >= n_eights(*p) * K; ++p) i -= n_eights(*p) * K;
            look(y, *p, i % K, n_eights(*p) - 1 - i / K);  // the last queries see the most, so they come first
        };
        team.each(n_tasks, task, T, record);
    }

    // A piece's queries for one key head are worked on by eights.
    int64_t n_eights(const Piece& piece) const {
        return (piece.n_rows * (m.n_heads / m.n_kv_heads) + MOST_QUERIES - 1) / MOST_QUERIES;
    }

    void look(const Layer& y, const Piece& piece, int64_t head, int64_t eight) {
        const int64_t G = m.n_heads / m.n_kv_heads, H = m.head_dim, Hp = padded(H, LANES);
        const uint8_t* query[MOST_QUERIES];
        int64_t seen[MOST_QUERIES];
        float* out[MOST_QUERIES];
        int count = 0;
        for (int64_t j = eight * MOST_QUERIES; j < std::min(piece.n_rows * G, (eight + 1) * MOST_QUERIES); ++j, ++count) {
            const int64_t r = j / G, row = piece.first_row + r, which = head * G + j % G;
            query[count] = s.queries[row] + which * padded(H, 2) * 4;
            seen[count] = piece.first_position + r - piece.base + 1;
            out[count] = s.mixed[row] + which * Hp;
        }
        attend_some(count, y.store, blocks_of(piece, y), head, query, seen, out, room);
    }

    // silu(gate) * up of one row; gate and up lie one after the other.
    static void gate(float* row, int64_t F, float factor) {
        const __m512 f = _mm512_set1_ps(factor);
        for (int64_t i = 0; i < F; i += LANES) {
            const __mmask16 mask = lanes_below(F, i);
            const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + i), f);
            const __m512 u = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + F + i), f);
            _mm512_mask_storeu_ps(row + i, mask, _mm512_mul_ps(silu(g), u));
        }
    }

    void dense(Member& team, const Layer& y, int32_t number) {
        const int64_t F = y.shared_gate.n_out;
        const auto read = [&](int64_t t) {
            rms_norm(s.x[t], y.feed_forward_norm, m.norm_eps, m.width, s.normed[t]);
            make_record(y.shared_gate.kind, s.normed[t], m.width, 1.0f, s.shared_records[t]);
        };
        products<ADD>(team, {{&y.output, 0, T, s.record_at.data(), s.x_at.data()}}, of_output(y), T, read,
                      [&] { point_up(F); });
        expect(team, y.shared_down);
        products<SET>(team,
                      {{&y.shared_gate, 0, T, s.shared_record_at.data(), s.shared_gate_at.data()},
                       {&y.shared_up, 0, T, s.shared_record_at.data(), s.shared_up_at.data()}},
                      of_dense(y, {{&Deltas::shared_gate, s.normed_by, s.shared_gate_by},
                                   {&Deltas::shared_up, s.normed_by, s.shared_up_by}}),
                      T, [&](int64_t t) { mix_shared(y, t); }, [] {});
        expect(team, first_matrix(number + 1));
        products<ADD>(team, {{&y.shared_down, 0, T, s.shared_hidden_at.data(), s.x_at.data()}},
                      of_dense(y, {{&Deltas::shared_down, s.shared_gate_by, s.x_by}}), n_begin(number + 1),
                      [&](int64_t i) { begin(number + 1, i); }, [] {});
    }

    static const Corrections& of_output(const Layer& y) {
        return of_dense(y, {{&Deltas::output, s.mixed_by, s.x_by}});
    }

    // In a row of the shared expert, what `up` gives lies behind the F numbers of `gate`.
    void point_up(int64_t F) {
        point(s.shared_up_at, s.shared_hidden, T, F);
        if (s.runs.empty()) return;
        s.shared_up_by = s.shared_gate_by;
        for (float*& at : s.shared_up_by) at += F;
    }

    void mix_shared(const Layer& y, int64_t t) {
        gate(s.shared_hidden[t], y.shared_gate.n_out, 1.0f);
        make_record(y.shared_down.kind, s.shared_hidden[t], y.shared_gate.n_out, 1.0f, s.shared_hidden_records[t]);
    }

    void experts(Member& team, const Layer& y, int32_t number) {
        const int64_t F = y.gate_up.n_out / 2, k = m.n_active_experts;
        const bool is_corrected = !s.runs.empty() && y.deltas->router.a.data;
        const bool is_small = (int64_t)y.router.n_out * y.router.n_in <= SMALL_ROUTER && !is_corrected;
        const auto read = [&](int64_t t) {
            rms_norm(s.x[t], y.feed_forward_norm, m.norm_eps, m.width, s.normed[t]);
            make_record(y.router.kind, s.normed[t], m.width, 1.0f, s.router_records[t]);
            make_record(y.shared_gate.kind, s.normed[t], m.width, 1.0f, s.shared_records[t]);
            if (y.gate_up.kind != y.shared_gate.kind) make_record(y.gate_up.kind, s.normed[t], m.width, 1.0f, s.records[t]);
            for (int64_t i = 0; is_small && i < n_panels(y.router); ++i)
                panel<SET>(y.router, 0, i, 1, &s.router_record_at[t], &s.router_at[t]);
        };
        const auto choose = [&] {
            point_up(y.shared_gate.n_out);
            route(y, number);
        };
        const Product output = {&y.output, 0, T, s.record_at.data(), s.x_at.data()};
        if (is_small) products<ADD>(team, {output}, of_output(y), T, read, choose);
        else {
            products<ADD>(team, {output}, of_output(y), T, read, [] {});
            products<SET>(team, {{&y.router, 0, T, s.router_record_at.data(), s.router_at.data()}},
                          of_dense(y, {{&Deltas::router, s.normed_by, s.router_by}}), 0, [](int64_t) {}, choose);
        }
        expect(team, y.shared_down);
        const int64_t n_routed = n_panels(y.gate_up), n_shared = n_panels(y.shared_gate);
        const auto task = [&](int64_t i) {
            if (i < 2 * n_shared) {
                const bool is_gate = i < n_shared;
                return panel<SET>(is_gate ? y.shared_gate : y.shared_up, 0, i % n_shared, T, s.shared_record_at.data(),
                                  is_gate ? s.shared_gate_at.data() : s.shared_up_at.data());
            }
            const int64_t e = s.active[(i - 2 * n_shared) / n_routed], first = s.expert_begins[e];
            panel<SET>(y.gate_up, e, (i - 2 * n_shared) % n_routed, s.expert_begins[e + 1] - first,
                       s.routed_at.data() + first, s.gate_up_at.data() + first);
        };
        const auto mix = [&](int64_t i) {
            if (i < T) return mix_shared(y, i);
            // The score of an expert multiplies its input; what is linear in that is multiplied here instead.
            gate(s.gate_up[i - T], F, s.row_scores[i - T]);
            make_record(y.down.kind, s.gate_up[i - T], F, 1.0f, s.hidden_records[i - T]);
        };
        const Corrections& wider = of_experts(y, {{&Deltas::shared_gate, s.normed_by, s.shared_gate_by},
                                                  {&Deltas::shared_up, s.normed_by, s.shared_up_by}},
                                              {&Deltas::gate_up, s.normed_of_row, s.gate_up_at});
        corrected(team, wider, (int64_t)s.active.size() * n_routed + 2 * n_shared, task, T + T * k, mix, [] {});
        expect(team, first_matrix(number + 1));
        // A task owns some outputs of all tokens: each token's sum is shared expert first, then routed ones by number.
        const auto add = [&](int64_t i) {
            panel<ADD>(y.shared_down, 0, i, T, s.shared_hidden_at.data(), s.x_at.data());
            for (const int64_t e : s.active) {
                const int64_t first = s.expert_begins[e], n = s.expert_begins[e + 1] - first;
                panel<ADD>(y.down, e, i, n, s.hidden_at.data() + first, s.target_at.data() + first);
            }
        };
        const Corrections& back = of_experts(y, {{&Deltas::shared_down, s.shared_gate_by, s.x_by}},
                                             {&Deltas::down, s.gate_up_at, s.target_at});
        corrected(team, back, n_panels(y.shared_down), add, n_begin(number + 1),
                  [&](int64_t i) { begin(number + 1, i); }, [] {});
    }

    // Chooses each token's experts and groups their rows by expert, those of one adapter together.
    void route(const Layer& y, int32_t number) {
        const int64_t E = m.n_experts, k = m.n_active_experts;
        std::fill(s.expert_begins.begin(), s.expert_begins.end(), 0);
        for (int64_t t = 0; t < T; ++t) {
            const float* logits = s.router[t];
            for (int64_t j = 0; j < k; ++j) {
                int32_t best = -1;
                for (int32_t e = 0; e < E; ++e) {
                    bool taken = false;
                    for (int64_t i = 0; i < j; ++i) taken |= s.chosen[t * k + i] == e;
                    if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
                }
                s.chosen[t * k + j] = best;
                s.scores[t * k + j] = 1.0f / (1.0f + std::exp(-logits[best]));
                ++s.expert_begins[best + 1];
            }
        }
        if (b.routes) std::memcpy(b.routes + (int64_t)number * T * k, s.chosen.data(), T * k * 4);
        s.active.clear();
        for (int64_t e = 0; e < E; ++e) {
            if (s.expert_begins[e + 1]) s.active.push_back(e);
            s.expert_begins[e + 1] += s.expert_begins[e];
        }
        std::vector<int64_t> next(s.expert_begins.begin(), s.expert_begins.end() - 1);
        for (const int64_t t : s.by_adapter)
            for (int64_t i = t * k; i < (t + 1) * k; ++i) {
                const int64_t row = next[s.chosen[i]]++;
                s.row_scores[row] = s.scores[i];
                s.routed_at[row] = y.gate_up.kind == y.shared_gate.kind ? s.shared_record_at[t] : s.record_at[t];
                s.target_at[row] = s.x[t];
                s.token_of_row[row] = (int32_t)t;
            }
        if (s.runs.empty()) return;
        for (int64_t row = 0; row < T * k; ++row) s.normed_of_row[row] = s.normed[s.token_of_row[row]];
        s.expert_runs.clear();
        const auto adapter = [&](int64_t row) { return b.adapters[s.token_of_row[row]]; };
        for (const int64_t e : s.active) find_runs(s.expert_runs, e, s.expert_begins[e], s.expert_begins[e + 1], adapter);
    }

    void logits(Member& team) {
        corrections.clear(s.inner_at.data());
        if (!s.wanted_runs.empty())
            corrections.add(*m.head_delta, s.wanted_runs, s.wanted_by.data(), s.logits_by.data());
        products<SET>(team, {{&m.head, 0, b.n_wanted, s.record_at.data(), s.logits_at.data()}}, corrections);
    }
};
