// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"fmt"
	"os"
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
		return nil, &Error{ErrLoad, fmt.Sprintf("cannot open %s (%s): %s. Install tqkv, or give the path of "+
			"libtqkv.so, or set %s to it", path, source, text.String(), LibraryVariable)}
	}
	library := &Library{api, path}
	if linked {
		library.name = "linked library"
	}
	libraries[path] = library
	return library, nil
}

// table is the library's functions.
func (l *Library) table() (*C.tqkv_api, error) {
	if l == nil || l.api == nil {
		return nil, argumentError("library: nil, or not made by Open")
	}
	return l.api, nil
}

// mustTable is table for the methods without an error to return: they panic.
func (l *Library) mustTable() *C.tqkv_api {
	api, err := l.table()
	if err != nil {
		panic(err)
	}
	return api
}

// Name is what was loaded: a path, the SONAME, or "linked library".
func (l *Library) Name() string { return l.name }

// Version is the library's release, such as "0.1.0".
func (l *Library) Version() string { return C.GoString(C.tqkv_version(l.mustTable())) }

// ABIVersion is the library's ABI number.
func (l *Library) ABIVersion() int { return int(C.tqkv_abi_version(l.mustTable())) }

// BuildInfo is one line: release, compiler, CUDA architectures, instruction sets.
func (l *Library) BuildInfo() string { return C.GoString(C.tqkv_build_info(l.mustTable())) }

// StatusName is the name of a status in the C interface, such as "TQ_ERROR_CAPACITY".
func (l *Library) StatusName(s Status) string {
	return C.GoString(C.tqkv_status_name(l.mustTable(), C.int32_t(s)))
}

// DeviceCount is the number of devices of a type; 0 for CUDA on a machine without a driver.
func (l *Library) DeviceCount(t DeviceType) (int, error) {
	api, err := l.table()
	if err != nil {
		return 0, err
	}
	var text textBuffer
	var count C.int32_t
	err = text.result(C.tqkv_device_count(api, C.int32_t(t), &count, text.c()))
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
	api, err := l.table()
	if err != nil {
		return DeviceInfo{}, err
	}
	i, err := int32Of("index", index)
	if err != nil {
		return DeviceInfo{}, err
	}
	var text textBuffer
	var raw C.tq_device_info
	if err := text.result(C.tqkv_device_get_info(api, C.int32_t(t), i, &raw, text.c())); err != nil {
		return DeviceInfo{}, err
	}
	return DeviceInfo{
		DeviceType(raw.device_type), int(raw.device_id), int(raw.compute_major), int(raw.compute_minor),
		int(raw.num_units), int64(raw.memory_bytes), C.GoString(&raw.name[0]),
	}, nil
}

// CheckConfig says whether this library can run a configuration. If not, the text has every reason, one a
// line, each naming its field.
func (l *Library) CheckConfig(config *Config) error {
	api, err := l.table()
	if err != nil {
		return err
	}
	p, err := config.parts()
	if err != nil {
		return err
	}
	defer p.unpin()
	var text textBuffer
	return text.result(C.tqkv_cache_config_check(api, &p.config, p.layerKeyBits, p.layerValueBits,
		p.layers, p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool, text.c()))
}

// ConfigBytes is what a cache of this configuration would allocate, exactly.
func (l *Library) ConfigBytes(config *Config) (Bytes, error) {
	api, err := l.table()
	if err != nil {
		return Bytes{}, err
	}
	p, err := config.parts()
	if err != nil {
		return Bytes{}, err
	}
	defer p.unpin()
	var text textBuffer
	var raw C.tq_cache_bytes
	if err := text.result(C.tqkv_cache_config_bytes(api, &p.config, p.layerKeyBits, p.layerValueBits,
		p.layers, p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool, &raw, text.c())); err != nil {
		return Bytes{}, err
	}
	return bytesOf(&raw), nil
}

// ConfigLayerBytes is what one layer of such a cache would allocate.
func (l *Library) ConfigLayerBytes(config *Config, layer int) (LayerBytes, error) {
	api, err := l.table()
	if err != nil {
		return LayerBytes{}, err
	}
	number, err := int32Of("layer", layer)
	if err != nil {
		return LayerBytes{}, err
	}
	p, err := config.parts()
	if err != nil {
		return LayerBytes{}, err
	}
	defer p.unpin()
	var text textBuffer
	var raw C.tq_layer_bytes
	if err := text.result(C.tqkv_cache_config_layer_bytes(api, &p.config, p.layerKeyBits, p.layerValueBits,
		p.layers, p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool, number, &raw,
		text.c())); err != nil {
		return LayerBytes{}, err
	}
	return LayerBytes{int32(raw.group), int64(raw.num_pages), int64(raw.page_bytes), int64(raw.raw_bytes),
		int64(raw.token_bytes), int64(raw.fp16_token_bytes)}, nil
}
