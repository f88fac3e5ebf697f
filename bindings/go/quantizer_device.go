// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

// The methods ending in Device take addresses of the quantizer's device, as long as the counts say, and
// enqueue on a stream; what they read may not change, and what they write is there, when the stream has
// passed them.

// EncodeDevice is [Quantizer.Encode] on memory of a device; it says nothing about x.
func (q *Quantizer) EncodeDevice(x DevicePtr, count int, codes DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_encode_device(s.api, s.quantizer, C.uintptr_t(x), C.int64_t(count),
			C.uintptr_t(codes), nil, C.uintptr_t(stream), text)
	})
}

// EncodeDeviceNoticing is [Quantizer.EncodeDevice], which waits for the stream and says what it noticed in x.
func (q *Quantizer) EncodeDeviceNoticing(x DevicePtr, count int, codes DevicePtr, stream Stream) (Noticed,
	error) {
	var noticed C.uint64_t
	err := q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_encode_device(s.api, s.quantizer, C.uintptr_t(x), C.int64_t(count),
			C.uintptr_t(codes), &noticed, C.uintptr_t(stream), text)
	})
	return Noticed(noticed), err
}

// DecodeDevice is [Quantizer.Decode] on memory of a device.
func (q *Quantizer) DecodeDevice(codes DevicePtr, count int, x DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_decode_device(s.api, s.quantizer, C.uintptr_t(codes), C.int64_t(count),
			C.uintptr_t(x), C.uintptr_t(stream), text)
	})
}

// InnerProductsDevice is [Quantizer.InnerProducts] on memory of a device.
func (q *Quantizer) InnerProductsDevice(queries DevicePtr, numQueries int, codes DevicePtr, count int,
	out DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_inner_products_device(s.api, s.quantizer, C.uintptr_t(queries),
			C.int64_t(numQueries), C.uintptr_t(codes), C.int64_t(count), C.uintptr_t(out),
			C.uintptr_t(stream), text)
	})
}

// SearchDevice is [Quantizer.Search] on memory of a device: scores [numQueries][k] float32, ids
// [numQueries][k] int64; bias [count] float32 or 0.
func (q *Quantizer) SearchDevice(queries DevicePtr, numQueries int, codes DevicePtr, count int,
	bias DevicePtr, k int, scores, ids DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_search_device(s.api, s.quantizer, C.uintptr_t(queries), C.int64_t(numQueries),
			C.uintptr_t(codes), C.int64_t(count), C.uintptr_t(bias), C.int64_t(k), C.uintptr_t(scores),
			C.uintptr_t(ids), C.uintptr_t(stream), text)
	})
}

// RotateDevice is [Quantizer.Rotate] on memory of a device: y [count][RotatedDim] float32.
func (q *Quantizer) RotateDevice(x DevicePtr, count int, y DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_rotate_device(s.api, s.quantizer, C.uintptr_t(x), C.int64_t(count),
			C.uintptr_t(y), C.uintptr_t(stream), text)
	})
}

// UnrotateDevice is [Quantizer.Unrotate] on memory of a device.
func (q *Quantizer) UnrotateDevice(y DevicePtr, count int, x DevicePtr, stream Stream) error {
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_unrotate_device(s.api, s.quantizer, C.uintptr_t(y), C.int64_t(count),
			C.uintptr_t(x), C.uintptr_t(stream), text)
	})
}
