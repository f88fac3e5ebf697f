// SPDX-License-Identifier: Apache-2.0
//
// See cheapest.h.
#include <algorithm>
#include <cmath>

#include "cli/cheapest.h"
#include "cli/report.h"
#include "cli/svg.h"

namespace tq::cli {
namespace {

constexpr int kLimitSteps = 64;  // of an eighth of a bit

double metric_of(const Way& way, int panel) { return panel == 0 ? way.error : way.kl; }

std::vector<std::string> families_of(const Ways& ways) {
  std::vector<std::string> families;
  for (const Way& way : ways.measured)
    if (std::find(families.begin(), families.end(), way.family) == families.end())
      families.push_back(way.family);
  std::sort(families.begin(), families.end());
  return families;
}

std::string polyline(const std::string& points, const std::string& colour, double stroke) {
  return format("<polyline points='%s' fill='none' stroke='%s' stroke-width='%.1f'/>\n", points.c_str(),
                colour.c_str(), stroke);
}

// measured is in order of bytes.
std::string family_svg(const Axes& axes, const Ways& ways, const std::string& family, int panel,
                       const std::string& colour) {
  std::string marks, line;
  double least = INFINITY;
  for (const Way& way : ways.measured) {
    const double value = metric_of(way, panel);
    if (way.family != family || !std::isfinite(value)) continue;
    const double x = axes.x(way.bytes), y = axes.y(value);
    marks += format("<circle cx='%.1f' cy='%.1f' r='2.5' fill='%s'/>\n", x, y, colour.c_str());
    if (value >= least) continue;
    least = value;
    line += format("%.1f,%.1f ", x, y);
  }
  return polyline(line, colour, 1.4) + marks;
}

std::string limit_svg(const Axes& axes, const Limit& limit, int panel) {
  std::string line;
  for (int step = 1; step <= kLimitSteps; step++) {
    const double bits = step / 8.0, share = std::pow(4, -bits),
                 bytes = limit.bytes + limit.number_bits * bits,
                 value = panel == 0 ? std::sqrt(limit.squared_error * share) : limit.kl * share;
    if (axes.holds(bytes, value)) line += format("%.1f,%.1f ", axes.x(bytes), axes.y(value));
  }
  return polyline(line, "#000", 0.8);
}

}  // namespace

std::string ways_plot(const Ways& ways, const std::string& path) {
  const std::vector<std::string> families = families_of(ways);
  std::string body;
  for (const int panel : {0, 1}) {
    std::vector<std::pair<double, double>> points;
    for (const Way& way : ways.measured) points.emplace_back(way.bytes, metric_of(way, panel));
    const Axes axes(panel, points);
    body += axes.frame(kPanelTitles[panel]);
    if (ways.limit) body += limit_svg(axes, *ways.limit, panel);
    for (size_t i = 0; i < families.size(); i++)
      body += family_svg(axes, ways, families[i], panel, ramp_colour(i, families.size()));
    if (ways.cheapest < 0) continue;
    const Way& way = ways.measured[static_cast<size_t>(ways.cheapest)];
    body += format("<circle cx='%.1f' cy='%.1f' r='6' fill='none' stroke='#000' stroke-width='1.5'/>\n",
                   axes.x(way.bytes), axes.y(metric_of(way, panel)));
  }
  Legend legend(true);
  for (size_t i = 0; i < families.size(); i++) legend.line(ramp_colour(i, families.size()), 1.4, families[i]);
  if (ways.limit)
    legend.line("#000", 0.8, "Shannon's limit for codes blind to their data, keys and values of equal bits");
  if (ways.cheapest >= 0) legend.note("circled: " + ways.measured[static_cast<size_t>(ways.cheapest)].text);
  return svg_document(path, format("%zu ways, means over layers", ways.measured.size()), body + legend.svg(),
                      legend.end() + 20);
}

}  // namespace tq::cli
