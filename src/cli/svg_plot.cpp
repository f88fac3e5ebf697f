// SPDX-License-Identifier: Apache-2.0
//
// See svg_plot.h. Widths with K = V are joined by the lines; mixed ones stand as open circles of the mean
// only. A figure that is not finite (a capture beyond what float32 attention can hold) has no place on an
// axis: it is left out, and the legend counts what is.
#include "cli/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "cli/report.h"
#include "cli/svg.h"

namespace tq::cli {
namespace {

constexpr size_t kLegendLayers = 16;

double metric_of(const WidthResult& result, int panel) {
  return panel == 0 ? result.quality.output.relative : result.quality.kl;
}

Axes make_axes(const Evaluation& evaluation, int panel) {
  std::vector<std::pair<double, double>> points;
  for (const LayerResult& layer : evaluation.layers)
    for (const WidthResult& result : layer.widths)
      points.emplace_back(result.stored_bytes, metric_of(result, panel));
  return {panel, points};
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
  std::string svg = axes.frame(kPanelTitles[panel]);
  for (size_t i = 0; i < evaluation.layers.size(); ++i) {
    svg += curve(axes, evaluation.layers[i].widths, panel, ramp_colour(i, evaluation.layers.size()), 1.2);
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
  Legend legend;
  const size_t count = evaluation.layers.size();
  legend.line("#000", 2.6, "mean of layers");
  // Many layers: evenly chosen entries, the first and the last among them.
  const size_t shown = std::min(count, kLegendLayers);
  for (size_t i = 0; i < shown; ++i) {
    const size_t index = shown > 1 ? i * (count - 1) / (shown - 1) : 0;
    legend.line(ramp_colour(index, count), 1.2, "layer " + std::to_string(evaluation.layers[index].layer));
  }
  legend.note("labels: K/V bits");
  if (const int left_out = count_left_out(evaluation); left_out > 0)
    legend.note(format("%d not finite, left out", left_out));
  return legend.svg();
}

}  // namespace

std::string svg_plot(const Evaluation& evaluation) {
  const CaptureShape& shape = evaluation.shape;
  std::string body;
  for (const int panel : {0, 1}) body += panel_svg(evaluation, panel);
  return svg_document(evaluation.path,
                      format("%zu layers, %lld tokens, %d kv heads, head_dim %d", evaluation.layers.size(),
                             static_cast<long long>(shape.tokens), shape.kv_heads, shape.key_dim),
                      body + legend(evaluation));
}

}  // namespace tq::cli
