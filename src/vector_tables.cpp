// SPDX-License-Identifier: Apache-2.0
// See vector_tables.h; FORMAT.md sections 2 and 8.3 say what the streams are.
#include "vector_tables.h"

namespace tq {
namespace {

// Of a rotation: signs (as 64-bit words) or a matrix.
int64_t table_bytes(format::Rotation rotation, int stored) {
  const int64_t d = stored, bytes = rotation == format::Rotation::kDense
                                        ? d * d * static_cast<int64_t>(sizeof(float))
                                        : format::sign_words(stored) * static_cast<int64_t>(sizeof(uint64_t));
  return (bytes + Carver::kAlignment - 1) / Carver::kAlignment * Carver::kAlignment;
}

format::Rotation sketch_rotation(const VectorGeometry& g) {
  return g.sketch == format::SketchKind::kGaussian ? format::Rotation::kDense : format::Rotation::kHadamard;
}

int64_t all_table_bytes(const VectorGeometry& g) {
  int64_t bytes = Carver::kAlignment;  // never empty
  for (int i = 0; i < g.num_parts && !g.grouped(); i++) bytes += table_bytes(g.rotation, g.parts[i].stored);
  const int rotations = g.sketch == format::SketchKind::kGaussian ? 1 : 2;
  if (g.has_sketch) bytes += rotations * table_bytes(sketch_rotation(g), g.parts[0].stored);
  return bytes;
}

}  // namespace

void VectorTables::fill(format::VectorCoder& table, uint64_t base, bool gaussian, const HostOps& ops,
                        uint8_t** next) {
  const int stored = table.stored;
  if (table.rotation == format::Rotation::kHadamard) {
    uint64_t* signs = reinterpret_cast<uint64_t*>(*next);
    for (int w = 0; w < format::sign_words(stored); w++)
      signs[w] = format::stream_word(base, static_cast<uint64_t>(w));
    table.signs = signs;
  } else {
    float* matrix = reinterpret_cast<float*>(*next);
    if (gaussian) {
      format::gaussian_matrix(base, stored, matrix);
    } else {
      const int64_t d = stored;
      const HostBlock work(ops, (d * d + d) * static_cast<int64_t>(sizeof(double)), "dense rotation");
      format::dense_matrix(base, stored, matrix, static_cast<double*>(work.get()));
    }
    table.dense = matrix;
  }
  *next += table_bytes(table.rotation, stored);
}

VectorTables::VectorTables(const VectorGeometry& g, const HostOps& ops)
    : coder{},
      sketch{},
      level{},
      sketch_scale(0),
      sign_book{},
      bytes_(all_table_bytes(g)),
      block_(ops, bytes_, "rotation") {
  uint8_t* next = static_cast<uint8_t*>(block_.get());
  for (int i = 0; i < g.num_parts && !g.grouped(); i++) {
    const VectorPart& part = g.parts[i];
    coder[i] = format::VectorCoder{part.dim, part.stored, g.rotation, nullptr,  nullptr,
                                   nullptr,  g.rule,      g.search,   part.book};
    fill(coder[i], format::stream_base(g.seed, 0, i, Kind::kKey), false, ops, &next);
    for (int c = 0; c < 1 << part.bits; c++)
      level[i][c] =
          g.has_levels ? g.levels.level[c] : format::code_level(part.book, static_cast<uint32_t>(c));
  }
  if (!g.has_sketch) return;
  const int stored = g.parts[0].stored;
  sketch.first.dim = sketch.first.stored = stored;
  sketch.first.rotation = sketch_rotation(g);
  sketch.second = sketch.first;
  fill(sketch.first, format::stream_base(g.seed, 0, 0, format::kSketchStream), true, ops, &next);
  if (!sketch.gaussian())
    fill(sketch.second, format::stream_base(g.seed, 0, 0, format::kSecondSketchStream), false, ops, &next);
  sketch_scale = format::div_rn(g.sketch_factor, format::sketch_divisor(g.sketch, stored));
  sign_book.bits = 1;
  sign_book.unit = 1;
  sign_book.magnitude[0] = 1;
}

}  // namespace tq
