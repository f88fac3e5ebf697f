// SPDX-License-Identifier: Apache-2.0
//
// Text of others (tensor names, paths, arguments) made safe for a terminal. Control characters of ASCII and
// Unicode, marks that turn the direction of writing, and bytes that are no UTF-8 become \xNN, byte by byte;
// everything else stays, so that a path in any language reads as it is. Applying it twice changes nothing.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace tq::cli {

// Length of the well-formed UTF-8 sequence at text[at], its code point in *point; 0 if there is none.
inline size_t utf8_sequence(const std::string& text, size_t at, uint32_t* point) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const size_t length = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  if (length == 0 || at + length > text.size()) return 0;
  *point = length == 1 ? first : first & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
    *point = *point << 6 | (byte(at + i) & 0x3Fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = *point >= 0xD800 && *point <= 0xDFFF;
  return *point >= kSmallest[length] && *point <= 0x10FFFF && !surrogate ? length : 0;
}

inline bool is_printable(uint32_t point) {
  const bool control = point < 0x20 || (point >= 0x7F && point < 0xA0);
  const bool direction = point == 0x200E || point == 0x200F || (point >= 0x2028 && point <= 0x202E) ||
                         (point >= 0x2066 && point <= 0x2069);
  return !control && !direction;
}

// keep_lines: line feeds stay, for a text of several lines that is our own.
inline std::string printable(const std::string& text, bool keep_lines = false) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    uint32_t point = 0;
    const size_t length = utf8_sequence(text, at, &point);
    if (length > 0 && (is_printable(point) || (keep_lines && point == '\n'))) {
      result.append(text, at, length);
      at += length;
      continue;
    }
    for (size_t end = at + (length > 0 ? length : 1); at < end; ++at) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x",
                    static_cast<unsigned>(static_cast<unsigned char>(text[at])));
      result += escaped;
    }
  }
  return result;
}

// A name from a file, of which at most 80 bytes are shown.
inline std::string in_quotes(const std::string& text) {
  return "'" + printable(text.substr(0, 80)) + (text.size() > 80 ? "...'" : "'");
}

}  // namespace tq::cli
