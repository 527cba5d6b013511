// One evaluation of a solve on the CPU in one call: residuals, norms, tests, best points, update, freezing.
// The torch code in tracker.py, fixed_point.py, secant.py, anderson.py and broyden.py is the reference for every line here.
// Rows share nothing, so neither threads nor the other rows of a batch can change a row's bits.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "secant.h"

namespace {

template <typename T>
void picard_step(const Solve& s, const T* z, const T* fz, T* z_next, double damping) {
    if (damping == 1) {
        copy<T>(fz, 0, z_next, 0, s.unknowns);
        return;
    }
    const T beta = static_cast<T>(damping);
#pragma omp simd
    for (int64_t j = 0; j < s.unknowns; ++j) z_next[j] = z[j] + beta * (fz[j] - z[j]);
}

// What the update rule knows of a row that has no step behind it.
void begin(const Solve& s, Row& row) {
    row.unit = row.size = 0;
    row.count = row.idle = row.way = row.since_mark = 0;
    row.damping = s.damping;
    row.plain = s.plain_rate > 0;
    row.plain_below = s.plain_rate;
    row.restarted = row.spent = row.away = 0;
    row.final = 1;
}

// Whether passed rows still pass, now that the last one is done; those that do not are taken up again.
template <typename T>
bool reopen(Solve& s, const T* z, const T* fz, int64_t k, bool take_up) {
    bool any = false;
    for (int64_t i = 0; i < s.rows; ++i) {
        Row& row = s.row[i];
        if (row.active || !(row.best_ratio <= 1)) continue;
        const Reading at = read(s, i, z + i * s.unknowns, fz + i * s.unknowns, s.sums);
        if (!(at.ratio > SLACK)) continue;
        any = true;
        row.best_ratio = std::numeric_limits<double>::infinity();
        row.residual = at.residual, row.relative = at.relative;
        row.best_residual = at.residual, row.best_relative = at.relative;
        if (take_up) row.active = 1, row.due = k + 1, begin(s, row);
    }
    return any;
}

// How many rows are active, and when the first of them is due.
void count(Solve& s) {
    s.active = 0, s.next = std::numeric_limits<int64_t>::max();
    for (int64_t i = 0; i < s.rows; ++i) {
        if (!s.row[i].active) continue;
        ++s.active;
        if (s.row[i].due < s.next) s.next = s.row[i].due;
    }
}

// Evaluations that the slowest active row still needs at its mean rate so far.
int64_t remaining(const Solve& s, int64_t k) {
    double most = 0;
    for (int64_t i = 0; i < s.rows; ++i) {
        const Row& row = s.row[i];
        if (!row.active) continue;
        const double fallen = std::log(row.first_ratio / row.ratio), left = std::log(row.ratio);
        const double need = fallen > 0 ? left / fallen * static_cast<double>(k) : 1e9;
        if (!(need <= most)) most = need;
    }
    return most < 1e9 ? static_cast<int64_t>(most) : 1000000000;
}

template <typename T>
int64_t advance(Solve& s, const void* z_, const void* fz_, void* z_next_, int64_t k, int64_t flags, double* trace) {
    const T *z = static_cast<const T*>(z_), *fz = static_cast<const T*>(fz_);
    T* z_next = static_cast<T*>(z_next_);
    const int64_t n = s.unknowns, present = s.index ? s.present : s.rows;
    const bool go_on = !(flags & LAST) || s.budget;
    const double damping = k == 0 ? s.first_damping : s.damping;
    const int64_t groups = (present + LANES - 1) / LANES;
#ifdef _OPENMP
    const bool many = s.threads > 1 && present * n * (s.pairs + 4) > 65536;
#pragma omp parallel for schedule(static) num_threads(many ? static_cast<int>(s.threads) : 1) if (many)
#endif
    for (int64_t g = 0; g < groups; ++g) {
#ifdef _OPENMP
        const int64_t thread = many ? omp_get_thread_num() : 0;
#else
        const int64_t thread = 0;
#endif
        double* sums = s.sums + thread * 4 * s.groups;
        T* scratch = static_cast<T*>(s.scratch) + thread * scratch_numbers(s);
        int64_t position[LANES], which[LANES];
        int held = 0;
        for (int64_t p = g * LANES; p < (g + 1) * LANES && p < present; ++p) {
            const int64_t i = s.index ? s.index[p] : p;
            Row& row = s.row[i];
            if (row.active) {
                if (!s.budget) {
                    record(s, i, z + p * n, fz + p * n, k, flags, sums);
                } else if (secant(s)) {
                    row.norm = residual_norm(z + p * n, fz + p * n, n);
                }
                if (s.budget && (flags & LAST)) {
                    const Reading at = read(s, i, z + p * n, fz + p * n, sums);
                    row.residual = at.residual, row.relative = at.relative;
                }
            }
            if (!go_on) continue;
            if (!row.active) {
                copy<T>(z, p, z_next, p, n);
            } else if (secant(s)) {
                position[held] = p, which[held++] = i;
            } else {
                picard_step(s, z + p * n, fz + p * n, z_next + p * n, damping);
            }
        }
        if (held)
            secant_steps(s, position, which, held, z, fz, z_next, k, scratch, s.systems + thread * system_numbers(s));
    }
    if (s.budget) return s.rows;
    count(s);
    if (!s.index && (s.active == 0 || (flags & LAST)) && reopen(s, z, fz, k, go_on) && go_on) {
        for (int64_t i = 0; i < s.rows; ++i) {
            if (!s.row[i].active) continue;
            if (secant(s)) {
                s.row[i].norm = residual_norm(z + i * n, fz + i * n, n);
                secant_steps(s, &i, &i, 1, z, fz, z_next, k, static_cast<T*>(s.scratch), s.systems);
            } else {
                picard_step(s, z + i * n, fz + i * n, z_next + i * n, damping);
            }
        }
        count(s);
    }
    if (trace)
        for (int64_t i = 0; i < s.rows; ++i)
            trace[i] = s.row[i].steps == k + 1 || (!s.row[i].active && (flags & TEST))
                           ? s.row[i].residual
                           : std::numeric_limits<double>::quiet_NaN();
    s.remaining = s.active && 2 * s.active <= present ? remaining(s, k) : 0;
    return s.active;
}

// Bring the points that would be returned now up to date.
template <typename T>
void settle(const Solve& s) {
    for (int64_t i = 0; i < s.rows; ++i) {
        Row& row = s.row[i];
        if (row.best_pending)
            copy<T>(slot<T>(s, s.ring_s, i, pending_slot(s, row)), 0, s.best_z, i, s.unknowns);
        row.best_pending = 0;
    }
}

// Take f at those points, of all rows together; whether rows that passed no longer do, and go on with take_up.
template <typename T>
int64_t review(Solve& s, const void* z, const void* fz, int64_t k, int64_t take_up) {
    s.index = nullptr;
    const bool any = reopen(s, static_cast<const T*>(z), static_cast<const T*>(fz), k, take_up != 0);
    count(s);
    if (any && take_up) return 1;
    for (int64_t i = 0; i < s.rows; ++i) {
        Row& row = s.row[i];
        if (!(row.best_ratio > 1)) continue;
        const int64_t at_row = i * s.unknowns;
        const Reading at = read(s, i, static_cast<const T*>(z) + at_row, static_cast<const T*>(fz) + at_row, s.sums);
        if (at.ratio > SLACK * row.best_ratio) row.best_residual = at.residual, row.best_relative = at.relative;
    }
    return 0;
}

int8_t status_of(const Solve& s, const Row& row) {
    if (s.budget) return std::isfinite(row.residual) ? BUDGET : NONFINITE;
    if (row.best_ratio <= 1) return CONVERGED;
    if (!std::isfinite(row.residual)) return NONFINITE;
    if (row.residual > row.limit || row.ran_away) return DIVERGED;
    if (row.stalled) return STALLED;
    const bool vanishing = s.patience < 0 && s.max_iter >= 8 &&
                           row.residual <= 0.75 * row.half_residual && row.relative >= 0.9 * row.half_relative;
    return vanishing ? STALLED : MAX_ITER;
}

// The largest status of a row is returned.
template <typename T>
int64_t finish(const Solve& s, double* residual, double* relative, int64_t* steps, int8_t* status, double* first,
            uint8_t* ran_away, int8_t* picked) {
    if (!s.budget) settle<T>(s);
    int64_t worst = 0;
    for (int64_t i = 0; i < s.rows; ++i) {
        const Row& row = s.row[i];
        residual[i] = s.budget ? row.residual : row.best_residual;
        relative[i] = s.budget ? row.relative : row.best_relative;
        steps[i] = s.budget ? s.max_iter : row.steps;
        status[i] = status_of(s, row);
        if (status[i] > worst) worst = status[i];
        first[i] = row.first_residual, first[s.rows + i] = row.first_size;
        ran_away[i] = row.ran_away && status[i] == DIVERGED;
        if (picked) picked[i] = row.plain ? 0 : 1;
        for (int64_t g = 0; s.token && g < s.groups; ++g) {
            int64_t& settled = s.token_steps[i * s.groups + g];
            if (settled > steps[i] || (s.mask && !s.mask[i * s.groups + g])) settled = 0;
        }
    }
    return worst;
}

// Mark the rows of a budget whose last point is not finite as its residual is not; whether there is a row so marked.
template <typename T>
int64_t lost(const Solve& s, const void* z_, double* residual, double* relative, int8_t* status) {
    const T* z = static_cast<const T*>(z_);
    int64_t any = 0;
    for (int64_t i = 0; i < s.rows; ++i, z += s.unknowns) {
        double squares = 0;
        for (int64_t j = 0; j < s.unknowns; ++j) squares += static_cast<double>(z[j]) * static_cast<double>(z[j]);
        if (std::isfinite(residual[i]) && std::isfinite(squares)) continue;
        residual[i] = relative[i] = std::numeric_limits<double>::infinity();
        status[i] = NONFINITE, any = 1;
    }
    return any;
}

template <typename T>
void open(Solve& s, const void* z) {
    layout<T>(s);
    const double infinity = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < s.rows; ++i) {
        Row& row = s.row[i];
        row = Row{};
        row.limit = row.best_ratio = row.best_residual = row.best_relative = infinity;
        row.residual = row.relative = row.mark = row.half_residual = row.half_relative = infinity;
        if (s.first) row.first_residual = s.first[i], row.first_size = s.first[s.rows + i];
        row.before = std::numeric_limits<double>::quiet_NaN();
        row.gap = row.active = 1;
        row.newest = -1 + s.pairs;
        begin(s, row);
    }
    if (!s.budget) copy<T>(z, 0, s.best_z, 0, s.rows * s.unknowns);
    for (int64_t i = 0; s.token && i < s.rows * s.groups; ++i) s.token_steps[i] = 1;
    s.next = 0, s.active = s.rows, s.remaining = 0;
}

}  // namespace

extern "C" {

int64_t struct_bytes() { return sizeof(Solve); }
int64_t workspace_bytes_float(Solve* s) { return layout<float>(*s); }
int64_t workspace_bytes_double(Solve* s) { return layout<double>(*s); }
void open_float(Solve* s, const void* z) { open<float>(*s, z); }
void open_double(Solve* s, const void* z) { open<double>(*s, z); }
int64_t advance_float(Solve* s, const void* z, const void* fz, void* z_next, int64_t k, int64_t flags, double* trace) {
    return advance<float>(*s, z, fz, z_next, k, flags, trace);
}
int64_t advance_double(Solve* s, const void* z, const void* fz, void* z_next, int64_t k, int64_t flags, double* trace) {
    return advance<double>(*s, z, fz, z_next, k, flags, trace);
}
int64_t finish_float(Solve* s, double* residual, double* relative, int64_t* steps, int8_t* status, double* first,
                     uint8_t* ran_away, int8_t* picked) {
    return finish<float>(*s, residual, relative, steps, status, first, ran_away, picked);
}
int64_t lost_float(const Solve* s, const void* z, double* residual, double* relative, int8_t* status) {
    return lost<float>(*s, z, residual, relative, status);
}
void settle_float(const Solve* s) { settle<float>(*s); }
int64_t review_float(Solve* s, const void* z, const void* fz, int64_t k, int64_t take_up) {
    return review<float>(*s, z, fz, k, take_up);
}
int64_t finish_double(Solve* s, double* residual, double* relative, int64_t* steps, int8_t* status, double* first,
                     uint8_t* ran_away, int8_t* picked) {
    return finish<double>(*s, residual, relative, steps, status, first, ran_away, picked);
}
int64_t lost_double(const Solve* s, const void* z, double* residual, double* relative, int8_t* status) {
    return lost<double>(*s, z, residual, relative, status);
}
void settle_double(const Solve* s) { settle<double>(*s); }
int64_t review_double(Solve* s, const void* z, const void* fz, int64_t k, int64_t take_up) {
    return review<double>(*s, z, fz, k, take_up);
}
int64_t any_passed(const Solve* s) {
    for (int64_t i = 0; i < s->rows; ++i)
        if (s->row[i].best_ratio <= 1) return 1;
    return 0;
}
void indices_of_active(const Solve* s, int64_t* out) {
    for (int64_t i = 0, p = 0; i < s->rows; ++i)
        if (s->row[i].active) out[p++] = i;
}

}  // extern "C"
