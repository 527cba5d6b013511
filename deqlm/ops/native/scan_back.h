// The derivative of the recurrence of one head over some tokens. The states between tokens are computed once more.

#pragma once

#include "scan.h"

namespace {

constexpr int ROWS = 4;  // features whose states are held for all tokens at a time

// Cotangents of a head: those of y are read, the others are added to; dS is that of the state behind the tokens and
// becomes that of the state before them.
template <typename T>
struct HeadBack {
    const T* y;
    T *x, *B, *C, *dt, *D, *rate, *S;
};

// The sum of a vector's numbers, by halves.
template <typename T, typename V>
inline T total(V x) {
    constexpr int lanes = sizeof(V) / sizeof(T);
    T held[lanes];
    std::memcpy(held, &x, sizeof(V));
#pragma GCC unroll 8
    for (int half = lanes / 2; half > 0; half /= 2)
#pragma omp simd
        for (int lane = 0; lane < half; ++lane) held[lane] += held[lane + half];
    return held[0];
}

template <typename V, typename T>
inline V load(const T* from) {
    V x;
    std::memcpy(&x, from, sizeof(V));
    return x;
}

template <typename V, typename T>
inline void add(T* to, V x) {
    x += load<V>(to);
    std::memcpy(to, &x, sizeof(V));
}

// Sums over columns, still in the lanes of vectors: what reaches dt x of K features, and the decay.
template <typename V, int K>
struct Sums {
    V fed[MOST_TOKENS][K], decay[MOST_TOKENS];
};

// K features from p on and a vector V of columns.
template <typename T, typename V, int K>
void scan_back_tile(const Head<T>& h, const HeadBack<T>& back, const T* decays, Sums<V, K>& sums, int64_t p,
                    int64_t column) {
    V held[MOST_TOKENS + 1][K], ds[K];
    for (int j = 0; j < K; ++j) held[0][j] = load<V>(h.S + (p + j) * h.size + column);
    for (int64_t i = 0; i < h.tokens; ++i) {
        const V B = load<V>(h.B + i * h.stride + column);
        const T *x = h.x + i * h.stride + p, dt = h.dt[i * h.step_stride], decay = decays[i];
        for (int j = 0; j < K; ++j) held[i + 1][j] = held[i][j] * decay + B * (dt * x[j]);
    }
    for (int j = 0; j < K; ++j) ds[j] = load<V>(back.S + (p + j) * h.size + column);
    for (int64_t i = h.tokens - 1; i >= 0; --i) {
        const V B = load<V>(h.B + i * h.stride + column), C = load<V>(h.C + i * h.stride + column);
        const T *x = h.x + i * h.stride + p, *dy = back.y + i * h.out_stride + p;
        const T dt = h.dt[i * h.step_stride], decay = decays[i];
        V to_B = {}, to_C = {}, to_decay = sums.decay[i];
        for (int j = 0; j < K; ++j) {
            ds[j] += C * dy[j];
            to_C += held[i + 1][j] * dy[j];
            to_B += ds[j] * (dt * x[j]);
            to_decay += ds[j] * held[i][j];
            sums.fed[i][j] += ds[j] * B;
            ds[j] = ds[j] * decay;
        }
        sums.decay[i] = to_decay;
        add(back.B + i * h.stride + column, to_B), add(back.C + i * h.stride + column, to_C);
    }
    for (int j = 0; j < K; ++j) std::memcpy(back.S + (p + j) * h.size + column, &ds[j], sizeof(V));
}

// K features from p on and the columns first to end (exclusive), vectors V of them.
template <typename T, typename V, int K>
void scan_back_rows(const Head<T>& h, const HeadBack<T>& back, const T* decays, double* from_decays, int64_t p,
                    int64_t first, int64_t end) {
    if (first == end) return;
    Sums<V, K> sums;
    std::memset(&sums.fed, 0, h.tokens * sizeof sums.fed[0]), std::memset(&sums.decay, 0, h.tokens * sizeof(V));
    for (int64_t column = first; column < end; column += sizeof(V) / sizeof(T))
        scan_back_tile<T, V, K>(h, back, decays, sums, p, column);
    for (int64_t i = 0; i < h.tokens; ++i) {
        from_decays[i] += total<T>(sums.decay[i]);
        for (int j = 0; j < K; ++j) back.x[i * h.stride + p + j] += total<T>(sums.fed[i][j]);
    }
}

// h.S is the state before the tokens and stays as it is; h.y is not used.
template <typename T>
void scan_back(const Head<T>& h, const HeadBack<T>& back) {
    T decays[MOST_TOKENS];
    double from_decays[MOST_TOKENS] = {};
    for (int64_t i = 0; i < h.tokens; ++i) decays[i] = h.decay(i);
    typedef T Vector __attribute__((vector_size(WIDE)));
    const int64_t whole = h.size - h.size % (WIDE / sizeof(T));
    int64_t p = 0;
    for (; p + ROWS <= h.features; p += ROWS) {
        scan_back_rows<T, Vector, ROWS>(h, back, decays, from_decays, p, 0, whole);
        scan_back_rows<T, T, ROWS>(h, back, decays, from_decays, p, whole, h.size);
    }
    for (; p < h.features; ++p) {
        scan_back_rows<T, Vector, 1>(h, back, decays, from_decays, p, 0, whole);
        scan_back_rows<T, T, 1>(h, back, decays, from_decays, p, whole, h.size);
    }
    double to_rate = 0;
    for (int64_t i = 0; i < h.tokens; ++i) {
        const T *x = h.x + i * h.stride, *dy = back.y + i * h.out_stride, dt = h.dt[i * h.step_stride];
        T* to_x = back.x + i * h.stride;
        double to_dt = from_decays[i] * decays[i] * h.rate;
        for (int64_t q = 0; q < h.features; ++q) {
            to_dt += static_cast<double>(to_x[q]) * x[q];
            to_x[q] = dt * to_x[q] + h.D[q] * dy[q];
            back.D[q] += dy[q] * x[q];
        }
        back.dt[i * h.step_stride] += static_cast<T>(to_dt);
        to_rate += from_decays[i] * decays[i] * dt;
    }
    *back.rate += static_cast<T>(to_rate);
}

}  // namespace
