// SPDX-License-Identifier: Apache-2.0
// Matrices for the keys of a layer, from second moments of its keys K and queries Q (tqkv.h section 11); see
// calibration.h.
//
// Why these: a rotated code's error is white over the coordinates that share a scale, of their energy in the
// keys, and it weighs in logits as much as the same coordinates' energy in the queries: a set of coordinates
// costs tr(M K M^T) * tr(M^-T Q M^-1) over it. Of all coordinates that is least where both are the same
// diagonal up to a factor: then it is the square of the sum of roots of the eigenvalues of K Q, which no
// basis changes, and by Cauchy and Schwarz no basis has less. Bands then part large coordinates from small.
#include <math.h>

#include <algorithm>
#include <numeric>

#include "calibration.h"
#include "status.h"

namespace tq {
namespace {

constexpr double kFloor = 1e-2;   // of the mean energy, added to each direction: few tokens say little
constexpr double kExact = 1e-13;  // of the mean energy: what is left beside a diagonal
constexpr int kMostSweeps = 60;

size_t square(int32_t dim) { return static_cast<size_t>(dim) * static_cast<size_t>(dim); }

// [dim][dim], row by row.
class Matrix {
 public:
  explicit Matrix(int32_t dim) : dim_(dim), x_(square(dim)) {}
  int32_t dim() const { return dim_; }
  double& operator()(int32_t i, int32_t j) { return x_[place(i, j)]; }
  double operator()(int32_t i, int32_t j) const { return x_[place(i, j)]; }
  double trace() const {
    double sum = 0;
    for (int32_t i = 0; i < dim_; i++) sum += (*this)(i, i);
    return sum;
  }

 private:
  size_t place(int32_t i, int32_t j) const {
    return static_cast<size_t>(i) * static_cast<size_t>(dim_) + static_cast<size_t>(j);
  }
  int32_t dim_;
  std::vector<double> x_;
};

Matrix product(const Matrix& a, const Matrix& b) {
  const int32_t n = a.dim();
  Matrix sum(n);
  for (int32_t i = 0; i < n; i++)
    for (int32_t k = 0; k < n; k++) {
      const double factor = a(i, k);
      for (int32_t j = 0; j < n; j++) sum(i, j) += factor * b(k, j);
    }
  return sum;
}

// Of a symmetric matrix: its eigenvalues, largest first, and the eigenvectors as rows. By Jacobi's rotations
// in cyclic order: slow, but short, and the same on every machine.
struct Eigen {
  std::vector<double> values;
  Matrix rows;
};

// One rotation that makes a(p, q) zero; rows of `vectors` with it.
void rotate(Matrix* a, Matrix* vectors, int32_t p, int32_t q) {
  const double off = (*a)(p, q);
  const double theta = ((*a)(q, q) - (*a)(p, p)) / (2 * off);
  const double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
  const double c = 1 / sqrt(t * t + 1), s = t * c;
  const int32_t n = a->dim();
  const auto turn = [c, s](double* x, double* y) {
    const double before = *x;
    *x = c * before - s * *y;
    *y = s * before + c * *y;
  };
  for (int32_t i = 0; i < n; i++) turn(&(*a)(i, p), &(*a)(i, q));
  for (int32_t i = 0; i < n; i++) turn(&(*a)(p, i), &(*a)(q, i));
  for (int32_t i = 0; i < n; i++) turn(&(*vectors)(p, i), &(*vectors)(q, i));
}

Eigen eigen(Matrix a) {
  const int32_t n = a.dim();
  const double least = kExact * a.trace() / n;
  Matrix vectors(n);
  for (int32_t i = 0; i < n; i++) vectors(i, i) = 1;
  for (int sweep = 0; sweep < kMostSweeps; sweep++) {
    bool turned = false;
    for (int32_t p = 0; p < n; p++)
      for (int32_t q = p + 1; q < n; q++) {
        if (fabs(a(p, q)) <= least) continue;
        rotate(&a, &vectors, p, q);
        turned = true;
      }
    if (!turned) break;
  }
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&a](int32_t i, int32_t j) { return a(i, i) > a(j, j); });
  Eigen found = {{}, Matrix(n)};
  for (int32_t i = 0; i < n; i++) {
    const int32_t from = order[static_cast<size_t>(i)];
    found.values.push_back(std::max(a(from, from), 0.0));
    for (int32_t j = 0; j < n; j++) found.rows(i, j) = vectors(from, j);
  }
  return found;
}

// The symmetric root of a matrix of these eigenvalues and eigenvectors.
Matrix root(const Eigen& of) {
  const int32_t n = of.rows.dim();
  Matrix scaled(n), turned(n);
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = 0; j < n; j++) {
      scaled(i, j) = sqrt(of.values[static_cast<size_t>(i)]) * of.rows(i, j);
      turned(j, i) = of.rows(i, j);
    }
  return product(turned, scaled);
}

// The covariance of what these are the sums of, and kFloor of the mean energy more in each direction. Without
// mean_sums the second moment.
Matrix moment(const double* sums, const double* mean_sums, double count, int32_t dim) {
  Matrix found(dim);
  for (int32_t i = 0; i < dim; i++)
    for (int32_t j = 0; j < dim; j++) {
      found(i, j) = sums[static_cast<size_t>(i) * static_cast<size_t>(dim) + static_cast<size_t>(j)] / count;
      if (mean_sums) found(i, j) -= mean_sums[i] / count * (mean_sums[j] / count);
    }
  const double floor = kFloor * found.trace() / dim;
  for (int32_t i = 0; i < dim; i++) found(i, i) += floor;
  return found;
}

// M of a head's keys and queries, as large as leaves keys as long as they are on average; the identity where
// one of them is nothing.
Matrix balanced(const Matrix& key, const Matrix& query) {
  const int32_t n = key.dim();
  Matrix found(n);
  for (int32_t i = 0; i < n; i++) found(i, i) = 1;
  if (!(key.trace() > 0 && query.trace() > 0)) return found;
  const Matrix half = root(eigen(query));
  const Eigen both = eigen(product(product(half, key), half));  // values: squares of what M makes of each
  found = product(both.rows, half);
  double energy = 0;
  for (const double square_value : both.values) energy += sqrt(square_value);
  const double size = sqrt(key.trace() / energy);
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = 0; j < n; j++) found(i, j) *= size / sqrt(sqrt(both.values[static_cast<size_t>(i)]));
  return found;
}

// The diagonal of A S A^T of a symmetric matrix, for rows of A as they lie.
void turn_squares(const float* rows, const double* sums, int32_t dim, bool transposed, double* to) {
  for (int32_t i = 0; i < dim; i++) {
    const auto of = [&](int32_t j) {
      const size_t n = static_cast<size_t>(dim), a = static_cast<size_t>(i), b = static_cast<size_t>(j);
      return static_cast<double>(rows[transposed ? b * n + a : a * n + b]);
    };
    double sum = 0;
    for (int32_t j = 0; j < dim; j++) {
      double part = 0;
      for (int32_t k = 0; k < dim; k++)
        part += sums[static_cast<size_t>(j) * static_cast<size_t>(dim) + static_cast<size_t>(k)] * of(k);
      sum += of(j) * part;
    }
    to[i] = sum;
  }
}

}  // namespace

bool Calibration::copy_key_matrix(int32_t index, float* matrix) {
  const Gate::Use use(gate_, true);
  TQ_CHECK(index >= 0 && index < config_.num_layers, Status::kInvalidArgument, "layer = %d: must be 0 .. %d",
           index, config_.num_layers - 1);
  if (config_.turn_keys != 0 && matrices_[static_cast<size_t>(index)].empty()) measure();
  const std::vector<float>& given = matrix_of(index).given;
  if (matrix) std::copy(given.begin(), given.end(), matrix);
  return !given.empty();
}

const KeyMatrix& Calibration::matrix_of(int32_t index) const {
  const KeyMatrix& given = matrices_[static_cast<size_t>(index)];
  return given.empty() ? found_[static_cast<size_t>(index)] : given;
}

// Centres of keys as they come, of those that the matrices turn.
std::vector<float> Calibration::before_turning(const KeyMatrix& matrix, std::vector<float> centre) {
  float turned[format::kMaxDim];
  for (int32_t head = 0; head < matrix.heads; head++) {
    float* const own = centre.data() + static_cast<size_t>(head) * static_cast<size_t>(matrix.dim);
    apply_rows(matrix.head_inverse(head), matrix.dim, own, turned);
    std::copy_n(turned, matrix.dim, own);
  }
  return centre;
}

std::vector<float> Calibration::given_key_centre(int32_t index) const {
  return before_turning(matrix_of(index), measured_[static_cast<size_t>(index)].key_centre);
}

const float* Calibration::given_matrix(int32_t index) const {
  const KeyMatrix& matrix = matrix_of(index);
  return matrix.empty() ? nullptr : matrix.given.data();
}

void Calibration::add_moments(Fed& fed, const std::vector<float>& q, const std::vector<float>& k) const {
  if (fed.key_moment.empty()) return;
  const int32_t dim = config_.head_dim, group = config_.num_q_heads / config_.num_kv_heads;
  const auto add = [dim](const float* x, double* sums) {
    for (int32_t i = 0; i < dim; i++)
      for (int32_t j = 0; j < dim; j++) *sums++ += static_cast<double>(x[i]) * static_cast<double>(x[j]);
  };
  for (int32_t head = 0; head < config_.num_q_heads; head++)
    add(&q[static_cast<size_t>(head) * static_cast<size_t>(dim)],
        &fed.query_moment[static_cast<size_t>(head / group) * square(dim)]);
  for (int32_t head = 0; head < config_.num_kv_heads; head++)
    add(&k[static_cast<size_t>(head) * static_cast<size_t>(dim)],
        &fed.key_moment[static_cast<size_t>(head) * square(dim)]);
}

KeyMatrix Calibration::find_matrix(int32_t index) const {
  const Fed& fed = fed_[static_cast<size_t>(index)];
  const int32_t dim = config_.head_dim, heads = config_.num_kv_heads;
  const double count = static_cast<double>(fed.counted);
  std::vector<float> all;
  for (int32_t head = 0; head < heads; head++) {
    const size_t at = static_cast<size_t>(head) * square(dim);
    const Matrix found =
        balanced(moment(&fed.key_moment[at], &fed.key[static_cast<size_t>(head) * static_cast<size_t>(dim)],
                        count, dim),
                 moment(&fed.query_moment[at], nullptr, count, dim));
    for (int32_t i = 0; i < dim; i++)
      for (int32_t j = 0; j < dim; j++) all.push_back(static_cast<float>(found(i, j)));
  }
  try {
    return KeyMatrix::make(index, heads, dim, all.data());
  } catch (const Error&) {  // numbers beyond what a matrix may have
    return {};
  }
}

Calibration::Fed Calibration::turned(const Fed& fed, const KeyMatrix& matrix) const {
  const int32_t dim = config_.head_dim, group = config_.num_q_heads / config_.num_kv_heads;
  const size_t n = static_cast<size_t>(dim);
  Fed to = fed;
  for (int32_t head = 0; head < config_.num_kv_heads; head++) {
    const size_t at = static_cast<size_t>(head) * n, moments = static_cast<size_t>(head) * square(dim);
    const float* const given = matrix.given.data() + moments;
    for (size_t i = 0; i < n; i++)
      to.key[at + i] = std::inner_product(given + i * n, given + (i + 1) * n,
                                          fed.key.begin() + static_cast<std::ptrdiff_t>(at), 0.0);
    turn_squares(given, &fed.key_moment[moments], dim, false, &to.key_square[at]);
    turn_squares(matrix.head_inverse(head), &fed.query_moment[moments], dim, true, &to.query_square[at]);
  }
  const auto turn = [&](std::vector<float>* rows, int32_t heads, const auto& columns_of) {
    float found[format::kMaxDim];
    for (size_t row = 0; row < rows->size() / n; row++) {
      float* const x = rows->data() + row * n;
      apply_columns(columns_of(static_cast<int32_t>(row % static_cast<size_t>(heads))), dim, x, found);
      std::copy_n(found, dim, x);
    }
  };
  turn(&to.held_k, config_.num_kv_heads, [&](int32_t head) { return matrix.head_columns(head); });
  turn(&to.held_q, config_.num_q_heads, [&](int32_t head) { return matrix.head_inverse(head / group); });
  return to;
}

}  // namespace tq
