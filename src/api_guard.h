// SPDX-License-Identifier: Apache-2.0
// The wall that no exception passes: a call's failure becomes a status, and a text for the calling thread.
// For the sources that define the C functions (api*.cpp).
#pragma once
#include <exception>
#include <new>

#include "status.h"
#include "tqkv.h"

namespace tq {

// Runs a call and keeps its failure's text for the thread.
template <typename Call>
tq_status guarded(Call call) noexcept {
  try {
    call();
    return TQ_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return static_cast<tq_status>(error.status());
  } catch (const std::bad_alloc&) {
    set_last_error("out of host memory");
    return TQ_ERROR_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return TQ_ERROR_INTERNAL;
  } catch (...) {
    set_last_error("an exception of unknown type reached the interface");
    return TQ_ERROR_INTERNAL;
  }
}

}  // namespace tq
