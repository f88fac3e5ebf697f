// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"math/bits"
	"runtime"
	"sync"
	"unsafe"
)

// Sketch says how a residual is sketched, with CodeProd.
type Sketch int32

// Sketches; 0 is SketchOrthogonal.
const (
	SketchOrthogonal Sketch = C.TQ_SKETCH_ORTHOGONAL // more rotations: a third of the variance
	SketchGaussian   Sketch = C.TQ_SKETCH_GAUSSIAN   // a matrix, as published
)

// SketchRule says what a sketch's estimate of the residual is multiplied by.
type SketchRule int32

// Sketch rules; 0 is SketchUnbiased.
const (
	SketchUnbiased   SketchRule = C.TQ_SKETCH_UNBIASED    // inner products are right on average
	SketchLeastError SketchRule = C.TQ_SKETCH_LEAST_ERROR // least mean squared error of the decoded vector
)

// Levels are levels of the caller's own: a coordinate of the rotated vector, divided by Unit * |x|, gets as
// code the number of boundaries that it reaches.
type Levels struct {
	Levels     []float32 // 2^bits of them
	Boundaries []float32 // 2^bits - 1 of them, not falling
	Unit       float32   // 0 = 1: levels for vectors of length 1
}

// width is bits of a code.
func (l *Levels) width(name string) (int, error) {
	width := max(bits.Len(uint(len(l.Levels)))-1, 0)
	if len(l.Levels) != 1<<width || len(l.Boundaries) != len(l.Levels)-1 {
		return 0, argumentError("%s: %d levels and %d boundaries; there must be 2^bits and one less", name,
			len(l.Levels), len(l.Boundaries))
	}
	return width, nil
}

// QuantizerConfig is what a quantizer is to be. Zero means the default throughout.
type QuantizerConfig struct {
	Dim             int32      // required: 1 to 8192
	DeviceType      DeviceType // 0 = CPU
	DeviceID        int32      // of CUDA: which; 0 on the CPU
	Bits            int32      // of a coordinate: scalar and levels 1 to 8, prod 2 to 4, grouped 2, 3, 4, 8
	IODtype         Dtype      // of vectors and queries; 0 = Float32
	Family          CodeFamily // 0 = CodeScalar
	Rotation        Rotation   // 0 = Hadamard; dense: Dim up to 1536
	ScaleRule       ScaleRule  // 0 = ScaleLS, with levels ScalePaper
	GroupSize       int32      // grouped: 16, 32 or 64
	Sketch          Sketch     // prod
	SketchRule      SketchRule // prod
	SketchFactor    float32    // prod: 0 = by SketchRule
	OutlierChannels []int32    // scalar: rising; they get a bit more
	NumThreads      int32      // 0 = all that the process may use
	Seed            uint64     // any value
	Codebook        *Codebook  // scalar: nil = built in
	Levels          *Levels    // of the levels family, or of prod's codes
	Flags           uint64     // FlagNoScaleSearch
}

// Quantizer turns vectors into records of 1 to 8 bits a coordinate, and back: section 10 of tqkv.h. Its
// methods may be called from several goroutines at once. Slices, of CPU quantizers alone, may be longer than
// needed; the methods ending in Device take memory of any device.
type Quantizer struct{ state *quantizerState }

type quantizerState struct {
	mutex     sync.RWMutex // held for reading by calls
	api       *C.tqkv_api
	quantizer *C.tq_quantizer // nil once closed
	info      C.tq_quantizer_info
	dim       int64
	dtype     Dtype
	cuda      bool
}

// NewQuantizer makes a quantizer.
func (l *Library) NewQuantizer(config *QuantizerConfig) (*Quantizer, error) {
	api, err := l.table()
	if err != nil {
		return nil, err
	}
	if config == nil {
		return nil, argumentError("config = nil")
	}
	c := *config
	book, err := c.Codebook.c("codebook")
	if err != nil {
		return nil, err
	}
	outliers, err := int32Of("len(OutlierChannels)", len(c.OutlierChannels))
	if err != nil {
		return nil, err
	}
	var levels *C.tq_levels
	var values, boundaries []float32
	if c.Levels != nil {
		values, boundaries = c.Levels.Levels, c.Levels.Boundaries
		width, err := c.Levels.width("levels")
		if err != nil {
			return nil, err
		}
		levels = &C.tq_levels{bits: C.int32_t(width), unit: C.float(c.Levels.Unit)}
	}
	s := &quantizerState{api: api, dim: int64(c.Dim), dtype: c.IODtype, cuda: c.DeviceType == CUDA}
	if s.dtype == 0 {
		s.dtype = Float32
	}
	raw := C.tq_quantizer_config{
		device_type: C.int32_t(c.DeviceType), device_id: C.int32_t(c.DeviceID),
		dim: C.int32_t(c.Dim), io_dtype: C.int32_t(c.IODtype), family: C.int32_t(c.Family),
		bits: C.int32_t(c.Bits), rotation: C.int32_t(c.Rotation), scale_rule: C.int32_t(c.ScaleRule),
		group_size: C.int32_t(c.GroupSize), sketch: C.int32_t(c.Sketch),
		sketch_rule: C.int32_t(c.SketchRule), sketch_factor: C.float(c.SketchFactor),
		num_outliers: outliers, num_threads: C.int32_t(c.NumThreads), seed: C.uint64_t(c.Seed),
		flags: C.uint64_t(c.Flags),
	}
	var text textBuffer
	if err := text.result(C.tqkv_quantizer_create(api, &raw, (*C.int32_t)(ptr(c.OutlierChannels)), book,
		levels, (*C.float)(ptr(values)), (*C.float)(ptr(boundaries)), &s.quantizer, text.c())); err != nil {
		return nil, err
	}
	if err := text.result(C.tqkv_quantizer_get_info(api, s.quantizer, &s.info, text.c())); err != nil {
		_ = s.close()
		return nil, err
	}
	q := &Quantizer{s}
	runtime.AddCleanup(q, func(s *quantizerState) { _ = s.close() }, s)
	return q, nil
}

// Close frees the quantizer; it waits for calls that run. Calling it again does nothing. A quantizer that is
// not closed is freed some time after it became unreachable.
func (q *Quantizer) Close() error {
	if q == nil || q.state == nil {
		return argumentError("quantizer: nil, or not made by NewQuantizer")
	}
	return q.state.close()
}

func (s *quantizerState) close() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.quantizer == nil {
		return nil
	}
	var text textBuffer
	err := text.result(C.tqkv_quantizer_destroy(s.api, s.quantizer, text.c()))
	s.quantizer = nil
	return err
}

// Dim is the number of coordinates of a vector.
func (q *Quantizer) Dim() int { return int(q.state.dim) }

// CodeBytes is the number of bytes of a record, scales included.
func (q *Quantizer) CodeBytes() int { return int(q.state.info.code_bytes) }

// RotatedDim is the number of coordinates of a rotated vector: Dim and its padding.
func (q *Quantizer) RotatedDim() int { return int(q.state.info.rotated_dim) }

// Fingerprint is equal for quantizers whose records mean the same.
func (q *Quantizer) Fingerprint() uint64 { return uint64(q.state.info.fingerprint) }

// SketchFactor is the factor in use; 0 without a sketch.
func (q *Quantizer) SketchFactor() float32 { return float32(q.state.info.sketch_factor) }

// call runs a call while the quantizer is not closed.
func (q *Quantizer) call(run func(s *quantizerState, text *C.char) C.tq_status) error {
	if q == nil || q.state == nil {
		return argumentError("quantizer: nil, or not made by NewQuantizer")
	}
	s := q.state
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	if s.quantizer == nil {
		return &Error{ErrInvalidState, "quantizer: is closed"}
	}
	var text textBuffer
	err := text.result(run(s, text.c()))
	runtime.KeepAlive(q)
	return err
}

// vectors checks vectors [count][dim] and returns their address.
func (q *Quantizer) vectors(name string, x HostSlice, count int) (*C.uint8_t, error) {
	if q == nil || q.state == nil {
		return nil, argumentError("quantizer: nil, or not made by NewQuantizer")
	}
	if x == nil {
		return nil, argumentError("%s = nil", name)
	}
	if q.state.cuda {
		return nil, argumentError("%s: a slice of the host, but the quantizer is on CUDA: use the methods ending "+
			"in Device", name)
	}
	memory, length, dtype := x.host()
	if dtype != q.state.dtype {
		return nil, argumentError("%s: of type %d, but IODtype is %d", name, dtype, q.state.dtype)
	}
	return (*C.uint8_t)(memory), checkLength(name, length, shape{int64(count), 1, q.state.dim}, 0, 0)
}

func (q *Quantizer) records(codes []byte, count int) (*C.uint8_t, error) {
	return (*C.uint8_t)(ptr(codes)),
		checkLength("codes", len(codes), shape{int64(count), 1, int64(q.CodeBytes())}, 0, 0)
}

// both checks vectors and records of one call.
func (q *Quantizer) both(name string, x HostSlice, rows int, codes []byte, count int) (v, c *C.uint8_t,
	err error) {
	if v, err = q.vectors(name, x, rows); err != nil {
		return
	}
	c, err = q.records(codes, count)
	return
}

// Encode turns x [count][Dim] into codes [count][CodeBytes], and says what it noticed in x.
func (q *Quantizer) Encode(x HostSlice, count int, codes []byte) (Noticed, error) {
	v, c, err := q.both("x", x, count, codes, count)
	if err != nil {
		return 0, err
	}
	var noticed C.uint64_t
	err = q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_encode(s.api, s.quantizer, v, C.int64_t(count), c, &noticed, text)
	})
	return Noticed(noticed), err
}

// Decode turns codes [count][CodeBytes] into x [count][Dim].
func (q *Quantizer) Decode(codes []byte, count int, x HostSlice) error {
	v, c, err := q.both("x", x, count, codes, count)
	if err != nil {
		return err
	}
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_decode(s.api, s.quantizer, c, C.int64_t(count), v, text)
	})
}

// InnerProducts fills out [numQueries][count] with products of queries [numQueries][Dim] with what codes
// [count][CodeBytes] decode to.
func (q *Quantizer) InnerProducts(queries HostSlice, numQueries int, codes []byte, count int,
	out []float32) error {
	v, c, err := q.both("queries", queries, numQueries, codes, count)
	if err != nil {
		return err
	}
	if err := checkLength("out", len(out), shape{int64(numQueries), 1, int64(count)}, 0, 0); err != nil {
		return err
	}
	return q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_inner_products(s.api, s.quantizer, v, C.int64_t(numQueries), c,
			C.int64_t(count), (*C.float)(ptr(out)), text)
	})
}

// Search finds the k largest inner products of each query, best first: scores and ids are [numQueries][k]
// each; places without a record are -Inf and -1. bias [count], which may be nil, is added to the products.
func (q *Quantizer) Search(queries HostSlice, numQueries int, codes []byte, count int, bias []float32,
	k int) (scores []float32, ids []int64, err error) {
	v, c, err := q.both("queries", queries, numQueries, codes, count)
	if err != nil {
		return nil, nil, err
	}
	if bias != nil {
		if err := checkLength("bias", len(bias), shape{int64(count), 1, 1}, 0, 0); err != nil {
			return nil, nil, err
		}
	}
	if k < 1 || k > 65536 || numQueries < 0 {
		return nil, nil, argumentError("k = %d, numQueries = %d: must be 1 to 65536, and 0 or more", k,
			numQueries)
	}
	scores, ids = make([]float32, numQueries*k), make([]int64, numQueries*k)
	err = q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_quantizer_search(s.api, s.quantizer, v, C.int64_t(numQueries), c, C.int64_t(count),
			(*C.float)(ptr(bias)), C.int64_t(k), (*C.float)(ptr(scores)), (*C.int64_t)(ptr(ids)), text)
	})
	return scores, ids, err
}

// Rotate turns x [count][Dim] into y [count][RotatedDim], of the same lengths: the rotation alone.
func (q *Quantizer) Rotate(x HostSlice, count int, y []float32) error {
	return q.turn(x, count, y, func(s *quantizerState, v *C.uint8_t, text *C.char) C.tq_status {
		return C.tqkv_quantizer_rotate(s.api, s.quantizer, v, C.int64_t(count), (*C.float)(ptr(y)), text)
	})
}

// Unrotate is the inverse: y [count][RotatedDim] into x [count][Dim].
func (q *Quantizer) Unrotate(y []float32, count int, x HostSlice) error {
	return q.turn(x, count, y, func(s *quantizerState, v *C.uint8_t, text *C.char) C.tq_status {
		return C.tqkv_quantizer_unrotate(s.api, s.quantizer, (*C.float)(ptr(y)), C.int64_t(count), v, text)
	})
}

func (q *Quantizer) turn(x HostSlice, count int, y []float32,
	run func(s *quantizerState, v *C.uint8_t, text *C.char) C.tq_status) error {
	v, err := q.vectors("x", x, count)
	if err != nil {
		return err
	}
	if err := checkLength("y", len(y), shape{int64(count), 1, int64(q.RotatedDim())}, 0, 0); err != nil {
		return err
	}
	return q.call(func(s *quantizerState, text *C.char) C.tq_status { return run(s, v, text) })
}

// CalibrateSketchFactor gives the sketch factor of the least squared error over x [count][Dim].
func (q *Quantizer) CalibrateSketchFactor(x HostSlice, count int) (float32, error) {
	v, err := q.vectors("x", x, count)
	if err != nil {
		return 0, err
	}
	var factor C.float
	err = q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_calibrate_sketch_factor(s.api, s.quantizer, v, C.int64_t(count), &factor, text)
	})
	return float32(factor), err
}

// CalibrateLevels gives Lloyd-Max levels of the rotated coordinates of x [count][Dim], and the mean squared
// error of the rotated vectors relative to |x|^2. width: bits of a code, 1 to 8.
func (q *Quantizer) CalibrateLevels(x HostSlice, count, width int) (*Levels, float64, error) {
	v, err := q.vectors("x", x, count)
	if err != nil {
		return nil, 0, err
	}
	if width < 1 || width > 8 {
		return nil, 0, argumentError("width = %d: must be 1 to 8", width)
	}
	var meanError C.double
	made := &Levels{make([]float32, 1<<width), make([]float32, 1<<width-1), 1}
	err = q.call(func(s *quantizerState, text *C.char) C.tq_status {
		return C.tqkv_calibrate_levels(s.api, s.quantizer, v, C.int64_t(count), C.int32_t(width),
			(*C.float)(unsafe.Pointer(&made.Levels[0])), (*C.float)(unsafe.Pointer(&made.Boundaries[0])),
			&meanError, text)
	})
	return made, float64(meanError), err
}
