// XLA's calls of linear.h, and the packing of its weights.

#include "linear.h"

#include "xla/ffi/api/ffi.h"

namespace gnomon {
namespace {

namespace ffi = xla::ffi;
using Matrix = ffi::Buffer<ffi::F32, 2>;
using Mask = ffi::Buffer<ffi::PRED, 1>;
using Index = ffi::Buffer<ffi::S32, 0>;

// x [R, in] · live [R] · which of stacked weights · any number of panels → as many y [R, out], in live rows.
ffi::Error linear(Matrix x, Mask live, Index at, ffi::RemainingArgs panels, ffi::RemainingRets results, bool rounded) {
  const size_t rows = x.dimensions()[0], in = x.dimensions()[1];
  if (live.element_count() != rows || panels.size() != results.size())
    return ffi::Error::InvalidArgument("there are not as many rows as bits, or not as many results as weights");
  std::vector<Output> outputs;
  bool narrow = false;
  for (size_t i = 0; i < panels.size(); i++) {
    const auto weight = panels.get<ffi::AnyBuffer>(i);
    auto result = results.get<Matrix>(i);
    if (!weight.has_value() || !result.has_value())
      return ffi::Error::InvalidArgument("a result is no matrix in float32");
    Matrix& y = **result;
    const auto element = weight->element_type();
    if (element != ffi::F32 && element != ffi::BF16)
      return ffi::Error::InvalidArgument("weights are neither float32 nor bfloat16");
    if (i > 0 && narrow != (element == ffi::BF16)) return ffi::Error::InvalidArgument("weights of two kinds");
    narrow = element == ffi::BF16;
    Output to{size_t(y.dimensions()[1]), static_cast<const uint32_t*>(weight->untyped_data()), y.typed_data()};
    const size_t words = to.count() * LANES * (narrow ? (in + 1) / 2 : in);
    const size_t stack = weight->size_bytes() / 4 / std::max<size_t>(1, words);
    if (weight->size_bytes() != 4 * words * stack || size_t(y.dimensions()[0]) != rows)
      return ffi::Error::InvalidArgument("shapes are not x [R, in], panels of weight [out, in], y [R, out]");
    to.panels += words * size_t(std::clamp<int64_t>(*at.typed_data(), 0, int64_t(stack) - 1));
    outputs.push_back(to);
  }
  const auto compute = !narrow ? products<Float32> : rounded ? products<BFloat16Rounded> : products<BFloat16>;
  compute(x.typed_data(), in, live.typed_data(), rows, outputs);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gnomon

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_linear, gnomon::linear,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Index>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<bool>("rounded"));

extern "C" size_t gnomon_lanes() { return gnomon::LANES; }

// weight [out, in], of `size` bytes each → its panels.
extern "C" void gnomon_pack(const void* weight, size_t size, size_t out, size_t in, void* panels) {
  if (size == 4) gnomon::pack(static_cast<const uint32_t*>(weight), out, in, static_cast<uint32_t*>(panels));
  else gnomon::pack(static_cast<const uint16_t*>(weight), out, in, static_cast<uint16_t*>(panels));
}
