// Sums over the unknowns of a row: inner products with its history, and mixes of it.

#pragma once

#include "state.h"

namespace {

// Inner products of four vectors with x and with y; float sums over blocks, double across them.
template <typename T>
void eight_products(const T* const a[4], const T* x, const T* y, int64_t n, double ax[4], double ay[4]) {
    for (int j = 0; j < 4; ++j) ax[j] = ay[j] = 0;
    const T *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    for (int64_t from = 0; from < n; from += BLOCK) {
        const int64_t to = from + BLOCK < n ? from + BLOCK : n;
        T p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
#pragma omp simd reduction(+ : p0, p1, p2, p3, q0, q1, q2, q3)
        for (int64_t i = from; i < to; ++i) {
            const T u = x[i], v = y[i];
            p0 += a0[i] * u, q0 += a0[i] * v;
            p1 += a1[i] * u, q1 += a1[i] * v;
            p2 += a2[i] * u, q2 += a2[i] * v;
            p3 += a3[i] * u, q3 += a3[i] * v;
        }
        ax[0] += p0, ax[1] += p1, ax[2] += p2, ax[3] += p3;
        ay[0] += q0, ay[1] += q1, ay[2] += q2, ay[3] += q3;
    }
}

// Products of the pairs of row i, by age from 0, kept in `ring`, with x and y.
template <typename T>
void products_by_age(const Solve& s, void* ring, int64_t i, const T* x, const T* y, double* ax, double* ay) {
    const Row& row = s.row[i];
    for (int64_t age = 0; age < row.count; age += 4) {
        const int64_t left = row.count - age;
        const T* four[4];
        // the last group is filled up: four products in step cost little more than one, whose sums wait for each other
        for (int j = 0; j < 4; ++j) four[j] = slot<T>(s, ring, i, slot_of_age(s, row, j < left ? age + j : age));
        double p[4], q[4];
        eight_products(four, x, y, s.unknowns, p, q);
        for (int j = 0; j < 4 && j < left; ++j) ax[age + j] = p[j], ay[age + j] = q[j];
    }
}

// Products of the pairs of row i, by age from 0, kept in `ring`, with x alone.
template <typename T>
void products_by_age(const Solve& s, void* ring, int64_t i, const T* x, double* ax) {
    const Row& row = s.row[i];
    for (int64_t age = 0; age < row.count; ++age) {
        const T* a = slot<T>(s, ring, i, slot_of_age(s, row, age));
        double total = 0;
        for (int64_t from = 0; from < s.unknowns; from += BLOCK) {
            const int64_t to = from + BLOCK < s.unknowns ? from + BLOCK : s.unknowns;
            T p = 0;
#pragma omp simd reduction(+ : p)
            for (int64_t j = from; j < to; ++j) p += a[j] * x[j];
            total += p;
        }
        ax[age] = total;
    }
}

// step[] -= sum of weight[age] * ring[age], over ages with a weight
template <typename T>
void subtract_mix(const Solve& s, void* ring, int64_t i, const double* weight, double factor, T* step) {
    const Row& row = s.row[i];
    const T* column[4];
    T w[4];
    int held = 0;
    for (int64_t age = 0; age < row.count; ++age) {
        if (weight[age] != 0) {
            column[held] = slot<T>(s, ring, i, slot_of_age(s, row, age));
            w[held++] = static_cast<T>(weight[age] * factor);
        }
        if (held == 0 || (held < 4 && age + 1 < row.count)) continue;
        for (; held < 4; ++held) column[held] = column[0], w[held] = 0;
        const T *a = column[0], *b = column[1], *c = column[2], *d = column[3];
        const T p = w[0], q = w[1], t = w[2], v = w[3];
#pragma omp simd
        for (int64_t n = 0; n < s.unknowns; ++n) step[n] -= (p * a[n] + q * b[n]) + (t * c[n] + v * d[n]);
        held = 0;
    }
}

}  // namespace
