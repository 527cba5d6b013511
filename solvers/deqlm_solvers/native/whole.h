// A solve that a program opens, runs and finishes by itself; all that it needs lies in one tensor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

// What is known when a program is made; the rest is read from the point that it starts from.
struct Recipe {
    Solve solve;
    int64_t every, check_every, rms;
};

namespace {

// Where the parts of a solve lie behind its Drive; with a base of null, how many bytes they take.
struct Parts {
    Drive* drive;
    Solve* solve;
    double* root;
    int64_t *run_end, *token_steps;
    int32_t* run_group;
    char *best_z, *workspace;
};

int64_t place(char* base, int64_t groups, int64_t point_bytes, int64_t rows, Parts& parts) {
    char* at = base;
    carve(at, 1, parts.drive), carve(at, 1, parts.solve), carve(at, groups + 1, parts.root);
    carve(at, groups, parts.run_end), carve(at, groups, parts.run_group), carve(at, rows * groups, parts.token_steps);
    carve(at, point_bytes, parts.best_z), carve(at, 0, parts.workspace);
    return at - base + 64;
}

// Fill in shapes and addresses. Tokens lie along the second dimension of the point.
template <typename T>
void settle_in(const Recipe& recipe, const int64_t* sizes, int64_t dim, Parts& parts) {
    Solve& s = *parts.solve;
    s = recipe.solve;
    s.rows = sizes[0], s.unknowns = 1;
    for (int64_t d = 1; d < dim; ++d) s.unknowns *= sizes[d];
    s.groups = s.runs = s.token ? sizes[1] : 0;
#ifdef _OPENMP
    s.threads = omp_get_max_threads();
#endif
    const int64_t width = s.groups ? s.unknowns / s.groups : s.unknowns;
    for (int64_t g = 0; g <= s.groups; ++g) parts.root[g] = recipe.rms ? std::sqrt(static_cast<double>(width)) : 1.0;
    for (int64_t g = 0; g < s.groups; ++g) parts.run_end[g] = (g + 1) * width, parts.run_group[g] = static_cast<int32_t>(g);
    s.group_root = parts.root, s.run_end = parts.run_end, s.run_group = parts.run_group;
    s.token_steps = s.token ? parts.token_steps : nullptr;
    s.best_z = s.budget ? nullptr : parts.best_z;
    s.workspace = parts.workspace;
    *parts.drive = Drive{&s, 0, recipe.every, recipe.check_every, 0, 0, 0};
}

// How many bytes a solve from a point of those sizes takes, from its Drive on.
template <typename T>
int64_t whole_bytes(const Recipe& recipe, const int64_t* sizes, int64_t dim) {
    Parts parts;
    Solve s = recipe.solve;
    s.rows = sizes[0], s.unknowns = 1;
    for (int64_t d = 1; d < dim; ++d) s.unknowns *= sizes[d];
    s.groups = s.token ? sizes[1] : 0;
#ifdef _OPENMP
    s.threads = omp_get_max_threads();
#endif
    const int64_t point = s.rows * s.unknowns * static_cast<int64_t>(sizeof(T));
    return place(nullptr, s.groups, point, s.rows, parts) + layout<T>(s);
}

template <typename T>
void open_whole(const Recipe& recipe, const int64_t* sizes, int64_t dim, const T* z, char* base) {
    Parts parts;
    int64_t numbers = 1;
    for (int64_t d = 0; d < dim; ++d) numbers *= sizes[d];
    place(base, recipe.solve.token ? sizes[1] : 0, numbers * static_cast<int64_t>(sizeof(T)), sizes[0], parts);
    settle_in<T>(recipe, sizes, dim, parts);
    open<T>(*parts.solve, z);
}

// The point that is returned, and what each row came to; `start` stands for rows of a budget that are not finite.
template <typename T>
void finish_whole(Drive& d, const T* last, const T* start, T* z, double* residual, double* relative, int64_t* steps,
                  int8_t* status, double* first, uint8_t* ran_away) {
    Solve& s = *d.solve;
    finish<T>(s, residual, relative, steps, status, first, ran_away, nullptr);
    if (!s.budget) {
        copy<T>(s.best_z, 0, z, 0, s.rows * s.unknowns);
        return;
    }
    for (int64_t i = 0; i < s.rows; ++i) {
        const bool sound = std::isfinite(residual[i]) && std::isfinite(std::sqrt(square_sum(last + i * s.unknowns, s.unknowns)));
        if (!sound) residual[i] = relative[i] = std::numeric_limits<double>::infinity();
        status[i] = sound ? BUDGET : NONFINITE;
        copy<T>(sound ? last : start, i, z, i, s.unknowns);
    }
}

}  // namespace
