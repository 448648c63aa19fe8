// y[query] = Σ_at weight[at] · value[at] / Σ_at weight[at] over the positions that a query sees, weight[at] =
// exp(score[at] − top), where a score is a product of query and key, capped, and top the largest of them.
//
// Why the bits of a query depend on nothing but the query, its position and what it sees. Whatever is computed beside
// it, in however many pieces and on whatever thread, it gets this sequence of operations:
//
//   1 scores   of a span, which is SPAN positions from a multiple of SPAN on: Σ_h q[h] · key[h] from the first h to the
//              last
//   2 weights  relative to the span's own maximum, and their sum: position i in lane i mod W, then a tree of the lanes
//   3 mix      Σ_at weight[at] · value[at] from the span's first position to its last
//   4 combine  maximum, sum and mix of all spans, from the first to the last
//   5 divide   and add 0, which makes +0 of −0
//
// A position that a query does not see has weight 0 in 2 and 3, and a span of such positions counts nothing in 4:
// whether it is computed, for a neighbour's sake, or left out can only change the sign of a zero, which 5 takes away. (A
// value that is no number is an exception: times 0 it is none.) Nothing is read but what some query of a block sees: no
// dead query, of which nothing is written either, no page before all windows, nothing beyond the end of a sequence.
//
// Keys are turned over on their way, so that lanes run along positions in 1 as they run along a head's width in 3: both
// are products of a few rows with rows of vectors (tiles.h).

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "lanes.h"
#include "threads.h"
#include "tiles.h"

namespace gnomon {

constexpr size_t SPAN = 256;           // positions whose weights are relative to one maximum; it decides bits
constexpr size_t PIECE = 64;           // positions that are packed at a time: they stay in the first-level cache
constexpr size_t MOST_QUERIES = 48;    // of a block, counted for every head of a group: they share what is packed
constexpr float LEAST = -0x1.fffffep+127f;  // the lowest float, not −∞: LEAST − LEAST is 0

// The arguments of xla.attend, axis letters as there. Stored: float, or uint16_t for bfloat16.
template <class Stored>
struct Attention {
  size_t B, T, K, G, H, P, page_size;
  const float* q;                      // [B, T, K, G, H]
  const Stored *keys, *values;         // [pages, page size, K, H]
  const int32_t* tables;               // [B, P]
  const int32_t *positions, *lengths;  // [B, T], [B]
  size_t window;                       // positions, the query's own among them
  float score_cap;                     // ∞: none
  float* y;                            // as q

  // A query is b · T + t. It sees the positions begin ≤ at < end.
  bool lives(size_t query) const { return positions[query] < lengths[query / T]; }
  size_t end(size_t query) const { return size_t(positions[query]) + 1; }
  size_t begin(size_t query) const { return end(query) - std::min(end(query), window); }

  size_t vectors() const { return (H + W - 1) / W; }
  size_t record() const { return 2 + vectors(); }  // maximum and sum, each in every lane, and mix
};

// Queries of one sequence and key/value head. Row r is row i = first + r of the sequence: of query[i / G], the head i
// mod G of the group. What they see is among the positions from ≤ at < to.
struct Block {
  size_t b, k;
  const size_t* query;  // those of the sequence that live
  size_t first, rows;
  size_t from, to;
  size_t task, tasks;  // the first, and how many
};

// What a block's rows make of the spans first ≤ s < last: a record for each of them.
struct Task {
  size_t block, first, last;
  Lanes* result;
};

template <class Stored>
size_t query_of(const Attention<Stored>& a, const Block& block, size_t r) {
  return block.query[(block.first + r) / a.G];
}

// Where a row lies in q and in y.
template <class Stored>
size_t place_of(const Attention<Stored>& a, const Block& block, size_t r) {
  return ((query_of(a, block, r) * a.K + block.k) * a.G + (block.first + r) % a.G) * a.H;
}

// Where the positions from ≤ at < to of a block's sequence and head lie in `pages`, keys or values.
template <class Stored>
void find(const Attention<Stored>& a, const Block& block, const Stored* pages, size_t from, size_t to,
          const Stored** row) {
  while (from < to) {
    const size_t page = size_t(a.tables[block.b * a.P + from / a.page_size]), slot = from % a.page_size;
    const Stored* at = pages + ((page * a.page_size + slot) * a.K + block.k) * a.H;
    const size_t end = std::min(to, from - slot + a.page_size);
    for (; from < end; from++, at += a.K * a.H) *row++ = at;
  }
}

// ---- what is packed

// Keys of a piece, [PIECE] rows of H → [H, PIECE].
template <class Stored>
void pack_keys(const Stored* const (&row)[PIECE], size_t H, float* packed) {
  for (size_t i = 0; i < PIECE; i += W)
    for (size_t h = 0; h < H; h += W) {
      const size_t width = std::min(W, H - h);
      Lanes v[W];
      if (width == W) {
#pragma GCC unroll 16
        for (size_t j = 0; j < W; j++) {
          v[j] = load(row[i + j] + h);
          __builtin_prefetch(row[(i + j + W) % PIECE] + h);
        }
      } else {
        for (size_t j = 0; j < W; j++) v[j] = load(row[i + j] + h, width);
      }
      transpose(v);
      for (size_t j = 0; j < width; j++) store(packed + (h + j) * PIECE + i, v[j]);
    }
}

// Values, so many rows of H → as many of whole vectors, filled up with zeros.
template <class Stored>
void pack_values(const Stored* const* row, size_t count, size_t H, float* packed) {
  for (size_t i = 0; i < count; i++) {
    const Stored* const value = row[i];
    size_t h = 0;
    for (; h + W <= H; h += W, packed += W) store(packed, load(value + h));
    if (h < H) store(packed, load(value + h, H - h)), packed += W;
  }
}

// Memory of a thread, kept from call to call.
template <class Stored>
struct Space {
  std::vector<Lanes> lanes;
  float *q, *keys, *values, *scores;  // [MOST_QUERIES, H], [H, PIECE], [PIECE, vectors], [MOST_QUERIES, SPAN]
  Lanes* later;                       // [MOST_QUERIES, record]
  std::vector<const float*> key_rows, value_rows;
  std::vector<Stored> zeros;  // the key of a position that there is not

  void fit(const Attention<Stored>& a) {
    const size_t sizes[] = {MOST_QUERIES * a.vectors(), a.H * PIECE / W, PIECE * a.vectors(), MOST_QUERIES * SPAN / W};
    float** const parts[] = {&q, &keys, &values, &scores};
    lanes.resize(std::max(lanes.size(), sizes[0] + sizes[1] + sizes[2] + sizes[3] + MOST_QUERIES * a.record()));
    later = lanes.data();
    for (size_t i = 0; i < 4; later += sizes[i++]) *parts[i] = reinterpret_cast<float*>(later);
    zeros.resize(a.H), key_rows.resize(a.H), value_rows.resize(PIECE);
    for (size_t h = 0; h < a.H; h++) key_rows[h] = keys + h * PIECE;
    for (size_t i = 0; i < PIECE; i++) value_rows[i] = values + i * a.vectors() * W;
  }
};

// ---- the sequence

// Scores of a row → weights, and the first two of its record. The row sees from ≤ i < to of the span; the vectors first
// ≤ v < last are looked at, and hold all that.
inline void weigh(float* scores, size_t from, size_t to, size_t first, size_t last, float score_cap, Lanes* record) {
  Words lane;
  for (size_t i = 0; i < W; i++) lane[i] = uint32_t(i);
  Lanes top = everywhere(LEAST), sum = {};
  for (size_t v = first; v < last; v++) {
    const Words i = lane + uint32_t(v * W);
    Lanes x = load(scores + v * W);
    if (score_cap < __builtin_inff()) x = score_cap * tanh(x / score_cap);
    x = (i >= uint32_t(from)) & (i < uint32_t(to)) ? x : everywhere(-__builtin_inff());
    top = x > top ? x : top;
    store(scores + v * W, x);
  }
  top = largest(top);
  for (size_t v = first; v < last; v++) {
    const Lanes weight = exp(load(scores + v * W) - top);
    sum += weight;
    store(scores + v * W, weight);
  }
  record[0] = top, record[1] = everywhere(total(sum));
}

// What a row makes of earlier positions, and of later ones → of all of them, in `earlier`.
inline void combine(Lanes* earlier, const Lanes* later, size_t record) {
  const Lanes top = earlier[0] > later[0] ? earlier[0] : later[0];
  const Lanes shrink = exp(earlier[0] - top), grow = exp(later[0] - top);
  earlier[0] = top;
  for (size_t v = 1; v < record; v++) earlier[v] = fused(earlier[v] * shrink, later[v], grow);
}

// What a block's rows make of the positions first ≤ at < last, all of one span.
template <class Stored>
void attend_span(const Attention<Stored>& a, const Block& block, const Space<Stored>& space, size_t first, size_t last,
                 Lanes* result) {
  const size_t start = first / SPAN * SPAN, record = a.record();
  std::fill_n(space.scores, block.rows * SPAN, 0.0f);
  std::fill_n(result, block.rows * record, Lanes{});
  const auto each_piece = [&](auto work) {
    for (size_t piece = first / PIECE * PIECE; piece < last; piece += PIECE)
      work(piece, std::max(first, piece), std::min(last, piece + PIECE));
  };
  each_piece([&](size_t piece, size_t from, size_t to) {
    const Stored* row[PIECE];
    std::fill_n(row, PIECE, space.zeros.data());
    find(a, block, a.keys, from, to, row + (from - piece));
    pack_keys(row, a.H, space.keys);
    float* const scores = space.scores + (piece - start);
    add_product(block.rows, PIECE / W, space.q, a.H, space.key_rows.data(), a.H, scores, SPAN);
  });
  for (size_t r = 0; r < block.rows; r++) {
    const size_t query = query_of(a, block, r);
    const size_t from = std::clamp(a.begin(query), first, last), to = std::clamp(a.end(query), first, last);
    weigh(space.scores + r * SPAN, from - start, to - start, (first - start) / W, (last - start + W - 1) / W,
          a.score_cap, result + r * record);
  }
  each_piece([&](size_t, size_t from, size_t to) {
    const Stored* row[PIECE];
    find(a, block, a.values, from, to, row);
    const float* const* rows = space.value_rows.data();
    if constexpr (std::is_same_v<Stored, float>)
      if (a.H % W == 0 && block.rows <= TILE_ROWS) rows = row;  // whole vectors that are read only once
    if (rows == space.value_rows.data()) pack_values(row, to - from, a.H, space.values);
    const float* const weights = space.scores + (from - start);
    float* const mix = reinterpret_cast<float*>(result + 2);
    add_product(block.rows, a.vectors(), weights, SPAN, rows, to - from, mix, record * W);
  });
}

template <class Stored>
void attend_task(const Attention<Stored>& a, const Block& block, const Task& task) {
  static thread_local Space<Stored> space;
  space.fit(a);
  for (size_t r = 0; r < block.rows; r++) std::copy_n(a.q + place_of(a, block, r), a.H, space.q + r * a.H);
  for (size_t span = task.first; span < task.last; span++) {
    Lanes* const result = span == task.first ? task.result : space.later;
    attend_span(a, block, space, std::max(block.from, span * SPAN), std::min(block.to, (span + 1) * SPAN), result);
    for (size_t r = 0; span > task.first && r < block.rows; r++)
      combine(task.result + r * a.record(), result + r * a.record(), a.record());
  }
}

template <class Stored>
void finish(const Attention<Stored>& a, const Block& block, const Task* tasks) {
  for (size_t r = 0; r < block.rows; r++) {
    Lanes* const row = tasks[0].result + r * a.record();
    for (size_t t = 1; t < block.tasks; t++) combine(row, tasks[t].result + r * a.record(), a.record());
    float* const y = a.y + place_of(a, block, r);
    for (size_t h = 0; h < a.H; h += W) store(y + h, row[2 + h / W] / row[1] + 0.0f, a.H - h);
  }
}

// ---- all of it

struct Plan {  // of a call; its memory is kept
  std::vector<size_t> live;
  std::vector<Block> blocks;
  std::vector<Task> tasks;
  std::vector<Lanes> results;
};

// A sequence of which few rows live is cut into a task a span, so that a lone long one has work for all threads; a task
// of many rows takes all spans, one after the other.
template <class Stored>
void attend(const Attention<Stored>& a) {
  static thread_local Plan own;
  Plan& plan = own;  // this thread's; a helper that named `own` would find another
  plan.live.clear(), plan.live.reserve(a.B * a.T), plan.blocks.clear(), plan.tasks.clear();
  size_t cost = 0, size = 0;
  for (size_t b = 0; b < a.B; b++) {
    const size_t* const query = plan.live.data() + plan.live.size();
    for (size_t i = b * a.T; i < (b + 1) * a.T; i++)
      if (a.lives(i)) plan.live.push_back(i);
    const size_t rows = size_t(plan.live.data() + plan.live.size() - query) * a.G;
    for (size_t k = 0; k < a.K; k++)
      for (size_t first = 0; first < rows; first += MOST_QUERIES) {
        Block block{b, k, query, first, std::min(MOST_QUERIES, rows - first), SIZE_MAX, 0, plan.tasks.size(), 1};
        for (size_t r = 0; r < block.rows; r++) {
          block.from = std::min(block.from, a.begin(query_of(a, block, r)));
          block.to = std::max(block.to, a.end(query_of(a, block, r)));
        }
        const size_t begin = block.from / SPAN, end = (block.to + SPAN - 1) / SPAN;
        if (rows <= std::max(MOST_QUERIES, a.G)) block.tasks = end - begin;
        for (size_t i = 0; i < block.tasks; i++, size += block.rows * a.record())
          plan.tasks.push_back({plan.blocks.size(), begin + i, block.tasks == 1 ? end : begin + i + 1, nullptr});
        cost += (block.to - block.from) * a.H * 2 * (sizeof(Stored) + block.rows / 4);
        plan.blocks.push_back(block);
      }
  }
  plan.results.resize(std::max(plan.results.size(), size));
  size = 0;
  for (Task& task : plan.tasks) {
    task.result = plan.results.data() + size;
    size += plan.blocks[task.block].rows * a.record();
  }
  share(plan.tasks.size(), cost, [&](size_t i) { attend_task(a, plan.blocks[plan.tasks[i].block], plan.tasks[i]); });
  share(plan.blocks.size(), size * sizeof(Lanes),
        [&](size_t i) { finish(a, plan.blocks[i], &plan.tasks[plan.blocks[i].task]); });
}

}  // namespace gnomon
