// Elementary functions that a compiler can vectorise: the C library's are scalar without -ffast-math.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2: n by a sum that rounds, exp(r) by its Taylor series, 2^n by its bits in two
// factors, which lets results be infinite, subnormal or zero. NaN stays NaN.
inline float exponential(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23
    const float shifted = x * 1.44269504f + magic, n = shifted - magic;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int32_t power = static_cast<int32_t>(bits - 0x4B400000u), half = power >> 1;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const uint32_t low = static_cast<uint32_t>(half + 127) << 23;
    const uint32_t high = static_cast<uint32_t>(power - half + 127) << 23;
    float first, second;
    std::memcpy(&first, &low, sizeof first), std::memcpy(&second, &high, sizeof second);
    return p * first * second;
}

inline double exponential(double x) {
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    const double shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int64_t power = static_cast<int64_t>(bits - 0x4338000000000000u), half = power / 2;
    const double r = (x - n * 0.693145751953125) - n * 1.4286068203094173e-6;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    const uint64_t low = static_cast<uint64_t>(half + 1023) << 52;
    const uint64_t high = static_cast<uint64_t>(power - half + 1023) << 52;
    double first, second;
    std::memcpy(&first, &low, sizeof first), std::memcpy(&second, &high, sizeof second);
    return p * first * second;
}

template <typename T>
inline T silu(T x) {
    return x / (1 + exponential(-x));
}

// As torch has it: x itself beyond 20.
template <typename T>
inline T softplus(T x) {
    return x > 20 ? x : std::log1p(std::exp(x));
}

}  // namespace
