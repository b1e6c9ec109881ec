#include "arrays.h"

#include <cstdint>

namespace nb = nanobind;

namespace torchane {
namespace {

std::string text(nb::handle value) { return nb::str(value).c_str(); }

View strided(nb::handle array, const std::string& what, bool writable, bool bf16, bool booleans = false) {
    nb::ndarray<nb::ro, nb::device::cpu> found;
    if (!nb::try_cast(array, found, false)) {
        if (nb::hasattr(array, "dtype"))
            throw DeviceFault(what + " holds " + text(array.attr("dtype")) + "; numbers of this machine's byte order are needed.");
        throw DeviceFault(what + " is a " + text(array.type().attr("__name__")) + "; a NumPy array is needed.");
    }
    if (writable) {
        nb::ndarray<nb::device::cpu> changeable;
        if (!nb::try_cast(array, changeable, false))
            throw DeviceFault(what + " is read-only and is to be written. Pass an array that owns its memory.");
    }
    View view{const_cast<void*>(found.data()), Element::fp32, {}, {}};
    const nb::dlpack::dtype type = found.dtype();
    const auto is = [&](nb::dlpack::dtype_code code, int bits) {
        return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
    };
    if (is(nb::dlpack::dtype_code::Float, 16)) view.element = Element::fp16;
    else if (is(nb::dlpack::dtype_code::UInt, 16) && bf16) view.element = Element::bf16;
    else if (is(nb::dlpack::dtype_code::Bool, 8) && booleans) view.element = Element::boolean;
    else if (!is(nb::dlpack::dtype_code::Float, 32))
        throw DeviceFault(what + " holds " + text(array.attr("dtype")) +
                          "; float16 or float32 is needed (bf16 comes as uint16, and is said to be).");
    if (reinterpret_cast<uintptr_t>(found.data()) % (type.bits / 8) != 0)
        throw DeviceFault(what + " does not begin at a multiple of " + std::to_string(type.bits / 8) +
                          " bytes in memory, as its numbers must. Pass a copy: numpy.array(x).");
    for (size_t axis = 0; axis < found.ndim(); ++axis) {
        view.sizes.push_back(static_cast<int64_t>(found.shape(axis)));
        view.strides.push_back(found.stride(axis));
    }
    return view;
}

bool is_dense(const View& view) {
    if (product(view.sizes) == 0) return true;
    int64_t expected = 1;
    for (size_t axis = view.sizes.size(); axis-- > 0; expected *= view.sizes[axis])
        if (view.sizes[axis] != 1 && view.strides[axis] != expected) return false;
    return true;
}

Piece piece(nb::handle array, const char* what) {
    if (!nb::isinstance<nb::tuple>(array)) {
        const Floats found = floats(array, what, false);
        return {found.first, nullptr, found.second, 1.0f};
    }
    const nb::tuple pair = nb::cast<nb::tuple>(array);
    if (pair.size() != 2) throw DeviceFault(std::string(what) + " is a tuple of " + std::to_string(pair.size()) + "; an fp16 array and its factor are needed.");
    const Sizes sizes = strided(pair[0], what, false, false).sizes;
    return {nullptr, dense_half(pair[0], sizes, what, false), product(sizes), static_cast<float>(nb::cast<double>(pair[1]))};
}

}  // namespace

std::string shown(const Sizes& sizes) {
    std::string text = "(";
    for (size_t axis = 0; axis < sizes.size(); ++axis) text += (axis ? ", " : "") + std::to_string(sizes[axis]);
    return text + ")";
}

View view(nb::handle array, const char* what, bool writable, bool bf16, bool booleans) { return strided(array, what, writable, bf16, booleans); }

half_t* dense_half(nb::handle array, const Sizes& sizes, const std::string& what, bool writable) {
    const View view = strided(array, what, writable, false);
    if (view.element != Element::fp16) throw DeviceFault(what + " holds float32; the port takes float16.");
    if (view.sizes != sizes) throw DeviceFault(what + " has the shape " + shown(view.sizes) + "; the port's is " + shown(sizes) + ".");
    if (!is_dense(view)) throw DeviceFault(what + " is strided; a surface is dense and row-major.");
    return static_cast<half_t*>(view.data);
}

Floats floats(nb::handle array, const char* what, bool writable) {
    const View view = strided(array, what, writable, false);
    if (view.element != Element::fp32) throw DeviceFault(std::string(what) + " holds float16; float32 is needed.");
    if (!is_dense(view)) throw DeviceFault(std::string(what) + " is strided; a dense array is needed: the order of the sum is that of memory.");
    return {static_cast<float*>(view.data), product(view.sizes)};
}

Numbers numbers(nb::handle array, const char* what) {
    Numbers made;
    if (!nb::isinstance<nb::list>(array)) made.add(piece(array, what));
    else
        for (nb::handle one : nb::cast<nb::list>(array)) made.add(piece(one, what));
    return made;
}

}  // namespace torchane
