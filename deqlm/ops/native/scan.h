// The recurrence S = exp(dt A) S + dt x B^T, y = S C + D x of one head of one row, over some tokens.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Bytes of a vector.
#if defined(__AVX512F__)
constexpr int WIDE = 64;
#elif defined(__AVX__)
constexpr int WIDE = 32;
#else
constexpr int WIDE = 16;
#endif
constexpr int TILE = 8;           // columns of the state in registers
constexpr int64_t FEW_TOKENS = 4;   // for these, moving the state into registers costs more than it saves
constexpr int64_t MOST_TOKENS = 64;

// Numbers of a head: P features, N of state. Token i is at x + i * stride, and so on; y is written.
template <typename T>
struct Head {
    int64_t features, size, tokens, stride, step_stride, out_stride;
    const T *x, *B, *C, *dt, *D;
    T rate;
    T *S, *y;
    // Rounded once: many of them are multiplied.
    T decay(int64_t i) const { return static_cast<T>(std::exp(static_cast<double>(dt[i * step_stride]) * rate)); }
};

template <typename T>
void scan_rows(const Head<T>& h, int64_t first) {
    for (int64_t i = 0; i < h.tokens; ++i) {
        const T *x = h.x + i * h.stride, *B = h.B + i * h.stride, *C = h.C + i * h.stride;
        const T dt = h.dt[i * h.step_stride], decay = h.decay(i);
        T* y = h.y + i * h.out_stride;
        for (int64_t p = first; p < h.features; ++p) {
            const T fed = dt * x[p];
            T* s = h.S + p * h.size;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < h.size; ++j) {
                s[j] = decay * s[j] + fed * B[j];
                sum += s[j] * C[j];
            }
            y[p] = sum + h.D[p] * x[p];
        }
    }
}

// K columns of the state of a vector of features stay in registers over all tokens; adds to y.
template <typename T, int K>
void scan_tile(const Head<T>& h, const T* decays, int64_t p, int64_t column) {
    typedef T Vector __attribute__((vector_size(WIDE)));
    constexpr int lanes = WIDE / sizeof(T);
    T held[K][lanes];
    Vector s[K];
    T* S = h.S + p * h.size + column;
    for (int lane = 0; lane < lanes; ++lane)
        for (int j = 0; j < K; ++j) held[j][lane] = S[lane * h.size + j];
    for (int j = 0; j < K; ++j) std::memcpy(&s[j], held[j], WIDE);
    for (int64_t i = 0; i < h.tokens; ++i) {
        const T *B = h.B + i * h.stride + column, *C = h.C + i * h.stride + column;
        T* out = h.y + i * h.out_stride + p;
        Vector fed, y;
        std::memcpy(&fed, h.x + i * h.stride + p, WIDE), std::memcpy(&y, out, WIDE);
        fed = fed * h.dt[i * h.step_stride];
        const T decay = decays[i];
        for (int j = 0; j < K; ++j) {
            s[j] = s[j] * decay + fed * B[j];
            y += s[j] * C[j];
        }
        std::memcpy(out, &y, WIDE);
    }
    for (int j = 0; j < K; ++j) std::memcpy(held[j], &s[j], WIDE);
    for (int lane = 0; lane < lanes; ++lane)
        for (int j = 0; j < K; ++j) S[lane * h.size + j] = held[j][lane];
}

template <typename T>
void scan_head(const Head<T>& h) {
    constexpr int64_t lanes = WIDE / sizeof(T);
    const int64_t whole = h.tokens <= FEW_TOKENS ? 0 : h.features / lanes * lanes;
    if (whole < h.features) scan_rows(h, whole);
    if (!whole) return;
    T decays[MOST_TOKENS];
    for (int64_t i = 0; i < h.tokens; ++i) {
        decays[i] = h.decay(i);
        const T* x = h.x + i * h.stride;
        T* y = h.y + i * h.out_stride;
#pragma omp simd
        for (int64_t p = 0; p < whole; ++p) y[p] = h.D[p] * x[p];
    }
    for (int64_t p = 0; p < whole; p += lanes) {
        int64_t column = 0;
        for (; column + TILE <= h.size; column += TILE) scan_tile<T, TILE>(h, decays, p, column);
        for (; column < h.size; ++column) scan_tile<T, 1>(h, decays, p, column);
    }
}

}  // namespace
