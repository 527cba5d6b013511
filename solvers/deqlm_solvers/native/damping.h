// How far a row steps along its residual, and how it shortens a step that was refused; the reference is damping.py.

#pragma once

#include <cmath>
#include <limits>

#include "state.h"

namespace {

constexpr double LEAST_DAMPING = 1.0 / 1048576;
constexpr double FALLS = 0.75;
constexpr double TOO_LONG = 8.0;
constexpr int SHORTEST_SCALE = -60;

double pending_damping(const Row& row) { return row.restarted ? row.damping : row.damping_limit; }

// beta of a row with its first pair: the scale of that pair, ||s|| / ||y||, or the limit.
double fitted_damping(const Row& row, double scale) {
    if (!(scale > 0 && TOO_LONG * scale <= row.damping_limit)) return row.damping_limit;
    int exponent;
    std::frexp(scale, &exponent);
    return std::ldexp(1.0, exponent - 1 > SHORTEST_SCALE ? exponent - 1 : SHORTEST_SCALE);
}

void accept(Row& row) {
    row.restarted = row.spent = 0;
    row.refused = std::numeric_limits<double>::infinity();
}

void refuse(Row& row, double pending) {
    const double halved = std::fmin(pending, std::fmax(0.5 * pending, SMALLEST_DAMPING));
    const double quartered = std::fmin(pending, std::fmax(0.25 * pending, LEAST_DAMPING));
    const bool falls = !std::isfinite(row.norm) || row.norm < FALLS * row.refused;
    const double lower = row.restarted && pending <= SMALLEST_DAMPING && falls ? quartered : halved;
    row.spent = row.restarted && lower == pending;
    row.refused = row.restarted && std::isfinite(row.norm) ? row.norm : std::numeric_limits<double>::infinity();
    row.restarted = 1;
    row.damping_limit = std::fmin(row.damping_limit, std::fmax(lower, SMALLEST_DAMPING));
    row.damping = lower;
}

}  // namespace
