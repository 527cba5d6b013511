// The small system of each row, in double precision; a bad one gives zeros and stops no other row.

#pragma once

#include <cmath>
#include <utility>

#include "state.h"

namespace {

// Anderson: the scaled Gram systems of up to LANES rows, solved as far as their columns are independent.
// `gain` is by how much the square of the residual falls with the mix, in the unit of the pairs.
void solve_leading(const Solve& s, const int64_t* which, const bool* wanted, int held, double* rhs, double* gain,
                   double* memory) {
    const int64_t m = s.pairs;
    int64_t n = 0;
    for (int l = 0; l < held; ++l)
        if (wanted[l] && s.row[which[l]].count > n) n = s.row[which[l]].count;
    double* a = memory;                       // lower triangle, by columns of lanes
    double* scale = a + LANES * m * m;        // (m, LANES)
    double* inverse = scale + LANES * m;      // of the pivots
    int64_t* place = reinterpret_cast<int64_t*>(inverse + LANES * m + LANES * m);  // behind the right-hand sides
    double ok[LANES];
    auto at = [&](int64_t i, int64_t j) { return a + (i * m + j) * LANES; };
    for (int l = 0; l < LANES; ++l) {
        const bool real = l < held && wanted[l];
        const Row* row = real ? &s.row[which[l]] : nullptr;
        const double* gram = real ? s.gram + which[l] * m * m : nullptr;
        const int64_t count = real ? row->count : 0;
        ok[l] = 1;
        for (int64_t i = 0; i < n; ++i) {
            place[i] = i < count ? slot_of_age(s, *row, i) : 0;
            const double square = i < count ? gram[place[i] * m + place[i]] : 0.0;
            scale[i * LANES + l] = square > 0 ? 1 / std::sqrt(square) : 0.0;
        }
        double total = 0;
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < i; ++j) {
                // entry (newer, older) was made when the newer one came
                double g = 0;
                if (i < count) {
                    const double both = scale[i * LANES + l] * scale[j * LANES + l];
                    g = both != 0 ? gram[place[j] * m + place[i]] * both : 0.0;
                }
                at(i, j)[l] = g;
                total += g;
            }
            at(i, i)[l] = 1 + s.ridge;
            double& b = rhs[l * m + i];
            b = i < count ? b * scale[i * LANES + l] : 0.0;
            total += b;
        }
        if (!std::isfinite(total)) {
            for (int64_t i = 0; i < n; ++i) {
                for (int64_t j = 0; j < i; ++j) at(i, j)[l] = 0;
                rhs[l * m + i] = 0;
            }
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        double* diagonal = at(j, j);
        double* inv = inverse + j * LANES;
        for (int64_t k = 0; k < j; ++k) {
            const double* c = at(j, k);
            for (int l = 0; l < LANES; ++l) diagonal[l] -= c[l] * c[l];
        }
        for (int l = 0; l < LANES; ++l) {
            ok[l] = diagonal[l] > s.least_pivot ? ok[l] : 0.0;
            inv[l] = ok[l] != 0 ? 1 / std::sqrt(diagonal[l]) : 0.0;
        }
        for (int64_t i = j + 1; i < n; ++i) {
            double x[LANES];
            double* target = at(i, j);
            for (int l = 0; l < LANES; ++l) x[l] = target[l];
            for (int64_t k = 0; k < j; ++k) {
                const double *c = at(i, k), *d = at(j, k);
                for (int l = 0; l < LANES; ++l) x[l] -= c[l] * d[l];
            }
            for (int l = 0; l < LANES; ++l) target[l] = x[l] * inv[l];
        }
    }
    double x[LANES];
    for (int l = 0; l < LANES; ++l) gain[l] = 0;
    for (int64_t j = 0; j < n; ++j) {
        for (int l = 0; l < LANES; ++l) x[l] = rhs[l * m + j];
        for (int64_t k = 0; k < j; ++k)
            for (int l = 0; l < LANES; ++l) x[l] -= at(j, k)[l] * rhs[l * m + k];
        for (int l = 0; l < LANES; ++l) {
            const double half = x[l] * inverse[j * LANES + l];
            rhs[l * m + j] = half;
            gain[l] += half * half;
        }
    }
    for (int64_t j = n - 1; j >= 0; --j) {
        for (int l = 0; l < LANES; ++l) x[l] = rhs[l * m + j];
        for (int64_t i = j + 1; i < n; ++i)
            for (int l = 0; l < LANES; ++l) x[l] -= at(i, j)[l] * rhs[l * m + i];
        for (int l = 0; l < LANES; ++l) rhs[l * m + j] = x[l] * inverse[j * LANES + l];
    }
    for (int l = 0; l < LANES; ++l)
        for (int64_t j = 0; j < n; ++j) rhs[l * m + j] *= scale[j * LANES + l];
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
