// Reports and tokens of rows of many sizes: those that looking at every id finds.

#include "draw.h"

#include <cmath>

#include "checks.h"
#include "threads.h"

namespace {

using namespace gnomon;

constexpr size_t ROWS = 24;

Parameters parameters(size_t r) {  // of every kind of row one
  const bool has_penalties = r % 3 == 0;
  return {0.3f + 0.1f * float(r), 0.1f + 0.03f * float(r), has_penalties ? 0.5f : 0, has_penalties ? -0.25f : 0,
          r % 8 == 1, r % 2 == 0, r % 4 < 2, 7 + uint32_t(r), 5, uint32_t(r % 3), uint32_t(r)};
}

void report_is_right(const float* logits, size_t V) {
  const Report r = report(logits, V);
  double total = 0;
  for (size_t v = 0; v < V; v++) total += std::exp(double(logits[v]) - r.top[0].value);
  require(std::abs(r.log_total - std::log(total)) < 1e-5, "the logarithm of the sum is near");
  for (size_t k = 0; k < std::min(V, TOP); k++) {
    size_t before = 0;
    for (size_t v = 0; v < V; v++)
      before += logits[v] > r.top[k].value || (logits[v] == r.top[k].value && int32_t(v) < r.top[k].id);
    require(before == k && logits[r.top[k].id] == r.top[k].value, "the ranking has its order");
  }
}

// Whether the weight of all that comes before an id is below top_p of the whole, but for rounding.
bool is_kept(const float* z, size_t V, size_t id, const Parameters& row) {
  double before = 0, total = 0;
  for (size_t v = 0; v < V; v++) {
    const double e = std::exp((double(z[v]) - z[id]) / row.temperature);
    total += e;
    if (z[v] > z[id] || (z[v] == z[id] && v < id)) before += e;
  }
  return before <= (row.top_p + 1e-5) * total;
}

void token_is_right(const float* z, size_t V, const Parameters& row, size_t token) {
  Ranked largest;
  rank(z, V, &largest, 1);
  if (row.is_greedy) return require(token == size_t(largest.id), "the greedy token is the first of the largest");
  const auto score = [&](size_t v) {
    const TokenWords words{StepKey(row), uint32_t(v)};
    return (z[v] - largest.value) / row.temperature + gumbel(words.x0, words.x1)[0];
  };
  require(!row.is_nucleus || is_kept(z, V, token, row), "a token is of its nucleus");
  for (size_t v = 0; v < V; v++)
    if (row.is_nucleus ? z[v] > z[token] : v != token)
      require(score(v) < score(token) || (score(v) == score(token) && token < v), "no kept id has a larger score");
}

void size(size_t V) {
  Array<float> logits(V), bias(V), z(ROWS * V);
  Array<int32_t> counts(V);
  fill(logits, 1), fill(bias, 2);
  for (size_t v = 0; v < V; v++) logits[v] = 2 * logits[v], counts[v] = v % 5 == 0 ? int32_t(v % 4) : 0;
  for (size_t v = 7; v < V; v += 9) logits[v] = logits[v - 7];  // ties
  require(all_finite(logits.data(), V), "all are finite");
  report_is_right(logits.data(), V);
  share(ROWS, size_t(1) << 20, [&](size_t r) {
    const Parameters row = parameters(r);
    const Report first = report(logits.data(), V);
    const int32_t token = sample(logits.data(), bias.data(), counts.data(), V, row, first.top[0]);
    require(token >= 0 && size_t(token) < V, "a token is an id");
    adjust(logits.data(), bias.data(), counts.data(), V, row, z.data() + r * V);
    token_is_right(z.data() + r * V, V, row, size_t(token));
  });
  for (float wrong : {INFINITE, -INFINITE, INFINITE - INFINITE}) {
    logits[V - 1] = wrong;
    require(!all_finite(logits.data(), V), "one is not finite");
  }
}

const bool added = add("draw", [] {
  for (size_t V : {1, 2, 15, 16, 17, 47, 513, 3001}) size(V);
});

}  // namespace
