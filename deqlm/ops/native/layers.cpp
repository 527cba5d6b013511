// Layers on the CPU. The torch code of deqlm/layers is the reference for every line here.
// Rows share nothing, so neither threads nor the other rows of a batch can change a row's bits.

#include "mamba2.h"
#include "mamba2_back.h"
#include "norm.h"

namespace {

template <typename T>
void norm_rows(const void* x_, const void* weight_, void* y_, int64_t rows, int64_t width, double eps,
               int64_t threads) {
    const T *x = static_cast<const T*>(x_), *weight = static_cast<const T*>(weight_);
    T* y = static_cast<T*>(y_);
#ifdef _OPENMP
    const bool many = threads > 1 && rows * width > 65536;
#pragma omp parallel for schedule(static) num_threads(many ? static_cast<int>(threads) : 1) if (many)
#else
    (void)threads;
#endif
    for (int64_t i = 0; i < rows; ++i) rms_norm(x + i * width, weight, y + i * width, width, eps);
}

}  // namespace

extern "C" {

void mamba2_float(const Mamba2* layer, const Tokens* tokens) { Layer<float>{*layer, *tokens}.run(); }
void mamba2_double(const Mamba2* layer, const Tokens* tokens) { Layer<double>{*layer, *tokens}.run(); }

void mamba2_back_float(const Mamba2* layer, const Tokens* tokens, const Back* back) {
    mamba2_back<float>(*layer, *tokens, *back);
}
void mamba2_back_double(const Mamba2* layer, const Tokens* tokens, const Back* back) {
    mamba2_back<double>(*layer, *tokens, *back);
}

int64_t mamba2_bytes() { return sizeof(Mamba2) + sizeof(Tokens) + sizeof(Back); }

void rms_norm_float(const void* x, const void* w, void* y, int64_t rows, int64_t width, double eps, int64_t threads) {
    norm_rows<float>(x, w, y, rows, width, eps, threads);
}
void rms_norm_double(const void* x, const void* w, void* y, int64_t rows, int64_t width, double eps, int64_t threads) {
    norm_rows<double>(x, w, y, rows, width, eps, threads);
}

}  // extern "C"
