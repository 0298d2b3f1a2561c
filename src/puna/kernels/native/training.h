// What Python calls in a step of training, through ctypes. Pointers and sizes come from training.py, which has checked them.
#pragma once
#include "adamw.h"
#include "cross_entropy.h"
#include "rows_attention.h"
#include "swiglu.h"

extern "C" {

// As SwiGLU has them. ends: of each expert's rows, int32 [E].
void puna_swiglu(const uint8_t* x, const uint8_t* gate_up, const uint8_t* down, const int32_t* ends, int64_t n_experts,
                 int64_t width, int64_t hidden_width, uint8_t* out, uint8_t* hidden, int32_t n_threads) {
    SwiGLU({gate_up, down, n_experts, width, hidden_width}, ends).forward(x, out, hidden, n_threads);
}

void puna_swiglu_backward(const uint8_t* by_out, const uint8_t* x, const uint8_t* gate_up, const uint8_t* down,
                          const int32_t* ends, int64_t n_experts, int64_t width, int64_t hidden_width,
                          const uint8_t* hidden, uint8_t* by_hidden, uint8_t* mixed, uint8_t* by_x, uint8_t* by_gate_up,
                          uint8_t* by_down, int32_t n_threads) {
    SwiGLU({gate_up, down, n_experts, width, hidden_width}, ends)
        .backward(by_out, x, hidden, by_hidden, mixed, by_x, by_gate_up, by_down, n_threads);
}

void puna_rows_attention(const AttentionShape* shape, const uint8_t* q, const uint8_t* k, const uint8_t* v, uint8_t* out,
                         float* sums, int32_t n_threads) {
    RowsAttention(*shape).forward(q, k, v, out, sums, n_threads);
}

void puna_rows_attention_backward(const AttentionShape* shape, const uint8_t* by_out, const uint8_t* q, const uint8_t* k,
                                  const uint8_t* v, const uint8_t* out, const float* sums, uint8_t* by_q, uint8_t* by_k,
                                  uint8_t* by_v, int32_t n_threads) {
    RowsAttention(*shape).backward(by_out, q, k, v, out, sums, by_q, by_k, by_v, n_threads);
}

// As cross_entropy has one row; logits [n_rows n].
void puna_cross_entropy(uint8_t* logits, const int64_t* targets, const float* weights, int64_t n_rows, int64_t n,
                        float* losses, int32_t n_threads) {
    share(n_threads, n_rows, [&](int64_t i) {
        losses[i] = cross_entropy((bf16*)logits + i * n, n, targets[i], weights[i]);
    });
}

// Sums of squares of the pieces of a tensor, each of PIECE numbers but the last.
void puna_squares(const uint8_t* x, int32_t is_bf16, int64_t n, float* sums, int32_t n_threads) {
    share(n_threads, (n + PIECE - 1) / PIECE, [&](int64_t i) {
        const int64_t first = i * PIECE, count = std::min(PIECE, n - first);
        sums[i] = is_bf16 ? squares((const bf16*)x + first, count) : squares((const float*)x + first, count);
    });
}

// One step of AdamW on n numbers; rounded are the parameters, and of their type the gradients.
void puna_adamw(const AdamW* step, const uint8_t* gradient, uint8_t* rounded, int32_t is_bf16, int64_t n, float* master,
                float* first, float* second, int32_t n_threads) {
    share(n_threads, (n + PIECE - 1) / PIECE, [&](int64_t i) {
        const int64_t at = i * PIECE, count = std::min(PIECE, n - at);
        if (is_bf16) update(*step, (const bf16*)gradient + at, (bf16*)rounded + at, count, master + at, first + at, second + at);
        else update(*step, (const float*)gradient + at, (float*)rounded + at, count, master + at, first + at, second + at);
    });
}

// Sizes of the structures, so that Python can see whether its own agree.
int64_t puna_training_struct_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(AdamW), sizeof(AttentionShape)};
    return sizes[which];
}

}  // extern "C"
