// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"math"
	"runtime"
	"sync"
)

// PagedStep is one step of an engine: Plan once, then Append and Attend each layer. Steps of one codec may
// run in several goroutines; the calls of one take turns.
type PagedStep struct {
	codec *PagedCodec
	room  *stepRoom
}

// stepRoom is memory of C's: the library keeps addresses in the plan.
type stepRoom struct {
	mutex   sync.Mutex
	c       C.tqkv_step
	planned bool
}

// StepArrays is what an engine says of a step. Plan copies it.
type StepArrays struct {
	// per token its slot, block * block size + place in the block, or -1: not stored. nil: a step without
	// append
	SlotMapping []int64
	// [requests][blocks]; with it go the next two. All nil: a step without attend
	BlockTable    []int32
	SeqLens       []int32 // tokens of each request, new ones included; 0: padding
	QueryStartLoc []int32 // rows of the requests' queries, from 0 on: one entry more than requests
	NumTokens     int64   // rows of q, k and v; 0: len(SlotMapping)
	MaxQueryLen   int32   // no request has more queries; 0: NumTokens
	MaxSeqLen     int32   // no request has more tokens; 0: what the block table has room for at PageSize
}

// NewStep makes room for the plan of one step, which grows with the steps.
func (p *PagedCodec) NewStep() *PagedStep {
	step := &PagedStep{p, &stepRoom{}}
	runtime.AddCleanup(step, func(room *stepRoom) { room.close() }, step.room)
	return step
}

// Close gives the room back. Calling it again does nothing. A step that is not closed is freed some time
// after it became unreachable.
func (s *PagedStep) Close() {
	if s != nil && s.room != nil {
		s.room.close()
	}
}

func (room *stepRoom) close() {
	room.mutex.Lock()
	defer room.mutex.Unlock()
	C.tqkv_step_empty(&room.c)
	room.planned = false
}

func (s *PagedStep) call(call func(c *codecCore, room *stepRoom, text *textBuffer) error) error {
	if s == nil || s.room == nil {
		return argumentError("step: nil, or not made by NewStep")
	}
	defer runtime.KeepAlive(s)
	return s.codec.call(false, func(c *codecCore, text *textBuffer) error {
		s.room.mutex.Lock()
		defer s.room.mutex.Unlock()
		return call(c, s.room, text)
	})
}

// layerCall is call for what follows a plan.
func (s *PagedStep) layerCall(layer int, call func(c *codecCore, room *stepRoom, layer C.int32_t,
	text *textBuffer) error) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return s.call(func(c *codecCore, room *stepRoom, text *textBuffer) error {
		if !room.planned {
			return &Error{ErrInvalidState, "step: no plan was made yet"}
		}
		return call(c, room, l, text)
	})
}

// Plan plans one step.
func (s *PagedStep) Plan(arrays StepArrays) error {
	requests := len(arrays.SeqLens)
	attends := requests > 0 || arrays.BlockTable != nil || arrays.QueryStartLoc != nil
	if attends && len(arrays.QueryStartLoc) != requests+1 {
		return argumentError("query_start_loc: %d entries, %d requests need one more", len(arrays.QueryStartLoc),
			requests)
	}
	columns := 0
	if requests > 0 {
		columns = len(arrays.BlockTable) / requests
	}
	if columns*requests != len(arrays.BlockTable) {
		return argumentError("block_table: %d entries are no rows of %d requests", len(arrays.BlockTable),
			requests)
	}
	slots := int64(len(arrays.SlotMapping))
	if arrays.NumTokens == 0 {
		arrays.NumTokens = slots
	}
	if arrays.NumTokens < 0 || arrays.SlotMapping != nil && arrays.NumTokens != slots {
		return argumentError("num_tokens = %d: slot_mapping has %d entries", arrays.NumTokens, slots)
	}
	count, err := int32Of("len(SeqLens)", requests)
	if err != nil {
		return err
	}
	within := func(most int64) C.int32_t { return C.int32_t(min(most, math.MaxInt32)) }
	return s.call(func(c *codecCore, room *stepRoom, text *textBuffer) error {
		room.planned = false
		step := C.tq_paged_step{num_reqs: count, num_tokens: C.int64_t(arrays.NumTokens),
			max_query_len: C.int32_t(arrays.MaxQueryLen), max_seq_len: C.int32_t(arrays.MaxSeqLen),
			block_table_stride: C.int64_t(columns)}
		if arrays.MaxQueryLen == 0 {
			step.max_query_len = within(arrays.NumTokens)
		}
		if arrays.MaxSeqLen == 0 {
			step.max_seq_len = within(int64(columns) * int64(c.config.PageSize))
		}
		if C.tqkv_step_fill(&room.c, &step, (*C.int64_t)(ptr(arrays.SlotMapping)),
			(*C.int32_t)(ptr(arrays.BlockTable)), (*C.int32_t)(ptr(arrays.SeqLens)),
			(*C.int32_t)(ptr(arrays.QueryStartLoc))) != 0 {
			return &Error{ErrOutOfMemory, "step: no memory for its arrays"}
		}
		err := text.result(C.tqkv_paged_plan(c.api, c.codec, &room.c, text.c()))
		room.planned = err == nil
		return err
	})
}

// Append encodes k, [tokens][NumKVHeads][HeadDim] in the codec's type, and v, likewise with ValueDim, into
// their slots.
func (s *PagedStep) Append(layer int, pages *Pages, k, v HostSlice) error {
	return s.layerCall(layer, func(c *codecCore, room *stepRoom, layer C.int32_t, text *textBuffer) error {
		kMemory, vMemory, err := c.checkKV(layer, k, v, int64(room.c.step.num_tokens), Layout{})
		if err != nil {
			return err
		}
		raw, base, err := pages.c(c, layer, text)
		if err != nil {
			return err
		}
		dense := Layout{}.c()
		err = text.result(C.tqkv_paged_append(c.api, c.codec, layer, &raw, base, &room.c, (*C.uint8_t)(kMemory),
			(*C.uint8_t)(vMemory), &dense, text.c()))
		runtime.KeepAlive(pages)
		runtime.KeepAlive(kMemory)
		runtime.KeepAlive(vMemory)
		return err
	})
}

// Attend is attention of the step's queries on the blocks: q is [tokens][NumQHeads][HeadDim] in the codec's
// type, out [tokens][NumQHeads][ValueDim] in the codec's type or float32, lse [tokens][NumQHeads] or nil;
// params as for [Cache.Attend], without Workspace. Rows of padding: out 0, lse -Inf.
func (s *PagedStep) Attend(layer int, pages *Pages, q, out HostSlice, lse []float32,
	params *AttendParams) error {
	p := params.copied()
	return s.layerCall(layer, func(c *codecCore, room *stepRoom, layer C.int32_t, text *textBuffer) error {
		if p.Workspace != nil {
			return argumentError("params.Workspace: a step has its own")
		}
		memory, err := c.checkAttend(layer, int64(room.c.step.num_tokens), q, out, lse, &p)
		if err != nil {
			return err
		}
		raw, base, err := pages.c(c, layer, text)
		if err != nil {
			return err
		}
		rawParams := p.c()
		rawParams.out_dtype = C.int32_t(memory.outDtype)
		err = text.result(C.tqkv_paged_attend(c.api, c.codec, layer, &raw, base, &room.c, &rawParams,
			(*C.uint8_t)(memory.q), (*C.uint8_t)(memory.out), (*C.float)(ptr(lse)), (*C.float)(ptr(p.SinkLogits)),
			(*C.int32_t)(ptr(p.VisibleBegin)), (*C.int32_t)(ptr(p.VisibleEnd)), (*C.uint64_t)(ptr(p.TreeMask)),
			(*C.float)(ptr(p.AlibiSlopes)), text.c()))
		runtime.KeepAlive(pages)
		runtime.KeepAlive(memory)
		runtime.KeepAlive(lse)
		runtime.KeepAlive(p)
		return err
	})
}
