// SPDX-License-Identifier: Apache-2.0
// Parameters of an attend kernel, and the choice among the compiled ones.
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <iterator>
#include <utility>

#include "cuda/attend/banded.cuh"
#include "cuda/attend/core_shape.cuh"
#include "cuda/attend/instances.h"
#include "cuda/code/trellis_tables.h"
#include "cuda/runtime.h"

namespace tq::cuda::attend {

AttendParams list_params(const AttendLaunch& launch) {
  AttendParams p(make_row_params(launch));
  set_side_tables(launch.layer, &p.numbers);
  p.ctas = reinterpret_cast<const CtaWork*>(launch.plan.work + sizeof(WorkHeader));
  p.sequences = reinterpret_cast<const SequenceWork*>(p.ctas + launch.num_ctas);
  p.idle_rows = launch.plan.idle_rows;
  return p;
}

AttendParams make_attend_params(const AttendLaunch& launch, const CoreShape& shape) {
  AttendParams p = list_params(launch);
  p.counters = static_cast<int32_t*>(launch.workspace);
  p.slots =
      reinterpret_cast<float*>(static_cast<uint8_t*>(launch.workspace) + counter_bytes(launch.num_ctas));
  const DeviceLayer& layer = launch.layer;
  p.whole_steps = layer.tiles_per_page % shape.tiles_per_step == 0;

  const MaskNeeds masks = {adds_to_logits(launch.call), launch.call.visible_begin != nullptr};
  const int stage_bytes = shape.tiles_per_step * layer.tile_bytes;
  const auto plan_for = [&](AttendTuning t) {
    const int workers = std::min({t.workers, shape.max_workers, 4 * t.deposits});
    SmemPlan plan = make_smem_plan(shape.stored_key, shape.raw_dim, shape.stored_value, stage_bytes, masks,
                                   workers, shape.exact, t.stages, t.deposits,
                                   t.copies > 0 ? t.copies : INT_MAX, shape.row_query_bytes);
    if (shape.exact) plan.exact_warps = std::min(kMaxExactWarps, shape.max_workers - workers);
    return plan;
  };
  if (launch.tuning.workers > 0) {
    AttendTuning tuning = launch.tuning;
    if (tuning.deposits == 0) tuning.deposits = kMaxDeposits;
    if (tuning.stages == 0) tuning.stages = 2;
    TQ_CHECK((tuning.stages & (tuning.stages - 1)) == 0, Status::kInternal,
             "attend: %d stages, not a power of two", tuning.stages);
    p.plan = plan_for(tuning);
    for (; p.plan.total_bytes > launch.shared_memory_per_block && tuning.deposits > 1;
         p.plan = plan_for(tuning))
      tuning.deposits /= 2;
  } else {
    for (const AttendTuning* at = shape.tunings; at != shape.tunings_end; at++) {
      AttendTuning tuning = *at;
      const int unpaced_bytes = launch.paced || shape.exact ? 0 : tuning.unpaced_bytes;
      if (stage_bytes > std::max(tuning.stage_bytes, unpaced_bytes)) continue;
      if (launch.tuning.copies > 0 || !launch.paced) tuning.copies = launch.tuning.copies;
      p.plan = plan_for(tuning);
      if (p.plan.total_bytes <= launch.shared_memory_per_block) break;
    }
  }
  TQ_CHECK(
      p.plan.total_bytes <= launch.shared_memory_per_block, Status::kNotSupported,
      "attend: %d bytes of shared memory needed for head_dim %d at %d + %d bits, the device gives a block %d",
      p.plan.total_bytes, layer.key.layout.dim, layer.key.layout.bits, layer.value.layout.bits,
      launch.shared_memory_per_block);
  if (launch.clear_counters)
    check_cuda(runtime().memset_async(launch.workspace, 0,
                                      static_cast<size_t>(counter_bytes(launch.num_ctas)), launch.stream),
               "attend: counters");
  return p;
}

namespace {

using Launcher = void (*)(const AttendLaunch&);

struct Compiled {
  int stored, tiles;
  format::CodeId key, value;
  Launcher launch;

  // Of keys in bands without widths: the widths' sum counts.
  bool serves(const format::TileLayout& tile) const {
    const format::CodeId id = tile.key.code();
    return stored == tile.key.stored && stored == tile.value.stored && value == tile.value.code() &&
           (key.banded() && key.bands == 0 ? key.family == id.family && key.bits == id.bits : key == id);
  }
  CoreShape shape(bool exact) const {
    return key.banded()      ? banded_shape(stored, tiles, exact)
           : value.trellis() ? trellis_shape(stored, tiles, exact)
                             : coded_shape(stored, std::max(key.bits, value.bits), tiles, exact);
  }
};

template <size_t... kAt>
constexpr std::array<Compiled, sizeof...(kAt)> coded_rows_of(std::index_sequence<kAt...>) {
  return {{{kCodedInstances[kAt].stored, kCodedInstances[kAt].tiles,
            format::scalar_code(kCodedInstances[kAt].key_bits),
            format::scalar_code(kCodedInstances[kAt].value_bits),
            launch_coded<kCodedInstances[kAt].stored, kCodedInstances[kAt].key_bits,
                         kCodedInstances[kAt].value_bits, kCodedInstances[kAt].tiles,
                         kCodedInstances[kAt].warps>}...}};
}
template <size_t... kAt>
constexpr std::array<Compiled, sizeof...(kAt)> trellis_rows_of(std::index_sequence<kAt...>) {
  return {{{kTrellisInstances[kAt].stored, kTrellisInstances[kAt].tiles,
            format::trellis_code(kTrellisInstances[kAt].key_bits),
            format::trellis_code(kTrellisInstances[kAt].value_bits),
            launch_trellis<kTrellisInstances[kAt].stored, kTrellisInstances[kAt].key_bits,
                           kTrellisInstances[kAt].value_bits, kTrellisInstances[kAt].tiles,
                           kTrellisInstances[kAt].warps>}...}};
}
template <size_t... kAt>
constexpr std::array<Compiled, sizeof...(kAt)> banded_rows_of(std::index_sequence<kAt...>) {
  return {{{kBandedInstances[kAt].stored, kBandedInstances[kAt].tiles,
            pattern_code(kBandedInstances[kAt].stored / format::kGroupCodes, kBandedInstances[kAt].pattern,
                         kBandedInstances[kAt].trellis != 0),
            kBandedInstances[kAt].trellis ? format::trellis_code(kBandedInstances[kAt].value_bits)
                                          : format::scalar_code(kBandedInstances[kAt].value_bits),
            launch_banded<kBandedInstances[kAt].stored, kBandedInstances[kAt].pattern,
                          kBandedInstances[kAt].trellis, kBandedInstances[kAt].value_bits,
                          kBandedInstances[kAt].tiles, kBandedInstances[kAt].warps>}...}};
}
template <size_t... kAt>
constexpr std::array<Compiled, sizeof...(kAt)> any_bands_rows_of(std::index_sequence<kAt...>) {
  return {{{kAnyBandsInstances[kAt].stored, kAnyBandsInstances[kAt].tiles,
            AnyBandsTile<kAnyBandsInstances[kAt].stored, kAnyBandsInstances[kAt].sum,
                         kAnyBandsInstances[kAt].trellis != 0, kAnyBandsInstances[kAt].value_bits>::kKeyCode,
            kAnyBandsInstances[kAt].trellis ? format::trellis_code(kAnyBandsInstances[kAt].value_bits)
                                            : format::scalar_code(kAnyBandsInstances[kAt].value_bits),
            launch_any_bands<kAnyBandsInstances[kAt].stored, kAnyBandsInstances[kAt].sum,
                             kAnyBandsInstances[kAt].trellis, kAnyBandsInstances[kAt].value_bits,
                             kAnyBandsInstances[kAt].tiles, kAnyBandsInstances[kAt].warps>}...}};
}
constexpr auto kCoded = coded_rows_of(std::make_index_sequence<std::size(kCodedInstances)>());
constexpr auto kTrellis = trellis_rows_of(std::make_index_sequence<std::size(kTrellisInstances)>());
constexpr auto kBanded = banded_rows_of(std::make_index_sequence<std::size(kBandedInstances)>());
constexpr auto kAnyBands = any_bands_rows_of(std::make_index_sequence<std::size(kAnyBandsInstances)>());

// Both sides have codes of one family.
const Compiled* find_compiled(const format::TileLayout& tile) {
  const auto in = [&](const auto& rows) -> const Compiled* {
    for (const Compiled& row : rows)
      if (row.serves(tile)) return &row;
    return nullptr;
  };
  if (!tile.key.banded()) return tile.key.code().trellis() ? in(kTrellis) : in(kCoded);
  const Compiled* const pattern = in(kBanded);
  return pattern ? pattern : in(kAnyBands);
}

struct Few {
  FewInstance is;
  Launcher launch;
  int (*clusters)();
};
template <class Kernel>
constexpr Few few_of(const FewInstance& is) {
  return Few{is, Kernel::launch, Kernel::clusters};
}
template <size_t... kAt>
constexpr std::array<Few, sizeof...(kAt)> few_rows_of(std::index_sequence<kAt...>) {
  return {{few_of<
      FewKernel<kFewInstances[kAt].stored, kFewInstances[kAt].key_bits, kFewInstances[kAt].value_bits>>(
      kFewInstances[kAt])...}};
}
constexpr auto kFew = few_rows_of(std::make_index_sequence<std::size(kFewInstances)>());

// The kernel of few blocks, null if there is none. It knows no exact tokens.
const Few* find_few(const format::TileLayout& tile, bool exact) {
  for (const Few& few : kFew)
    if (!exact && tile.key.stored == few.is.stored && tile.value.stored == few.is.stored &&
        tile.key.code() == format::scalar_code(few.is.key_bits) &&
        tile.value.code() == format::scalar_code(few.is.value_bits))
      return &few;
  return nullptr;
}

struct Generic {
  GenericInstance is;
  Launcher launch, rows;  // rows: of sides whose codes lie by rows
};

template <size_t... kAt>
constexpr std::array<Generic, sizeof...(kAt)> generic_rows(std::index_sequence<kAt...>) {
  return {{{kGenericInstances[kAt], launch_generic<kGenericInstances[kAt].key, kGenericInstances[kAt].value>,
            launch_rows<kGenericInstances[kAt].key, kGenericInstances[kAt].value>}...}};
}
constexpr auto kGeneric = generic_rows(std::make_index_sequence<std::size(kGenericInstances)>());

// Masks that add to logits have the generic kernel alone. Every generic kernel has one for codes by rows.
constexpr bool every_compiled_has_a_generic() {
  for (const CodedInstance& coded : kCodedInstances) {
    bool found = false;
    for (const GenericInstance& generic : kGenericInstances)
      found = found || (generic.key == coded.stored && generic.value == coded.stored);
    if (!found) return false;
  }
  return true;
}
static_assert(every_compiled_has_a_generic(), "instances.txt");

const Generic* find_generic(const format::TileLayout& tile) {
  for (const Generic& row : kGeneric)
    if (row.is.key == format::stored_dim(tile.key.dim) && row.is.value == format::stored_dim(tile.value.dim))
      return &row;
  return nullptr;
}

}  // namespace

AttendKernel attend_kernel_for(const format::TileLayout& tile) {
  return find_compiled(tile)  ? AttendKernel::kCompiled
         : find_generic(tile) ? AttendKernel::kGeneric
                              : AttendKernel::kNone;
}

bool few_fits(const format::TileLayout& tile, bool exact) {
  const Few* few = find_few(tile, exact);
  return few && has_warpgroups() && few->clusters() > 0;
}

int attend_least_shared_memory(const format::TileLayout& tile, bool exact) {
  const auto bytes = [&](const CoreShape& shape, MaskNeeds masks) {
    const AttendTuning least = shape.tunings_end[-1];
    return make_smem_plan(shape.stored_key, shape.raw_dim, shape.stored_value,
                          shape.tiles_per_step * tile.tile_bytes(), masks, least.workers, shape.exact,
                          least.stages, least.deposits, least.copies, shape.row_query_bytes)
        .total_bytes;
  };
  const Compiled* compiled = find_compiled(tile);
  const Generic* generic = find_generic(tile);
  int most = 0;
  if (compiled) most = bytes(compiled->shape(exact), {false, true});
  if (generic)
    most = std::max(most,
                    bytes(generic_shape(generic->is.key, generic->is.value, tile.key, exact), {true, true}));
  return most;
}

void launch_attend(const AttendLaunch& launch) {
  const DeviceSide &key = launch.layer.key, &value = launch.layer.value;
  const format::TileLayout tile(key.layout.dim, value.layout.dim, key.layout.code(), value.layout.code());
  const Compiled* compiled = adds_to_logits(launch.call) ? nullptr : find_compiled(tile);
  if (launch.few_sequences > 0 && compiled && launch.tuning.workers == 0 && !launch.call.visible_begin)
    if (const Few* few = find_few(tile, launch.layer.window_tokens + launch.layer.sink_tokens > 0))
      return few->launch(launch);
  const Generic* generic = compiled ? nullptr : find_generic(tile);
  TQ_CHECK(compiled || generic, Status::kNotSupported,
           "attend: no kernel for head_dim %d, value_dim %d at %d + %d bits", key.layout.dim,
           value.layout.dim, key.layout.bits, value.layout.bits);
  const bool rows =
      coded_rows(key.layout) || coded_rows(value.layout) || has_trellis(launch.layer) || key.layout.banded();
  (compiled ? compiled->launch : rows ? generic->rows : generic->launch)(launch);
}

}  // namespace tq::cuda::attend
