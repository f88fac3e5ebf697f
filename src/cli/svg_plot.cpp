// SPDX-License-Identifier: Apache-2.0
//
// See svg_plot.h. Widths with K = V are joined by the lines; mixed ones stand as open circles of the mean
// only. A figure that is not finite (a capture beyond what float32 attention can hold) has no place on an
// axis: it is left out, and the legend counts what is.
#include "cli/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/report.h"

namespace tq::cli {
namespace {

constexpr double kWidth = 1160, kHeight = 480;
constexpr double kPanelTop = 64, kPanelHeight = 340, kPanelWidth = 400;
constexpr double kPanelLeft[2] = {80, 570};
constexpr double kLegendLeft = 1000;
constexpr double kSmallest = 1e-9;  // floor of the log axis: an exact result has no logarithm
constexpr size_t kLegendLayers = 16;

struct Axes {
  double left;
  double x_low, x_high;  // bytes
  double y_low, y_high;  // log10

  double x(double bytes) const { return left + (bytes - x_low) / (x_high - x_low) * kPanelWidth; }
  double y(double value) const {
    return kPanelTop + (y_high - std::log10(std::max(value, kSmallest))) / (y_high - y_low) * kPanelHeight;
  }
};

double metric_of(const WidthResult& result, int panel) {
  return panel == 0 ? result.quality.output.relative : result.quality.kl;
}

std::string escape(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '&')
      result += "&amp;";
    else if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else
      result += (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) ? '?' : c;
  }
  return result;
}

std::string text_at(double x, double y, const char* anchor, int size, const std::string& text,
                    const std::string& more = "") {
  return format("<text x='%.1f' y='%.1f' text-anchor='%s' font-size='%d'%s>", x, y, anchor, size,
                more.c_str()) +
         escape(text) + "</text>\n";
}

// Along the layers through a ramp whose lightness differs too, for those who see no hue. As hex: not every
// viewer knows hsl().
std::string layer_colour(size_t index, size_t count) {
  constexpr int kRamp[][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {240, 170, 30}};
  constexpr size_t kSteps = sizeof kRamp / sizeof kRamp[0] - 1;
  const double t = count > 1 ? static_cast<double>(index) / static_cast<double>(count - 1) * kSteps : 0.0;
  const size_t low = std::min(static_cast<size_t>(t), kSteps - 1);
  int rgb[3];
  for (int i = 0; i < 3; ++i)
    rgb[i] = static_cast<int>(kRamp[low][i] +
                              (t - static_cast<double>(low)) * (kRamp[low + 1][i] - kRamp[low][i]));
  return format("#%02x%02x%02x", rgb[0], rgb[1], rgb[2]);
}

double nice_step(double range) {
  const double rough = range / 6, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

Axes make_axes(const Evaluation& evaluation, int panel) {
  Axes axes = {kPanelLeft[panel], 0, 0, std::numeric_limits<double>::infinity(),
               -std::numeric_limits<double>::infinity()};
  const auto include = [&](const WidthResult& result) {
    axes.x_high = std::max(axes.x_high, result.stored_bytes);
    if (!std::isfinite(metric_of(result, panel))) return;
    const double y = std::log10(std::max(metric_of(result, panel), kSmallest));
    axes.y_low = std::min(axes.y_low, std::floor(y));
    axes.y_high = std::max(axes.y_high, std::floor(y) + 1);
  };
  for (const LayerResult& layer : evaluation.layers)
    std::for_each(layer.widths.begin(), layer.widths.end(), include);
  if (axes.y_low > axes.y_high) axes.y_low = std::log10(kSmallest), axes.y_high = 0;
  axes.x_high *= 1.08;
  return axes;
}

std::string frame(const Axes& axes, const char* title) {
  std::string svg =
      text_at(axes.left + kPanelWidth / 2, kPanelTop - 12, "middle", 14, title, " font-weight='bold'");
  const double bottom = kPanelTop + kPanelHeight;
  for (int decade = static_cast<int>(axes.y_low); decade <= static_cast<int>(axes.y_high); ++decade) {
    const double y = axes.y(std::pow(10.0, decade));
    svg += format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#ddd'/>\n", axes.left, y,
                  axes.left + kPanelWidth, y);
    svg += text_at(axes.left - 8, y + 4, "end", 12, format("1e%d", decade));
  }
  const double step = nice_step(axes.x_high - axes.x_low);
  for (int tick = 0; tick * step <= axes.x_high; ++tick) {
    const double bytes = tick * step, x = axes.x(bytes);
    svg += format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#eee'/>\n", x, kPanelTop, x, bottom);
    svg += text_at(x, bottom + 18, "middle", 12, format("%.0f", bytes));
  }
  svg += format("<rect x='%.1f' y='%.1f' width='%.1f' height='%.1f' fill='none' stroke='#444'/>\n", axes.left,
                kPanelTop, kPanelWidth, kPanelHeight);
  svg += text_at(axes.left + kPanelWidth / 2, bottom + 40, "middle", 12,
                 "stored bytes per token and kv head (keys + values, all-in)");
  return svg;
}

// The points of the K = V widths in order of size.
std::string curve(const Axes& axes, const std::vector<WidthResult>& widths, int panel,
                  const std::string& colour, double stroke) {
  std::vector<std::pair<double, double>> points;
  for (const WidthResult& result : widths) {
    if (result.width.key_bits == result.width.value_bits && std::isfinite(metric_of(result, panel)))
      points.emplace_back(axes.x(result.stored_bytes), axes.y(metric_of(result, panel)));
  }
  std::sort(points.begin(), points.end());
  std::string line, marks;
  for (const auto& [x, y] : points) {
    line += format("%.1f,%.1f ", x, y);
    marks += format("<circle cx='%.1f' cy='%.1f' r='%.1f' fill='%s'/>\n", x, y, stroke + 1, colour.c_str());
  }
  return format("<polyline points='%s' fill='none' stroke='%s' stroke-width='%.1f'/>\n", line.c_str(),
                colour.c_str(), stroke) +
         marks;
}

std::string panel_svg(const Evaluation& evaluation, int panel) {
  const Axes axes = make_axes(evaluation, panel);
  std::string svg =
      frame(axes, panel == 0 ? "attention output: relative error" : "attention weights: KL to exact (nats)");
  for (size_t i = 0; i < evaluation.layers.size(); ++i) {
    svg += curve(axes, evaluation.layers[i].widths, panel, layer_colour(i, evaluation.layers.size()), 1.2);
  }
  svg += curve(axes, evaluation.overall, panel, "#000", 2.6);
  for (const WidthResult& result : evaluation.overall) {
    if (!std::isfinite(metric_of(result, panel))) continue;
    const double x = axes.x(result.stored_bytes), y = axes.y(metric_of(result, panel));
    if (result.width.key_bits != result.width.value_bits)
      svg +=
          format("<circle cx='%.1f' cy='%.1f' r='4.5' fill='#fff' stroke='#000' stroke-width='2'/>\n", x, y);
    // A white outline below the letters keeps them readable over the lines.
    for (const char* outline : {" stroke='#fff' stroke-width='4'", ""})
      svg += text_at(x + 7, y - 7, "start", 12, result.width.text(), outline);
  }
  return svg;
}

int count_left_out(const Evaluation& evaluation) {
  int count = 0;
  for (const int panel : {0, 1}) {
    for (const LayerResult& layer : evaluation.layers)
      for (const WidthResult& result : layer.widths) count += !std::isfinite(metric_of(result, panel));
  }
  return count;
}

std::string legend(const Evaluation& evaluation) {
  std::string svg;
  double y = kPanelTop + 8;
  const auto entry = [&](const std::string& colour, double stroke, const std::string& text) {
    svg += format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s' stroke-width='%.1f'/>\n",
                  kLegendLeft, y, kLegendLeft + 24, y, colour.c_str(), stroke);
    svg += text_at(kLegendLeft + 32, y + 4, "start", 12, text);
    y += 18;
  };
  const size_t count = evaluation.layers.size();
  entry("#000", 2.6, "mean of layers");
  // Many layers: evenly chosen entries, the first and the last among them.
  const size_t shown = std::min(count, kLegendLayers);
  for (size_t i = 0; i < shown; ++i) {
    const size_t index = shown > 1 ? i * (count - 1) / (shown - 1) : 0;
    entry(layer_colour(index, count), 1.2, "layer " + std::to_string(evaluation.layers[index].layer));
  }
  svg += text_at(kLegendLeft, y + 12, "start", 12, "labels: K/V bits");
  if (const int left_out = count_left_out(evaluation); left_out > 0)
    svg += text_at(kLegendLeft, y + 30, "start", 12, format("%d not finite, left out", left_out));
  return svg;
}

}  // namespace

std::string svg_plot(const Evaluation& evaluation) {
  const CaptureShape& shape = evaluation.shape;
  std::string svg = format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %.0f %.0f' width='%.0f' height='%.0f' "
      "font-family='sans-serif'>\n",
      kWidth, kHeight, kWidth, kHeight);
  svg += "<rect width='100%' height='100%' fill='#fff'/>\n";
  const size_t slash = evaluation.path.find_last_of('/');
  svg += text_at(kPanelLeft[0], 26, "start", 16,
                 "tqkv eval " + evaluation.path.substr(slash == std::string::npos ? 0 : slash + 1) +
                     format(": %zu layers, %lld tokens, %d kv heads, head_dim %d", evaluation.layers.size(),
                            static_cast<long long>(shape.tokens), shape.kv_heads, shape.key_dim),
                 " font-weight='bold'");
  for (const int panel : {0, 1}) svg += panel_svg(evaluation, panel);
  return svg + legend(evaluation) + "</svg>\n";
}

}  // namespace tq::cli
