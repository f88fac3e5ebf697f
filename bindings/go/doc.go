// SPDX-License-Identifier: Apache-2.0

// Package tqkv keeps the KV cache of an LLM as 2-8 bit TurboQuant codes (arXiv 2504.19874) and runs attention
// straight on the codes, on the CPU or a CUDA device. It is a thin layer over the shared library tqkv: what
// the C header says holds here, and there is nothing here that is not there.
//
// # Finding the library
//
// [Open] opens it when the program runs: the path given, else the file that the environment variable
// TQKV_LIBRARY names, else libtqkv.so.0 as the system's loader finds it. With the build tag tqkv_link the
// program is linked with it instead, found by pkg-config. A missing library, or one that does not fit, is an
// error ([ErrLoad], [ErrVersion]) whose text says what helps.
//
// # Use
//
// One [Cache] serves all layers and many sequences. Each step: [Batch.Plan] once, then [Cache.Append] and
// [Cache.Attend] for every layer. CPU caches take slices, as [F32], [F16] or [BF16]; CUDA caches take device
// pointers, through the methods ending in Device, which enqueue on a [Stream] and return. RoPE is applied by
// the caller.
//
// # Errors
//
// A failed call has changed nothing. Errors are of type *[Error]: errors.Is(err, tqkv.ErrCapacity) asks for
// the kind, the text names the argument and has the values.
//
// # Goroutines
//
// A [Library] may be used from many goroutines. So may a [Cache] and its batches: its calls take turns.
// Different caches are independent.
package tqkv
