// What a solve keeps from one evaluation to the next, and where it lies in the workspace.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 8;             // rows whose small systems are factored together
constexpr int BLOCK = 1024;          // float sums are carried over to double after so many terms
constexpr double SMALLEST = 1e-270;  // as in criterion.py
constexpr double SLACK = 1.05;       // as in tracker.py
constexpr double LEAST_SAFE = 1e-150;  // norms between these are sums of squares that neither vanish nor overflow
constexpr double MOST_SAFE = 1e150;
constexpr double FALLEN = 0.5;  // as in runaway.py, with the next six
constexpr double FAR = 1000.0;
constexpr double GROWN = 10.0;
constexpr double HIDDEN = 0.25;
constexpr double NEAR = 0.5;
constexpr double COARSE = 1e-4;
constexpr double SURE = 0.5;
constexpr double LONGEST = 1e6;
constexpr double SMALLEST_DAMPING = 1.0 / 16;
constexpr double SHORTEST = 1.0 / 16;
constexpr int64_t LONGEST_GAP = 8;
constexpr double IDLE_GAIN = 0.2;   // as in watch.py, with the next two
constexpr int64_t IDLE_MIXES = 3;
constexpr double IDLE_RATE = 0.7;

enum Rule : int64_t { PICARD = 0, ANDERSON = 1, BROYDEN_GOOD = 2, BROYDEN_BAD = 3 };
enum Status : int8_t { CONVERGED = 0, BUDGET = 1, MAX_ITER = 2, STALLED = 3, DIVERGED = 4, NONFINITE = 5 };
enum Flag : int64_t { TEST = 1, LAST = 2 };

}  // namespace

extern "C" {

struct Row {
    double limit, best_ratio, best_residual, best_relative, residual, relative, ratio, mark;
    double half_residual, half_relative, before, first_ratio, first_residual, first_size, mark_residual, mark_size;
    double first_norm, norm, last_norm, plain_below, best_norm, base_norm, unit, damping, length;
    double damping_limit, above;                                          // damping.h
    double start_norm, size, least_relative, peak, from_norm, mark_norm;  // watch.h
    int64_t steps, since, due, gap, prefix, count, newest, idle, way, since_mark;
    uint8_t active, stalled, plain, best_pending, restart_pending, started, restarted, spent, away, ran_away;
    uint8_t final;  // a point that is not finite, or beyond the divergence limit, ends the row: no other one is left to try
};

struct Solve {
    // filled by the caller
    int64_t rows, unknowns, pairs, rule, line_search, automatic, budget, max_iter, patience, token, groups, runs, threads;
    double rtol, atol, divergence, damping, first_damping, ridge, least_pivot, growth, plain_rate;
    double eps, share_left;  // of what f computes in, and as in runaway.py
    const int64_t* run_end;     // (runs)
    const int32_t* run_group;   // (runs)
    const double* group_root;   // (max(groups, 1)): divisor of a group's norm
    const uint8_t* mask;        // (rows, groups) or null
    const void* weights;        // (unknowns) or null
    const double* scale;        // (rows) or null
    const double* unit;         // (rows): factor of atol, or null
    const double* first;        // (2, rows): residual and size of each row's first point, or null where that is to come
    void* best_z;               // (rows, unknowns), or null for a budget
    int64_t* token_steps;       // (rows, groups), or null
    char* workspace;
    // filled by layout()
    Row* row;
    void *restart_z, *restart_r, *ring_s, *ring_y, *direction, *scratch;
    double *gram, *gram2, *systems, *sums;
    // the rows that are evaluated, when some have left: (present) indices, or null for all
    const int64_t* index;
    int64_t present;
    // outcome of a step
    int64_t next, active, remaining;
};

}  // extern "C"

namespace {

bool secant(const Solve& s) { return s.rule != PICARD; }

template <typename T>
char* carve(char*& at, int64_t count, T*& where) {
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    where = reinterpret_cast<T*>(at);
    at += count * static_cast<int64_t>(sizeof(T));
    return at;
}

int64_t scratch_numbers(const Solve& s) { return (s.unknowns + 31) / 16 * 16; }
int64_t system_numbers(const Solve& s) { return (LANES * (s.pairs * s.pairs + 5 * s.pairs) + s.pairs + 7) / 8 * 8; }

template <typename T>
int64_t layout(Solve& s) {
    char* at = s.workspace;
    const int64_t state = s.rows * s.unknowns;
    T* t = nullptr;
    carve(at, s.rows, s.row);
    const bool mixes = secant(s);
    carve(at, mixes ? state : 0, t), s.restart_z = t;
    carve(at, mixes ? state : 0, t), s.restart_r = t;
    carve(at, mixes ? state * s.pairs : 0, t), s.ring_s = t;
    carve(at, mixes ? state * s.pairs : 0, t), s.ring_y = t;
    carve(at, s.line_search ? state : 0, t), s.direction = t;
    carve(at, mixes ? s.rows * s.pairs * s.pairs : 0, s.gram);
    carve(at, s.rule == BROYDEN_GOOD ? s.rows * s.pairs * s.pairs : 0, s.gram2);
    carve(at, mixes ? s.threads * scratch_numbers(s) : 0, t), s.scratch = t;
    carve(at, mixes ? s.threads * system_numbers(s) : 0, s.systems);
    carve(at, s.groups ? s.threads * 4 * s.groups : 0, s.sums);
    return at - s.workspace + 64;
}

template <typename T>
void copy(const void* from, int64_t from_row, void* to, int64_t to_row, int64_t n) {
    if (n) std::memcpy(static_cast<T*>(to) + to_row * n, static_cast<const T*>(from) + from_row * n, n * sizeof(T));
}

template <typename T>
T* slot(const Solve& s, void* ring, int64_t i, int64_t which) {
    return static_cast<T*>(ring) + (i * s.pairs + which) * s.unknowns;
}

// without %, whose division costs as much as a short inner product
int64_t slot_of_age(const Solve& s, const Row& row, int64_t age) {
    const int64_t place = row.newest - age;
    return place < 0 ? place + s.pairs : place;
}
// the slot in which the base point of the pending step waits to become a pair
int64_t pending_slot(const Solve& s, const Row& row) { return row.newest + 1 == s.pairs ? 0 : row.newest + 1; }

}  // namespace
