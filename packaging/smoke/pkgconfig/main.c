/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program linked through pkg-config:
 *     cc -std=c99 main.c $(pkg-config --cflags --libs tqkv) -lm
 */
#include "../job.h"

int main(void) { return smoke_job(); }
