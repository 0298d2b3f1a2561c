// What Python calls, through ctypes. Pointers and sizes come from native.py, which has checked them.
#include "decoder.h"
#include "memory.h"
#include "quantize.h"
#include "ranking.h"
#include "training.h"

namespace {

std::mutex one_forward;  // the scratch memory of a forward belongs to one call at a time

// Makes records of rows [n, width], each row times its factor (or 1 without factors).
void make_records(Member& team, int32_t kind, const float* x, const float* factors, int64_t n, int64_t width,
                  Rows<uint8_t>& records) {
    team.each(n, [&](int64_t i) { make_record(kind, x + i * width, width, factors ? factors[i] : 1.0f, records[i]); });
}

}  // namespace

extern "C" {

int64_t puna_matrix_bytes(int32_t kind, int64_t n_out, int64_t n_in) { return matrix_bytes(kind, n_out, n_in); }

// Packs one matrix; source and scales as pack_block has them.
void puna_pack(int32_t kind, const uint8_t* source, const uint8_t* scales, int64_t n_out, int64_t n_in, uint8_t* target,
               int32_t n_threads) {
    together(n_threads, 1, [&](Member& team) {
        team.each(padded(n_out, LANES) / LANES, [&](int64_t block) {
            pack_block(kind, source, scales, n_out, n_in, block, target);
        });
    });
}

// Int4 of `n_groups` groups of 32 finite numbers.
void puna_quantize_int4(const float* numbers, int64_t n_groups, const float* reaches, int32_t n_reaches, uint8_t* codes,
                        bf16* scales, int32_t n_threads) {
    constexpr int64_t RUN = 256;
    together(n_threads, 1, [&](Member& team) {
        team.each((n_groups + RUN - 1) / RUN, [&](int64_t run) {
            for (int64_t g = run * RUN; g < std::min(n_groups, (run + 1) * RUN); ++g) {
                const float* from = numbers + g * GROUP;
                quantize_group({_mm512_loadu_ps(from), _mm512_loadu_ps(from + LANES)}, reaches, n_reaches,
                               codes + g * GROUP / 2, scales + g);
            }
        });
    });
}

// out [n, w.n_out] = x [n, w.n_in] times the matrix of each row's expert, all float32. Rows lie expert by expert: those of
// expert e are begins[e] to begins[e + 1]. A matrix alone is one expert.
void puna_grouped_linear(const Matrix* w, const float* x, const int64_t* begins, float* out, int32_t n_threads) {
    const int64_t n = begins[w->n_experts], n_each = n_panels(*w);
    Rows<uint8_t> records;
    records.shape(n, record_bytes(w->kind, w->n_in));
    std::vector<const uint8_t*> rows(n);
    std::vector<float*> at(n);
    for (int64_t i = 0; i < n; ++i) {
        rows[i] = records[i];
        at[i] = out + i * w->n_out;
    }
    std::vector<int64_t> active;
    for (int64_t e = 0; e < w->n_experts; ++e)
        if (begins[e + 1] > begins[e]) active.push_back(e);
    together(n_threads, 2, [&](Member& team) {
        make_records(team, w->kind, x, nullptr, n, w->n_in, records);
        team.each((int64_t)active.size() * n_each, [&](int64_t i) {
            const int64_t e = active[i / n_each], first = begins[e];
            panel<SET>(*w, e, i % n_each, begins[e + 1] - first, rows.data() + first, at.data() + first);
        });
    });
}

// The greatest of each row of x [n, width] in peaks, and where the greatest of x + bar [width] (nullptr: of x) is in places.
void puna_greatest(const float* x, const float* bar, int64_t n, int64_t width, float* peaks, int64_t* places) {
    for (int64_t i = 0; i < n; ++i) peaks[i] = greatest(x + i * width, bar, width, places + i);
}

void puna_large_pages(uint8_t* memory, int64_t n_bytes) { use_large_pages(memory, n_bytes); }
uint8_t* puna_map(int32_t file, int64_t offset, int64_t n_bytes) { return map_file(file, offset, n_bytes); }
int32_t puna_settle(uint8_t* at, int64_t n_bytes, int32_t file, int64_t offset) {
    return settle(at, n_bytes, file, offset);
}
void puna_unmap(uint8_t* memory, int64_t n_bytes) { unmap(memory, n_bytes); }

void puna_forward(const Model* model, const Batch* batch, int32_t n_threads) {
    const std::lock_guard<std::mutex> lock(one_forward);
    Forward(*model, *batch).run(n_threads);
}

// Sizes of the structures, so that Python can see whether its own agree.
int64_t puna_struct_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Delta), sizeof(Deltas), sizeof(Store),
                             sizeof(Layer),  sizeof(Model), sizeof(Entry),  sizeof(Batch)};
    return sizes[which];
}

}  // extern "C"
