// SPDX-License-Identifier: Apache-2.0
// Which mutant is active: included before everything in a build of tests/mutation/run.py.
//
// TQ_MUTANT=17 makes mutant 17 active. TQ_MUTANT=record:FILE makes none so and writes at exit a byte for each
// mutant, 1 if its place was reached. TQ_MUTANT=serve:3,4 runs the program once for each line that comes from
// file descriptor 3. One byte is read at a place: 0 nothing, 1 to be noted, 2 active.
#pragma once

extern "C" {
__attribute__((visibility("hidden"))) extern unsigned char tq_mutant_state[];
__attribute__((visibility("hidden"), cold)) bool tq_mutant_noted(int number);
}

// False in constant expressions.
__attribute__((always_inline)) constexpr inline bool tq_is(int number) {
  return !__builtin_is_constant_evaluated() && __builtin_expect(tq_mutant_state[number] != 0, 0) &&
         tq_mutant_noted(number);
}
