// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include <stdlib.h>
// #include "shim.h"
// #cgo noescape tqkv_paged_append
// #cgo noescape tqkv_paged_attend
// #cgo noescape tqkv_paged_read
// #cgo nocallback tqkv_paged_append
// #cgo nocallback tqkv_paged_attend
// #cgo nocallback tqkv_paged_read
import "C"

import (
	"math"
	"runtime"
	"sync"
	"unsafe"
)

// PagedCodec is shapes, codes, rotations and centres of a model's layers; neither pages nor sequences. An
// engine that owns its pages (block tables, slot mappings) attends on them through it, on the CPU. Steps may
// run in several goroutines side by side; SetCentres, Check and Close wait until nothing runs.
type PagedCodec struct{ core *codecCore }

type codecCore struct {
	mutex   sync.RWMutex // for writing: what must run alone
	library *Library
	api     *C.tqkv_api
	codec   *C.tq_codec // nil once closed
	geometry
}

// NewPagedCodec makes a codec. PageSize is the block size where none is given; what says how many tokens or
// sequences there are must be 0, and so must WindowTokens, SinkTokens and RollbackTokens.
func (l *Library) NewPagedCodec(config *Config) (*PagedCodec, error) {
	api, err := l.table()
	if err != nil {
		return nil, err
	}
	p, err := config.parts()
	if err != nil {
		return nil, err
	}
	defer p.unpin()
	c := &codecCore{library: l, api: api}
	var text textBuffer
	if err := text.result(C.tqkv_codec_create(api, &p.config, p.layerKeyBits, p.layerValueBits, p.layers,
		p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool, 0, &c.codec, text.c())); err != nil {
		return nil, err
	}
	codec := &PagedCodec{c}
	if c.config, err = codec.Config(); err != nil {
		c.close()
		return nil, err
	}
	runtime.AddCleanup(codec, func(c *codecCore) { c.close() }, c)
	return codec, nil
}

// Close frees the codec; pages are the caller's and stay. Calling it again does nothing. A codec that is not
// closed is freed some time after it became unreachable.
func (p *PagedCodec) Close() error {
	if p == nil || p.core == nil {
		return argumentError("codec: nil, or not made by NewPagedCodec")
	}
	return p.core.close()
}

func (c *codecCore) close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.codec == nil {
		return nil
	}
	var text textBuffer
	err := text.result(C.tqkv_codec_destroy(c.api, c.codec, text.c()))
	c.codec = nil
	return err
}

// call runs a call of the library, alone or beside others.
func (p *PagedCodec) call(alone bool, call func(c *codecCore, text *textBuffer) error) error {
	if p == nil || p.core == nil {
		return argumentError("codec: nil, or not made by NewPagedCodec")
	}
	defer runtime.KeepAlive(p)
	c := p.core
	if alone {
		c.mutex.Lock()
		defer c.mutex.Unlock()
	} else {
		c.mutex.RLock()
		defer c.mutex.RUnlock()
	}
	if c.codec == nil {
		return &Error{ErrInvalidState, "codec: is closed"}
	}
	return call(c, new(textBuffer))
}

// Config is the configuration with every default resolved; what must be 0 is.
func (p *PagedCodec) Config() (config Config, err error) {
	err = p.call(false, func(c *codecCore, text *textBuffer) error {
		var raw C.tq_cache_config
		err := text.result(C.tqkv_codec_get_config(c.api, c.codec, &raw, text.c()))
		if err == nil {
			config = configOf(&raw)
		}
		return err
	})
	return
}

// Fingerprint is equal to that of a cache of the same layers and PageSize, whose pages hold the same bytes.
func (p *PagedCodec) Fingerprint() (fingerprint uint64, err error) {
	err = p.call(false, func(c *codecCore, text *textBuffer) error {
		var raw C.uint64_t
		err := text.result(C.tqkv_codec_fingerprint(c.api, c.codec, &raw, text.c()))
		fingerprint = uint64(raw)
		return err
	})
	return
}

// Check is what was noticed since the last check, which is cleared.
func (p *PagedCodec) Check() (noticed Noticed, err error) {
	err = p.call(true, func(c *codecCore, text *textBuffer) error {
		var flags C.uint64_t
		err := text.result(C.tqkv_codec_check(c.api, c.codec, 0, &flags, text.c()))
		noticed = Noticed(flags)
		return err
	})
	return
}

// SetCentres is as [Cache.SetCentres]. Blocks that were written before mean something else afterwards.
func (p *PagedCodec) SetCentres(layer int, key, value []float32) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return p.call(true, func(c *codecCore, text *textBuffer) error {
		if err := c.checkCentres(l, key, value); err != nil {
			return err
		}
		return text.result(C.tqkv_codec_set_centres(c.api, c.codec, l, (*C.float)(ptr(key)),
			(*C.float)(ptr(value)), text.c()))
	})
}

// PageOrder says how the blocks of a layer lie.
type PageOrder int32

// Orders of blocks.
const (
	BlocksFirst PageOrder = C.TQ_PAGES_BLOCKS_FIRST // [blocks][heads][bytes]
	HeadsFirst  PageOrder = C.TQ_PAGES_HEADS_FIRST  // [heads][blocks][bytes]
)

// PageLayout is the sizes of blocks, in bytes.
type PageLayout struct {
	Alignment      int32 // of the memory and of both strides
	BlockBytes     int64 // of a block, all kv heads
	BlockHeadBytes int64 // of one of its kv heads
	TokenBytes     int64 // a token's share of BlockBytes
	BlockStride    int64 // from one block to the next
	HeadStride     int64 // from one kv head to the next
	TotalBytes     int64 // of all blocks
}

// PageLayout is the sizes of numBlocks blocks of a layer; blockSize 0: the codec's PageSize.
func (p *PagedCodec) PageLayout(layer int, blockSize int32, numBlocks int64,
	order PageOrder) (layout PageLayout, err error) {
	l, err := int32Of("layer", layer)
	if err != nil {
		return layout, err
	}
	err = p.call(false, func(c *codecCore, text *textBuffer) (err error) {
		layout, err = c.pageLayout(l, blockSize, numBlocks, order, text)
		return err
	})
	return layout, err
}

func (c *codecCore) pageLayout(layer C.int32_t, blockSize int32, numBlocks int64, order PageOrder,
	text *textBuffer) (PageLayout, error) {
	var raw C.tq_page_layout
	err := text.result(C.tqkv_codec_page_layout(c.api, c.codec, layer, C.int32_t(blockSize),
		C.int64_t(numBlocks), C.int32_t(order), &raw, text.c()))
	return PageLayout{int32(raw.alignment), int64(raw.block_bytes), int64(raw.block_head_bytes),
		int64(raw.token_bytes), int64(raw.block_stride), int64(raw.head_stride), int64(raw.total_bytes)}, err
}

// Pages is blocks of one layer in memory of the caller's. Who appends to them must be the only one to use
// their tiles meanwhile.
type Pages struct {
	Memory    []byte    // begins at a multiple of the layout's Alignment, as Allocate's does
	BlockSize int32     // 0 = the codec's PageSize
	Order     PageOrder // 0 = BlocksFirst
}

// Allocate makes memory for so many blocks of a layer, of zeros.
func (p *PagedCodec) Allocate(layer int, numBlocks int64, blockSize int32, order PageOrder) (*Pages, error) {
	layout, err := p.PageLayout(layer, blockSize, numBlocks, max(order, BlocksFirst))
	if err != nil {
		return nil, err
	}
	alignment := int64(layout.Alignment)
	if layout.TotalBytes > math.MaxInt64-alignment || int64(int(layout.TotalBytes)) != layout.TotalBytes {
		return nil, argumentError("numBlocks = %d: too many", numBlocks)
	}
	memory := make([]byte, layout.TotalBytes+alignment)
	skip := -int64(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))) & (alignment - 1)
	end := skip + layout.TotalBytes
	return &Pages{memory[skip:end:end], blockSize, order}, nil
}

// c is the blocks that are whole in the memory, laid out as the layer needs them.
func (pages *Pages) c(c *codecCore, layer C.int32_t, text *textBuffer) (raw C.tq_pages, base *C.uint8_t,
	err error) {
	if pages == nil {
		return raw, nil, argumentError("pages: nil")
	}
	order := max(pages.Order, BlocksFirst)
	layout, err := c.pageLayout(layer, pages.BlockSize, 0, order, text)
	if err != nil {
		return raw, nil, err
	}
	blocks := int64(0)
	if layout.BlockBytes > 0 {
		blocks = int64(len(pages.Memory)) / layout.BlockBytes
	}
	if layout, err = c.pageLayout(layer, pages.BlockSize, blocks, order, text); err != nil {
		return raw, nil, err
	}
	return C.tq_pages{block_size: C.int32_t(pages.BlockSize), num_blocks: C.int64_t(blocks),
			block_stride: C.int64_t(layout.BlockStride), head_stride: C.int64_t(layout.HeadStride)},
		(*C.uint8_t)(ptr(pages.Memory)), nil
}

// Read decodes keys and values of slots; -1: a row of zeros. k is [len(slots)][NumKVHeads][HeadDim] in the
// codec's type, v likewise with ValueDim; either may be nil.
func (p *PagedCodec) Read(layer int, pages *Pages, slots []int64, k, v HostSlice) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return p.call(false, func(c *codecCore, text *textBuffer) error {
		kMemory, vMemory, err := c.checkKV(l, k, v, int64(len(slots)), Layout{})
		if err != nil {
			return err
		}
		raw, base, err := pages.c(c, l, text)
		if err != nil {
			return err
		}
		dense := Layout{}.c()
		err = text.result(C.tqkv_paged_read(c.api, c.codec, l, &raw, base, (*C.int64_t)(ptr(slots)),
			C.int64_t(len(slots)), (*C.uint8_t)(kMemory), (*C.uint8_t)(vMemory), &dense, text.c()))
		runtime.KeepAlive(pages)
		runtime.KeepAlive(kMemory)
		runtime.KeepAlive(vMemory)
		return err
	})
}

// Copy copies blocks: pairs[i][0] of source to pairs[i][1] of target, which may be the same pages; a pair
// with a -1 is left out. No block may be a target and in another pair.
func (p *PagedCodec) Copy(layer int, source, target *Pages, pairs [][2]int64) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return p.call(false, func(c *codecCore, text *textBuffer) error {
		from, fromBase, err := source.c(c, l, text)
		if err != nil {
			return err
		}
		to, toBase, err := target.c(c, l, text)
		if err != nil {
			return err
		}
		return text.result(C.tqkv_paged_copy(c.api, c.codec, l, &from, fromBase, &to, toBase,
			(*C.int64_t)(ptr(pairs)), C.int64_t(len(pairs)), text.c()))
	})
}
