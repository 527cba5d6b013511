// One evaluation of a solve as an operator of torch, so that a compiled program loops without an interpreter.
// It does what loop.py and native_backend.py do between two evaluations, by the functions of step.cpp.
// Only torch's C interface is used, declared here, so that it is built without torch's headers and fits its next version.

#include <stdexcept>
#include <type_traits>

#include "step.cpp"

extern "C" {

struct AtenTensorOpaque;
struct TorchLibraryOpaque;
typedef AtenTensorOpaque* Handle;
typedef TorchLibraryOpaque* LibraryHandle;

int32_t aoti_torch_get_data_ptr(Handle, void**);
int32_t aoti_torch_get_dim(Handle, int64_t*);
int32_t aoti_torch_get_sizes(Handle, int64_t**);
int32_t aoti_torch_get_strides(Handle, int64_t**);
int32_t aoti_torch_get_dtype(Handle, int32_t*);
int32_t aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
int32_t aoti_torch_delete_tensor_object(Handle);
int32_t aoti_torch__reinterpret_tensor(Handle, int64_t, const int64_t*, const int64_t*, int64_t, Handle*);
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_int8();
int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_library_init_fragment(const char*, const char*, uint32_t, LibraryHandle*);
int32_t aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, LibraryHandle*);
int32_t aoti_torch_library_def(LibraryHandle, const char*);
int32_t aoti_torch_library_impl(LibraryHandle, const char*, void (*)(uint64_t*, uint64_t, uint64_t));

// What the loop keeps beside the solve; a tensor of int64 holds it.
struct Drive {
    Solve* solve;
    int64_t k, every, check_every, looked, reviews, evaluations;
};

}  // extern "C"

#include "whole.h"

extern "C" {

int64_t drive_bytes() { return sizeof(Drive); }
int64_t recipe_bytes() { return sizeof(Recipe); }

}  // extern "C"

namespace {

constexpr int64_t MOST_DIMENSIONS = 16;

struct Owned {
    Handle handle;
    explicit Owned(uint64_t given) : handle(reinterpret_cast<Handle>(given)) {}
    ~Owned() { aoti_torch_delete_tensor_object(handle); }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
};

// the address of a dense tensor; torch turns what is thrown into its error
template <typename T>
T* numbers(Handle tensor, bool dense) {
    void* at = nullptr;
    if (aoti_torch_get_data_ptr(tensor, &at)) throw std::runtime_error("deqlm: a tensor without memory");
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr, step = 1;
    aoti_torch_get_dim(tensor, &dim), aoti_torch_get_sizes(tensor, &sizes), aoti_torch_get_strides(tensor, &strides);
    for (int64_t d = dim - 1; d >= 0 && dense; --d) {
        if (sizes[d] > 1 && step && strides[d] != step) throw std::runtime_error("deqlm: a point that is not contiguous");
        step *= sizes[d];
    }
    return static_cast<T*>(at);
}

Handle empty(int64_t dim, const int64_t* sizes, int32_t dtype) {
    int64_t strides[MOST_DIMENSIONS], step = 1;
    if (dim > MOST_DIMENSIONS) throw std::runtime_error("deqlm: a point of more than 16 dimensions");
    for (int64_t d = dim - 1; d >= 0; --d) strides[d] = step, step *= sizes[d];
    Handle made = nullptr;
    if (aoti_torch_empty_strided(dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made))
        throw std::runtime_error("deqlm: no memory");
    return made;
}

// Whether a row passed beside others that return another point than their last one: then f is looked at there once more.
template <typename T>
bool apart(const Solve& s, const T* z) {
    if (s.rows == 1 || s.budget || !any_passed(&s)) return false;
    settle<T>(s);
    const T* best = static_cast<const T*>(s.best_z);
    for (int64_t j = 0; j < s.rows * s.unknowns; ++j)
        if (!(best[j] == z[j])) return true;
    return false;
}

// Whether the loop asks, after evaluation k, if every row is done.
bool looks(Drive& d, bool tests) {
    if (!d.every) return true;
    if (d.check_every == 0 || !tests || d.k + 1 - d.looked < d.check_every) return false;
    d.looked = d.k + 1;
    return true;
}

// Take f at z; write the next point and say whether f is wanted there.
template <typename T>
bool turn(Drive& d, const T* z, const T* fz, T* z_next) {
    Solve& s = *d.solve;
    const int64_t numbers = s.rows * s.unknowns;
    ++d.evaluations;
    if (d.reviews) {
        review<T>(s, z, fz, d.k, 0);
        copy<T>(z, 0, z_next, 0, numbers);
        return false;
    }
    const bool last = d.k + 1 == s.max_iter;
    const bool tests = !s.budget && (last || (d.every ? d.k % d.every == 0 : d.k >= s.next));
    const int64_t active = advance<T>(s, z, fz, z_next, d.k, TEST * tests + LAST * last, nullptr);
    const bool goes_on = !last && (s.budget || !looks(d, tests) || active > 0);
    if (goes_on) {
        ++d.k;
        return true;
    }
    if (s.budget) return false;
    if (d.check_every && apart(s, z)) {
        d.reviews = 1;
        copy<T>(s.best_z, 0, z_next, 0, numbers);
        return true;
    }
    copy<T>(z, 0, z_next, 0, numbers);
    return false;
}

// The sizes and the kind of a tensor.
struct Shape {
    int64_t dim = 0, *sizes = nullptr;
    int32_t dtype = 0;
    explicit Shape(Handle tensor) {
        aoti_torch_get_dim(tensor, &dim), aoti_torch_get_sizes(tensor, &sizes), aoti_torch_get_dtype(tensor, &dtype);
    }
    bool narrow() const { return dtype == aoti_torch_dtype_float32(); }
};

uint64_t given(Handle made) { return reinterpret_cast<uint64_t>(made); }

// advance(drive, z, fz) -> (next point, whether to go on), of points in any shape with the rows first. Who is called owns
// the arguments.
void advance_operator(uint64_t* stack, uint64_t, uint64_t) {
    const Owned drive(stack[0]), z(stack[1]), fz(stack[2]);
    Drive& d = *numbers<Drive>(drive.handle, true);
    const Shape shape(z.handle);
    Handle next = empty(shape.dim, shape.sizes, shape.dtype), more = empty(0, nullptr, aoti_torch_dtype_int64());
    int64_t& goes_on = *numbers<int64_t>(more, true);
    if (shape.narrow())
        goes_on = turn<float>(d, numbers<float>(z.handle, true), numbers<float>(fz.handle, true), numbers<float>(next, true));
    else
        goes_on = turn<double>(d, numbers<double>(z.handle, true), numbers<double>(fz.handle, true), numbers<double>(next, true));
    stack[0] = given(next), stack[1] = given(more);
}

// open(z, recipe) -> drive, whose memory goes on behind what it shows of itself.
void open_operator(uint64_t* stack, uint64_t, uint64_t) {
    const Owned z(stack[0]), recipe(stack[1]);
    const Recipe& r = *numbers<Recipe>(recipe.handle, true);
    const Shape shape(z.handle);
    const int64_t bytes = shape.narrow() ? whole_bytes<float>(r, shape.sizes, shape.dim) : whole_bytes<double>(r, shape.sizes, shape.dim);
    const int64_t words = (bytes + 128) / 8, shown = sizeof(Drive) / 8, one = 1;
    const Owned whole(given(empty(1, &words, aoti_torch_dtype_int64())));
    int64_t* base = numbers<int64_t>(whole.handle, true);
    int64_t skipped = 0;
    while (reinterpret_cast<uintptr_t>(base + skipped) % 64) ++skipped;
    char* at = reinterpret_cast<char*>(base + skipped);
    if (shape.narrow()) open_whole<float>(r, shape.sizes, shape.dim, numbers<float>(z.handle, true), at);
    else open_whole<double>(r, shape.sizes, shape.dim, numbers<double>(z.handle, true), at);
    Handle drive = nullptr;
    aoti_torch__reinterpret_tensor(whole.handle, 1, &shown, &one, skipped, &drive);
    stack[0] = given(drive);
}

// finish(drive, last, start) -> (z, residual, relative, steps, status)
void finish_operator(uint64_t* stack, uint64_t, uint64_t) {
    const Owned drive(stack[0]), last(stack[1]), start(stack[2]);
    Drive& d = *numbers<Drive>(drive.handle, true);
    const Shape shape(last.handle);
    const int64_t rows = shape.sizes[0], two = 3 * rows;
    Handle z = empty(shape.dim, shape.sizes, shape.dtype), steps = empty(1, &rows, aoti_torch_dtype_int64());
    Handle residual = empty(1, &rows, aoti_torch_dtype_float64()), relative = empty(1, &rows, aoti_torch_dtype_float64());
    Handle status = empty(1, &rows, aoti_torch_dtype_int8());
    const Owned spare(given(empty(1, &two, aoti_torch_dtype_float64())));
    double* first = numbers<double>(spare.handle, true);
    uint8_t* ran_away = reinterpret_cast<uint8_t*>(first + 2 * rows);
    auto end = [&](auto* type) {
        typedef typename std::remove_pointer<decltype(type)>::type T;
        finish_whole<T>(d, numbers<T>(last.handle, true), numbers<T>(start.handle, true), numbers<T>(z, true),
                        numbers<double>(residual, true), numbers<double>(relative, true), numbers<int64_t>(steps, true),
                        numbers<int8_t>(status, true), first, ran_away);
    };
    if (shape.narrow()) end(static_cast<float*>(nullptr));
    else end(static_cast<double*>(nullptr));
    stack[0] = given(z), stack[1] = given(residual), stack[2] = given(relative), stack[3] = given(steps), stack[4] = given(status);
}

struct Registration {
    Registration() {
        LibraryHandle names = nullptr, cpu = nullptr;
        aoti_torch_library_init_fragment("deqlm", __FILE__, __LINE__, &names);
        aoti_torch_library_def(names, "advance(Tensor drive, Tensor z, Tensor fz) -> (Tensor, Tensor)");
        aoti_torch_library_def(names, "open(Tensor z, Tensor recipe) -> Tensor");
        aoti_torch_library_def(names, "finish(Tensor drive, Tensor last, Tensor start) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
        aoti_torch_library_init_impl("deqlm", "CPU", __FILE__, __LINE__, &cpu);
        aoti_torch_library_impl(cpu, "advance", advance_operator);
        aoti_torch_library_impl(cpu, "open", open_operator);
        aoti_torch_library_impl(cpu, "finish", finish_operator);
    }
} registration;

}  // namespace
