// SPDX-License-Identifier: Apache-2.0
// The encoder of trellis codes in SIMD: exactly format::fit_trellis.
//
// A 128-bit block is one chain: two vectors hold the metrics of its states 0..3 and 4..7, two the histories,
// one the distances of the four cosets. Into states 0..3 and 4..7 then come the interleaved halves of both,
// all within a block. Chains of a vector are independent, as are those of several vectors: what a step waits
// for is its own minimum alone.
#if defined(TQ_CPU_TRELLIS_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ_CPU_TRELLIS_ENCODE_INL_H_
#undef TQ_CPU_TRELLIS_ENCODE_INL_H_
#else
#define TQ_CPU_TRELLIS_ENCODE_INL_H_
#endif

#include "cpu/kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq {
namespace cpu {
namespace HWY_NAMESPACE {

using TrellisTag = hn::CappedTag<int32_t, 16>;
using VTrellis = hn::Vec<TrellisTag>;

// Chains are taken four at a time, in `blocks` of a vector: those of a vector stand at `first` of the four.
constexpr int kChainGroup = 4;
constexpr int kMaxChainGroups = (format::kMaxChains + kChainGroup - 1) / kChainGroup;

// Coordinates by place, within a block of 32 jv: the inverse of format::trellis_place.
struct TrellisOrder {
  uint8_t at[2][3][128];  // [kind][jv 1, 2, 4][place]
};
constexpr TrellisOrder trellis_order() {
  TrellisOrder order = {};
  for (int kind = 0; kind < 2; kind++)
    for (int i = 0; i < 3; i++)
      for (int c = 0; c < 32 << i; c++)
        order.at[kind][i][format::trellis_place(static_cast<Kind>(kind), 1 << i, c)] =
            static_cast<uint8_t>(c);
  return order;
}

// Bytes that spread number i of four over block i of a vector. From `first` on: those of block `first`.
struct ChainBytes {
  alignas(64) uint8_t byte[64 + 64];
};
constexpr ChainBytes chain_bytes() {
  ChainBytes bytes = {};
  for (int i = 0; i < 128; i++) bytes.byte[i] = static_cast<uint8_t>(i / 16 % 4 * 4 + i % 4);
  return bytes;
}
HWY_INLINE hn::Vec<hn::Repartition<uint8_t, TrellisTag>> spread_chains(int first) {
  static constexpr ChainBytes kBytes = chain_bytes();
  return hn::LoadU(hn::Repartition<uint8_t, TrellisTag>(), kBytes.byte + 16 * first);
}

// The distances of four cosets, in this order.
struct CosetBytes {
  alignas(16) uint8_t byte[16];
};
constexpr CosetBytes coset_bytes(int a, int b, int c, int e) {
  CosetBytes bytes = {};
  const int coset[4] = {a, b, c, e};
  for (int i = 0; i < 16; i++) bytes.byte[i] = static_cast<uint8_t>(4 * coset[i / 4] + i % 4);
  return bytes;
}
HWY_INLINE VTrellis pick_cosets(VTrellis cost, const CosetBytes& bytes) {
  const TrellisTag d;
  const hn::Repartition<uint8_t, TrellisTag> d8;
  return hn::BitCast(d, hn::TableLookupBytes(hn::BitCast(d8, cost), hn::LoadDup128(d8, bytes.byte)));
}

struct TrellisVectors {
  VTrellis metric[2], history[2];  // states 0..3, 4..7

  HWY_INLINE void extend(VTrellis cost) {
    const TrellisTag d;
    alignas(16) static constexpr int32_t kBits[4] = {0, 1, 0, 1};
    const VTrellis bit = hn::LoadDup128(d, kBits);  // u, the state's lowest
    // into state s from s / 2, and from s / 2 + 4
    static constexpr CosetBytes kFirst[2] = {coset_bytes(0, 2, 2, 0), coset_bytes(1, 3, 3, 1)},
                                kSecond[2] = {coset_bytes(2, 0, 0, 2), coset_bytes(3, 1, 1, 3)};
    const TrellisVectors old = *this;
    for (int half = 0; half < 2; half++) {
      const auto spread = [&](VTrellis v) HWY_ATTR {
        return half == 0 ? hn::InterleaveLower(d, v, v) : hn::InterleaveUpper(d, v, v);
      };
      const VTrellis a = hn::Add(spread(old.metric[0]), pick_cosets(cost, kFirst[half])),
                     b = hn::Add(spread(old.metric[1]), pick_cosets(cost, kSecond[half]));
      const auto later = hn::Lt(b, a);
      metric[half] = hn::Min(a, b);
      const VTrellis past = hn::IfThenElse(later, spread(old.history[1]), spread(old.history[0]));
      history[half] = hn::Or(hn::Add(past, past), bit);
    }
  }
};

// What is left of a vector's paths, for one chain.
struct TrellisEnds {
  alignas(64) int32_t metric[2][16], history[2][16];

  HWY_INLINE explicit TrellisEnds(const TrellisVectors& paths) {
    for (int half = 0; half < 2; half++) {
      hn::Store(paths.metric[half], TrellisTag(), metric[half]);
      hn::Store(paths.history[half], TrellisTag(), history[half]);
    }
  }
  format::TrellisPaths of(int block) const {
    format::TrellisPaths paths;
    for (int s = 0; s < format::kTrellisStates; s++) {
      paths.metric[s] = metric[s / 4][4 * block + s % 4];
      paths.history[s] = static_cast<uint32_t>(history[s / 4][4 * block + s % 4]);
    }
    return paths;
  }
};

class TrellisFit {
 public:
  TrellisFit(const format::VectorCoder& coder, float base)
      : levels_(coder.codebook), bits_(coder.codebook.bits - 1), base_(base), stored_(coder.stored) {}

  // codes and signed levels [stored] of y.
  HWY_INLINE void run(const format::VectorCoder& coder, const float* HWY_RESTRICT y,
                      uint8_t* HWY_RESTRICT codes, float* HWY_RESTRICT levels) {
    static constexpr TrellisOrder kOrder = trellis_order();
    const int jv = format::lane_groups(stored_), chains = stored_ / format::kChain;
    const uint8_t* const order = kOrder.at[static_cast<int>(coder.kind)][jv / 2];
    groups_ = (chains + kChainGroup - 1) / kChainGroup;
    memset(y_, 0, sizeof(float) * static_cast<size_t>(groups_ * kGroup));
    for (int chain = 0; chain < chains; chain++) {
      const uint8_t* const own = order + chain % jv * format::kChain;
      const float* const block = y + chain / jv * jv * format::kChain;
      for (int r = 0; r < format::kChain; r++) y_[index_of(chain, r)] = block[own[r]];
    }

    const int steps = format::num_trellis_steps(coder.rule, coder.search);
    float best_error = 0, best_step = 0;
    uint8_t tails[kMaxChainGroups * kChainGroup] = {}, best_tails[kMaxChainGroups * kChainGroup] = {};
    for (int index = 0; index < steps; index++) {
      const float step = format::trellis_step(steps, index);
      make_integers(format::mul_rn(base_, step));
      const float error =
          format::mul_rn(static_cast<float>(open_passes(chains, tails)), format::mul_rn(step, step));
      if (index > 0 && !(error < best_error)) continue;
      best_error = error;
      best_step = step;
      memcpy(best_tails, tails, sizeof tails);
    }
    if (steps > 1) make_integers(format::mul_rn(base_, best_step));
    uint32_t u[kMaxChainGroups * kChainGroup];
    closed_passes(chains, best_tails, u);
    for (int chain = 0; chain < chains; chain++) {
      const uint8_t* const own = order + chain % jv * format::kChain;
      const int block = chain / jv * jv * format::kChain;
      for (int r = 0; r < format::kChain; r++) {
        const uint32_t coset = format::trellis_coset(u[chain], r);
        const int plain = plain_[4 * index_of(chain, r) + static_cast<int>(coset)];
        codes[block + own[r]] = static_cast<uint8_t>(plain << 1 | static_cast<int>(u[chain] >> r & 1u));
        levels[block + own[r]] =
            static_cast<float>(levels_.eighth[4 * plain + static_cast<int>(coset)]) * 0.125f;  // exact
      }
    }
  }

 private:
  static constexpr int kGroup = format::kChain * kChainGroup;

  // Of a position, in y_ and what is made of it.
  static int index_of(int chain, int r) {
    return chain / kChainGroup * kGroup + r * kChainGroup + chain % kChainGroup;
  }

  HWY_INLINE void make_integers(float u) {
    const F d;
    const hn::RebindToSigned<F> di;
    const VF factor = hn::Set(d, format::div_rn(8.0f, u));
    for (int i = 0; i < groups_ * kGroup; i += static_cast<int>(hn::Lanes(d)))
      hn::Store(hn::NearestInt(hn::Mul(hn::Load(d, y_ + i), factor)), di, q_ + i);
  }

  // Squared distances of the cosets; where `plain` is not null, which of a coset's levels it is.
  template <bool kPlain>
  HWY_INLINE VTrellis distances(const int32_t* HWY_RESTRICT q,
                                hn::Vec<hn::Repartition<uint8_t, TrellisTag>> spread, int32_t* plain) const {
    const TrellisTag d;
    const hn::Repartition<uint8_t, TrellisTag> d8;
    const VTrellis own = hn::BitCast(d, hn::TableLookupBytes(hn::BitCast(d8, hn::LoadDup128(d, q)), spread));
    VTrellis least = hn::Abs(hn::Sub(own, hn::LoadDup128(d, levels_.eighth))), index = hn::Zero(d);
    for (int p = 1; p < 1 << (bits_ - 1); p++) {
      const VTrellis distance = hn::Abs(hn::Sub(own, hn::LoadDup128(d, levels_.eighth + 4 * p)));
      if constexpr (kPlain) index = hn::IfThenElse(hn::Lt(distance, least), hn::Set(d, p), index);
      least = hn::Min(least, distance);
    }
    if constexpr (kPlain) hn::StoreU(index, d, plain);
    return hn::Mul(least, least);
  }

  // All passes without ends; returns the sum of the chains' errors.
  HWY_INLINE int32_t open_passes(int chains, uint8_t* tails) const {
    const TrellisTag d;
    const int blocks = static_cast<int>(hn::Lanes(d)) / 4;
    int32_t sum = 0;
    for (int group = 0; group < groups_; group++)
      for (int first = 0; first < kChainGroup; first += blocks) {
        const auto spread = spread_chains(first);
        TrellisVectors paths = {{hn::Zero(d), hn::Zero(d)}, {hn::Zero(d), hn::Zero(d)}};
        for (int r = 0; r < format::kChain; r++) {
          const int position = (format::kOpenFirst + r) % format::kChain;
          paths.extend(distances<false>(q_ + group * kGroup + position * kChainGroup, spread, nullptr));
        }
        const TrellisEnds ends(paths);
        for (int block = 0; block < blocks; block++) {
          const int chain = group * kChainGroup + first + block;
          if (chain >= chains) continue;
          const format::TrellisPaths own = ends.of(block);
          const int end = own.best();
          tails[chain] = static_cast<uint8_t>(own.history[end] >> format::kOpenFirst & 7u);
          sum += own.metric[end];
        }
      }
    return sum;
  }

  // The coded bits u of all chains, and the nearest level of each coset.
  HWY_INLINE void closed_passes(int chains, const uint8_t* tails, uint32_t* u) {
    const TrellisTag d;
    const int blocks = static_cast<int>(hn::Lanes(d)) / 4;
    for (int group = 0; group < groups_; group++)
      for (int first = 0; first < kChainGroup; first += blocks) {
        const auto spread = spread_chains(first);
        alignas(64) int32_t start[2][16];
        for (int i = 0; i < 16; i++) {
          const int chain = group * kChainGroup + first + i / 4;
          const int tail = i / 4 < blocks && chain < chains ? tails[chain] : 0;
          for (int half = 0; half < 2; half++)
            start[half][i] = 4 * half + i % 4 == tail ? 0 : format::kNoPath;
        }
        TrellisVectors paths = {{hn::Load(d, start[0]), hn::Load(d, start[1])}, {hn::Zero(d), hn::Zero(d)}};
        for (int r = 0; r < format::kChain; r++) {
          const int at = group * kGroup + r * kChainGroup;
          paths.extend(distances<true>(q_ + at, spread, plain_ + 4 * (at + first)));
        }
        const TrellisEnds ends(paths);
        for (int block = 0; block < blocks; block++) {
          const int chain = group * kChainGroup + first + block;
          if (chain < chains) u[chain] = format::reversed(ends.of(block).history[tails[chain]]);
        }
      }
  }

  const format::TrellisLevels levels_;
  const int bits_;
  const float base_;
  const int stored_;
  int groups_ = 0;
  alignas(64) float y_[kMaxChainGroups * kGroup];
  alignas(64) int32_t q_[kMaxChainGroups * kGroup];
  alignas(64) int32_t plain_[4 * kMaxChainGroups * kGroup];
};

// Codes of y, and what the scale is fitted to; scratch [stored].
HWY_NOINLINE format::QuantiseResult fit_trellis(const format::VectorCoder& coder, float base,
                                                const float* HWY_RESTRICT y, float* HWY_RESTRICT scratch,
                                                uint8_t* codes) {
  const F d;
  alignas(64) float levels[format::kMaxDim];
  TrellisFit(coder, base).run(coder, y, codes, levels);
  VF squares = hn::Zero(d);
  for (int p = 0; p < coder.stored; p += static_cast<int>(hn::Lanes(d))) {
    const VF level = hn::Load(d, levels + p), twice = hn::Add(level, level);
    squares = hn::Add(squares, hn::Mul(twice, twice));
    hn::Store(hn::Mul(hn::Load(d, y + p), level), d, scratch + p);
  }
  const hn::RebindToSigned<F> di;
  const int32_t four_qq = hn::GetLane(hn::SumOfLanes(di, hn::ConvertTo(di, squares)));
  return format::QuantiseResult{tree_sum(scratch, coder.stored),
                                format::mul_rn(static_cast<float>(four_qq), 0.25f)};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace cpu
}  // namespace tq
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
