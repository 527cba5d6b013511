// Anderson and Broyden steps; the reference is secant.py.

#pragma once

#include <cmath>

#include "damping.h"
#include "products.h"
#include "systems.h"
#include "watch.h"

namespace {

// Neither it nor its inverse leaves the range of T.
template <typename T>
double power_of_two_near_inverse(double norm) {
    if (!(norm > 0) || !std::isfinite(norm)) return 1.0;
    constexpr int most = sizeof(T) == 4 ? 120 : 1000;
    int exponent;
    std::frexp(norm, &exponent);
    if (exponent > most) exponent = most;
    if (exponent < -most) exponent = -most;
    return std::ldexp(1.0, -exponent);
}

// ||s|| / ||y|| of the pair from the pending base point to z.
template <typename T>
double pair_scale(const Solve& s, int64_t i, const T* z, const T* fz) {
    const Row& row = s.row[i];
    const int64_t where = pending_slot(s, row);
    const T *base_z = slot<T>(s, s.ring_s, i, where), *base_r = slot<T>(s, s.ring_y, i, where);
    const T unit = static_cast<T>(row.unit);
    double moved = 0, changed = 0;
#pragma omp simd reduction(+ : moved, changed)
    for (int64_t j = 0; j < s.unknowns; ++j) {
        const double a = (z[j] - base_z[j]) * unit, b = (fz[j] - z[j] - base_r[j]) * unit;
        moved += a * a;
        changed += b * b;
    }
    return std::sqrt(moved) / std::sqrt(changed);
}

// Choose beta where the next pair of row i is its first.
template <typename T>
void fit_damping(Solve& s, int64_t i, const T* z, const T* fz) {
    Row& row = s.row[i];
    if (row.count) return;
    row.damping = s.rule == BROYDEN_GOOD ? row.damping_limit : fitted_damping(row, pair_scale(s, i, z, fz));
}

// Turn the pending base point into the newest pair; fills r with the residual in units.
template <typename T>
void push_pair(Solve& s, int64_t i, const T* z, const T* fz, T* r) {
    Row& row = s.row[i];
    const int64_t n = s.unknowns, where = pending_slot(s, row);
    T *ring_s = slot<T>(s, s.ring_s, i, where), *ring_y = slot<T>(s, s.ring_y, i, where);
    const T unit = static_cast<T>(row.unit), beta = static_cast<T>(row.damping);
    const bool mixed = s.rule == ANDERSON;  // Anderson needs s only as s + beta y, and beta is fixed while pairs last
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const T now = fz[j] - z[j];
        const T change = (now - ring_y[j]) * unit, moved = (z[j] - ring_s[j]) * unit;
        r[j] = now * unit;
        ring_y[j] = change;
        ring_s[j] = mixed ? moved + beta * change : moved;
    }
    row.newest = where;
    row.count = row.count + 1 < s.pairs ? row.count + 1 : s.pairs;
}

// Remember (z, r) as the base point of the pending step.
template <typename T>
void wait(const Solve& s, int64_t i, const T* z, const T* fz) {
    const int64_t where = pending_slot(s, s.row[i]);
    T *base_z = slot<T>(s, s.ring_s, i, where), *base_r = slot<T>(s, s.ring_y, i, where);
#pragma omp simd
    for (int64_t j = 0; j < s.unknowns; ++j) base_z[j] = z[j], base_r[j] = fz[j] - z[j];
}

template <typename T>
void remember_direction(const Solve& s, int64_t i, const T* step) {
    if (!s.line_search) return;
    copy<T>(step, 0, s.direction, i, s.unknowns);
    s.row[i].length = 1;
}

template <typename T>
void first_step(Solve& s, int64_t i, const T* z, const T* fz, T* z_next, T* step) {
    Row& row = s.row[i];
    row.first_norm = row.best_norm = row.base_norm = row.last_norm = row.norm;
    row.start_norm = row.peak = row.from_norm = row.mark_norm = row.norm;
    row.least_relative = std::numeric_limits<double>::infinity();
    row.above = std::numeric_limits<double>::quiet_NaN();
    row.unit = power_of_two_near_inverse<T>(row.norm);
    row.damping_limit = row.damping;
    row.restarted = 1, row.final = 0;
    const T beta = static_cast<T>(row.damping);
#pragma omp simd
    for (int64_t j = 0; j < s.unknowns; ++j) {
        step[j] = beta * (fz[j] - z[j]);
        z_next[j] = z[j] + step[j];
    }
    wait(s, i, z, fz);
    row.restart_pending = 1;
    remember_direction(s, i, step);
}

// What a line search decides before anything else; true where the step of row i is shortened.
template <typename T>
bool shorten(Solve& s, int64_t i, T* z_next) {
    Row& row = s.row[i];
    if (!s.line_search) return false;
    const bool enough = row.norm <= (1 - 1e-4 * row.length) * row.base_norm;
    if (enough || !(row.length > SHORTEST)) return false;
    row.length *= 0.5;
    row.final = row.spent && !(row.length > SHORTEST);
    const T* base = slot<T>(s, s.ring_s, i, pending_slot(s, row));
    const T* direction = static_cast<T*>(s.direction) + i * s.unknowns;
    const T length = static_cast<T>(row.length);
#pragma omp simd
    for (int64_t j = 0; j < s.unknowns; ++j) z_next[j] = base[j] + length * direction[j];
    return true;
}

// Bring the restart point up to date before the pending base is overwritten.
template <typename T>
void keep_restart(Solve& s, int64_t i, const T* z, const T* fz, bool stays_base, bool arrived) {
    Row& row = s.row[i];
    const int64_t n = s.unknowns;
    const bool better = row.norm < row.best_norm || arrived;
    if (better) row.best_norm = row.norm;
    if (better && !stays_base) {
        row.restart_pending = 1;
        return;
    }
    if (better) {  // a trial point of a line search, which does not become a base point
        T *to_z = static_cast<T*>(s.restart_z) + i * n, *to_r = static_cast<T*>(s.restart_r) + i * n;
        for (int64_t j = 0; j < n; ++j) to_z[j] = z[j], to_r[j] = fz[j] - z[j];
        row.restart_pending = 0;
    } else if (row.restart_pending && !stays_base) {
        const int64_t where = pending_slot(s, row);
        copy<T>(slot<T>(s, s.ring_s, i, where), 0, s.restart_z, i, n);
        copy<T>(slot<T>(s, s.ring_y, i, where), 0, s.restart_r, i, n);
        row.restart_pending = 0;
    }
}

// Take the products of the newest pair; the right-hand side by age goes to rhs.
template <typename T>
void gather_products(Solve& s, int64_t i, const T* r, double* rhs, double* other) {
    const Row& row = s.row[i];
    const int64_t m = s.pairs, c = row.newest;
    const T *y = slot<T>(s, s.ring_y, i, c), *move = slot<T>(s, s.ring_s, i, c);
    double* gram = s.gram + i * m * m;
    if (s.rule != BROYDEN_GOOD) {
        products_by_age(s, s.ring_y, i, y, r, other, rhs);
        for (int64_t age = 0; age < row.count; ++age) gram[c * m + slot_of_age(s, row, age)] = other[age];
        return;
    }
    double* mixed = s.gram2 + i * m * m;
    products_by_age(s, s.ring_s, i, y, r, other, rhs);
    for (int64_t age = 0; age < row.count; ++age) mixed[slot_of_age(s, row, age) * m + c] = other[age];
    products_by_age(s, s.ring_s, i, move, other);
    for (int64_t age = 0; age < row.count; ++age) gram[c * m + slot_of_age(s, row, age)] = other[age];
    products_by_age(s, s.ring_y, i, move, other);
    for (int64_t age = 0; age < row.count; ++age) mixed[c * m + slot_of_age(s, row, age)] = other[age];
}

// Keep the point z of row i where the best one by ratio waits in the base slot, which z will not enter.
template <typename T>
void keep_best_point(const Solve& s, int64_t i, const T* z) {
    Row& row = s.row[i];
    if (!row.best_pending) return;
    std::memcpy(static_cast<T*>(s.best_z) + i * s.unknowns, z, s.unknowns * sizeof(T));
    row.best_pending = 0;
}

// Take the last step of row i back: a plain step from its base point, which stays where it is.
template <typename T>
void go_back(Solve& s, int64_t i, const T* z, T* z_next) {
    Row& row = s.row[i];
    keep_best_point(s, i, z);
    row.count = row.idle = 0;
    accept(row);
    row.final = 0;
    const int64_t where = pending_slot(s, row);
    const T *base_z = slot<T>(s, s.ring_s, i, where), *base_r = slot<T>(s, s.ring_y, i, where);
    const T beta = static_cast<T>(row.damping);
#pragma omp simd
    for (int64_t j = 0; j < s.unknowns; ++j) z_next[j] = base_z[j] + beta * base_r[j];
}

// Restart row i from its best point with less damping and without history.
template <typename T>
void restart(Solve& s, int64_t i, const T* z, const T* fz, T* z_next, T* step, double pending) {
    Row& row = s.row[i];
    const int64_t n = s.unknowns;
    row.count = 0;
    refuse(row, pending);
    T *best_z = static_cast<T*>(s.restart_z) + i * n, *best_r = static_cast<T*>(s.restart_r) + i * n;
    if (row.restart_pending)
        for (int64_t j = 0; j < n; ++j) best_z[j] = z[j], best_r[j] = fz[j] - z[j];
    row.restart_pending = 0;
    keep_best_point(s, i, z);
    const int64_t where = pending_slot(s, row);
    T *base_z = slot<T>(s, s.ring_s, i, where), *base_r = slot<T>(s, s.ring_y, i, where);
    const T small = static_cast<T>(row.damping);
    for (int64_t j = 0; j < n; ++j) {
        base_z[j] = best_z[j], base_r[j] = best_r[j];
        step[j] = small * best_r[j];
        z_next[j] = best_z[j] + step[j];
    }
    row.base_norm = row.best_norm;
    remember_direction(s, i, step);
    row.final = row.spent && !s.line_search;
}

// Step of row i with the weights by age; restarts it from its best point where the step or the point is refused.
template <typename T>
void finish_step(Solve& s, int64_t i, const T* z, const T* fz, T* z_next, T* step, const double* weight, bool sound,
                 double pending) {
    Row& row = s.row[i];
    const int64_t n = s.unknowns;
    if (!sound) return restart(s, i, z, fz, z_next, step, pending);
    const T beta = static_cast<T>(row.damping);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) step[j] = beta * (fz[j] - z[j]);
    const double per_unit = 1 / row.unit;
    subtract_mix(s, s.ring_s, i, weight, per_unit, step);
    if (s.rule != ANDERSON) subtract_mix(s, s.ring_y, i, weight, per_unit * row.damping, step);
    const double length = row.count ? norm_in_unit(step, n, row.unit) : row.damping * row.norm;
    if (!(length <= LONGEST * row.norm)) return restart(s, i, z, fz, z_next, step, pending);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z_next[j] = z[j] + step[j];
    wait(s, i, z, fz);
    row.base_norm = row.norm;
    remember_direction(s, i, step);
    accept(row);
    row.final = 0;
}

// Step of the rows of one group of lanes that go on. Positions are those of z, fz and z_next.
template <typename T>
void secant_steps(Solve& s, const int64_t* position, const int64_t* which, int held, const T* z, const T* fz, T* z_next,
                  int64_t k, T* scratch, double* systems) {
    const int64_t n = s.unknowns, m = s.pairs;
    double *rhs = systems + LANES * (m * m + 4 * m), *products = rhs + LANES * m;
    const double factor = s.growth * std::pow(static_cast<double>(k + 1), -1.1);
    bool wanted[LANES] = {}, sound[LANES] = {};
    double pending[LANES] = {};
    for (int l = 0; l < held; ++l) {
        const int64_t i = which[l], p = position[l];
        Row& row = s.row[i];
        const T *zi = z + p * n, *fi = fz + p * n;
        for (int64_t j = 0; j < m; ++j) rhs[l * m + j] = 0;
        if (!row.unit) {  // the first step of this row
            first_step(s, i, zi, fi, z_next + p * n, scratch);
            continue;
        }
        const bool shorter = shorten(s, i, z_next + p * n);
        sound[l] = row.norm <= row.first_norm * factor;
        const Move move = s.plain_rate > 0 ? look(s, i, zi, fi, sound[l]) : GOES_ON;
        if (move == GOES_BACK) {
            go_back(s, i, zi, z_next + p * n);
            continue;
        }
        sound[l] = (sound[l] || row.away || move == ARRIVED) && move != LOST;
        if (move == ARRIVED) row.first_norm = std::fmax(row.first_norm, row.norm);
        keep_restart(s, i, zi, fi, shorter, move == ARRIVED);
        if (shorter) {
            keep_best_point(s, i, zi);
            continue;
        }
        wanted[l] = true;
        pending[l] = pending_damping(row);
        if (row.plain || !sound[l]) {
            row.count = 0;
            continue;
        }
        fit_damping(s, i, zi, fi);
        push_pair(s, i, zi, fi, scratch);
        gather_products(s, i, scratch, rhs + l * m, products);
    }
    double gain[LANES] = {};
    if (s.rule == ANDERSON) solve_leading(s, which, wanted, held, rhs, gain, reinterpret_cast<Lanes*>(systems));
    for (int l = 0; l < held; ++l) {
        if (!wanted[l]) continue;
        const int64_t i = which[l], p = position[l];
        Row& row = s.row[i];
        if (s.rule != ANDERSON) solve_broyden(s, i, rhs + l * m, systems);
        const double length = row.unit * row.norm;
        row.idle = row.plain || gain[l] >= IDLE_GAIN * length * length ? 0 : row.idle + 1;
        finish_step(s, i, z + p * n, fz + p * n, z_next + p * n, scratch, rhs + l * m, sound[l],
                    pending[l]);
    }
}

}  // namespace
