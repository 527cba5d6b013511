// How far a row steps along its residual, and how it shortens a step that was refused; the reference is damping.py.

#pragma once

#include <cmath>
#include <limits>

#include "state.h"

namespace {

constexpr double LEAST_DAMPING = 1.0 / 1048576;
constexpr double FALLS = 0.75;
constexpr double TOO_LONG = 8.0;
constexpr double SHORTEST_SCALE = 1.0 / (1ll << 60);

double pending_damping(const Row& row) { return row.restarted ? row.damping : row.damping_limit; }

// beta of a row with its first pair: the scale of that pair, ||s|| / ||y||, or the limit.
double fitted_damping(const Row& row, double scale) {
    return TOO_LONG * scale <= row.damping_limit ? std::fmax(scale, SHORTEST_SCALE) : row.damping_limit;
}

void accept(Row& row) {
    row.restarted = row.spent = 0;
    row.above = std::numeric_limits<double>::quiet_NaN();
}

void refuse(Row& row, double pending) {
    double lower = pending;
    if (pending > SMALLEST_DAMPING) lower = std::fmax(0.5 * pending, SMALLEST_DAMPING);
    else if (row.restarted && !(row.norm >= row.above))
        lower = std::fmin(pending, std::fmax(0.25 * pending, LEAST_DAMPING));
    row.spent = row.restarted && lower == pending;
    row.above = row.restarted && std::isfinite(row.norm) ? FALLS * row.norm : std::numeric_limits<double>::quiet_NaN();
    row.restarted = 1;
    row.damping_limit = std::fmin(row.damping_limit, std::fmax(lower, SMALLEST_DAMPING));
    row.damping = lower;
}

}  // namespace
