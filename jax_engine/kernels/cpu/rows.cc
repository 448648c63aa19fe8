// XLA's calls of rows.h: gnomon_norm, gnomon_rotate, gnomon_activate.

#include "rows.h"

#include "xla/ffi/api/ffi.h"

namespace gnomon {
namespace {

namespace ffi = xla::ffi;

using Vector = ffi::Buffer<ffi::F32, 1>;
using Matrix = ffi::Buffer<ffi::F32, 2>;
using Heads = ffi::Buffer<ffi::F32, 3>;
using Mask = ffi::Buffer<ffi::PRED, 1>;

// x [R, n · D] · live [R] · weight [D] · perhaps a bias [D]: every D of a row are normed by themselves.
ffi::Error norm_rows(Matrix x, Mask live, Vector weight, ffi::RemainingArgs biases, ffi::Result<Matrix> y, float offset,
                     bool is_centred, float eps) {
  const size_t rows = x.dimensions()[0], width = x.dimensions()[1], D = weight.element_count();
  Norm n{D, weight.typed_data(), nullptr, offset, is_centred, eps};
  bool is_right = D > 0 && width % D == 0 && live.element_count() == rows && y->dimensions() == x.dimensions();
  if (biases.size() > 0) {
    const auto bias = biases.get<Vector>(0);
    is_right = is_right && biases.size() == 1 && bias.has_value() && bias->element_count() == D;
    if (is_right) n.bias = bias->typed_data();
  }
  if (!is_right) return ffi::Error::InvalidArgument("shapes are not x [R, n D], live [R], weight and bias [D], y as x");
  const float* from = x.typed_data();
  float* to = y->typed_data();
  each_live_row(live.typed_data(), rows, 8 * width, [&](size_t r) {
    for (size_t at = r * width; at < (r + 1) * width; at += D) norm(n, from + at, to + at);
  });
  return ffi::Error::Success();
}

// x [R, N, H] · live [R] · cos, sin [R, half].
ffi::Error rotate_rows(Heads x, Mask live, Matrix cos, Matrix sin, ffi::Result<Heads> y) {
  const size_t rows = x.dimensions()[0], H = x.dimensions()[2], width = x.dimensions()[1] * H;
  const size_t half = cos.dimensions()[1];
  if (live.element_count() != rows || size_t(cos.dimensions()[0]) != rows || sin.dimensions() != cos.dimensions() ||
      2 * half > H || y->dimensions() != x.dimensions())
    return ffi::Error::InvalidArgument("shapes are not x [R, N, H], live [R], cos and sin [R, H / 2 or less], y as x");
  const float* from = x.typed_data();
  float* to = y->typed_data();
  each_live_row(live.typed_data(), rows, 8 * width, [&](size_t r) {
    const float *c = cos.typed_data() + r * half, *s = sin.typed_data() + r * half;
    for (size_t at = r * width; at < (r + 1) * width; at += H) rotate(from + at, c, s, half, H, to + at);
  });
  return ffi::Error::Success();
}

// live [R] · one or two factors [R, F] of which the first is activated.
ffi::Error activate_rows(Mask live, Matrix x, ffi::RemainingArgs others, ffi::Result<Matrix> y, int32_t kind) {
  const size_t rows = x.dimensions()[0], F = x.dimensions()[1];
  const float *from = x.typed_data(), *times = nullptr;
  bool is_right = live.element_count() == rows && y->dimensions() == x.dimensions();
  if (others.size() > 0) {
    const auto other = others.get<Matrix>(0);
    is_right = is_right && others.size() == 1 && other.has_value() && other->dimensions() == x.dimensions();
    if (is_right) times = other->typed_data();
  }
  if (!is_right) return ffi::Error::InvalidArgument("shapes are not live [R], one or two factors [R, F], y as they");
  float* to = y->typed_data();
  each_live_row(live.typed_data(), rows, 32 * F, [&](size_t r) {
    activate(from + r * F, times ? times + r * F : nullptr, F, Activation(kind), to + r * F);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gnomon

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_norm, gnomon::norm_rows,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Vector>()
                                  .RemainingArgs()
                                  .Ret<gnomon::Matrix>()
                                  .Attr<float>("offset")
                                  .Attr<bool>("is_centred")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_rotate, gnomon::rotate_rows,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Heads>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Matrix>()
                                  .Ret<gnomon::Heads>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_activate, gnomon::activate_rows,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Matrix>()
                                  .RemainingArgs()
                                  .Ret<gnomon::Matrix>()
                                  .Attr<int32_t>("kind"));
