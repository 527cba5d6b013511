// Root-mean-square normalisation of one row.

#pragma once

#include <cmath>
#include <cstdint>

namespace {

// y may be x; no weight is one of ones.
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, int64_t width, double eps) {
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < width; ++j) squares += x[j] * x[j];
    const T scale = 1 / std::sqrt(squares / static_cast<T>(width) + static_cast<T>(eps));
    if (weight) {
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) y[j] = x[j] * scale * weight[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) y[j] = x[j] * scale;
    }
}

}  // namespace
