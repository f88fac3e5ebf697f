// SPDX-License-Identifier: Apache-2.0
// The wide way of long prefill (cuda/prefill/launch_wide.h): sequences of 1,024 and more rows a kv head.
// Included by attend_test.cu; tolerances are attend_prefill.cuh's.
#pragma once

namespace {

CaseSpec wide_base(int key_bits, int value_bits, int dim) {
  CaseSpec s = prefill_base(key_bits, value_bits, dim);
  s.q_heads = 16;
  s.kv_heads = 2;
  s.sequences = {{500, 130, 130}};
  return s;
}

// A history that is cut into slices, or not, has the same bits. One kv head and 1,024 rows.
void wide_slices(CaseSpec s, int length, const std::vector<int64_t>& rooms) {
  s.q_heads = 8;
  s.kv_heads = 1;
  s.sequences = {{length, 128, 128}};
  s.long_apart = true;
  AttendCase whole(s);
  std::vector<float> lse, lse2;
  const std::vector<float> out = attend_once(whole, &lse);
  const Comparison r = whole.compare_all();
  printf("wide d %d bits %d/%d, %d tokens: total %.2e, worst row %.2e\n", s.head_dim, s.key_bits,
         s.value_bits, length, r.total, r.worst);
  fflush(stdout);
  check(r.total <= total_limit(s) && right_kinds(r), "wide, %d tokens: total %.2e, %s", length, r.total,
        kinds(r).c_str());
  for (int64_t room : rooms) {
    s.wide_tokens = room;
    AttendCase sliced(s);
    check(same_bits(out, attend_once(sliced, &lse2)) && same_bits(lse, lse2),
          "wide, %d tokens in slices of %lld: other bits", length, static_cast<long long>(room));
  }
}

// Scales beyond what halves carry: of all keys, all values, or some values.
void wide_scales(const CaseSpec& base) {
  for (float spread : {0x1p-22f, 0x1p9f}) {
    CaseSpec s = base;
    s.spread = spread;
    s.scale = 1.0f / spread / sqrtf(static_cast<float>(s.head_dim));
    try_prefill(s);
  }
  for (int range : {10, 30, 80}) {
    CaseSpec s = base;
    s.value_range = range;
    try_prefill(s, range == 30);
  }
}

void wide_features(const CaseSpec& base) {
  CaseSpec s = base;
  s.sequences = {{700, 300, 300}, {513, 7, 7}, {200, 200, 200}, {300, 1, 1}, {400, 129, 129}, {90, 40, 40}};
  try_prefill(s, true);
  s = base;
  s.history_only = true;
  try_prefill(s);
  s.sequences = {{140, 140, 140}};  // no history at all
  try_prefill(s);
  s = base;
  s.centres = true;
  s.sink_logits = true;
  s.pad = 8;
  try_prefill(s);
  s = base;
  s.q_heads = 6;
  s.sequences = {{370, 350, 350}};
  try_prefill(s);
  for (DataType type : {DataType::kBF16, DataType::kF16, DataType::kF32}) {
    s = base;
    s.io = s.out = type;
    if (type == DataType::kF32) s.scale = -0.3f;
    try_prefill(s);
  }
  s = base;
  s.scale = 2.0f;
  s.spread = 4.0f;  // nearly one-hot
  try_prefill(s);
  s = base;
  s.odd_queries = {{5, 0, INFINITY}, {9, 2, NAN}, {60, 3, 1e-38f}};
  s.io = DataType::kF32;
  try_prefill(s);
  for (int page : {32, 96, 512}) {
    s = base;
    s.page_size = page;
    try_prefill(s);
  }
}

// What the wide way leaves to the other kernels has their bits.
void wide_left(const CaseSpec& base) {
  for (int kind = 0; kind < 5; kind++) {
    CaseSpec s = base;
    s.long_apart = true;
    if (kind == 0) s.softcap = 5;
    if (kind == 1) s.sliding = 90;
    if (kind == 2) s.window = 40;
    if (kind == 3) s.alibi = true;
    if (kind == 4) {  // too few rows, by the usual count
      if (s.head_dim > 128) continue;
      s.wide_rows = 0;
    }
    AttendCase with(s);
    const std::vector<float> a = attend_once(with);
    s.wide = false;
    AttendCase without(s);
    check(same_bits(a, attend_once(without)), "%s: not the group kernel's bits", name_of(s).c_str());
  }
}

void prefill_wide(int key_bits, int value_bits, int dim, bool quick, bool trellis) {
  CaseSpec base = wide_base(key_bits, value_bits, dim);
  base.trellis = trellis;
  try_prefill(base, true);
  wide_scales(base);
  if (quick) return;
  wide_features(base);
  wide_left(base);
  for (int edge : {256, 384, 512})
    for (int delta : {-1, 0, 1}) {
      CaseSpec s = base;
      s.sequences = {{edge + delta, 128, 128}};
      s.seed += static_cast<uint32_t>(edge + delta);
      try_prefill(s);
    }
  wide_slices(base, 4100, {4096});
  wide_slices(base, 12400, {4096, 8192});
}

}  // namespace
