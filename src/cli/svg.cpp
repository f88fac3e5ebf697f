// SPDX-License-Identifier: Apache-2.0
//
// See svg.h.
#include "cli/svg.h"

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

double nice_step(double range) {
  const double rough = range / 6, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

// Without folders.
std::string file_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return path.substr(slash == std::string::npos ? 0 : slash + 1);
}

}  // namespace

Axes::Axes(int panel, const std::vector<std::pair<double, double>>& points)
    : left_(kPanelLeft[panel]),
      y_low_(std::numeric_limits<double>::infinity()),
      y_high_(-std::numeric_limits<double>::infinity()) {
  for (const auto& [bytes, value] : points) {
    x_high_ = std::max(x_high_, bytes);
    if (!std::isfinite(value)) continue;
    const double y = std::log10(std::max(value, kSmallest));
    y_low_ = std::min(y_low_, std::floor(y));
    y_high_ = std::max(y_high_, std::floor(y) + 1);
  }
  if (y_low_ > y_high_) y_low_ = std::log10(kSmallest), y_high_ = 0;
  x_high_ *= 1.08;
}

double Axes::x(double bytes) const { return left_ + bytes / x_high_ * kPanelWidth; }

double Axes::y(double value) const {
  return kPanelTop + (y_high_ - std::log10(std::max(value, kSmallest))) / (y_high_ - y_low_) * kPanelHeight;
}

std::string text_at(double x, double y, const char* anchor, int size, const std::string& text,
                    const std::string& more) {
  return format("<text x='%.1f' y='%.1f' text-anchor='%s' font-size='%d'%s>", x, y, anchor, size,
                more.c_str()) +
         escape(text) + "</text>\n";
}

// As hex: not every viewer knows hsl().
std::string ramp_colour(size_t index, size_t count) {
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

bool Axes::holds(double bytes, double value) const {
  return bytes <= x_high_ && value > 0 && std::log10(value) >= y_low_ && std::log10(value) <= y_high_;
}

std::string Axes::frame(const char* title) const {
  std::string svg =
      text_at(left_ + kPanelWidth / 2, kPanelTop - 12, "middle", 14, title, " font-weight='bold'");
  const double bottom = kPanelTop + kPanelHeight;
  for (int decade = static_cast<int>(y_low_); decade <= static_cast<int>(y_high_); ++decade) {
    const double at = y(std::pow(10.0, decade));
    svg += format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#ddd'/>\n", left_, at,
                  left_ + kPanelWidth, at);
    svg += text_at(left_ - 8, at + 4, "end", 12, format("1e%d", decade));
  }
  const double step = nice_step(x_high_);
  for (int tick = 0; tick * step <= x_high_; ++tick) {
    const double bytes = tick * step, at = x(bytes);
    svg +=
        format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#eee'/>\n", at, kPanelTop, at, bottom);
    svg += text_at(at, bottom + 18, "middle", 12, format("%.0f", bytes));
  }
  svg += format("<rect x='%.1f' y='%.1f' width='%.1f' height='%.1f' fill='none' stroke='#444'/>\n", left_,
                kPanelTop, kPanelWidth, kPanelHeight);
  svg += text_at(left_ + kPanelWidth / 2, bottom + 40, "middle", 12,
                 "stored bytes per token and kv head (keys + values, all-in)");
  return svg;
}

Legend::Legend(bool below) : x_(below ? kPanelLeft[0] : kLegendLeft), y_(below ? kHeight : kPanelTop + 8) {}

void Legend::line(const std::string& colour, double stroke, const std::string& text) {
  svg_ += format("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s' stroke-width='%.1f'/>\n", x_, y_,
                 x_ + 24, y_, colour.c_str(), stroke);
  svg_ += text_at(x_ + 32, y_ + 4, "start", 12, text);
  y_ += 18;
}

void Legend::note(const std::string& text) {
  svg_ += text_at(x_, y_ + 12, "start", 12, text);
  y_ += 18;
}

std::string svg_document(const std::string& path, const std::string& title, const std::string& body,
                         double height) {
  height = std::max(height, kHeight);
  std::string svg = format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %.0f %.0f' width='%.0f' height='%.0f' "
      "font-family='sans-serif'>\n",
      kWidth, height, kWidth, height);
  svg += "<rect width='100%' height='100%' fill='#fff'/>\n";
  svg += text_at(kPanelLeft[0], 26, "start", 16, "tqkv eval " + file_name(path) + ": " + title,
                 " font-weight='bold'");
  return svg + body + "</svg>\n";
}

}  // namespace tq::cli
