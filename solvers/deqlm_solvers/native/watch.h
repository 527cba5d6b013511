// Whether a row mixes or takes plain steps; the reference is watch.py.

#pragma once

#include <cmath>

#include "read.h"

namespace {

constexpr double COLLAPSED = 0.25, STUCK = 0.5, WILD = 8.0, PASSED = 0.5, AFTER_RATE = 0.8, STEEPEST_WAY = 1e4;
constexpr double SLOW_RATE = 0.5, CLOSE = 0.005, CLOSE_EPS = 4, GROWS = 0.5;
constexpr int64_t LONGEST_WAY = 40, SLOW_MIXES = 8;

enum Move { GOES_ON, GOES_BACK, ARRIVED, LOST };

// Norm of a vector whose size is about 1 / unit, at every magnitude.
template <typename T>
double norm_in_unit(const T* a, int64_t n, double unit) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; ++j) {
        const double x = unit * static_cast<double>(a[j]);
        total += x * x;
    }
    return std::sqrt(total) / unit;
}

// Whether the residual of row i grows along the step to z.
template <typename T>
bool outward(const Solve& s, int64_t i, const T* z, const T* fz) {
    const Row& row = s.row[i];
    const int64_t where = pending_slot(s, row);
    const T *base_z = slot<T>(s, s.ring_s, i, where), *base_r = slot<T>(s, s.ring_y, i, where);
    const T unit = static_cast<T>(row.unit);
    double along = 0, moved_square = 0, change_square = 0;
#pragma omp simd reduction(+ : along, moved_square, change_square)
    for (int64_t j = 0; j < s.unknowns; ++j) {
        const T moved = (z[j] - base_z[j]) * unit, change = (fz[j] - z[j] - base_r[j]) * unit;
        along += static_cast<double>(moved) * change;
        moved_square += static_cast<double>(moved) * moved;
        change_square += static_cast<double>(change) * change;
    }
    return along > GROWS * (std::sqrt(moved_square) * std::sqrt(change_square));
}

// Follow the way of a row from a root that repels; `back` and `on` start one.
Move follow(Row& row, double relative, bool back, bool on, double damping) {
    const bool young = row.way < LONGEST_WAY;
    row.way += row.away;
    row.peak = std::fmax(row.peak, row.norm);
    const bool arrived = row.away && row.norm <= PASSED * row.peak && relative <= row.least_relative;
    const bool leads = young || relative <= STUCK * row.least_relative;
    const bool bears = leads && row.norm <= STEEPEST_WAY * row.from_norm;
    const bool lost = row.away && !arrived && !bears;
    if (lost) row.way = LONGEST_WAY;
    if (back || on) row.from_norm = row.peak = back ? row.last_norm : row.norm, row.damping = damping;
    row.away = back || on || (row.away && !arrived && !lost);
    return back ? GOES_BACK : arrived ? ARRIVED : lost ? LOST : GOES_ON;
}

// Take a new point of row i, before the step.
template <typename T>
Move look(Solve& s, int64_t i, const T* z, const T* fz, bool sound) {
    Row& row = s.row[i];
    const double rate = row.norm / row.last_norm;
    if (row.plain || row.norm <= SLOW_RATE * row.mark_norm) row.mark_norm = row.norm, row.since_mark = 0;
    else ++row.since_mark;
    if (row.plain && !row.away && rate <= row.plain_below) {
        row.last_norm = row.norm;
        return GOES_ON;
    }
    const double size = norm_in_unit(fz, s.unknowns, row.unit), relative = row.norm / size;
    const bool ways = row.way < LONGEST_WAY;
    const bool stuck = !row.plain && ways && size <= COLLAPSED * row.size && relative >= STUCK * row.least_relative;
    const bool tame = row.norm <= WILD * row.start_norm;
    const bool slow = ways && tame && row.since_mark >= SLOW_MIXES;
    const bool grew = sound && !(relative <= std::fmax(CLOSE, CLOSE_EPS * s.eps)) && (stuck || slow) && outward(s, i, z, fz);
    const Move move = follow(row, relative, stuck && grew, slow && grew && !stuck, s.damping);
    const bool turned = !row.plain && row.idle >= IDLE_MIXES && rate <= IDLE_RATE;
    if (turned) row.plain_below = IDLE_RATE > s.plain_rate ? IDLE_RATE : s.plain_rate;
    else if (move == ARRIVED) row.plain_below = AFTER_RATE;
    row.plain = row.away || move == ARRIVED || turned || (row.plain && rate <= row.plain_below);
    if (!row.plain) {
        if (tame) row.size = std::fmax(row.size, size);
        row.least_relative = std::fmin(row.least_relative, relative);
    }
    row.last_norm = row.norm;
    return move;
}

}  // namespace
