// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import "unsafe"

// geometry is shapes and types of a cache's or a codec's layers, by which slices are checked.
type geometry struct {
	config Config // resolved
}

// layer is the resolved layer of that number; where there is none all zeros, which no slice is too short for:
// the library refuses it with its own text.
func (g *geometry) layer(number C.int32_t) LayerConfig {
	if number < 0 || int(number) >= len(g.config.Layers) {
		return LayerConfig{}
	}
	return g.config.Layers[number]
}

// checkCentres checks the lengths of centres.
func (g *geometry) checkCentres(layer C.int32_t, key, value []float32) error {
	has := g.layer(layer)
	for _, side := range []struct {
		name   string
		centre []float32
		dim    int32
	}{{"key_centre", key, has.HeadDim}, {"value_centre", value, has.ValueDim}} {
		if side.centre == nil {
			continue
		}
		one := shape{1, int64(has.NumKVHeads), int64(side.dim)}
		if err := checkLength(side.name, len(side.centre), one, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// checkKeyMatrix checks the length of the matrices of keys.
func (g *geometry) checkKeyMatrix(layer C.int32_t, matrix []float32) error {
	has := g.layer(layer)
	return checkKeyMatrix(matrix, has.NumKVHeads, has.HeadDim)
}

func checkKeyMatrix(matrix []float32, heads, dim int32) error {
	return checkLength("matrix", len(matrix), shape{int64(heads), int64(dim), int64(dim)}, 0, 0)
}

// checkHost says whether slices of this type may be used with the cache.
func (g *geometry) checkHost(name string, dtype Dtype) error {
	if g.config.DeviceType != CPU {
		return argumentError("%s: slices are host memory, but the cache is on a device; use the method "+
			"ending in Device", name)
	}
	if dtype != g.config.IODtype {
		return argumentError("%s: of type %d, but the cache has io_dtype = %d", name, dtype, g.config.IODtype)
	}
	return nil
}

// checkKV checks k and v of append and read and returns their addresses. A slice is asked for its memory
// once, so that what was checked is what C gets.
func (g *geometry) checkKV(layer C.int32_t, k, v HostSlice, tokens int64, layout Layout) (kMemory,
	vMemory unsafe.Pointer, err error) {
	has := g.layer(layer)
	for _, side := range []struct {
		name                    string
		slice                   HostSlice
		dim                     int32
		tokenStride, headStride int64
		memory                  *unsafe.Pointer
	}{
		{"k", k, has.HeadDim, layout.KeyTokenStride, layout.KeyHeadStride, &kMemory},
		{"v", v, has.ValueDim, layout.ValueTokenStride, layout.ValueHeadStride, &vMemory},
	} {
		if side.slice == nil {
			continue // the library says where that is not allowed
		}
		memory, length, dtype := side.slice.host()
		if err := g.checkHost(side.name, dtype); err != nil {
			return nil, nil, err
		}
		s := shape{tokens, int64(has.NumKVHeads), int64(side.dim)}
		if err := checkLength(side.name, length, s, side.tokenStride, side.headStride); err != nil {
			return nil, nil, err
		}
		*side.memory = memory
	}
	return kMemory, vMemory, nil
}

// attendMemory is what checkAttend has checked.
type attendMemory struct {
	q, out   unsafe.Pointer
	outDtype Dtype
}

func (g *geometry) checkAttend(layer C.int32_t, tokens int64, q, out HostSlice, lse []float32,
	params *AttendParams) (attendMemory, error) {
	if q == nil || out == nil {
		return attendMemory{}, argumentError("q, out: must not be nil")
	}
	qMemory, qLength, qDtype := q.host()
	outMemory, outLength, outDtype := out.host()
	memory := attendMemory{qMemory, outMemory, outDtype}
	if err := g.checkHost("q", qDtype); err != nil {
		return memory, err
	}
	if params.OutDtype != 0 && params.OutDtype != outDtype {
		return memory, argumentError("out_dtype = %d: out is a slice of type %d", params.OutDtype, outDtype)
	}
	if outDtype != g.config.IODtype && outDtype != Float32 {
		return memory, argumentError("out: of type %d, must be the cache's type %d or float32", outDtype,
			g.config.IODtype)
	}
	has := g.layer(layer)
	heads := int64(has.NumQHeads)
	s := shape{tokens, heads, int64(has.HeadDim)}
	if err := checkLength("q", qLength, s, params.QTokenStride, params.QHeadStride); err != nil {
		return memory, err
	}
	s.dim = int64(has.ValueDim)
	if err := checkLength("out", outLength, s, params.OutTokenStride, params.OutHeadStride); err != nil {
		return memory, err
	}
	if lse != nil {
		if err := checkLength("lse", len(lse), shape{tokens, heads, 1}, 0, 0); err != nil {
			return memory, err
		}
	}
	words := int64(min(max(params.TreeWords, 1), 2))
	for _, array := range []struct {
		name    string
		given   bool
		length  int
		rows, n int64
	}{
		{"sink_logits", params.SinkLogits != nil, len(params.SinkLogits), 1, heads},
		{"visible_begin", params.VisibleBegin != nil, len(params.VisibleBegin), tokens, 1},
		{"visible_end", params.VisibleEnd != nil, len(params.VisibleEnd), tokens, 1},
		{"tree_mask", params.TreeMask != nil, len(params.TreeMask), tokens, words},
		{"alibi_slopes", params.AlibiSlopes != nil, len(params.AlibiSlopes), 1, heads},
	} {
		if !array.given {
			continue
		}
		if err := checkLength(array.name, array.length, shape{array.rows, array.n, 1}, 0, 0); err != nil {
			return memory, err
		}
	}
	return memory, nil
}
