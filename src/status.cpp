// SPDX-License-Identifier: Apache-2.0
// Error texts and the calling thread's last one. Fixed buffers throughout: reporting that memory is gone must
// not need any.
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

namespace tq {
namespace {

thread_local char last_error_text[Error::kTextBytes];

}  // namespace

const char* status_name(int32_t status) {
  switch (static_cast<Status>(status)) {
    case Status::kOk: return "TQ_OK";
    case Status::kInvalidArgument: return "TQ_ERROR_INVALID_ARGUMENT";
    case Status::kInvalidState: return "TQ_ERROR_INVALID_STATE";
    case Status::kOutOfMemory: return "TQ_ERROR_OUT_OF_MEMORY";
    case Status::kCapacity: return "TQ_ERROR_CAPACITY";
    case Status::kNotSupported: return "TQ_ERROR_NOT_SUPPORTED";
    case Status::kNoDevice: return "TQ_ERROR_NO_DEVICE";
    case Status::kDriver: return "TQ_ERROR_DRIVER";
    case Status::kCuda: return "TQ_ERROR_CUDA";
    case Status::kVersion: return "TQ_ERROR_VERSION";
    case Status::kCorruptData: return "TQ_ERROR_CORRUPT_DATA";
    case Status::kIncompatible: return "TQ_ERROR_INCOMPATIBLE";
    case Status::kWorkspaceTooSmall: return "TQ_ERROR_WORKSPACE_TOO_SMALL";
    case Status::kCapture: return "TQ_ERROR_CAPTURE";
    case Status::kIo: return "TQ_ERROR_IO";
    case Status::kInternal: return "TQ_ERROR_INTERNAL";
  }
  return "TQ_ERROR_UNKNOWN";
}

Error::Error(Status status, const char* format, ...) : status_(status) {
  va_list arguments;
  va_start(arguments, format);
  if (vsnprintf(text_, sizeof text_, format, arguments) < 0) text_[0] = '\0';
  va_end(arguments);
}

void ReasonList::add(Status status, const char* format, ...) {
  if (status_ == Status::kOk) status_ = status;
  if (length_ > 0 && length_ + 1 < sizeof text_) text_[length_++] = '\n';
  va_list arguments;
  va_start(arguments, format);
  const int written = vsnprintf(text_ + length_, sizeof text_ - length_, format, arguments);
  va_end(arguments);
  // A cut text stays cut: it is full, and later reasons have no room.
  if (written > 0) length_ = std::min(length_ + static_cast<size_t>(written), sizeof text_ - 1);
}

void set_last_error(const char* text) noexcept {
  const size_t length = strnlen(text, sizeof last_error_text - 1);
  memmove(last_error_text, text, length);
  last_error_text[length] = '\0';
}

const char* last_error() noexcept { return last_error_text; }

}  // namespace tq
