// The small system of each row, in double precision; a bad one gives zeros and stops no other row.

#pragma once

#include <cmath>
#include <utility>

#include "state.h"

namespace {

typedef double Quad __attribute__((vector_size(4 * sizeof(double))));

// One number of each of LANES rows; arithmetic is element by element. Two registers hide the latency of one another,
// and compilers keep types of one register there.
struct Lanes {
    Quad low, high;

    double& operator[](int l) { return reinterpret_cast<double*>(this)[l]; }
    void operator+=(const Lanes& o) { low += o.low, high += o.high; }
    void operator-=(const Lanes& o) { low -= o.low, high -= o.high; }
};
static_assert(sizeof(Lanes) == LANES * sizeof(double));

Lanes operator*(const Lanes& a, const Lanes& b) { return {a.low * b.low, a.high * b.high}; }

// The scaled Gram matrix of a row by age, strictly lower triangle, in lane l; its right-hand side is scaled with it.
// A row with something that is not finite is given the identity and zeros.
void fill_lane(const Solve& s, int64_t i, int l, int64_t n, Lanes* a, Lanes* scale, Lanes* b, double* rhs,
               int64_t* place) {
    const Row& row = s.row[i];
    const int64_t m = s.pairs, count = row.count;
    const double* gram = s.gram + i * m * m;
    double total = 0;
    for (int64_t p = 0; p < n; ++p) {
        double factor = 0;
        if (p < count) {
            place[p] = slot_of_age(s, row, p);
            const double square = gram[place[p] * m + place[p]];
            factor = square > 0 ? 1 / std::sqrt(square) : 0.0;
        }
        scale[p][l] = factor;
        const double right = factor != 0 ? rhs[p] * factor : 0.0;
        b[p][l] = right;
        total += right;
        for (int64_t q = 0; q < p; ++q) {
            // entry (newer, older) was made when the newer one came
            const double both = factor * scale[q][l];
            const double entry = both != 0 ? gram[place[q] * m + place[p]] * both : 0.0;
            a[p * m + q][l] = entry;
            total += entry;
        }
    }
    if (std::isfinite(total)) return;
    for (int64_t p = 0; p < n; ++p) {
        b[p][l] = 0;
        for (int64_t q = 0; q < p; ++q) a[p * m + q][l] = 0;
    }
}

// Anderson: the scaled Gram systems of up to LANES rows, solved as far as their columns are independent.
// `gain` is by how much the square of the residual falls with the mix, in the unit of the pairs.
void solve_leading(const Solve& s, const int64_t* which, const bool* wanted, int held, double* rhs, double* gain,
                   Lanes* a) {
    const int64_t m = s.pairs;
    int64_t n = 0;
    for (int l = 0; l < held; ++l)
        if (wanted[l] && s.row[which[l]].count > n) n = s.row[which[l]].count;
    Lanes *scale = a + m * m, *inverse = scale + m, *b = inverse + m;
    int64_t* place = reinterpret_cast<int64_t*>(b + m);
    const Lanes zero{};
    for (int64_t p = 0; p < n; ++p) {
        scale[p] = b[p] = zero;
        for (int64_t q = 0; q < p; ++q) a[p * m + q] = zero;
    }
    for (int l = 0; l < held; ++l)
        if (wanted[l]) fill_lane(s, which[l], l, n, a, scale, b, rhs + l * m, place);
    Lanes gained = zero;
    bool left[LANES];
    for (int l = 0; l < LANES; ++l) left[l] = true;
    for (int64_t j = 0; j < n; ++j) {
        Lanes pivot = zero;
        pivot.low += 1 + s.ridge, pivot.high += 1 + s.ridge;
        for (int64_t k = 0; k < j; ++k) pivot -= a[j * m + k] * a[j * m + k];
        Lanes inv = zero;
        for (int l = 0; l < LANES; ++l) {
            // from the first column that depends on the newer ones, the rest is left out
            left[l] = left[l] && pivot[l] > s.least_pivot;
            inv[l] = left[l] ? 1 / std::sqrt(pivot[l]) : 0.0;
        }
        inverse[j] = inv;
        Lanes x = b[j];
        for (int64_t k = 0; k < j; ++k) x -= a[j * m + k] * b[k];
        b[j] = x * inv;
        gained += b[j] * b[j];
        for (int64_t i = j + 1; i < n; ++i) {
            Lanes y = a[i * m + j];
            for (int64_t k = 0; k < j; ++k) y -= a[i * m + k] * a[j * m + k];
            a[i * m + j] = y * inv;
        }
    }
    for (int64_t j = n - 1; j >= 0; --j) {
        Lanes x = b[j];
        for (int64_t i = j + 1; i < n; ++i) x -= a[i * m + j] * b[i];
        b[j] = x * inverse[j];
    }
    for (int l = 0; l < held; ++l) {
        gain[l] = gained[l];
        for (int64_t j = 0; j < n; ++j) rhs[l * m + j] = b[j][l] * scale[j][l];
    }
}

// LU with partial pivoting of one n x n system; zeros where it is singular or not finite.
void solve_general(double* a, double* b, int64_t n) {
    bool good = true;
    for (int64_t j = 0; j < n && good; ++j) {
        int64_t pivot = j;
        for (int64_t i = j + 1; i < n; ++i)
            if (std::fabs(a[i * n + j]) > std::fabs(a[pivot * n + j])) pivot = i;
        const double largest = a[pivot * n + j];
        good = std::isfinite(largest) && largest != 0;
        if (pivot != j) {
            for (int64_t c = j; c < n; ++c) std::swap(a[j * n + c], a[pivot * n + c]);
            std::swap(b[j], b[pivot]);
        }
        for (int64_t i = j + 1; i < n; ++i) {
            const double factor = a[i * n + j] / largest;
            if (factor == 0) continue;
#pragma omp simd
            for (int64_t c = j + 1; c < n; ++c) a[i * n + c] -= factor * a[j * n + c];
            b[i] -= factor * b[j];
        }
    }
    for (int64_t j = n - 1; j >= 0 && good; --j) {
        for (int64_t c = j + 1; c < n; ++c) b[j] -= a[j * n + c] * b[c];
        b[j] /= a[j * n + j];
    }
    for (int64_t j = 0; j < n; ++j)
        if (!good || !std::isfinite(b[j])) b[j] = 0;
}

// Broyden: the scaled system of one row by age, and its solution in rhs.
void solve_broyden(const Solve& s, int64_t i, double* rhs, double* memory) {
    const Row& row = s.row[i];
    const int64_t m = s.pairs, n = row.count;
    const bool good = s.rule == BROYDEN_GOOD;
    const double *first = s.gram + i * m * m, *second = good ? s.gram2 + i * m * m : nullptr;
    double *a = memory, *scale = memory + m * m;
    int64_t* place = reinterpret_cast<int64_t*>(scale + m);
    for (int64_t p = 0; p < n; ++p) {
        place[p] = slot_of_age(s, row, p);
        const double square = first[place[p] * m + place[p]];
        scale[p] = square > 0 ? 1 / std::sqrt(square) : 0.0;
    }
    for (int64_t p = 0; p < n; ++p) {
        for (int64_t q = 0; q < n; ++q) {
            double entry = 0;
            if (good) {
                entry = row.damping * second[place[p] * m + place[q]];
                if (q > p) entry += first[place[p] * m + place[q]];
            } else if (p >= q) {
                entry = first[place[q] * m + place[p]];
            }
            const double both = scale[p] * scale[q];
            a[p * n + q] = both != 0 ? entry * both : 0.0;
        }
        if (scale[p] == 0) a[p * n + p] = 1;
        rhs[p] = scale[p] != 0 ? rhs[p] * scale[p] * (good ? row.damping : 1.0) : 0.0;
    }
    solve_general(a, rhs, n);
    for (int64_t p = 0; p < n; ++p) rhs[p] *= scale[p];
}

}  // namespace
