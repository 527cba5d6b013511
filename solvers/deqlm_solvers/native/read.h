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

struct Reading {
    double residual, relative, ratio;
};

double nan_max(double a, double b) { return (a > b || a != a) ? a : b; }

Reading read_norms(const Solve& s, double residual, double size, double scale, double atol) {
    if (size < scale) size = scale;
    return {residual, residual / (size + SMALLEST), residual / (size * s.rtol + (atol + SMALLEST))};
}

// Residual of row i by the rule of the Stop; `sums` holds the ratios of the groups afterwards.
template <typename T>
Reading read(const Solve& s, int64_t i, const T* z, const T* fz, double* sums) {
    const T* weights = static_cast<const T*>(s.weights);
    const double scale = s.scale ? s.scale[i] : 0.0, atol = s.unit ? s.atol * s.unit[i] : s.atol;
    if (!s.groups) {
        double residual = 0, size = 0;
        if (weights) weighted_square_sums(z, fz, weights, s.unknowns, residual, size);
        else both_square_sums(z, fz, s.unknowns, residual, size);
        return read_norms(s, std::sqrt(residual) / s.group_root[0], std::sqrt(size) / s.group_root[0], scale, atol);
    }
    double *residuals = sums, *sizes = sums + s.groups;
    std::memset(sums, 0, 2 * s.groups * sizeof(double));
    int64_t from = 0;
    for (int64_t run = 0; run < s.runs; ++run) {
        const int64_t n = s.run_end[run] - from, g = s.run_group[run];
        if (weights) {
            weighted_square_sums(z + from, fz + from, weights + from, n, residuals[g], sizes[g]);
        } else {
            double a, b;
            both_square_sums(z + from, fz + from, n, a, b);
            residuals[g] += a, sizes[g] += b;
        }
        from = s.run_end[run];
    }
    Reading worst{0, 0, 0};
    const uint8_t* mask = s.mask ? s.mask + i * s.groups : nullptr;
    for (int64_t g = 0; g < s.groups; ++g) {
        const double root = s.group_root[g];
        Reading at = read_norms(s, std::sqrt(residuals[g]) / root, std::sqrt(sizes[g]) / root, scale, atol);
        if (mask && !mask[g]) at = {0, 0, 0};
        residuals[g] = at.ratio;
        worst = {nan_max(worst.residual, at.residual), nan_max(worst.relative, at.relative),
                 nan_max(worst.ratio, at.ratio)};
    }
    return worst;
}

// Whether the point is the best one so far; keeps the best reading and the steps of the tokens.
bool keep_best(const Solve& s, Row& row, int64_t i, int64_t k, const Reading& at, const double* ratios, bool& grown) {
    bool better = at.ratio < row.best_ratio;
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
    if (better) row.best_ratio = at.ratio, row.best_residual = at.residual, row.best_relative = at.relative;
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
        if (!row.started) row.limit = at.residual * s.divergence, row.first_ratio = at.ratio, row.started = 1;
        row.steps = k + 1;
        row.residual = at.residual, row.relative = at.relative, row.ratio = at.ratio;
        bool grown;
        const bool better = keep_best(s, row, i, k, at, sums, grown);
        bool stays = at.ratio > 1 && at.residual <= row.limit;
        if (s.patience >= 0) {
            bool progress = at.ratio < 0.9 * row.mark;
            if (progress) row.mark = at.ratio;
            if (progress || grown) row.since = k;
            const bool patient = k - row.since < s.patience;
            row.stalled |= !patient;
            stays = stays && patient;
        }
        row.active = stays;
        if (s.automatic) plan(row, k, at.ratio);
        const bool steps = stays && !(flags & LAST);
        if (better) {
            row.best_pending = secant(s) && steps;
            if (!row.best_pending) std::copy_n(z, s.unknowns, static_cast<T*>(s.best_z) + i * s.unknowns);
        } else if (row.best_pending) {
            copy<T>(slot<T>(s, s.ring_s, i, pending_slot(s, row)), 0, s.best_z, i, s.unknowns);
            row.best_pending = 0;
        }
        if (plain_norm && s.group_root[0] == 1.0) row.norm = at.residual, have_norm = true;
    } else if (row.best_pending) {
        copy<T>(slot<T>(s, s.ring_s, i, pending_slot(s, row)), 0, s.best_z, i, s.unknowns);
        row.best_pending = 0;
    }
    if (secant(s) && row.active && !have_norm) {
        double residual, size;
        both_square_sums(z, fz, s.unknowns, residual, size);
        row.norm = std::sqrt(residual);
    }
}

}  // namespace
