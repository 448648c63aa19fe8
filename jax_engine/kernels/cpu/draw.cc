// Custom calls of XLA for the CPU: gnomon_draw, a token for every live row and its report, and gnomon_report, the report
// alone, of given tokens. Rows that are not live are not read and come out as zeros, as do those that are not finite.

#include "draw.h"

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace gnomon {
namespace {

namespace ffi = xla::ffi;

using Matrix = ffi::Buffer<ffi::F32, 2>;
using Whole = ffi::Buffer<ffi::S32, 2>;
using Numbers = ffi::Buffer<ffi::F32, 1>;
using Ids = ffi::Buffer<ffi::S32, 1>;
using Bits = ffi::Buffer<ffi::U32, 1>;
using Mask = ffi::Buffer<ffi::PRED, 1>;

struct Results {
  float* logprob;       // [B]
  int32_t* top_ids;     // [B, top]
  float* top_logprobs;  // [B, top]
  bool* finite;         // [B]
};

bool fit(const Matrix& logits, const Mask& live, const Whole& top_ids, const Matrix& top_logprobs) {
  const auto rows = logits.dimensions()[0], top = std::min(logits.dimensions()[1], int64_t(TOP));
  const auto is_ranking = [&](auto shape) { return shape[0] == rows && shape[1] == top; };
  return top > 0 && int64_t(live.element_count()) == rows && is_ranking(top_ids.dimensions()) &&
         is_ranking(top_logprobs.dimensions());
}

// For every live row r that is finite: its report, and in it that of token_of(r, its logits, the first of its ranking).
// cost: see share; of one id.
template <class Token>
void report_rows(const Matrix& logits, const Mask& live, Results to, size_t cost, const Token& token_of) {
  const size_t rows = logits.dimensions()[0], V = logits.dimensions()[1], top = std::min(V, TOP);
  std::vector<size_t> which;
  for (size_t r = 0; r < rows; r++)
    if (live.typed_data()[r]) which.push_back(r);
  std::fill_n(to.logprob, rows, 0.0f), std::fill_n(to.finite, rows, false);
  std::fill_n(to.top_ids, rows * top, 0), std::fill_n(to.top_logprobs, rows * top, 0.0f);
  share(which.size(), which.size() * V * cost, [&](size_t i) {
    const size_t r = which[i];
    const float* own = logits.typed_data() + r * V;
    if (!(to.finite[r] = all_finite(own, V))) return;
    const Report report = gnomon::report(own, V);
    to.logprob[r] = report.logprob(own[token_of(r, own, report.top[0])]);
    for (size_t k = 0; k < top; k++) {
      to.top_ids[r * top + k] = report.top[k].id;
      to.top_logprobs[r * top + k] = report.logprob(report.top[k].value);
    }
  });
}

ffi::Error draw_rows(Matrix logits, Matrix bias, Whole counts, Mask live, Numbers temperature, Numbers top_p,
                     Numbers frequency_penalty, Numbers presence_penalty, Mask is_greedy, Mask is_nucleus,
                     Mask is_biased, Bits seed_high, Bits seed_low, Bits candidate, Bits step, ffi::Result<Ids> token,
                     ffi::Result<Numbers> logprob, ffi::Result<Whole> top_ids, ffi::Result<Matrix> top_logprobs,
                     ffi::Result<Mask> finite) {
  const size_t rows = logits.dimensions()[0], V = logits.dimensions()[1];
  bool is_right = fit(logits, live, *top_ids, *top_logprobs) && bias.dimensions() == logits.dimensions() &&
                  counts.dimensions() == logits.dimensions();
  for (size_t count : {temperature.element_count(), top_p.element_count(), frequency_penalty.element_count(),
                       presence_penalty.element_count(), is_greedy.element_count(), is_nucleus.element_count(),
                       is_biased.element_count(), seed_high.element_count(), seed_low.element_count(),
                       candidate.element_count(), step.element_count(), token->element_count(),
                       logprob->element_count(), finite->element_count()})
    is_right = is_right && count == rows;
  if (!is_right)
    return ffi::Error::InvalidArgument("shapes are not logits, bias, counts [B, V], rows and live [B], top [B, 20 or V]");
  std::fill_n(token->typed_data(), rows, 0);
  const Results to{logprob->typed_data(), top_ids->typed_data(), top_logprobs->typed_data(), finite->typed_data()};
  report_rows(logits, live, to, 16, [&](size_t r, const float* own, Ranked first) {
    const Parameters row{
        temperature.typed_data()[r], top_p.typed_data()[r], frequency_penalty.typed_data()[r],
        presence_penalty.typed_data()[r], is_greedy.typed_data()[r], is_nucleus.typed_data()[r],
        is_biased.typed_data()[r], seed_high.typed_data()[r], seed_low.typed_data()[r],
        candidate.typed_data()[r], step.typed_data()[r],
    };
    return token->typed_data()[r] =
               sample(own, bias.typed_data() + r * V, counts.typed_data() + r * V, V, row, first);
  });
  return ffi::Error::Success();
}

ffi::Error report_ids(Matrix logits, Ids ids, Mask live, ffi::Result<Numbers> logprob, ffi::Result<Whole> top_ids,
                      ffi::Result<Matrix> top_logprobs, ffi::Result<Mask> finite) {
  const size_t rows = logits.dimensions()[0], V = logits.dimensions()[1];
  if (!fit(logits, live, *top_ids, *top_logprobs) || ids.element_count() != rows ||
      logprob->element_count() != rows || finite->element_count() != rows)
    return ffi::Error::InvalidArgument("shapes are not logits [B, V], ids and live [B], top [B, 20 or V]");
  const Results to{logprob->typed_data(), top_ids->typed_data(), top_logprobs->typed_data(), finite->typed_data()};
  report_rows(logits, live, to, 8, [&](size_t r, const float*, Ranked) {
    return std::clamp(ids.typed_data()[r], 0, int32_t(V - 1));  // as an index is clamped by XLA
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gnomon

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_draw, gnomon::draw_rows,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Whole>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Numbers>()
                                  .Arg<gnomon::Numbers>()
                                  .Arg<gnomon::Numbers>()
                                  .Arg<gnomon::Numbers>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Mask>()
                                  .Arg<gnomon::Bits>()
                                  .Arg<gnomon::Bits>()
                                  .Arg<gnomon::Bits>()
                                  .Arg<gnomon::Bits>()
                                  .Ret<gnomon::Ids>()
                                  .Ret<gnomon::Numbers>()
                                  .Ret<gnomon::Whole>()
                                  .Ret<gnomon::Matrix>()
                                  .Ret<gnomon::Mask>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_report, gnomon::report_ids,
                              xla::ffi::Ffi::Bind()
                                  .Arg<gnomon::Matrix>()
                                  .Arg<gnomon::Ids>()
                                  .Arg<gnomon::Mask>()
                                  .Ret<gnomon::Numbers>()
                                  .Ret<gnomon::Whole>()
                                  .Ret<gnomon::Matrix>()
                                  .Ret<gnomon::Mask>());
