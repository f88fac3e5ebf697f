// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
// #cgo noescape tqkv_cache_append
// #cgo noescape tqkv_cache_attend
// #cgo noescape tqkv_cache_read
// #cgo nocallback tqkv_cache_append
// #cgo nocallback tqkv_cache_attend
// #cgo nocallback tqkv_cache_read
import "C"

import (
	"runtime"
)

// AttendParams are the parameters of attention; zero means the default throughout, nil is plain causal
// attention.
type AttendParams struct {
	OutDtype      Dtype     // for AttendDevice; 0 = IODtype. On slices it follows from out
	SoftmaxScale  float32   // 0 = 1 / sqrt(HeadDim)
	LogitSoftcap  float32   // c: logits become c * tanh(logit / c); 0 = off
	SlidingWindow int64     // tokens that a query sees, its own included; 0 = all
	SinkLogits    []float32 // one per query head, added to the softmax's sum only; for Attend
	HistoryOnly   bool      // leave out the new tokens, for a caller that attends them and merges by lse
	// One number per query token, both or neither: it sees the tokens begin .. end - 1 that are there, those
	// behind its own included. These and the masks below are for Attend; for a device see DeviceAttend.
	VisibleBegin, VisibleEnd []int32
	// TreeWords words per query token: bit j % 64 of word j / 64 says whether it sees the j-th of the plan's
	// new tokens of its sequence
	TreeMask       []uint64
	TreeWords      int32     // 1 or 2; 0 = 1
	AlibiSlopes    []float32 // one per query head: slope * (token - query position) is added to the logits
	QTokenStride   int64     // elements, 0 = dense [token][q head][dim]
	QHeadStride    int64
	OutTokenStride int64
	OutHeadStride  int64
	// nil = the cache's own, else Cache.AttendWorkspaceBytes, at a multiple of 256 bytes; for Attend
	Workspace []byte
}

// copied is the parameters, the defaults for nil. What is checked is what C gets, whatever happens to the
// caller's meanwhile.
func (p *AttendParams) copied() AttendParams {
	if p == nil {
		return AttendParams{}
	}
	return *p
}

func (p *AttendParams) c() C.tq_attend_params {
	raw := C.tq_attend_params{
		out_dtype: C.int32_t(p.OutDtype), softmax_scale: C.float(p.SoftmaxScale),
		logit_softcap: C.float(p.LogitSoftcap), sliding_window: C.int64_t(p.SlidingWindow),
		q_token_stride: C.int64_t(p.QTokenStride), q_head_stride: C.int64_t(p.QHeadStride),
		out_token_stride: C.int64_t(p.OutTokenStride), out_head_stride: C.int64_t(p.OutHeadStride),
		tree_words: C.int32_t(p.TreeWords),
	}
	if p.HistoryOnly {
		raw.history_only = 1
	}
	return raw
}

// DeviceAttend is the memory of [Cache.AttendDevice], on the cache's device.
type DeviceAttend struct {
	Q              DevicePtr // [query tokens][NumQHeads][HeadDim] of IODtype
	Out            DevicePtr // [query tokens][NumQHeads][ValueDim] of OutDtype
	LSE            DevicePtr // [query tokens][NumQHeads] float32, or 0
	SinkLogits     DevicePtr // [NumQHeads] float32, or 0
	VisibleBegin   DevicePtr // [query tokens] int32, or 0; with VisibleEnd
	VisibleEnd     DevicePtr
	TreeMask       DevicePtr // [query tokens][TreeWords of the parameters] uint64, or 0
	AlibiSlopes    DevicePtr // [NumQHeads] float32, or 0
	ChunkK         DevicePtr // keys of the plan's new tokens, dense, instead of their codes; 0: by their codes
	ChunkV         DevicePtr
	Workspace      DevicePtr // 0 = the cache's own, else Cache.AttendWorkspaceBytes, 256-byte aligned
	WorkspaceBytes int
}

// Append encodes the new tokens of the batch into one layer of a CPU cache. k is [new
// tokens][NumKVHeads][HeadDim] in the cache's type, v likewise with ValueDim: the new tokens of all sequences
// of the plan one after the other. Slices may be longer. layout nil = dense. RoPE is applied before.
func (c *Cache) Append(layer int, batch *Batch, k, v HostSlice, layout *Layout) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	strides := layout.copied()
	return batch.locked(c, func(c *core, raw *C.tq_batch) error {
		rows, err := c.rows(raw)
		if err != nil {
			return err
		}
		kMemory, vMemory, err := c.checkKV(l, k, v, rows.NewTokens, strides)
		if err != nil {
			return err
		}
		layout := strides.c()
		err = c.text.result(C.tqkv_cache_append(c.api, c.cache, l, raw, (*C.uint8_t)(kMemory),
			(*C.uint8_t)(vMemory), 0, 0, &layout, 0, c.text.c()))
		runtime.KeepAlive(kMemory)
		runtime.KeepAlive(vMemory)
		return err
	})
}

// AppendDevice is [Cache.Append] of device memory. It must not be written to until the stream has passed this
// call.
func (c *Cache) AppendDevice(layer int, batch *Batch, k, v DevicePtr, layout *Layout, stream Stream) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	strides := layout.copied()
	return batch.locked(c, func(c *core, raw *C.tq_batch) error {
		layout := strides.c()
		return c.text.result(C.tqkv_cache_append(c.api, c.cache, l, raw, nil, nil, C.uintptr_t(k),
			C.uintptr_t(v), &layout, C.uintptr_t(stream), c.text.c()))
	})
}

// Attend computes out = softmax(q . K^T * scale) . V for the query tokens of the batch, on a CPU cache; each
// query sees the tokens up to its own.
//
// q is [query tokens][NumQHeads][HeadDim] in the cache's type, out [query tokens][NumQHeads][ValueDim] in the
// cache's type or float32, lse [query tokens][NumQHeads] or nil: the natural logarithm of the softmax's sum,
// sink logit included. Slices may be longer. A query that sees no token: out exactly 0, lse -Inf (with a sink
// logit: that logit).
func (c *Cache) Attend(layer int, batch *Batch, q, out HostSlice, lse []float32, params *AttendParams) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	p := params.copied()
	return batch.locked(c, func(c *core, raw *C.tq_batch) error {
		rows, err := c.rows(raw)
		if err != nil {
			return err
		}
		memory, err := c.checkAttend(l, rows.QueryTokens, q, out, lse, &p)
		if err != nil {
			return err
		}
		rawParams := p.c()
		rawParams.out_dtype = C.int32_t(memory.outDtype)
		err = c.text.result(C.tqkv_cache_attend(c.api, c.cache, l, raw, &rawParams, (*C.uint8_t)(memory.q),
			(*C.uint8_t)(memory.out), (*C.float)(ptr(lse)), (*C.float)(ptr(p.SinkLogits)),
			(*C.int32_t)(ptr(p.VisibleBegin)), (*C.int32_t)(ptr(p.VisibleEnd)), (*C.uint64_t)(ptr(p.TreeMask)),
			(*C.float)(ptr(p.AlibiSlopes)), (*C.uint8_t)(ptr(p.Workspace)), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
			C.size_t(len(p.Workspace)), 0, c.text.c()))
		runtime.KeepAlive(memory)
		runtime.KeepAlive(lse)
		runtime.KeepAlive(p)
		return err
	})
}

// AttendDevice is [Cache.Attend] on device memory. The inputs must not be written to, the outputs and the
// workspace not used at all, until the stream has passed this call.
func (c *Cache) AttendDevice(layer int, batch *Batch, memory DeviceAttend, params *AttendParams,
	stream Stream) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	p := params.copied()
	if p.SinkLogits != nil || p.Workspace != nil || p.VisibleBegin != nil || p.VisibleEnd != nil ||
		p.TreeMask != nil || p.AlibiSlopes != nil {
		return argumentError("params.SinkLogits, params.VisibleBegin, params.VisibleEnd, params.TreeMask, " +
			"params.AlibiSlopes, params.Workspace: host slices; for a device use those of DeviceAttend")
	}
	return batch.locked(c, func(c *core, raw *C.tq_batch) error {
		rawParams := p.c()
		return c.text.result(C.tqkv_cache_attend(c.api, c.cache, l, raw, &rawParams, nil, nil, nil, nil, nil, nil,
			nil, nil, nil, C.uintptr_t(memory.Q), C.uintptr_t(memory.Out), C.uintptr_t(memory.LSE),
			C.uintptr_t(memory.SinkLogits), C.uintptr_t(memory.VisibleBegin), C.uintptr_t(memory.VisibleEnd),
			C.uintptr_t(memory.TreeMask), C.uintptr_t(memory.AlibiSlopes), C.uintptr_t(memory.ChunkK),
			C.uintptr_t(memory.ChunkV), C.uintptr_t(memory.Workspace),
			C.size_t(memory.WorkspaceBytes), C.uintptr_t(stream), c.text.c()))
	})
}

// Read decodes keys and values of count tokens of a sequence of a CPU cache, from token first, exact where
// exact copies are kept. k is [count][NumKVHeads][HeadDim] in the cache's type, v likewise with ValueDim;
// either may be nil. Slices may be longer. layout nil = dense.
func (c *Cache) Read(layer int, sequence Sequence, first, count int64, k, v HostSlice, layout *Layout) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	strides := layout.copied()
	return c.locked(func(c *core) error {
		kMemory, vMemory, err := c.checkKV(l, k, v, count, strides)
		if err != nil {
			return err
		}
		layout := strides.c()
		err = c.text.result(C.tqkv_cache_read(c.api, c.cache, l, C.int64_t(sequence), C.int64_t(first),
			C.int64_t(count), (*C.uint8_t)(kMemory), (*C.uint8_t)(vMemory), 0, 0, &layout, 0, c.text.c()))
		runtime.KeepAlive(kMemory)
		runtime.KeepAlive(vMemory)
		return err
	})
}

// ReadDevice is [Cache.Read] into device memory; either pointer may be 0.
func (c *Cache) ReadDevice(layer int, sequence Sequence, first, count int64, k, v DevicePtr, layout *Layout,
	stream Stream) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	strides := layout.copied()
	return c.locked(func(c *core) error {
		layout := strides.c()
		return c.text.result(C.tqkv_cache_read(c.api, c.cache, l, C.int64_t(sequence), C.int64_t(first),
			C.int64_t(count), nil, nil, C.uintptr_t(k), C.uintptr_t(v), &layout, C.uintptr_t(stream),
			c.text.c()))
	})
}
