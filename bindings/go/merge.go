// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// MergeStates merges partial results of the same rows on the CPU: context-parallel ranks, chunked prefill,
// HistoryOnly. outs[s] is [rows][dim], lses[s] [rows]; an empty part has an lse of -Inf and its out is not
// read. lse may be nil. out may be one of outs. Merged in order, in float32.
func (l *Library) MergeStates(outs []HostSlice, lses [][]float32, rows, dim int, out HostSlice,
	lse []float32) error {
	api, d, count, err := l.mergeSizes(dim, len(outs), len(lses))
	if err != nil {
		return err
	}
	if out == nil {
		return argumentError("out = nil")
	}
	outMemory, outLength, dtype := out.host()
	s, row := shape{int64(rows), 1, int64(dim)}, shape{int64(rows), 1, 1}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	outParts, lseParts := make([]unsafe.Pointer, len(outs)), make([]unsafe.Pointer, len(outs))
	for i, part := range outs {
		if part == nil {
			return argumentError("outs[%d] = nil", i)
		}
		memory, length, partDtype := part.host()
		partLSE := lses[i]
		if partDtype != dtype {
			return argumentError("outs[%d]: of type %d, but out is of type %d", i, partDtype, dtype)
		}
		if err := checkLength(fmt.Sprintf("outs[%d]", i), length, s, 0, 0); err != nil {
			return err
		}
		if err := checkLength(fmt.Sprintf("lses[%d]", i), len(partLSE), row, 0, 0); err != nil {
			return err
		}
		// The library reads their addresses from Go memory: they must not move.
		outParts[i], lseParts[i] = pin(&pinner, memory), pin(&pinner, ptr(partLSE))
	}
	if err := checkLength("out", outLength, s, 0, 0); err != nil {
		return err
	}
	if lse != nil {
		if err := checkLength("lse", len(lse), row, 0, 0); err != nil {
			return err
		}
	}
	var text textBuffer
	return text.result(C.tqkv_merge_states(api, count, (*unsafe.Pointer)(ptr(outParts)),
		(*unsafe.Pointer)(ptr(lseParts)), C.int64_t(rows), d, C.int32_t(dtype), (*C.uint8_t)(outMemory),
		(*C.float)(ptr(lse)), 0, 0, C.TQ_DEVICE_CPU, 0, 0, text.c()))
}

// mergeSizes checks what both merges have in common.
func (l *Library) mergeSizes(dim, outs, lses int) (api *C.tqkv_api, d, count C.int32_t, err error) {
	if api, err = l.table(); err != nil {
		return
	}
	if d, err = int32Of("dim", dim); err != nil {
		return
	}
	if count, err = int32Of("len(outs)", outs); err != nil {
		return
	}
	if outs != lses {
		err = argumentError("lses: %d parts, but outs has %d", lses, outs)
	}
	return
}

func pin(pinner *runtime.Pinner, memory unsafe.Pointer) unsafe.Pointer {
	if memory != nil {
		pinner.Pin(memory)
	}
	return memory
}

// MergeStatesDevice is [Library.MergeStates] on memory of a device: every out is rows * dim numbers of dtype,
// every lse rows of float32; lse may be 0.
func (l *Library) MergeStatesDevice(outs, lses []DevicePtr, rows, dim int, dtype Dtype, out, lse DevicePtr,
	device DeviceType, deviceID int, stream Stream) error {
	api, d, count, err := l.mergeSizes(dim, len(outs), len(lses))
	if err != nil {
		return err
	}
	id, err := int32Of("deviceID", deviceID)
	if err != nil {
		return err
	}
	var text textBuffer
	// The numbers are addresses in C's eyes; as numbers they are no Go pointers.
	return text.result(C.tqkv_merge_states(api, count, (*unsafe.Pointer)(ptr(outs)),
		(*unsafe.Pointer)(ptr(lses)), C.int64_t(rows), d, C.int32_t(dtype), nil, nil, C.uintptr_t(out),
		C.uintptr_t(lse), C.int32_t(device), id, C.uintptr_t(stream), text.c()))
}
