// SPDX-License-Identifier: Apache-2.0
// A C++ program linked through find_package(tqkv).
#include "../job.h"

int main() { return smoke_job(); }
