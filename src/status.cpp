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
  constexpr size_t kRoom = Error::kTextBytes - 32;  // the rest is for the last line
  if (status_ == Status::kOk) status_ = status;
  char* const end = text_ + length_;
  const size_t separator = length_ > 0 ? 1 : 0;
  if (left_out_ == 0 && length_ + separator < kRoom) {
    const size_t room = kRoom - length_ - separator;
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(end + separator, room, format, arguments);
    va_end(arguments);
    const bool whole = written >= 0 && static_cast<size_t>(written) < room;
    if (whole || length_ == 0) {  // one reason is there in any case, cut if it must be
      if (separator > 0) *end = '\n';
      length_ += separator + strlen(end + separator);
      return;
    }
  }
  left_out_++;
  snprintf(end, sizeof text_ - length_, "\n... and %d more", left_out_);
}

void set_last_error(const char* text) noexcept {
  const size_t length = strnlen(text, sizeof last_error_text - 1);
  memmove(last_error_text, text, length);
  last_error_text[length] = '\0';
}

const char* last_error() noexcept { return last_error_text; }

}  // namespace tq
