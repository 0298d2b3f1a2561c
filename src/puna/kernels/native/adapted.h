// What adapters add to the products of a forward: out += b (a x), in the rows of those who have one.
//
// Rows with the same factors lie together in lists. a x is worked out beside the product that reads the same x, b (a x)
// in a phase of its own behind it. As everywhere, a row's sums do not depend on the rows beside it.
#pragma once
#include <vector>
#include "matmul.h"

constexpr int64_t ROWS_OF_A_TASK = 48;  // of one adapter that one thread narrows: many enough to read factors seldom

// The factors of all adapters for one map: stacks [rank in] and [out rank], scales multiplied in.
struct Delta {
    Matrix a, b;
    const int32_t* table;  // [adapters, experts]: the place in the stacks, -1 for none. Dense maps are one expert
    int64_t n_experts;
};

struct Deltas {  // of a layer; a map that nobody corrects has no data
    Delta query, key, value, output, router, gate_up, down, shared_gate, shared_up, shared_down;
};

// Neighbours in a list of rows that have one adapter, and went to one expert.
struct Run {
    int32_t adapter;
    int64_t expert, first, n;
};

// All that adapters add in one phase. Each thread makes its own list of it, and they are equal.
class Corrections {
  public:
    // Begins anew. inner: room for what factors have between them, a row for each row that is added.
    Corrections& clear(uint8_t* const* inner) {
        list_.clear();
        inner_ = inner;
        return *this;
    }

    // Adds what the adapters of `runs` add to out[i], the rows that a map gave for read[i].
    void add(const Delta& delta, const std::vector<Run>& runs, const float* const* read, float* const* out) {
        if (!delta.a.data) return;
        for (const Run& run : runs) {
            const int32_t place = delta.table[run.adapter * delta.n_experts + run.expert];
            for (int64_t i = 0; place >= 0 && i < run.n; i += ROWS_OF_A_TASK) {
                const int64_t n = std::min(ROWS_OF_A_TASK, run.n - i);
                list_.push_back({&delta, place, n, read + run.first + i, out + run.first + i, inner_});
                inner_ += n;
            }
        }
    }

    int64_t n_narrow() const { return (int64_t)list_.size(); }

    int64_t n_widen() const {
        int64_t most = 0;
        for (const Correction& c : list_) most = std::max(most, n_panels(c.delta->b));
        return most;
    }

    // a x for the rows of one correction.
    void narrow(int64_t number) const {
        static thread_local Rows<uint8_t> records;
        static thread_local Rows<float> sums;
        const Correction& c = list_[number];
        const Matrix &a = c.delta->a, &b = c.delta->b;
        records.shape(MOST_ROWS, record_bytes(a.kind, a.n_in));
        sums.shape(MOST_ROWS, a.n_out);
        const uint8_t* record_at[MOST_ROWS];
        float* sum_at[MOST_ROWS];
        for (int64_t m = 0; m < c.n_rows; m += MOST_ROWS) {
            const int64_t n = std::min<int64_t>(MOST_ROWS, c.n_rows - m);
            for (int64_t i = 0; i < n; ++i) {
                make_record(a.kind, c.read[m + i], a.n_in, 1.0f, records[i]);
                record_at[i] = records[i];
                sum_at[i] = sums[i];
            }
            for (int64_t i = 0; i < n_panels(a); ++i) panel<SET>(a, c.place, i, n, record_at, sum_at);
            for (int64_t i = 0; i < n; ++i) make_record(b.kind, sums[i], b.n_in, 1.0f, c.inner[m + i]);
        }
    }

    // b (a x) for one panel of outputs: of all rows, one correction after the other, so that a token's sum has one order.
    void widen(int64_t number) const {
        for (const Correction& c : list_)
            if (number < n_panels(c.delta->b)) panel<ADD>(c.delta->b, c.place, number, c.n_rows, c.inner, c.out);
    }

  private:
    struct Correction {
        const Delta* delta;
        int64_t place, n_rows;
        const float* const* read;
        float* const* out;
        uint8_t* const* inner;
    };

    std::vector<Correction> list_;
    uint8_t* const* inner_ = nullptr;
};
