// y[query] = Σ_at weight[at] · values[at] / Σ_at weight[at], weight[at] = exp(score[at] − top), over the positions that a
// query sees, its scores being capped products of q with the keys and top the largest of them.
//
// Why the bits of a query depend on nothing but q, its position and what it sees. Whatever is computed beside it, in
// however many pieces and on whatever thread, this sequence of operations is what it gets:
//
//   1 scores   of a span, SPAN positions from a multiple of SPAN on: Σ_h q[h] · key[h], from the first h to the last
//   2 weights  relative to the span's own maximum; their sum, position i in lane i mod W, the lanes added in one tree
//   3 mix      Σ_at weight[at] · value[at], from the first position of the span to the last
//   4 combine  the (maximum, sum, mix) of all spans, from the first to the last
//   5 divide   and add 0, which makes +0 of −0
//
// A position that is not seen has weight 0 in 2 and 3 and a span of such positions all of 0 in 4: to compute it for a
// neighbour's sake or to leave it out is the same, but for the sign of a zero, which 5 takes away. Only what some query
// of a block sees is read: no dead query, no page before all windows, nothing beyond a sequence's end.
//
// Keys are turned over on their way, so that lanes run along positions in 1 as they run along the head's width in 3:
// both are one kind of tile, rows of queries times vectors.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "functions.h"
#include "lanes.h"
#include "threads.h"

namespace gnomon {

constexpr size_t SPAN = 256;   // positions whose weights are relative to one maximum: decides bits
constexpr size_t PIECE = 64;   // positions packed at a time: their keys stay in the first-level cache
constexpr size_t BLOCK = 48;   // queries, times heads of a group, that share what is packed
constexpr size_t TILE = 6;     // rows of a tile at most
constexpr float LEAST = -0x1.fffffep+127f;  // the lowest float, not −∞: LEAST − LEAST is 0

// The arguments of xla.attend, axis letters as there. Stored: float, or uint16_t for bfloat16.
template <class Stored>
struct Attention {
  size_t B, T, K, G, H, P, page_size;
  const float* q;                           // [B, T, K, G, H]
  const Stored *keys, *values;              // [pages, page size, K, H]
  const int32_t *tables;                    // [B, P]
  const int32_t *positions, *lengths;       // [B, T], [B]
  size_t window;                            // positions, the query's own included
  float score_cap;                          // ∞: none
  float* y;                                 // as q

  size_t vectors() const { return (H + W - 1) / W; }   // of a mix
  size_t record() const { return 2 + vectors(); }      // top and sum, the same in every lane, and mix
  bool lives(size_t b, size_t t) const { return positions[b * T + t] < lengths[b]; }
  size_t end(size_t token) const { return size_t(positions[token]) + 1; }
  size_t begin(size_t token) const { return end(token) - std::min(end(token), window); }
};

// ---- vectors

inline Lanes load(const float* x) { return *reinterpret_cast<const LanesAnywhere*>(x); }
inline Lanes load(const uint16_t* x) {
  typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
  return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16);
}

// The first `count` lanes from memory, the others 0.
template <class Stored>
Lanes load(const Stored* x, size_t count) {
  if (count >= W) return load(x);
  Stored rest[W] = {};
  std::memcpy(rest, x, count * sizeof(Stored));
  return load(rest);
}

inline void store(float* at, Lanes x) { *reinterpret_cast<LanesAnywhere*>(at) = x; }

// Lane i is lane from(i) of a and b side by side.
template <class From, size_t... I>
Lanes shuffled(Lanes a, Lanes b, From from, std::index_sequence<I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, from(I)...);
#else
  return __builtin_shuffle(a, b, Words{uint32_t(from(I))...});
#endif
}

// Lane j of vector i becomes lane i of vector j: blocks of half the size change places, then halves of those.
template <size_t HALF = W / 2>
inline void transpose(Lanes (&v)[W]) {
  constexpr auto LANES = std::make_index_sequence<W>();
#pragma GCC unroll 16
  for (size_t i = 0; i < W; i++)
    if (!(i & HALF)) {
      const Lanes a = v[i], b = v[i + HALF];
      v[i] = shuffled(a, b, [](size_t j) { return j & HALF ? W + j - HALF : j; }, LANES);
      v[i + HALF] = shuffled(a, b, [](size_t j) { return j & HALF ? W + j : j + HALF; }, LANES);
    }
  if constexpr (HALF > 1) transpose<HALF / 2>(v);
}

// The largest lane, in every lane.
template <size_t HALF = W / 2>
inline Lanes largest(Lanes x) {
  const Lanes other = shuffled(x, x, [](size_t j) { return j ^ HALF; }, std::make_index_sequence<W>());
  x = x > other ? x : other;
  if constexpr (HALF > 1) return largest<HALF / 2>(x);
  else return x;
}

// most · tanh(x / most)
inline Lanes capped(Lanes x, float most) { return most * tanh(x / most); }

// ---- tiles

// c[r][j] += Σ_k a[r][k] · b[k][j], k from 0 to depth, for R rows and C vectors; rows lie `stride` apart.
template <size_t R, size_t C>
void tile(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth, float* c, size_t c_stride) {
  Lanes sum[R][C];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) sum[r][v] = load(c + r * c_stride + v * W);
  for (size_t k = 0; k < depth; k++, b += b_stride) {
    Lanes vectors[C];
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) vectors[v] = load(b + v * W), hold(vectors[v]);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) {
      const Lanes row = all(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (size_t v = 0; v < C; v++) sum[r][v] = fused(sum[r][v], row, vectors[v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
    for (size_t v = 0; v < C; v++) store(c + r * c_stride + v * W, sum[r][v]);
}

// The same for any number of rows and vectors.
template <size_t R = TILE>
void multiply(size_t rows, size_t vectors, const float* a, size_t a_stride, const float* b, size_t b_stride,
              size_t depth, float* c, size_t c_stride) {
  constexpr size_t C = SUMS / TILE;
  for (; rows >= R; rows -= R, a += R * a_stride, c += R * c_stride) {
    size_t v = 0;
    for (; v + C <= vectors; v += C) tile<R, C>(a, a_stride, b + v * W, b_stride, depth, c + v * W, c_stride);
    for (; v < vectors; v++) tile<R, 1>(a, a_stride, b + v * W, b_stride, depth, c + v * W, c_stride);
  }
  if constexpr (R > 1)
    if (rows) multiply<R - 1>(rows, vectors, a, a_stride, b, b_stride, depth, c, c_stride);
}

// ---- what is packed

// keys[h][i] of the positions of a piece, lanes along positions. row[i] is a key [H].
template <class Stored>
void pack_keys(const Stored* const (&row)[PIECE], size_t H, float* packed) {
  for (size_t i = 0; i < PIECE; i += W)
    for (size_t h = 0; h < H; h += W) {
      const size_t width = std::min(W, H - h);
      Lanes v[W];
      if (width == W) {
#pragma GCC unroll 16
        for (size_t j = 0; j < W; j++) v[j] = load(row[i + j] + h);
      } else {
        for (size_t j = 0; j < W; j++) v[j] = load(row[i + j] + h, width);
      }
      transpose(v);
      for (size_t j = 0; j < width; j++) store(packed + (h + j) * PIECE + i, v[j]);
    }
}

// values[i][h] of so many positions, lanes along the head's width, filled up with zeros to whole vectors.
template <class Stored>
void pack_values(const Stored* const* row, size_t count, size_t H, float* packed) {
  for (size_t i = 0; i < count; i++) {
    const Stored* const value = row[i];
    size_t h = 0;
    for (; h + W <= H; h += W, packed += W) store(packed, load(value + h));
    if (h < H) store(packed, load(value + h, H - h)), packed += W;
  }
}

// ---- a span

// Scores of a row [SPAN] → their weights, 0 where a position is not seen; their maximum and their sum, in every lane.
// seen: from ≤ i < to; vectors first ≤ v < last are all that is looked at, and hold all that is seen.
inline void weigh(float* scores, size_t from, size_t to, size_t first, size_t last, float score_cap, Lanes* result) {
  Words lane;
  for (size_t i = 0; i < W; i++) lane[i] = uint32_t(i);
  Lanes top = all(LEAST), sum = {};
  for (size_t v = first; v < last; v++) {
    const Words i = lane + uint32_t(v * W);
    Lanes x = load(scores + v * W);
    if (score_cap < __builtin_inff()) x = capped(x, score_cap);
    x = (i >= uint32_t(from)) & (i < uint32_t(to)) ? x : all(-__builtin_inff());
    top = x > top ? x : top;
    store(scores + v * W, x);
  }
  top = largest(top);
  for (size_t v = first; v < last; v++) {
    const Lanes weight = exp(load(scores + v * W) - top);
    sum += weight;
    store(scores + v * W, weight);
  }
  result[0] = top, result[1] = all(total(sum));
}

// What a query makes of earlier positions and what it makes of later ones → of all of them, in `earlier`.
inline void combine(Lanes* earlier, const Lanes* later, size_t record) {
  const Lanes top = earlier[0] > later[0] ? earlier[0] : later[0];
  const Lanes shrink = exp(earlier[0] - top), grow = exp(later[0] - top);
  earlier[0] = top;
  for (size_t v = 1; v < record; v++) earlier[v] = fused(earlier[v] * shrink, later[v], grow);
}

// Up to BLOCK queries of one sequence and one key/value head: row r is head i mod G of the head's group, of the query
// token[i / G], i = first + r. All that they see is among the positions from ≤ at < to.
struct Block {
  size_t b, k;
  const size_t* token;  // live queries of the sequence, as b · T + t
  size_t first, rows;
  size_t from, to;
  size_t task, tasks;  // the first, and how many
};

// Spans first ≤ s < last of a block. What comes of them: for each row a record, see Attention.
struct Task {
  size_t block, first, last;
  Lanes* result;
};

// Memory of a thread, kept from call to call.
template <class Stored>
struct Space {
  std::vector<Lanes> lanes;
  std::vector<Stored> zeros;           // a key of a position that does not exist
  float *q, *keys, *values, *scores;   // [BLOCK, H], [H, PIECE], [PIECE, vectors], [BLOCK, SPAN]
  Lanes* later;                        // [BLOCK, record]

  void fit(const Attention<Stored>& a) {
    const size_t sizes[] = {BLOCK * a.vectors(), a.H * PIECE / W, PIECE * a.vectors(), BLOCK * SPAN / W};
    const size_t all = sizes[0] + sizes[1] + sizes[2] + sizes[3] + BLOCK * a.record();
    if (lanes.size() < all) lanes.resize(all);
    if (zeros.size() < a.H) zeros.resize(a.H);
    Lanes* at = lanes.data();
    float** const places[] = {&q, &keys, &values, &scores};
    for (size_t i = 0; i < 4; at += sizes[i++]) *places[i] = reinterpret_cast<float*>(at);
    later = at;
  }
};

// Where the positions first ≤ at < last of a block's sequence and head lie in `pages`, keys or values.
template <class Stored>
void find(const Attention<Stored>& a, const Block& block, const Stored* pages, size_t first, size_t last,
          const Stored** row) {
  while (first < last) {
    const size_t page = size_t(a.tables[block.b * a.P + first / a.page_size]), slot = first % a.page_size;
    const size_t count = std::min(last - first, a.page_size - slot);
    const Stored* at = pages + ((page * a.page_size + slot) * a.K + block.k) * a.H;
    for (size_t i = 0; i < count; i++, at += a.K * a.H) *row++ = at;
    first += count;
  }
}

// What the rows of a block make of the positions first ≤ at < last of one span.
template <class Stored>
void attend_span(const Attention<Stored>& a, const Block& block, const Space<Stored>& space, size_t first, size_t last,
                 Lanes* result) {
  const size_t base = first / SPAN * SPAN, record = a.record(), width = a.vectors() * W;
  float* const scores = space.scores - base;
  float* const mix = reinterpret_cast<float*>(result + 2);
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
    multiply(block.rows, PIECE / W, space.q, a.H, space.keys, PIECE, a.H, scores + piece, SPAN);
  });
  for (size_t r = 0; r < block.rows; r++) {
    const size_t token = block.token[(block.first + r) / a.G];
    const size_t from = std::clamp(a.begin(token), first, last), to = std::clamp(a.end(token), first, last);
    weigh(space.scores + r * SPAN, from - base, to - base, (first - base) / W, (last - base + W - 1) / W, a.score_cap,
          result + r * record);
  }
  each_piece([&](size_t, size_t from, size_t to) {
    const Stored* row[PIECE];
    find(a, block, a.values, from, to, row);
    pack_values(row, to - from, a.H, space.values);
    multiply(block.rows, a.vectors(), scores + from, SPAN, space.values, width, to - from, mix, record * W);
  });
}

template <class Stored>
void attend_task(const Attention<Stored>& a, const Block& block, const Task& task) {
  static thread_local Space<Stored> space;
  space.fit(a);
  for (size_t r = 0; r < block.rows; r++) {
    const size_t i = block.first + r;
    std::copy_n(a.q + ((block.token[i / a.G] * a.K + block.k) * a.G + i % a.G) * a.H, a.H, space.q + r * a.H);
  }
  for (size_t span = task.first; span < task.last; span++) {
    Lanes* const result = span == task.first ? task.result : space.later;
    attend_span(a, block, space, std::max(block.from, span * SPAN), std::min(block.to, (span + 1) * SPAN), result);
    if (span > task.first)
      for (size_t r = 0; r < block.rows; r++) combine(task.result + r * a.record(), result + r * a.record(), a.record());
  }
}

// Combines what a block's tasks came to, in the order of their spans, and divides.
template <class Stored>
void finish(const Attention<Stored>& a, const Block& block, const Task* tasks) {
  for (size_t r = 0; r < block.rows; r++) {
    Lanes* const row = tasks[0].result + r * a.record();
    for (size_t t = 1; t < block.tasks; t++) combine(row, tasks[t].result + r * a.record(), a.record());
    const size_t i = block.first + r;
    float* const y = a.y + ((block.token[i / a.G] * a.K + block.k) * a.G + i % a.G) * a.H;
    for (size_t v = 0; v < a.vectors(); v++) {
      const Lanes mixed = row[2 + v] / row[1] + 0.0f;
      std::memcpy(y + v * W, &mixed, std::min(W, a.H - v * W) * sizeof(float));
    }
  }
}

struct Plan {  // of a call; its memory is kept
  std::vector<size_t> live;
  std::vector<Block> blocks;
  std::vector<Task> tasks;
  std::vector<Lanes> results;
};

// All of y. A few queries are cut into a task for every span, so that a lone long sequence has work for all threads; a
// task of many queries takes all spans, one after the other.
template <class Stored>
void attend(const Attention<Stored>& a) {
  static thread_local Plan own;
  auto& [live, blocks, tasks, results] = own;
  live.clear(), live.reserve(a.B * a.T), blocks.clear(), tasks.clear();
  size_t cost = 0, size = 0;
  for (size_t b = 0; b < a.B; b++) {
    const size_t* const token = live.data() + live.size();
    for (size_t t = b * a.T; t < (b + 1) * a.T; t++)
      if (a.positions[t] < a.lengths[b]) live.push_back(t);
      else std::fill_n(a.y + t * a.K * a.G * a.H, a.K * a.G * a.H, 0.0f);
    const size_t rows = (live.data() + live.size() - token) * a.G;
    for (size_t k = 0; k < a.K; k++)
      for (size_t first = 0; first < rows; first += BLOCK) {
        Block block{b, k, token, first, std::min(BLOCK, rows - first), SIZE_MAX, 0, tasks.size(), 1};
        for (size_t i = first / a.G; i <= (first + block.rows - 1) / a.G; i++)
          block.from = std::min(block.from, a.begin(token[i])), block.to = std::max(block.to, a.end(token[i]));
        const size_t begin = block.from / SPAN, end = (block.to + SPAN - 1) / SPAN;
        if (rows <= std::max(BLOCK, a.G)) block.tasks = end - begin;
        for (size_t i = 0; i < block.tasks; i++, size += block.rows * a.record())
          if (block.tasks == 1) tasks.push_back({blocks.size(), begin, end, nullptr});
          else tasks.push_back({blocks.size(), begin + i, begin + i + 1, nullptr});
        cost += (block.to - block.from) * a.H * 2 * (sizeof(Stored) + block.rows / 4);
        blocks.push_back(block);
      }
  }
  if (results.size() < size) results.resize(size);
  size = 0;
  for (Task& task : tasks) task.result = &results[size], size += blocks[task.block].rows * a.record();
  const Plan& plan = own;  // this thread's: a helper that named `own` would find another
  share(tasks.size(), cost, [&](size_t i) { attend_task(a, plan.blocks[plan.tasks[i].block], plan.tasks[i]); });
  share(blocks.size(), size * sizeof(Lanes),
        [&](size_t i) { finish(a, plan.blocks[i], &plan.tasks[plan.blocks[i].task]); });
}

}  // namespace gnomon
