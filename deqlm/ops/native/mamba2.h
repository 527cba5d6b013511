// What Mamba2 does between its two projections, for all tokens of a batch in one call.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "elementary.h"
#include "norm.h"
#include "scan.h"

extern "C" {

// Sizes and parameters of a layer, fixed within a call.
struct Mamba2 {
    int64_t heads, headdim, groups, state, taps, mlp, normed, gate_last;
    double eps, dt_least, dt_most;
    const void *conv_weight, *conv_bias, *dt_bias, *rates, *skip, *norm_weight;  // (W, C), (C), (H), (H), (H, P), (HP)
};

// Tensors of one evaluation: B rows of L tokens. Optional ones are null. So many rows and tokens are done at a time
// that what is between two loops stays in the processor's cache.
struct Tokens {
    int64_t batch, length, u_stride, mask_stride, threads, rows_at_once, tokens_at_once;
    const void *projected, *u, *window, *state;  // (B, L, U) twice, (B, W - 1, C), (B, H, P, N)
    const bool* mask;                            // (B, L)
    void *y, *window_after, *state_after;        // (B, L, M + HP), (B, W - 1, C), (B, H, P, N)
    void* scratch;                               // for each row at once: (T + W - 1) C + T (C + H) numbers
};

}  // extern "C"

namespace {

template <typename T>
struct Layer {
    const Mamba2& m;
    const Tokens& k;
    int64_t ssm = m.heads * m.headdim, channels = ssm + 2 * m.groups * m.state;
    int64_t inputs = 2 * m.mlp + ssm + channels + m.heads, past = m.taps - 1, outputs = m.mlp + ssm;
    int64_t most = k.tokens_at_once;
    T* seen = static_cast<T*>(k.scratch);                         // (rows, W - 1 + T, C)
    T* mixed = seen + k.rows_at_once * (most + past) * channels;  // (rows, T, C), behind the convolution
    T* steps = mixed + k.rows_at_once * most * channels;          // (rows, T, H)

    const T* projected(int64_t b, int64_t t) const {
        return static_cast<const T*>(k.projected) + (b * k.length + t) * inputs;
    }
    const T* injected(int64_t b, int64_t t) const {
        return k.u ? static_cast<const T*>(k.u) + b * k.u_stride + t * inputs : nullptr;
    }
    bool real(int64_t b, int64_t t) const { return !k.mask || k.mask[b * k.mask_stride + t]; }
    T* seen_by(int64_t row) const { return seen + row * (most + past) * channels; }

    // The inputs of the convolution and the step sizes of token t of row b; row and i say where they lie in scratch.
    void read(int64_t b, int64_t t, int64_t row, int64_t i) const {
        const int64_t first = 2 * m.mlp + ssm;
        const T *p = projected(b, t) + first, *u = injected(b, t);
        T* to = seen_by(row) + (past + i) * channels;
        T* dt = steps + (row * most + i) * m.heads;
        if (!real(b, t)) {
            std::memset(to, 0, channels * sizeof(T));
            std::memset(dt, 0, m.heads * sizeof(T));
            return;
        }
        if (u) {
            u += first;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) to[c] = p[c] + u[c];
        } else {
            std::memcpy(to, p, channels * sizeof(T));
        }
        const T *bias = static_cast<const T*>(m.dt_bias), low = static_cast<T>(m.dt_least),
                high = static_cast<T>(m.dt_most);
        for (int64_t h = 0; h < m.heads; ++h) {
            const T raw = u ? p[channels + h] + u[channels + h] : p[channels + h];
            const T step = softplus(raw + bias[h]);
            dt[h] = step < low ? low : step > high ? high : step;
        }
    }

    void read_window(int64_t b, int64_t row) const {
        const int64_t numbers = past * channels;
        if (k.window)
            std::copy_n(static_cast<const T*>(k.window) + b * numbers, numbers, seen_by(row));
        else
            std::fill_n(seen_by(row), numbers, T(0));
    }

    // Keep the last W - 1 inputs behind n tokens, for the next ones or for good.
    void keep_window(int64_t b, int64_t row, int64_t n, bool last) const {
        const int64_t numbers = past * channels;
        T* to = last ? static_cast<T*>(k.window_after) + b * numbers : seen_by(row);
        std::copy_n(seen_by(row) + n * channels, numbers, to);  // not memmove, which may not see null
    }

    void convolve(int64_t row, int64_t i) const {
        const T* from = seen_by(row) + i * channels;
        const T *weight = static_cast<const T*>(m.conv_weight), *bias = static_cast<const T*>(m.conv_bias);
        T* to = mixed + (row * most + i) * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) to[c] = from[c] * weight[c];
        for (int64_t w = 1; w < m.taps; ++w) {
            const T *x = from + w * channels, *by = weight + w * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) to[c] += x[c] * by[c];
        }
        if (bias) {
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) to[c] += bias[c];
        }
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) to[c] = silu(to[c]);
    }

    // The recurrence of head h over n tokens from t on.
    void scan(int64_t b, int64_t t, int64_t row, int64_t n, int64_t h) const {
        const int64_t numbers = m.headdim * m.state, group = h / (m.heads / m.groups);
        T* S = static_cast<T*>(k.state_after) + (b * m.heads + h) * numbers;
        if (t == 0 && k.state)
            std::copy_n(static_cast<const T*>(k.state) + (b * m.heads + h) * numbers, numbers, S);
        else if (t == 0)
            std::fill_n(S, numbers, T(0));
        const T *token = mixed + row * most * channels, *B = token + ssm + group * m.state;
        scan_head(Head<T>{m.headdim, m.state, n, channels, m.heads, outputs,
                          token + h * m.headdim, B, B + m.groups * m.state, steps + row * most * m.heads + h,
                          static_cast<const T*>(m.skip) + h * m.headdim, static_cast<const T*>(m.rates)[h],
                          S, static_cast<T*>(k.y) + (b * k.length + t) * outputs + m.mlp + h * m.headdim});
    }

    // Gate, normalisation and the gated MLP of one token.
    void finish(int64_t b, int64_t t) const {
        const T *p = projected(b, t), *u = injected(b, t);
        T* y = static_cast<T*>(k.y) + (b * k.length + t) * outputs;
        if (!real(b, t)) {
            std::memset(y, 0, outputs * sizeof(T));
            return;
        }
        for (int64_t i = 0; i < m.mlp; ++i) {
            const T gate = u ? p[i] + u[i] : p[i], value = u ? p[m.mlp + i] + u[m.mlp + i] : p[m.mlp + i];
            y[i] = silu(gate) * value;
        }
        p += 2 * m.mlp, y += m.mlp;
        if (u) u += 2 * m.mlp;
        if (!m.gate_last) gated(y, p, u);
        if (m.normed) {
            const int64_t width = ssm / m.groups;
            for (int64_t g = 0; g < m.groups; ++g)
                rms_norm(y + g * width, static_cast<const T*>(m.norm_weight) + g * width, y + g * width, width, m.eps);
        }
        if (m.gate_last) gated(y, p, u);
    }

    void gated(T* y, const T* p, const T* u) const {
        if (u) {
#pragma omp simd
            for (int64_t i = 0; i < ssm; ++i) y[i] *= silu(p[i] + u[i]);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < ssm; ++i) y[i] *= silu(p[i]);
        }
    }

    void run() const {
#ifdef _OPENMP
        const bool many = k.threads > 1 && k.batch * k.length * (channels * m.taps + ssm * m.state) > 65536;
#pragma omp parallel num_threads(many ? static_cast<int>(k.threads) : 1) if (many)
#endif
        for (int64_t b = 0; b < k.batch; b += k.rows_at_once)
            for (int64_t t = 0; t < k.length; t += most)
                block(b, std::min(k.rows_at_once, k.batch - b), t, std::min(most, k.length - t));
    }

    // So many rows from b on and n tokens from t on; the threads of a team share every loop.
    void block(int64_t b, int64_t rows, int64_t t, int64_t n) const {
        if (t == 0) {
#pragma omp for schedule(static) nowait
            for (int64_t row = 0; row < rows; ++row) read_window(b + row, row);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * n; ++i) read(b + i / n, t + i % n, i / n, i % n);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * n; ++i) convolve(i / n, i % n);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * m.heads; ++i) scan(b + i / m.heads, t, i / m.heads, n, i % m.heads);
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < rows * n; ++i) finish(b + i / n, t + i % n);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) keep_window(b + row, row, n, t + n == k.length);
    }
};

}  // namespace
