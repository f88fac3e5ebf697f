// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"bufio"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"runtime/cgo"
	"sync"
	"unsafe"
)

// CalibrationConfig is the shape of what is calibrated. Zero means the default; NumLayers to HeadDim are
// required.
type CalibrationConfig struct {
	NumLayers     int32
	NumQHeads     int32 // a multiple of NumKVHeads
	NumKVHeads    int32
	HeadDim       int32      // a multiple of 4 from 8 to 256
	ValueDim      int32      // 0 = HeadDim
	IODtype       Dtype      // of queries, keys and values; 0 = Float32
	KeyFamily     CodeFamily // of what is compared: CodeScalar (0 too) or CodeTrellis
	ValueFamily   CodeFamily
	HeldOutTokens int32 // kept of each layer, 32 to 4096; 0 = 128
	// Layers also get key matrices of the calibration's own where these make the error of held-out logits
	// smaller by 2 %: for caches on the CPU.
	TurnKeys bool
}

// CalibrationGoal is what is wanted of [Calibration.Choose].
type CalibrationGoal struct {
	KeyBits   float32 // of a key's coordinate, on average: 2, 2.5, 3, 3.5 or 4. Ignored with MaxError
	ValueBits int32   // 2, 3 or 4; likewise
	MaxError  float32 // 0, or the error, on average over layers, to be reached with the fewest bytes
	// Layers whose median key is longer than this many times that of the median layer keep 16 bits; 0 = 4.
	Outlier float32
}

// Choice is what [Calibration.Choose] found.
type Choice struct {
	Layers       []LayerConfig // for Config.Layers
	BandedLayers int
	RawLayers    int
	Error        float32 // of held-out logits (variance) and values (relative), on average over layers
	UniformError float32 // likewise without bands; 0 with MaxError
	TokenBytes   int64   // over all layers and heads
}

// Calibration measures tokens of some prompts, and chooses centres, key bands and bits by them: section 11 of
// tqkv.h. Every fourth run of 32 tokens of a layer is held out and decides whether the layer gets bands;
// tokens are not kept, but for HeldOutTokens of each layer. Each layer needs 256 tokens or more. Its methods
// may be called from several goroutines; they take turns.
type Calibration struct{ state *calibrationState }

type calibrationState struct {
	mutex       sync.Mutex
	api         *C.tqkv_api
	calibration *C.tq_calibration // nil once closed
	config      CalibrationConfig // resolved
	text        textBuffer
}

// NewCalibration begins one.
func (l *Library) NewCalibration(config *CalibrationConfig) (*Calibration, error) {
	if config == nil {
		return nil, argumentError("config = nil")
	}
	dtype := config.IODtype
	if dtype == 0 {
		dtype = Float32
	}
	raw := C.tq_calibration_config{num_layers: C.int32_t(config.NumLayers),
		num_q_heads: C.int32_t(config.NumQHeads), num_kv_heads: C.int32_t(config.NumKVHeads),
		head_dim: C.int32_t(config.HeadDim), value_dim: C.int32_t(config.ValueDim),
		io_dtype: C.int32_t(dtype), key_family: C.int32_t(config.KeyFamily),
		value_family: C.int32_t(config.ValueFamily), held_out_tokens: C.int32_t(config.HeldOutTokens)}
	if config.TurnKeys {
		raw.turn_keys = 1
	}
	return l.calibration(func(s *calibrationState) error {
		return s.text.result(C.tqkv_calibration_create(s.api, &raw, &s.calibration, s.text.c()))
	})
}

// LoadCalibration makes one from what [Calibration.Save] wrote; it takes no more tokens.
func (l *Library) LoadCalibration(r io.Reader) (*Calibration, error) {
	return l.LoadCalibrationMAC(r, nil)
}

// LoadCalibrationMAC is [Library.LoadCalibration] of what was saved with this MAC alone.
func (l *Library) LoadCalibrationMAC(r io.Reader, mac hash.Hash) (*Calibration, error) {
	e := &end{reader: r, mac: mac}
	handle := cgo.NewHandle(e)
	defer handle.Delete()
	return l.calibration(func(s *calibrationState) error {
		return e.finish(s.text.result(C.tqkv_calibration_load(s.api, C.uintptr_t(handle), e.macBytes(),
			&s.calibration, s.text.c())))
	})
}

// LoadCalibrationFile is [Library.LoadCalibration] from a file.
func (l *Library) LoadCalibrationFile(path string) (*Calibration, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIO, err)
	}
	defer file.Close()
	return l.LoadCalibration(bufio.NewReader(file))
}

func (l *Library) calibration(create func(s *calibrationState) error) (*Calibration, error) {
	api, err := l.table()
	if err != nil {
		return nil, err
	}
	s := &calibrationState{api: api}
	if err := create(s); err != nil {
		return nil, err
	}
	var c C.tq_calibration_config
	if err := s.text.result(C.tqkv_calibration_get_config(api, s.calibration, &c, s.text.c())); err != nil {
		_ = s.close()
		return nil, err
	}
	s.config = CalibrationConfig{int32(c.num_layers), int32(c.num_q_heads), int32(c.num_kv_heads),
		int32(c.head_dim), int32(c.value_dim), Dtype(c.io_dtype), CodeFamily(c.key_family),
		CodeFamily(c.value_family), int32(c.held_out_tokens), c.turn_keys != 0}
	made := &Calibration{s}
	runtime.AddCleanup(made, func(s *calibrationState) { _ = s.close() }, s)
	return made, nil
}

// Close frees the calibration. Calling it again does nothing. One that is not closed is freed some time after
// it became unreachable.
func (c *Calibration) Close() error {
	if c == nil || c.state == nil {
		return argumentError("calibration: nil, or not made by NewCalibration")
	}
	return c.state.close()
}

func (s *calibrationState) close() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.calibration == nil {
		return nil
	}
	err := s.text.result(C.tqkv_calibration_destroy(s.api, s.calibration, s.text.c()))
	s.calibration = nil
	return err
}

// Config is the configuration with defaults resolved.
func (c *Calibration) Config() CalibrationConfig { return c.state.config }

// locked runs a call while no other runs.
func (c *Calibration) locked(call func(s *calibrationState) C.tq_status) error {
	if c == nil || c.state == nil {
		return argumentError("calibration: nil, or not made by NewCalibration")
	}
	s := c.state
	defer runtime.KeepAlive(c)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.calibration == nil {
		return &Error{ErrInvalidState, "calibration: is closed"}
	}
	return s.text.result(call(s))
}

// Feed takes tokens of a layer, after RoPE: q [count][NumQHeads][HeadDim], k [count][NumKVHeads][HeadDim], v
// [count][NumKVHeads][ValueDim] of IODtype. A number that is not finite is refused, and then nothing of the
// call counts.
func (c *Calibration) Feed(layer, count int, q, k, v HostSlice) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	if c == nil || c.state == nil {
		return argumentError("calibration: nil, or not made by NewCalibration")
	}
	has := &c.state.config
	var memory [3]*C.uint8_t
	for i, side := range []struct {
		name       string
		slice      HostSlice
		heads, dim int32
	}{{"q", q, has.NumQHeads, has.HeadDim}, {"k", k, has.NumKVHeads, has.HeadDim},
		{"v", v, has.NumKVHeads, has.ValueDim}} {
		if side.slice == nil {
			return argumentError("%s = nil", side.name)
		}
		first, length, dtype := side.slice.host()
		if dtype != has.IODtype {
			return argumentError("%s: of type %d, but the calibration has io_dtype = %d", side.name, dtype,
				has.IODtype)
		}
		tokens := shape{int64(count), int64(side.heads), int64(side.dim)}
		if err := checkLength(side.name, length, tokens, 0, 0); err != nil {
			return err
		}
		memory[i] = (*C.uint8_t)(first)
	}
	return c.locked(func(s *calibrationState) C.tq_status {
		return C.tqkv_calibration_feed(s.api, s.calibration, l, C.int64_t(count), memory[0], memory[1],
			memory[2], s.text.c())
	})
}

// FeedDevice is [Calibration.Feed] of memory that a CUDA device reaches, dense, behind what stream holds; it
// waits for it. Nobody may write to the arrays until it returns.
func (c *Calibration) FeedDevice(layer, count int, q, k, v DevicePtr, deviceID int32, stream Stream) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return c.locked(func(s *calibrationState) C.tq_status {
		return C.tqkv_calibration_feed_device(s.api, s.calibration, l, C.int64_t(count), C.uintptr_t(q),
			C.uintptr_t(k), C.uintptr_t(v), C.int32_t(deviceID), C.uintptr_t(stream), s.text.c())
	})
}

// SetKeyMatrix is as [Cache.SetKeyMatrix], in front of the layer's first tokens: they and their queries are
// measured as the matrices turn them. Kept in the file, and set with the centres.
func (c *Calibration) SetKeyMatrix(layer int, matrix []float32) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	if c != nil && c.state != nil {
		if err := checkKeyMatrix(matrix, c.state.config.NumKVHeads, c.state.config.HeadDim); err != nil {
			return err
		}
	}
	return c.locked(func(s *calibrationState) C.tq_status {
		return C.tqkv_calibration_set_key_matrix(s.api, s.calibration, l, (*C.float)(ptr(matrix)), s.text.c())
	})
}

// Choose gives bits, families and bands of all layers.
func (c *Calibration) Choose(goal CalibrationGoal) (choice Choice, err error) {
	raw := C.tq_calibration_goal{key_bits: C.float(goal.KeyBits), value_bits: C.int32_t(goal.ValueBits),
		max_error: C.float(goal.MaxError), outlier: C.float(goal.Outlier)}
	err = c.locked(func(s *calibrationState) C.tq_status {
		var found C.tq_calibration_result
		layers := make([]C.tq_layer_config, s.config.NumLayers)
		status := C.tqkv_calibration_choose(s.api, s.calibration, &raw, unsafe.SliceData(layers),
			C.int32_t(len(layers)), &found, s.text.c())
		if status == C.TQ_OK {
			for i := range layers { // what orders are read by
				layers[i].num_kv_heads = C.int32_t(s.config.NumKVHeads)
				layers[i].head_dim = C.int32_t(s.config.HeadDim)
			}
			choice = Choice{layersOf(layers), int(found.banded_layers), int(found.raw_layers),
				float32(found.error), float32(found.uniform_error), int64(found.token_bytes)}
		}
		return status
	})
	return
}

// SetCentres does [Cache.SetCentres] for all layers of a cache of the same shape, and [Cache.SetKeyMatrix]
// for those that have one.
func (c *Calibration) SetCentres(cache *Cache) error {
	return cache.locked(func(core *core) error {
		return c.locked(func(s *calibrationState) C.tq_status {
			return C.tqkv_calibration_set_centres(s.api, s.calibration, core.cache, s.text.c())
		})
	})
}

// Centres are a layer's centres of keys [NumKVHeads][HeadDim] and of values [NumKVHeads][ValueDim].
func (c *Calibration) Centres(layer int) (key, value []float32, err error) {
	l, err := int32Of("layer", layer)
	if err != nil {
		return nil, nil, err
	}
	err = c.locked(func(s *calibrationState) C.tq_status {
		key = make([]float32, int(s.config.NumKVHeads)*int(s.config.HeadDim))
		value = make([]float32, int(s.config.NumKVHeads)*int(s.config.ValueDim))
		return C.tqkv_calibration_centres(s.api, s.calibration, l, (*C.float)(ptr(key)),
			(*C.float)(ptr(value)), s.text.c())
	})
	return
}

// KeyMatrix is a layer's matrices, given or found, [NumKVHeads][HeadDim][HeadDim]; nil: it has none. With
// TurnKeys as [Calibration.Choose].
func (c *Calibration) KeyMatrix(layer int) (matrix []float32, err error) {
	l, err := int32Of("layer", layer)
	if err != nil {
		return nil, err
	}
	var has C.int32_t
	err = c.locked(func(s *calibrationState) C.tq_status {
		dim := int(s.config.HeadDim)
		matrix = make([]float32, int(s.config.NumKVHeads)*dim*dim)
		return C.tqkv_calibration_key_matrix(s.api, s.calibration, l, (*C.float)(ptr(matrix)), &has,
			s.text.c())
	})
	if has == 0 {
		matrix = nil
	}
	return
}

// Save writes what was measured, with checksums. A failure of w is wrapped beside [ErrIO]. w must not use the
// calibration.
func (c *Calibration) Save(w io.Writer) error { return c.SaveMAC(w, nil) }

// SaveMAC is [Calibration.Save] with a MAC at the end, as [Cache.SaveSequenceMAC].
func (c *Calibration) SaveMAC(w io.Writer, mac hash.Hash) error {
	e := &end{writer: w, mac: mac}
	handle := cgo.NewHandle(e)
	defer handle.Delete()
	return e.finish(c.locked(func(s *calibrationState) C.tq_status {
		return C.tqkv_calibration_save(s.api, s.calibration, C.uintptr_t(handle), e.macBytes(), s.text.c())
	}))
}

// SaveFile is [Calibration.Save] to a file, which is replaced as a whole.
func (c *Calibration) SaveFile(path string) error {
	return replaceFile(path, func(file *os.File) error { return c.Save(file) })
}
