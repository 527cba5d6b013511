// Norms, the rule of the tolerance, and what a row remembers of its best point.

#pragma once

#include <cmath>

#include "state.h"

namespace {

template <typename T>
double square_sum(const T* a, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += static_cast<double>(a[i]) * a[i];
    return total;
}

// sums of (fz - z)^2 and fz^2
template <typename T>
void both_square_sums(const T* z, const T* fz, int64_t n, double& residual, double& size) {
    double a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < n; ++i) {
        const double r = fz[i] - z[i], f = fz[i];
        a += r * r;
        b += f * f;
    }
    residual = a, size = b;
}

template <typename T>
void weighted_square_sums(const T* z, const T* fz, const T* w, int64_t n, double& residual, double& size) {
    double a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < n; ++i) {
        const T r = (fz[i] - z[i]) * w[i], f = fz[i] * w[i];
        a += static_cast<double>(r) * r;
        b += static_cast<double>(f) * f;
    }
    residual += a, size += b;
}

template <typename T>
double weighted_square_sum(const T* z, const T* w, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) {
        const T x = z[i] * w[i];
        total += static_cast<double>(x) * x;
    }
    return total;
}

// Whether a root of a sum of squares is what it should be; those of float32 never leave the range of double.
template <typename T>
bool safe(double norm) {
    return sizeof(T) < sizeof(double) || (norm > LEAST_SAFE && norm < MOST_SAFE);
}

// sqrt of the sum of value(i)^2, of numbers scaled by a power of two of their largest
template <typename F>
double scaled_norm(int64_t n, F value) {
    double top = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double x = std::fabs(value(i));
        if (!(x <= top)) top = x;
        if (top != top) return top;
    }
    if (!(top > 0) || !std::isfinite(top)) return top;
    int exponent;
    std::frexp(top, &exponent);
    if (exponent < -1000) exponent = -1000;
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double x = std::ldexp(value(i), -exponent);
        total += x * x;
    }
    return std::ldexp(std::sqrt(total), exponent);
}

// ||fz - z||
template <typename T>
double residual_norm(const T* z, const T* fz, int64_t n) {
    double residual, size;
    both_square_sums(z, fz, n, residual, size);
    const double norm = std::sqrt(residual);
    if (safe<T>(norm)) return norm;
    return scaled_norm(n, [&](int64_t i) { return static_cast<double>(fz[i] - z[i]); });
}

struct Reading {
    double residual, relative, ratio;
};

double nan_max(double a, double b) { return (a > b || a != a) ? a : b; }

Reading read_norms(const Solve& s, double residual, double size, double scale, double atol) {
    if (size < scale) size = scale;
    const double tolerance = size * s.rtol + atol;
    return {residual, residual / (size < SMALLEST ? SMALLEST : size),
            residual / (tolerance < SMALLEST ? SMALLEST : tolerance)};
}

// Calls body(from, to, group) for each run of unknowns of one group; one run where there are no groups.
template <typename F>
void each_run(const Solve& s, F body) {
    if (!s.groups) {
        body(0, s.unknowns, 0);
        return;
    }
    int64_t from = 0;
    for (int64_t run = 0; run < s.runs; ++run) {
        body(from, s.run_end[run], s.run_group[run]);
        from = s.run_end[run];
    }
}

// Norm of group g of value(j), of numbers whose squares would vanish or overflow.
template <typename F>
double scaled_group_norm(const Solve& s, int64_t g, F value) {
    double whole = 0;
    each_run(s, [&](int64_t from, int64_t to, int64_t of) {
        if (of != g) return;
        const double norm = scaled_norm(to - from, [&](int64_t i) { return value(from + i); });
        whole = whole != whole || norm != norm ? whole + norm : std::hypot(whole, norm);
    });
    return whole;
}

// Root of a sum of squares of group g, in the unit of the group's norm; value(j) are the numbers that were summed.
template <typename T, typename F>
double group_norm(const Solve& s, int64_t g, double square, F value) {
    double norm = std::sqrt(square);
    if (!safe<T>(norm)) norm = scaled_group_norm(s, g, value);
    return norm / s.group_root[g];
}

// max(||z||, ||f(z)||) of the largest group of row i that counts; `sums` is written over.
template <typename T>
double size_of(const Solve& s, int64_t i, const T* z, const T* fz, double* sums) {
    const T* weights = static_cast<const T*>(s.weights);
    const int64_t groups = s.groups ? s.groups : 1;
    double single[2], largest = 0;
    double *points = s.groups ? sums : single, *images = points + groups;
    for (int64_t g = 0; g < 2 * groups; ++g) points[g] = 0;
    each_run(s, [&](int64_t from, int64_t to, int64_t g) {
        if (weights) {
            points[g] += weighted_square_sum(z + from, weights + from, to - from);
            images[g] += weighted_square_sum(fz + from, weights + from, to - from);
        } else {
            points[g] += square_sum(z + from, to - from);
            images[g] += square_sum(fz + from, to - from);
        }
    });
    const uint8_t* mask = s.mask ? s.mask + i * s.groups : nullptr;
    for (int64_t g = 0; g < groups; ++g) {
        if (mask && !mask[g]) continue;
        const auto of = [&](const T* x) {
            return [=](int64_t j) { return static_cast<double>(weights ? x[j] * weights[j] : x[j]); };
        };
        const double point = group_norm<T>(s, g, points[g], of(z)), image = group_norm<T>(s, g, images[g], of(fz));
        largest = nan_max(largest, nan_max(point, image));
    }
    return largest;
}

// Residual of row i by the rule of the Stop; `sums` holds the ratios of the groups afterwards.
template <typename T>
Reading read(const Solve& s, int64_t i, const T* z, const T* fz, double* sums) {
    const T* weights = static_cast<const T*>(s.weights);
    const double scale = s.scale ? s.scale[i] : 0.0, atol = s.unit ? s.atol * s.unit[i] : s.atol;
    const auto change = [=](int64_t j) {
        return static_cast<double>(weights ? (fz[j] - z[j]) * weights[j] : fz[j] - z[j]);
    };
    const auto image = [=](int64_t j) { return static_cast<double>(weights ? fz[j] * weights[j] : fz[j]); };
    double single[2];
    const int64_t groups = s.groups ? s.groups : 1;
    double *residuals = s.groups ? sums : single, *sizes = residuals + groups;
    for (int64_t g = 0; g < 2 * groups; ++g) residuals[g] = 0;
    each_run(s, [&](int64_t from, int64_t to, int64_t g) {
        if (weights) {
            weighted_square_sums(z + from, fz + from, weights + from, to - from, residuals[g], sizes[g]);
        } else {
            double a, b;
            both_square_sums(z + from, fz + from, to - from, a, b);
            residuals[g] += a, sizes[g] += b;
        }
    });
    Reading worst{0, 0, 0};
    const uint8_t* mask = s.mask ? s.mask + i * s.groups : nullptr;
    for (int64_t g = 0; g < groups; ++g) {
        const double residual = group_norm<T>(s, g, residuals[g], change), size = group_norm<T>(s, g, sizes[g], image);
        Reading at = read_norms(s, residual, size, scale, atol);
        if (mask && !mask[g]) at = {0, 0, 0};
        residuals[g] = at.ratio;
        worst = {nan_max(worst.residual, at.residual), nan_max(worst.relative, at.relative),
                 nan_max(worst.ratio, at.ratio)};
    }
    return worst;
}

// Whether the residual is within tolerance by the row's size only; see runaway.py. That is looked at where it decides.
template <typename T>
bool runs_away(const Solve& s, Row& row, int64_t i, const Reading& at, const T* z, const T* fz, double* sums) {
    if (!row.started && !s.first) row.first_residual = at.residual, row.first_size = size_of(s, i, z, fz, sums);
    if (!(at.ratio <= 1)) return false;
    const double size = size_of(s, i, z, fz, sums), hidden = HIDDEN * s.eps * size;
    const double residual = at.residual > hidden ? at.residual : hidden;
    const double share = size > FAR * row.first_size ? s.share_left : FALLEN;
    if (!(residual > share * row.first_residual) || !(size > GROWN * row.first_size)) return false;
    const double sure = s.eps > COARSE ? SURE : 1.0;
    if (!(std::fabs(size - row.mark_size) > NEAR * size)) return residual > sure * share * row.mark_residual;
    row.mark_residual = residual, row.mark_size = size;
    return true;
}

// A point of a row that runs away is just beyond the tolerance: better than what misses it, worse than what passes.
bool keep_best(const Solve& s, Row& row, int64_t i, int64_t k, const Reading& at, bool runs, const double* ratios,
               bool& grown) {
    const double ratio = runs ? std::nextafter(1.0, 2.0) : at.ratio;
    bool better = ratio < row.best_ratio;
    grown = false;
    if (s.token) {
        int64_t prefix = 0;
        while (prefix < s.groups && ratios[prefix] <= 1) ++prefix;
        grown = std::isfinite(at.ratio) && prefix > row.prefix;
        better = grown || (better && prefix == row.prefix);
        if (grown) row.prefix = prefix;
        int64_t* steps = s.token_steps + i * s.groups;
        for (int64_t g = 0; g < s.groups; ++g)
            if (!(ratios[g] <= 1)) steps[g] = k + 2;
    }
    if (better) {
        row.best_ratio = ratio, row.best_residual = at.residual, row.best_relative = at.relative;
        row.ran_away = runs;
    }
    return better;
}

void plan(Row& row, int64_t k, double ratio) {
    const double rate = (std::log(ratio) - std::log(row.before)) / static_cast<double>(row.gap);
    double ahead = std::isfinite(rate) && rate < 0 ? 0.7 * (-std::log(ratio) / rate) : 1.0;
    if (!(ahead >= 1)) ahead = 1;
    row.gap = ahead >= LONGEST_GAP ? LONGEST_GAP : static_cast<int64_t>(ahead);
    row.before = ratio;
    row.due = k + row.gap;
}

// Test and bookkeeping of row i at its point z.
template <typename T>
void record(Solve& s, int64_t i, const T* z, const T* fz, int64_t k, int64_t flags, double* sums) {
    Row& row = s.row[i];
    const bool due = (flags & TEST) && (!s.automatic || row.due <= k || (flags & LAST));
    const bool plain_norm = !s.groups && !s.weights && !s.scale;
    bool have_norm = false;
    if (due) {
        const Reading at = read(s, i, z, fz, sums);
        if (!row.started) row.limit = at.residual * s.divergence, row.first_ratio = at.ratio;
        row.steps = k + 1;
        const bool bounded = at.residual <= row.limit;
        const bool counts = bounded || row.final;
        bool stays = true, grown = false, better = false;
        if (counts) {
            const bool runs = runs_away(s, row, i, at, z, fz, sums + 2 * s.groups);
            row.residual = at.residual, row.relative = at.relative, row.ratio = at.ratio;
            better = keep_best(s, row, i, k, at, runs, sums, grown);
            stays = (at.ratio > 1 || runs) && bounded;
        }
        row.started = 1;
        if (s.patience >= 0) {
            const bool progress = counts && at.ratio < 0.9 * row.mark;
            if (progress) row.mark = at.ratio;
            if (progress || grown) row.since = k;
            const bool patient = k - row.since < s.patience;
            row.stalled |= !patient;
            stays = stays && patient;
        }
        row.active = stays;
        if (2 * (k + 1) >= s.max_iter && std::isinf(row.half_residual))
            row.half_residual = row.residual, row.half_relative = row.relative;
        if (s.automatic) plan(row, k, at.ratio);
        const bool steps = stays && !(flags & LAST);
        if (better) {
            row.best_pending = secant(s) && steps;
            if (!row.best_pending) copy<T>(z, 0, s.best_z, i, s.unknowns);
        } else if (row.best_pending) {
            copy<T>(slot<T>(s, s.ring_s, i, pending_slot(s, row)), 0, s.best_z, i, s.unknowns);
            row.best_pending = 0;
        }
        if (plain_norm && s.group_root[0] == 1.0) row.norm = at.residual, have_norm = true;
    } else if (row.best_pending) {
        copy<T>(slot<T>(s, s.ring_s, i, pending_slot(s, row)), 0, s.best_z, i, s.unknowns);
        row.best_pending = 0;
    }
    if (secant(s) && row.active && !have_norm) row.norm = residual_norm(z, fz, s.unknowns);
}

}  // namespace
