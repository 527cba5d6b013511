// The derivative of what Mamba2 does between its projections. Everything but the inputs is computed once more; the
// injection is in them already.

#pragma once

#include <vector>

#include "mamba2.h"
#include "scan_back.h"

extern "C" {

// Cotangents; optional ones are null. Sums over tokens are made for each row: (B, W C + C + H + H + H P + H P) numbers,
// in the order of the parameters in Mamba2.
struct Back {
    const void *y, *window_after, *state_after;
    void *projected, *window, *state, *parameters;
};

}  // extern "C"

namespace {

template <typename T>
inline T sigmoid(T x) {
    return 1 / (1 + exponential(-x));
}

template <typename T>
inline T silu_slope(T x) {
    const T s = sigmoid(x);
    return s * (1 + x * (1 - s));
}

// One row b after another, of all its tokens.
template <typename T>
struct LayerBack {
    const Mamba2& m;
    const Tokens& k;
    const Back& back;
    int64_t L = k.length, H = m.heads, P = m.headdim, N = m.state, W = m.taps, past = W - 1, ssm = H * P;
    int64_t C = ssm + 2 * m.groups * N, inputs = 2 * m.mlp + ssm + C + H, outputs = m.mlp + ssm;
    int64_t blocks = (L + MOST_TOKENS - 1) / MOST_TOKENS, parameters = W * C + C + 2 * H + 2 * ssm;
    std::vector<T> seen = std::vector<T>((past + L) * C), to_seen = seen, pre = std::vector<T>(L * C), mixed = pre,
                   to_mixed = pre, steps = std::vector<T>(L * H), slopes = steps, to_steps = steps,
                   y = std::vector<T>(L * ssm), to_y = y, states = std::vector<T>(blocks * H * P * N),
                   S = std::vector<T>(H * P * N), part = std::vector<T>(2 * ssm);

    bool real(int64_t b, int64_t t) const { return !k.mask || k.mask[b * k.mask_stride + t]; }
    const T* at(const void* tensor, int64_t offset) const { return static_cast<const T*>(tensor) + offset; }

    Head<T> head(int64_t h, int64_t block, T* state) {
        const int64_t t = block * MOST_TOKENS, n = std::min(MOST_TOKENS, L - t), group = h / (H / m.groups);
        const T *token = mixed.data() + t * C, *B = token + ssm + group * N;
        return {P, N, n, C, H, ssm, token + h * P, B, B + m.groups * N, steps.data() + t * H + h,
                at(m.skip, h * P), at(m.rates, h)[0], state, y.data() + t * ssm + h * P};
    }

    void again(int64_t b) {
        const T *projected = at(k.projected, b * L * inputs), *bias = at(m.dt_bias, 0);
        const T low = static_cast<T>(m.dt_least), high = static_cast<T>(m.dt_most);
        if (k.window)
            std::copy_n(at(k.window, b * past * C), past * C, seen.data());
        else
            std::fill_n(seen.data(), past * C, T(0));
        for (int64_t t = 0; t < L; ++t) {
            const T* p = projected + t * inputs + 2 * m.mlp + ssm;
            std::memcpy(seen.data() + (past + t) * C, p, C * sizeof(T));
            for (int64_t h = 0; h < H; ++h) {
                const T raw = p[C + h] + bias[h], step = softplus(raw);
                const bool moves = real(b, t) && !(step < low) && !(step > high);
                steps[t * H + h] = !real(b, t) ? 0 : step < low ? low : step > high ? high : step;
                slopes[t * H + h] = !moves ? 0 : raw > 20 ? 1 : sigmoid(raw);
            }
        }
        const T *weight = at(m.conv_weight, 0), *shift = static_cast<const T*>(m.conv_bias);
        for (int64_t t = 0; t < L; ++t) {
            T *to = pre.data() + t * C, *out = mixed.data() + t * C;
            for (int64_t c = 0; c < C; ++c) to[c] = shift ? shift[c] : 0;
            for (int64_t w = 0; w < W; ++w) {
                const T *x = seen.data() + (t + w) * C, *by = weight + w * C;
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) to[c] += x[c] * by[c];
            }
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) out[c] = silu(to[c]);
        }
        if (k.state)
            std::copy_n(at(k.state, b * H * P * N), H * P * N, S.data());
        else
            std::fill(S.begin(), S.end(), T(0));
        for (int64_t block = 0; block < blocks; ++block) {
            std::copy(S.begin(), S.end(), states.begin() + block * H * P * N);
            for (int64_t h = 0; h < H; ++h) scan_head(head(h, block, S.data() + h * P * N));
        }
    }

    // Gated MLP, gate and normalisation of one token: cotangents of the inputs p and of y.
    void finish(const T* p, const T* y, const T* to_out, T* to_p, T* to_y, T* to_weight) {
        for (int64_t i = 0; i < m.mlp; ++i) {
            to_p[i] = to_out[i] * p[m.mlp + i] * silu_slope(p[i]);
            to_p[m.mlp + i] = to_out[i] * silu(p[i]);
        }
        p += 2 * m.mlp, to_p += 2 * m.mlp, to_out += m.mlp;
        T *gate = part.data(), *inner = gate + ssm;
#pragma omp simd
        for (int64_t i = 0; i < ssm; ++i) gate[i] = silu(p[i]);
        if (!m.normed) {
            for (int64_t i = 0; i < ssm; ++i) to_y[i] = to_out[i] * gate[i];
#pragma omp simd
            for (int64_t i = 0; i < ssm; ++i) to_p[i] = to_out[i] * y[i] * silu_slope(p[i]);
            return;
        }
        const int64_t width = ssm / m.groups;
        for (int64_t first = 0; first < ssm; first += width) {
            const int64_t end = first + width;
            const T* weight = at(m.norm_weight, 0);
            T squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
            for (int64_t i = first; i < end; ++i) {
                inner[i] = m.gate_last ? y[i] : y[i] * gate[i];
                squares += inner[i] * inner[i];
                along += to_out[i] * (m.gate_last ? gate[i] : T(1)) * weight[i] * inner[i];
            }
            const T scale = 1 / std::sqrt(squares / static_cast<T>(width) + static_cast<T>(m.eps));
            const T pull = along * scale * scale * scale / static_cast<T>(width);
#pragma omp simd
            for (int64_t i = first; i < end; ++i) {
                const T slope = silu_slope(p[i]), outer = to_out[i] * (m.gate_last ? gate[i] : T(1));
                const T to_inner = scale * outer * weight[i] - pull * inner[i];
                to_weight[i] += outer * inner[i] * scale;
                to_y[i] = m.gate_last ? to_inner : to_inner * gate[i];
                to_p[i] = (m.gate_last ? to_out[i] * inner[i] * scale * weight[i] : to_inner * y[i]) * slope;
            }
        }
    }

    void row(int64_t b) {
        again(b);
        T* sums = static_cast<T*>(back.parameters) + b * parameters;
        std::fill_n(sums, parameters, T(0));
        T *to_weight = sums, *to_bias = sums + W * C, *to_dt_bias = to_bias + C, *to_rates = to_dt_bias + H,
          *to_skip = to_rates + H, *to_norm = to_skip + ssm;
        T* to_inputs = static_cast<T*>(back.projected) + b * L * inputs;
        for (int64_t t = 0; t < L; ++t)
            finish(at(k.projected, (b * L + t) * inputs), y.data() + t * ssm, at(back.y, (b * L + t) * outputs),
                   to_inputs + t * inputs, to_y.data() + t * ssm, to_norm);
        T* to_state = static_cast<T*>(back.state) + b * H * P * N;
        if (back.state_after)
            std::copy_n(at(back.state_after, b * H * P * N), H * P * N, to_state);
        else
            std::fill_n(to_state, H * P * N, T(0));
        std::fill(to_mixed.begin(), to_mixed.end(), T(0)), std::fill(to_steps.begin(), to_steps.end(), T(0));
        for (int64_t block = blocks - 1; block >= 0; --block)
            for (int64_t h = 0; h < H; ++h) {
                const int64_t t = block * MOST_TOKENS, group = h / (H / m.groups);
                T *token = to_mixed.data() + t * C, *B = token + ssm + group * N;
                scan_back(head(h, block, states.data() + (block * H + h) * P * N),
                          HeadBack<T>{to_y.data() + t * ssm + h * P, token + h * P, B, B + m.groups * N,
                                      to_steps.data() + t * H + h, to_skip + h * P, to_rates + h,
                                      to_state + h * P * N});
            }
        convolution(b, to_weight, to_bias);
        for (int64_t t = 0; t < L; ++t) {
            T* to = to_inputs + t * inputs + 2 * m.mlp + ssm;
            std::memcpy(to, to_seen.data() + (past + t) * C, C * sizeof(T));
            for (int64_t h = 0; h < H; ++h) {
                to[C + h] = to_steps[t * H + h] * slopes[t * H + h];
                to_dt_bias[h] += to[C + h];
            }
        }
        std::copy_n(to_seen.data(), past * C, static_cast<T*>(back.window) + b * past * C);
    }

    void convolution(int64_t b, T* to_weight, T* to_bias) {
        std::fill(to_seen.begin(), to_seen.end(), T(0));
        if (back.window_after)
            std::copy_n(at(back.window_after, b * past * C), past * C, to_seen.data() + L * C);
        for (int64_t t = 0; t < L; ++t) {
            T* to = to_mixed.data() + t * C;
            const T* from = pre.data() + t * C;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) to[c] *= silu_slope(from[c]);
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) to_bias[c] += to[c];
            for (int64_t w = 0; w < W; ++w) {
                const T *x = seen.data() + (t + w) * C, *by = at(m.conv_weight, w * C);
                T *to_x = to_seen.data() + (t + w) * C, *to_by = to_weight + w * C;
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) {
                    to_x[c] += to[c] * by[c];
                    to_by[c] += to[c] * x[c];
                }
            }
        }
    }
};

template <typename T>
void mamba2_back(const Mamba2& m, const Tokens& k, const Back& back) {
#ifdef _OPENMP
    const int threads = static_cast<int>(std::min(k.threads, k.batch));
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
        LayerBack<T> layer{m, k, back};
#pragma omp for schedule(static)
        for (int64_t b = 0; b < k.batch; ++b) layer.row(b);
    }
}

}  // namespace
