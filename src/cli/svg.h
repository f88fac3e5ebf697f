// SPDX-License-Identifier: Apache-2.0
//
// What the plots of `tqkv eval` are drawn with: two panels of errors (log scale) against stored bytes, and a
// legend beside them. Written by hand: this needs no plotting library.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace tq::cli {

// Of a panel, 0 or 1: the places of bytes and errors in the picture.
class Axes {
 public:
  // For these points (bytes, error); one that is not finite has no place.
  Axes(int panel, const std::vector<std::pair<double, double>>& points);
  double x(double bytes) const;
  double y(double value) const;
  bool holds(double bytes, double value) const;
  std::string frame(const char* title) const;

 private:
  double left_, x_high_ = 0;  // bytes, from 0
  double y_low_, y_high_;     // log10
};

constexpr const char* kPanelTitles[2] = {"attention output: relative error",
                                         "attention weights: KL to exact (nats)"};

// Beside the panels, or below them: for long texts.
class Legend {
 public:
  explicit Legend(bool below = false);
  void line(const std::string& colour, double stroke, const std::string& text);
  void note(const std::string& text);
  const std::string& svg() const { return svg_; }
  double end() const { return y_; }

 private:
  double x_, y_;
  std::string svg_;
};

std::string text_at(double x, double y, const char* anchor, int size, const std::string& text,
                    const std::string& more = "");

// Of the index-th of `count` lines, along a ramp whose lightness differs too, for those who see no hue.
std::string ramp_colour(size_t index, size_t count);

// The capture's name stands in the title. height: 0, or what is drawn below the panels ends there.
std::string svg_document(const std::string& path, const std::string& title, const std::string& body,
                         double height = 0);

}  // namespace tq::cli
