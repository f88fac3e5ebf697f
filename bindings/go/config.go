// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"
)

// Codebook is a codebook of the caller's own: 2^(Bits-1) magnitudes, rising, on the int8 grid; a level is
// Unit times the magnitude, for coordinates of unit variance. Bits up to 3: magnitudes are 1 to 127. From 4:
// a magnitude m of 0 to 127 stands for m + 1/2.
type Codebook struct {
	Bits      int32 // 2 to 6
	Unit      float32
	Magnitude []uint8
}

// Allocator holds the addresses of C functions as tq_allocator in tqkv.h describes; both or neither.
type Allocator struct {
	User, Alloc, Free uintptr
}

// LayerConfig is one layer of a cache whose layers differ; what is 0 stands for the cache's own value.
type LayerConfig struct {
	NumQHeads     int32
	NumKVHeads    int32
	HeadDim       int32
	ValueDim      int32 // 0 = the cache's, and without one HeadDim
	KeyBits       int32
	ValueBits     int32
	KeyFamily     CodeFamily
	ValueFamily   CodeFamily
	Rotation      Rotation
	SlidingWindow int32 // tokens that a query sees, its own included; 0 = all
	SharesLayer   int32 // 0 = tokens of its own; else 1 + the earlier layer whose tokens it attends to
	FirstKVHead   int32 // as Config's, for ranks whose layers hold different numbers of heads
	GroupSize     int32
	LayerKind     LayerKind // 0 = the cache's
	KeyLevels     *Levels   // of CodeLevels keys; nil = the cache's
	ValueLevels   *Levels
	KeyBands      *KeyBands // KeyBits is then 0; nil = all of a key alike
}

// KeyBands are keys in bands of 32 coordinates, each with a width, a rotation and a scale of its own.
type KeyBands struct {
	Bits  []int32 // of each band: 1 .. 6, none above the one before
	Order []int32 // [kv heads][head dim]: the coordinate at each place, band 0 first; nil = as they are
}

// Config is what a cache is to be. Zero means the default throughout, so that only the required fields need
// be set.
type Config struct {
	DeviceType     DeviceType // 0 = CPU
	DeviceID       int32
	NumLayers      int32 // required; 0 = as many as Layers
	NumQHeads      int32 // a multiple of NumKVHeads; it and the next two: required unless Layers have their own
	NumKVHeads     int32
	HeadDim        int32 // a multiple of 4 from 8 to 256, 512 or 576
	ValueDim       int32 // 0 = HeadDim; same list
	IODtype        Dtype // required: type of k, v, q and out
	KeyBits        int32 // 1 2 3 4 5 6 8, or 16 = raw; required unless LayerKeyBits is given
	ValueBits      int32
	CodeFamily     CodeFamily // 0 = scalar
	LayerKeyBits   []int32    // NumLayers of them or none; override KeyBits where not 0
	LayerValueBits []int32
	Rotation       Rotation  // 0 = Hadamard
	KeyScaleRule   ScaleRule // 0 = unbiased
	ValueScaleRule ScaleRule // 0 = unbiased
	PageSize       int32     // tokens, a multiple of 32, at most 4096; 0 = 64
	RotationSeed   uint64    // any value
	// numbers in the whole model of this cache's layer 0 and kv head 0: rotations follow them, so that a rank
	// stores the bytes that one device stores
	FirstLayer        int32
	FirstKVHead       int32
	KeyCodebook       *Codebook // nil = built in; used by coded layers of exactly its bits
	ValueCodebook     *Codebook
	MaxTokens         int64 // required: tokens that the pool holds over all sequences, whatever their lengths
	MaxReserveTokens  int64 // what Reserve may raise it to; 0 = MaxTokens, no growth
	MaxSequenceTokens int64 // longest sequence; 0 = MaxReserveTokens
	MaxSequences      int32 // 0 = 1
	MaxBatchSequences int32 // sequences in one plan; 0 = MaxSequences
	MaxBatchTokens    int64 // new tokens, and query tokens, in one plan, each; 0 = MaxTokens
	MaxRawTokens      int64 // exact copies that there is room for, over all sequences; 0 = see tqkv.h
	WindowTokens      int32 // last tokens of a sequence that are read exactly, from raw copies
	SinkTokens        int32 // first tokens likewise
	// raw copies kept behind the window, so that Truncate by up to this many keeps the window whole
	RollbackTokens int32
	NumThreads     int32 // CPU: 0 = all that the process may use, 1 = the caller's thread only
	Flags          uint64
	Allocator      Allocator // zero = the library's own
	// memory for the pages on the cache's device, not of Go's, 256-byte aligned; 0 = none
	Pool         DevicePtr
	PoolBytes    int64         // at least Bytes.PageBytes if there is a pool
	Layers       []LayerConfig // NumLayers of them, where layers differ; or none
	KeyFamily    CodeFamily    // 0 = CodeFamily
	ValueFamily  CodeFamily
	GroupSize    int32      // of CodeGrouped: 16 32 64; 0 = 32
	Sketch       Sketch     // of CodeProd keys; 0 = orthogonal
	SketchRule   SketchRule // 0 = unbiased
	SketchFactor float32    // 0 = by SketchRule
	// what the layers' tokens are; 0 = keys and values. LayerLatent: keys whose first ValueDim coordinates
	// are the values too, appended with v nil
	LayerKind   LayerKind
	KeyLevels   *Levels // of CodeLevels keys, of KeyBits bits; nil where Layers have their own
	ValueLevels *Levels
}

// configParts is a configuration as the shim wants it, until unpin. What the pointers point to is held by it
// or by the Config; what C memory points to is pinned.
type configParts struct {
	pinner                       runtime.Pinner
	config                       C.tq_cache_config
	layerKeyBits, layerValueBits *C.int32_t
	layers                       *C.tq_layer_config
	keyCodebook, valueCodebook   *C.tq_codebook
	user, alloc, free, pool      C.uintptr_t
}

func (config *Config) parts() (*configParts, error) {
	if config == nil {
		return nil, argumentError("config = nil")
	}
	c := *config // what is checked is what C gets, whatever happens to the caller's meanwhile
	if c.NumLayers == 0 {
		c.NumLayers = int32(min(len(c.Layers), math.MaxInt32))
	}
	for _, list := range []struct {
		name    string
		entries int
	}{{"layer_key_bits", len(c.LayerKeyBits)}, {"layer_value_bits", len(c.LayerValueBits)},
		{"layers", len(c.Layers)}} {
		if list.entries != 0 && list.entries != int(c.NumLayers) {
			return nil, argumentError("%s: %d entries, but num_layers = %d", list.name, list.entries,
				c.NumLayers)
		}
	}
	keyBook, err := c.KeyCodebook.c("key_codebook")
	if err != nil {
		return nil, err
	}
	valueBook, err := c.ValueCodebook.c("value_codebook")
	if err != nil {
		return nil, err
	}
	p := &configParts{
		config: C.tq_cache_config{
			device_type: C.int32_t(c.DeviceType), device_id: C.int32_t(c.DeviceID),
			num_layers: C.int32_t(c.NumLayers), num_q_heads: C.int32_t(c.NumQHeads),
			num_kv_heads: C.int32_t(c.NumKVHeads), head_dim: C.int32_t(c.HeadDim),
			value_dim: C.int32_t(c.ValueDim), io_dtype: C.int32_t(c.IODtype),
			key_bits: C.int32_t(c.KeyBits), value_bits: C.int32_t(c.ValueBits),
			code_family: C.int32_t(c.CodeFamily), rotation: C.int32_t(c.Rotation),
			key_scale_rule: C.int32_t(c.KeyScaleRule), value_scale_rule: C.int32_t(c.ValueScaleRule),
			page_size: C.int32_t(c.PageSize), rotation_seed: C.uint64_t(c.RotationSeed),
			first_layer: C.int32_t(c.FirstLayer), first_kv_head: C.int32_t(c.FirstKVHead),
			max_tokens: C.int64_t(c.MaxTokens), max_reserve_tokens: C.int64_t(c.MaxReserveTokens),
			max_sequence_tokens: C.int64_t(c.MaxSequenceTokens),
			max_sequences:       C.int32_t(c.MaxSequences), max_batch_sequences: C.int32_t(c.MaxBatchSequences),
			max_batch_tokens: C.int64_t(c.MaxBatchTokens), max_raw_tokens: C.int64_t(c.MaxRawTokens),
			window_tokens: C.int32_t(c.WindowTokens), sink_tokens: C.int32_t(c.SinkTokens),
			rollback_tokens: C.int32_t(c.RollbackTokens), num_threads: C.int32_t(c.NumThreads),
			flags: C.uint64_t(c.Flags), pool_bytes: C.int64_t(c.PoolBytes),
			key_family: C.int32_t(c.KeyFamily), value_family: C.int32_t(c.ValueFamily),
			group_size: C.int32_t(c.GroupSize), sketch: C.int32_t(c.Sketch),
			sketch_rule: C.int32_t(c.SketchRule), sketch_factor: C.float(c.SketchFactor),
			layer_kind: C.int32_t(c.LayerKind),
		},
		layerKeyBits:   (*C.int32_t)(ptr(c.LayerKeyBits)),
		layerValueBits: (*C.int32_t)(ptr(c.LayerValueBits)),
		keyCodebook:    keyBook, valueCodebook: valueBook,
		user: C.uintptr_t(c.Allocator.User), alloc: C.uintptr_t(c.Allocator.Alloc),
		free: C.uintptr_t(c.Allocator.Free), pool: C.uintptr_t(c.Pool),
	}
	layers, err := p.layersForC(&c)
	if err == nil {
		p.layers = (*C.tq_layer_config)(ptr(layers))
		p.config.key_levels, err = c.KeyLevels.pinned("key_levels", &p.pinner)
	}
	if err == nil {
		p.config.value_levels, err = c.ValueLevels.pinned("value_levels", &p.pinner)
	}
	if err != nil {
		p.unpin()
		return nil, err
	}
	return p, nil
}

func (p *configParts) unpin() { p.pinner.Unpin() }

func (p *configParts) layersForC(c *Config) ([]C.tq_layer_config, error) {
	raw := make([]C.tq_layer_config, len(c.Layers))
	for i, l := range c.Layers {
		keys, err := l.KeyLevels.pinned(fmt.Sprintf("layers[%d].key_levels", i), &p.pinner)
		if err != nil {
			return nil, err
		}
		values, err := l.ValueLevels.pinned(fmt.Sprintf("layers[%d].value_levels", i), &p.pinner)
		if err != nil {
			return nil, err
		}
		bands, err := l.KeyBands.pinned(i, cmp.Or(l.NumKVHeads, c.NumKVHeads), cmp.Or(l.HeadDim, c.HeadDim),
			&p.pinner)
		if err != nil {
			return nil, err
		}
		raw[i] = C.tq_layer_config{
			struct_size: C.uint32_t(unsafe.Sizeof(raw[i])),
			num_q_heads: C.int32_t(l.NumQHeads), num_kv_heads: C.int32_t(l.NumKVHeads),
			head_dim: C.int32_t(l.HeadDim), value_dim: C.int32_t(l.ValueDim),
			key_bits: C.int32_t(l.KeyBits), value_bits: C.int32_t(l.ValueBits),
			key_family: C.int32_t(l.KeyFamily), value_family: C.int32_t(l.ValueFamily),
			rotation: C.int32_t(l.Rotation), sliding_window: C.int32_t(l.SlidingWindow),
			shares_layer: C.int32_t(l.SharesLayer), first_kv_head: C.int32_t(l.FirstKVHead),
			group_size: C.int32_t(l.GroupSize), layer_kind: C.int32_t(l.LayerKind),
			key_levels: keys, value_levels: values, key_bands: bands,
		}
	}
	return raw, nil
}

func layersOf(raw []C.tq_layer_config) []LayerConfig {
	layers := make([]LayerConfig, len(raw))
	for i := range raw {
		l := &raw[i]
		layers[i] = LayerConfig{
			int32(l.num_q_heads), int32(l.num_kv_heads), int32(l.head_dim), int32(l.value_dim),
			int32(l.key_bits), int32(l.value_bits), CodeFamily(l.key_family), CodeFamily(l.value_family),
			Rotation(l.rotation), int32(l.sliding_window), int32(l.shares_layer),
			int32(l.first_kv_head), int32(l.group_size), LayerKind(l.layer_kind),
			levelsOf(l.key_levels), levelsOf(l.value_levels),
			keyBandsOf(l.key_bands, int(l.num_kv_heads)*int(l.head_dim)),
		}
	}
	return layers
}

// pinned is the bands of layer i for C, which reads them before the pinner lets go; nil of nil.
func (b *KeyBands) pinned(i int, heads, dim int32, pinner *runtime.Pinner) (*C.tq_key_bands, error) {
	if b == nil {
		return nil, nil
	}
	if count := int(heads) * int(dim); len(b.Order) != 0 && len(b.Order) != count {
		return nil, argumentError("layers[%d].key_bands.order: %d entries, must be none or %d kv heads of %d",
			i, len(b.Order), heads, dim)
	}
	raw := &C.tq_key_bands{num_bands: C.int32_t(len(b.Bits))}
	raw.struct_size = C.uint32_t(unsafe.Sizeof(*raw))
	raw.bits = (*C.int32_t)(pin(pinner, ptr(b.Bits)))
	raw.order = (*C.int32_t)(pin(pinner, ptr(b.Order)))
	pinner.Pin(raw)
	return raw, nil
}

// keyBandsOf copies bands that belong to the library.
func keyBandsOf(raw *C.tq_key_bands, places int) *KeyBands {
	if raw == nil {
		return nil
	}
	list := func(first *C.int32_t, count int) []int32 {
		if first == nil {
			return nil
		}
		return slices.Clone(unsafe.Slice((*int32)(unsafe.Pointer(first)), count))
	}
	return &KeyBands{list(raw.bits, int(raw.num_bands)), list(raw.order, places)}
}

// pinned is the levels for C, which reads them before the pinner lets go; nil of nil.
func (l *Levels) pinned(name string, pinner *runtime.Pinner) (*C.tq_levels, error) {
	if l == nil {
		return nil, nil
	}
	width, err := l.width(name)
	if err != nil {
		return nil, err
	}
	raw := &C.tq_levels{bits: C.int32_t(width), unit: C.float(l.Unit)}
	raw.struct_size = C.uint32_t(unsafe.Sizeof(*raw))
	raw.levels = (*C.float)(pin(pinner, ptr(l.Levels)))
	raw.boundaries = (*C.float)(pin(pinner, ptr(l.Boundaries)))
	pinner.Pin(raw)
	return raw, nil
}

// levelsOf copies levels that belong to the library.
func levelsOf(raw *C.tq_levels) *Levels {
	if raw == nil {
		return nil
	}
	list := func(first *C.float, count int) []float32 {
		return slices.Clone(unsafe.Slice((*float32)(unsafe.Pointer(first)), count))
	}
	count := 1 << raw.bits
	return &Levels{list(raw.levels, count), list(raw.boundaries, count-1), float32(raw.unit)}
}

func (b *Codebook) c(name string) (*C.tq_codebook, error) {
	if b == nil {
		return nil, nil
	}
	raw := &C.tq_codebook{bits: C.int32_t(b.Bits), unit: C.float(b.Unit)}
	raw.struct_size = C.uint32_t(unsafe.Sizeof(*raw))
	levels := min(len(b.Magnitude), len(raw.magnitude))
	if b.Bits >= 2 && b.Bits <= 6 {
		levels = 1 << (b.Bits - 1)
	}
	if len(b.Magnitude) != levels {
		return nil, argumentError("%s: %d magnitudes, but %d bits need %d", name, len(b.Magnitude), b.Bits,
			levels)
	}
	for i, magnitude := range b.Magnitude {
		raw.magnitude[i] = C.uint8_t(magnitude)
	}
	return raw, nil
}

// configOf copies a configuration that the library returned. What it points to belongs to the cache.
func configOf(raw *C.tq_cache_config) Config {
	perLayer := func(bits *C.int32_t) []int32 {
		if bits == nil {
			return nil
		}
		return slices.Clone(unsafe.Slice((*int32)(unsafe.Pointer(bits)), int(raw.num_layers)))
	}
	book := func(b *C.tq_codebook) *Codebook {
		if b == nil {
			return nil
		}
		levels := 1 << (min(max(b.bits, 1), 6) - 1)
		magnitude := unsafe.Slice((*uint8)(unsafe.Pointer(&b.magnitude[0])), levels)
		return &Codebook{int32(b.bits), float32(b.unit), slices.Clone(magnitude)}
	}
	return Config{
		DeviceType: DeviceType(raw.device_type), DeviceID: int32(raw.device_id),
		NumLayers: int32(raw.num_layers), NumQHeads: int32(raw.num_q_heads),
		NumKVHeads: int32(raw.num_kv_heads), HeadDim: int32(raw.head_dim), ValueDim: int32(raw.value_dim),
		IODtype: Dtype(raw.io_dtype), KeyBits: int32(raw.key_bits), ValueBits: int32(raw.value_bits),
		CodeFamily: CodeFamily(raw.code_family), LayerKeyBits: perLayer(raw.layer_key_bits),
		LayerValueBits: perLayer(raw.layer_value_bits), Rotation: Rotation(raw.rotation),
		KeyScaleRule: ScaleRule(raw.key_scale_rule), ValueScaleRule: ScaleRule(raw.value_scale_rule),
		PageSize: int32(raw.page_size), RotationSeed: uint64(raw.rotation_seed),
		FirstLayer: int32(raw.first_layer), FirstKVHead: int32(raw.first_kv_head),
		KeyCodebook: book(raw.key_codebook), ValueCodebook: book(raw.value_codebook),
		MaxTokens: int64(raw.max_tokens), MaxReserveTokens: int64(raw.max_reserve_tokens),
		MaxSequenceTokens: int64(raw.max_sequence_tokens),
		MaxSequences:      int32(raw.max_sequences), MaxBatchSequences: int32(raw.max_batch_sequences),
		MaxBatchTokens: int64(raw.max_batch_tokens), MaxRawTokens: int64(raw.max_raw_tokens),
		WindowTokens: int32(raw.window_tokens), SinkTokens: int32(raw.sink_tokens),
		RollbackTokens: int32(raw.rollback_tokens), NumThreads: int32(raw.num_threads),
		Flags: uint64(raw.flags), Pool: DevicePtr(uintptr(raw.pool)), PoolBytes: int64(raw.pool_bytes),
		Layers:    layersOf(unsafe.Slice(raw.layers, int(raw.num_layers))),
		KeyFamily: CodeFamily(raw.key_family), ValueFamily: CodeFamily(raw.value_family),
		GroupSize: int32(raw.group_size), Sketch: Sketch(raw.sketch), SketchRule: SketchRule(raw.sketch_rule),
		SketchFactor: float32(raw.sketch_factor), LayerKind: LayerKind(raw.layer_kind),
		KeyLevels: levelsOf(raw.key_levels), ValueLevels: levelsOf(raw.value_levels),
	}
}

// Bytes is what a cache of some configuration allocates, exactly.
type Bytes struct {
	PageBytes      int64 // all pages of all layers: the codes and their scales
	RawBytes       int64 // the pool of exact copies
	TableBytes     int64 // rotation signs or matrices, centres, page tables, flags
	WorkspaceBytes int64 // the cache's own attend workspace
	DeviceBytes    int64 // of all that, on the device (0 for CPU caches)
	HostBytes      int64 // of all that, on the host, bookkeeping included
	NumPages       int64 // pages per layer
	TokenBytes     int64 // stored bytes of one token over all layers and heads, scales included
	FP16TokenBytes int64 // the same token as float16
}

func bytesOf(raw *C.tq_cache_bytes) Bytes {
	return Bytes{
		int64(raw.page_bytes), int64(raw.raw_bytes), int64(raw.table_bytes), int64(raw.workspace_bytes),
		int64(raw.device_bytes), int64(raw.host_bytes), int64(raw.num_pages), int64(raw.token_bytes),
		int64(raw.fp16_token_bytes),
	}
}

// LayerBytes is what a layer of such a cache allocates: zeros but for Group and NumPages where it shares
// another's tokens.
type LayerBytes struct {
	Group          int32 // layers whose tokens live equally long are a group: page ids are theirs
	NumPages       int64 // pages of the group
	PageBytes      int64 // of all of them in this layer
	RawBytes       int64 // of its exact copies
	TokenBytes     int64 // stored bytes of one token over its heads, scales included
	FP16TokenBytes int64 // the same token as float16
}

// Memory is what a cache holds.
type Memory struct {
	NumSequences    int     // alive
	Tokens          int64   // lengths of all sequences added up (a shared page counts in each)
	PagesUsed       int64   // distinct pages in use, per layer
	PagesTotal      int64   // pages per layer
	StoredBytesUsed int64   // PagesUsed over all layers, in bytes
	RawBytes        int64   // exact copies, allocated
	DeviceBytes     int64   // allocated on the device in all
	HostBytes       int64   // allocated on the host in all
	Compression     float64 // float16 bytes of MaxTokens tokens over the bytes of all pages and RawBytes
	RawBytesUsed    int64   // of RawBytes, held by sequences
}

func memoryOf(raw *C.tq_cache_memory) Memory {
	return Memory{
		int(raw.num_sequences), int64(raw.tokens), int64(raw.pages_used), int64(raw.pages_total),
		int64(raw.stored_bytes_used), int64(raw.raw_bytes), int64(raw.device_bytes), int64(raw.host_bytes),
		float64(raw.compression), int64(raw.raw_bytes_used),
	}
}
