// Attention over pages (attend.h) as a custom call of XLA for the CPU.

#include "attend.h"

#include "xla/ffi/api/ffi.h"

namespace gnomon {
namespace {

namespace ffi = xla::ffi;

using Queries = ffi::Buffer<ffi::F32, 5>;
using Tables = ffi::Buffer<ffi::S32, 2>;
using Lengths = ffi::Buffer<ffi::S32, 1>;

// Whether every page that a query sees is there.
template <class Stored>
bool has_pages(const Attention<Stored>& a, int32_t pages) {
  for (size_t i = 0; i < a.B * a.T; i++) {
    if (!a.lives(i)) continue;
    if (a.positions[i] < 0 || a.end(i) > a.P * a.page_size) return false;
    const int32_t* const table = a.tables + i / a.T * a.P;
    for (size_t page = a.begin(i) / a.page_size; page <= (a.end(i) - 1) / a.page_size; page++)
      if (table[page] < 0 || table[page] >= pages) return false;
  }
  return true;
}

template <class Stored>
ffi::Error compute(Queries& q, ffi::AnyBuffer& keys, ffi::AnyBuffer& values, Tables& tables, Tables& positions,
                   Lengths& lengths, int64_t window, float score_cap, Queries& y) {
  const auto size = q.dimensions();
  const auto pages = keys.dimensions();
  const Attention<Stored> a{
      size_t(size[0]), size_t(size[1]), size_t(size[2]), size_t(size[3]), size_t(size[4]),
      size_t(tables.dimensions()[1]), size_t(pages[1]), q.typed_data(),
      static_cast<const Stored*>(keys.untyped_data()), static_cast<const Stored*>(values.untyped_data()),
      tables.typed_data(), positions.typed_data(), lengths.typed_data(), size_t(window), score_cap, y.typed_data()};
  if (!has_pages(a, int32_t(pages[0]))) return ffi::Error::InvalidArgument("a query sees a page that is not there");
  attend(a);
  return ffi::Error::Success();
}

ffi::Error attend_call(Queries q, ffi::AnyBuffer keys, ffi::AnyBuffer values, Tables tables, Tables positions,
                       Lengths lengths, ffi::Result<Queries> y, int64_t window, float score_cap) {
  const auto size = q.dimensions(), pages = keys.dimensions();
  if (pages.size() != 4 || pages != values.dimensions() || pages[2] != size[2] || pages[3] != size[4] ||
      tables.dimensions()[0] != size[0] || positions.dimensions()[0] != size[0] ||
      positions.dimensions()[1] != size[1] || lengths.dimensions()[0] != size[0] || y->dimensions() != size)
    return ffi::Error::InvalidArgument(
        "shapes are not q [B, T, K, G, H], keys and values [pages, page size, K, H], tables [B, P], positions [B, T], "
        "lengths [B], y as q");
  const auto element = keys.element_type();
  if (element != values.element_type() || (element != ffi::F32 && element != ffi::BF16))
    return ffi::Error::InvalidArgument("keys and values are not both float32 or both bfloat16");
  const auto call = element == ffi::F32 ? compute<float> : compute<uint16_t>;
  return call(q, keys, values, tables, positions, lengths, window, score_cap, *y);
}

}  // namespace
}  // namespace gnomon

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_attend, gnomon::attend_call,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Queries>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<gnomon::Tables>()
                                  .Arg<gnomon::Tables>()
                                  .Arg<gnomon::Lengths>()
                                  .Ret<gnomon::Queries>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("score_cap"));
