// SPDX-License-Identifier: Apache-2.0
// Streams and events of the emulation. Work is done when it is given. While an emulate::Disorder lives it is
// not: it waits in its stream, and at any later call of the runtime any work that may run by then does, or
// none, as a seed decides. What orders work is what orders it on a device: its stream, the events that the
// stream waits for, and the host's waiting. So a result that depends on any other order is another result
// under another seed, and memory of the host that is refilled too early is read too late.
#include <stdio.h>
#include <stdlib.h>

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "streams.h"

namespace emulate {

cudaError_t (*before_launch)() = nullptr;
int busy = 0;
bool starting = false;

namespace {

struct Event {
  bool passed = true;  // of the last record
};
struct Item {
  std::function<void()> work;  // or none:
  std::shared_ptr<Event> record, wait;
};
using Queue = std::deque<Item>;

bool disordered = false;
uint64_t random_state = 0;
int eagerness = 0;  // work at a call of the runtime: on average this many of 16 chances
int64_t done = 0, overtaken = 0, last_number = 0;
std::map<cudaStream_t, Queue> queues;
std::map<cudaEvent_t, std::shared_ptr<Event>> events;

uint64_t random_number() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return random_state >> 33;
}

bool may_run(const Queue& queue) {
  return !queue.empty() && (!queue.front().wait || queue.front().wait->passed);
}
// One item of a random stream; false if none may run.
bool run_one() {
  std::vector<Queue*> ready;
  for (auto& each : queues)
    if (may_run(each.second)) ready.push_back(&each.second);
  if (ready.empty()) return false;
  Queue& queue = *ready[random_number() % ready.size()];
  overtaken += ready.size() > 1;
  const Item item = queue.front();
  queue.pop_front();
  if (item.work) item.work();
  if (item.record) item.record->passed = true;
  done++;
  return true;
}
void run_until(const std::function<bool()>& reached, const char* what) {
  while (!reached())
    if (!run_one()) {
      fprintf(stderr, "emulate: %s waits for an event that nobody records\n", what);
      abort();
    }
}
// The device works on while the host does something.
void pass_time() {
  while (disordered && random_number() % 16 < static_cast<uint64_t>(eagerness))
    if (!run_one()) return;
}
void put(cudaStream_t stream, Item item) {
  queues[stream].push_back(std::move(item));
  pass_time();
}
std::shared_ptr<Event>& event_of(cudaEvent_t event) {
  std::shared_ptr<Event>& found = events[event];
  if (!found) found = std::make_shared<Event>();
  return found;
}

}  // namespace

Disorder::Disorder(uint64_t seed) {
  const Busy busy;
  random_state = seed * 2 + 1;
  for (int i = 0; i < 4; i++) random_number();
  eagerness = static_cast<int>(random_number() % 16);
  disordered = true;
}
Disorder::~Disorder() {
  const Busy busy;
  wait_for_all();
  disordered = false;
  queues.clear();
}
int64_t Disorder::items() { return done; }
int64_t Disorder::choices() { return overtaken; }

bool in_disorder() { return disordered; }
void give(cudaStream_t stream, const std::function<void()>& work) {
  const Busy busy;
  if (disordered)
    put(stream, Item{work, nullptr, nullptr});
  else
    work();
}
void wait_for(cudaStream_t stream) {
  const Busy busy;
  if (disordered) run_until([&] { return queues[stream].empty(); }, "cudaStreamSynchronize");
}
void wait_for_all() {
  const Busy busy;
  if (disordered)
    run_until(
        [&] {
          for (const auto& each : queues)
            if (!each.second.empty()) return false;
          return true;
        },
        "cudaDeviceSynchronize");
}

}  // namespace emulate

using emulate::Busy;

extern "C" {

cudaError_t cudaDeviceSynchronize() {
  emulate::wait_for_all();
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  emulate::wait_for(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  const Busy busy;
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Busy busy;
  emulate::wait_for(stream);
  emulate::queues.erase(stream);
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Busy busy;
  *event = reinterpret_cast<cudaEvent_t>(new char);
  emulate::event_of(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Busy busy;
  emulate::events.erase(event);  // what waits for it still does
  delete reinterpret_cast<char*>(event);
  return cudaSuccess;
}
// Who waits for the event waits for its last record.
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Busy busy;
  if (!emulate::in_disorder()) return cudaSuccess;
  std::shared_ptr<emulate::Event>& mark = emulate::event_of(event);
  mark = std::make_shared<emulate::Event>();
  mark->passed = false;
  emulate::put(stream, emulate::Item{nullptr, mark, nullptr});
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Busy busy;
  if (emulate::in_disorder()) emulate::put(stream, emulate::Item{nullptr, nullptr, emulate::event_of(event)});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Busy busy;
  const std::shared_ptr<emulate::Event> mark = emulate::event_of(event);
  if (emulate::in_disorder()) emulate::run_until([&] { return mark->passed; }, "cudaEventSynchronize");
  return cudaSuccess;
}
// time means nothing here
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) { return cudaErrorNotSupported; }

}  // extern "C"
