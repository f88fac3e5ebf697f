// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"
)

const (
	// LibraryVariable is the environment variable that names the library's file when Open gets no path.
	LibraryVariable = "TQKV_LIBRARY"
	// SONAME is what the system's loader is asked for at last.
	SONAME = "libtqkv.so.0"
)

// Library is the loaded library. It stays loaded until the process ends.
type Library struct {
	api  *C.tqkv_api
	name string
}

var (
	librariesMutex sync.Mutex
	libraries      = map[string]*Library{}
)

// Open loads the library in the file path. Without a path: the file that the variable TQKV_LIBRARY names;
// without that, libtqkv.so.0. The first that is named must work: there is no falling through to the next.
// Each file is loaded once. With the build tag tqkv_link, path must be empty.
func Open(path string) (*Library, error) {
	source := "the path given"
	if path == "" && !linked {
		path, source = os.Getenv(LibraryVariable), "from the variable "+LibraryVariable
	}
	if path == "" && !linked {
		path, source = SONAME, "the default, no path and no "+LibraryVariable+" given"
	}
	if path != "" && linked {
		return nil, argumentError("path = %s: this program was linked with tqkv (build tag tqkv_link)", path)
	}
	librariesMutex.Lock()
	defer librariesMutex.Unlock()
	if library := libraries[path]; library != nil {
		return library, nil
	}
	var text textBuffer
	var unfit C.int
	var cPath *C.char
	if path != "" {
		cPath = C.CString(path)
		defer C.free(unsafe.Pointer(cPath))
	}
	api := C.tqkv_load(cPath, &unfit, text.c())
	if api == nil && unfit != 0 {
		return nil, &Error{ErrVersion, text.String()}
	}
	if api == nil {
		return nil, &Error{ErrLoad, fmt.Sprintf("cannot open %s (%s): %s. Install tqkv, or give the path of libtqkv.so, or set %s to it", path, source,
			text.String(), LibraryVariable)}
	}
	library := &Library{api, path}
	if linked {
		library.name = "linked library"
	}
	libraries[path] = library
	return library, nil
}

// Name is what was loaded: a path, the SONAME, or "linked library".
func (l *Library) Name() string { return l.name }

// Version is the library's release, such as "0.1.0".
func (l *Library) Version() string { return C.GoString(C.tqkv_version(l.api)) }

// ABIVersion is the library's ABI number.
func (l *Library) ABIVersion() int { return int(C.tqkv_abi_version(l.api)) }

// BuildInfo is one line: release, compiler, CUDA architectures, instruction sets.
func (l *Library) BuildInfo() string { return C.GoString(C.tqkv_build_info(l.api)) }

// StatusName is the name of a status in the C interface, such as "TQ_ERROR_CAPACITY".
func (l *Library) StatusName(s Status) string {
	return C.GoString(C.tqkv_status_name(l.api, C.int32_t(s)))
}

// DeviceCount is the number of devices of a type; 0 for CUDA on a machine without a driver.
func (l *Library) DeviceCount(t DeviceType) (int, error) {
	var text textBuffer
	var count C.int32_t
	err := text.result(C.tqkv_device_count(l.api, C.int32_t(t), &count, text.c()))
	return int(count), err
}

// DeviceInfo describes a device.
type DeviceInfo struct {
	DeviceType                 DeviceType
	DeviceID                   int // CUDA ordinal; 0 for the CPU
	ComputeMajor, ComputeMinor int // CUDA compute capability; 0 for the CPU
	NumUnits                   int // multiprocessors; CPU: hardware threads that this process may use
	MemoryBytes                int64
	Name                       string // CPU: the instruction set in use
}

// DeviceInfo describes one device.
func (l *Library) DeviceInfo(t DeviceType, index int) (DeviceInfo, error) {
	i, err := int32Of("index", index)
	if err != nil {
		return DeviceInfo{}, err
	}
	var text textBuffer
	var raw C.tq_device_info_t
	if err := text.result(C.tqkv_device_info(l.api, C.int32_t(t), i, &raw, text.c())); err != nil {
		return DeviceInfo{}, err
	}
	return DeviceInfo{DeviceType(raw.device_type), int(raw.device_id), int(raw.compute_major), int(raw.compute_minor), int(raw.num_units),
		int64(raw.memory_bytes), C.GoString(&raw.name[0])}, nil
}

// CheckConfig says whether this library can run a configuration. If not, the text has every reason, one a
// line, each naming its field.
func (l *Library) CheckConfig(config *Config) error {
	var text textBuffer
	c, err := config.parts()
	if err != nil {
		return err
	}
	return text.result(C.tqkv_config_check(l.api, &c.config, c.layerKeyBits, c.layerValueBits, c.keyCodebook, c.valueCodebook, c.user, c.alloc, c.free, c.pool,
		text.c()))
}

// ConfigBytes is what a cache of this configuration would allocate, exactly.
func (l *Library) ConfigBytes(config *Config) (Bytes, error) {
	var text textBuffer
	var raw C.tq_cache_bytes
	c, err := config.parts()
	if err != nil {
		return Bytes{}, err
	}
	if err := text.result(C.tqkv_config_bytes(l.api, &c.config, c.layerKeyBits, c.layerValueBits, c.keyCodebook, c.valueCodebook, c.user, c.alloc, c.free,
		c.pool, &raw, text.c())); err != nil {
		return Bytes{}, err
	}
	return bytesOf(&raw), nil
}

// MergeStates merges partial results of the same rows on the CPU: context-parallel ranks, chunked prefill,
// HistoryOnly. outs[s] is [rows][dim], lses[s] [rows]; an empty part has an lse of -Inf and its out is not
// read. lse may be nil. out may be one of outs. Merged in order, in float32.
func (l *Library) MergeStates(outs []HostSlice, lses [][]float32, rows, dim int, out HostSlice, lse []float32) error {
	d, err := int32Of("dim", dim)
	if err != nil {
		return err
	}
	count, err := int32Of("len(outs)", len(outs))
	if err != nil {
		return err
	}
	if len(outs) != len(lses) {
		return argumentError("lses: %d parts, but outs has %d", len(lses), len(outs))
	}
	if out == nil {
		return argumentError("out = nil")
	}
	outMemory, outLength, dtype := out.host()
	s := shape{int64(rows), 1, int64(dim)}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	outParts, lseParts := make([]unsafe.Pointer, len(outs)), make([]unsafe.Pointer, len(outs))
	for i, part := range outs {
		if part == nil {
			return argumentError("outs[%d] = nil", i)
		}
		memory, length, partDtype := part.host()
		if partDtype != dtype {
			return argumentError("outs[%d]: of type %d, but out is of type %d", i, partDtype, dtype)
		}
		if err := checkLength(fmt.Sprintf("outs[%d]", i), length, s, 0, 0); err != nil {
			return err
		}
		if err := checkLength(fmt.Sprintf("lses[%d]", i), len(lses[i]), shape{s.tokens, 1, 1}, 0, 0); err != nil {
			return err
		}
		outParts[i], lseParts[i] = memory, ptr(lses[i])
		pin(&pinner, outParts[i])
		pin(&pinner, lseParts[i])
	}
	if err := checkLength("out", outLength, s, 0, 0); err != nil {
		return err
	}
	if lse != nil {
		if err := checkLength("lse", len(lse), shape{s.tokens, 1, 1}, 0, 0); err != nil {
			return err
		}
	}
	var text textBuffer
	return text.result(C.tqkv_merge_states(l.api, count, (*unsafe.Pointer)(ptr(outParts)), (*unsafe.Pointer)(ptr(lseParts)), C.int64_t(rows), d, C.int32_t(dtype),
		(*C.uint8_t)(outMemory), (*C.float)(ptr(lse)), 0, 0, C.TQ_DEVICE_CPU, 0, 0, text.c()))
}

func pin(pinner *runtime.Pinner, memory unsafe.Pointer) {
	if memory != nil {
		pinner.Pin(memory)
	}
}

// MergeStatesDevice is [Library.MergeStates] on memory of a device: every out is rows * dim numbers of dtype,
// every lse rows of float32; lse may be 0.
func (l *Library) MergeStatesDevice(outs, lses []DevicePtr, rows, dim int, dtype Dtype, out, lse DevicePtr, device DeviceType, deviceID int, stream Stream) error {
	d, err := int32Of("dim", dim)
	if err != nil {
		return err
	}
	count, err := int32Of("len(outs)", len(outs))
	if err != nil {
		return err
	}
	id, err := int32Of("deviceID", deviceID)
	if err != nil {
		return err
	}
	if len(outs) != len(lses) {
		return argumentError("lses: %d parts, but outs has %d", len(lses), len(outs))
	}
	var text textBuffer
	// The numbers are addresses in C's eyes; as numbers they are no Go pointers.
	return text.result(C.tqkv_merge_states(l.api, count, (*unsafe.Pointer)(ptr(outs)), (*unsafe.Pointer)(ptr(lses)), C.int64_t(rows), d, C.int32_t(dtype), nil, nil,
		C.uintptr_t(out), C.uintptr_t(lse), C.int32_t(device), id, C.uintptr_t(stream), text.c()))
}
