// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"unsafe"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// The fields of tests/contract/cases.json and the comparison of tensors.

type contractCase struct {
	Name, About string
	CPUOnly     bool `json:"cpu_only"`
	Steps       []contractStep
}

type contractStep struct {
	Op, Status, Cache, Sequence, Source, Target, Batch string
	Save, Equals, Differs, Q, Out, Workspace           string
	Text                                               stringList
	Config                                             *contractConfig
	Expect                                             json.RawMessage
	KeyCentre                                          string `json:"key_centre"`
	ValueCentre                                        string `json:"value_centre"`
	Layer                                              int
	Length, First, Count                               int64
	Sequences                                          []string
	NewTokens                                          []int64 `json:"new_tokens"`
	QueryTokens                                        []int64 `json:"query_tokens"`
	MaxTokens                                          int64   `json:"max_tokens"`
	Positions                                          []int64
	K, V                                               string
	KOffset                                            int `json:"k_offset"`
	VOffset                                            int `json:"v_offset"`
	Layout                                             map[string]int64
	Params                                             *contractParams
	OutL2                                              *float64 `json:"out_l2"`
	LSEAbs                                             *float64 `json:"lse_abs"`
	KL2                                                *float64 `json:"k_l2"`
	VL2                                                *float64 `json:"v_l2"`
	LSE                                                string
	Outs                                               []string
	LSEs                                               []string `json:"lses"`
	Rows, Dim                                          int
	Dtype                                              int32
	contractTravel
}

func (s contractStep) number(t *testing.T) (number float64) {
	must(t, json.Unmarshal(s.Expect, &number))
	return
}

func (s contractStep) numbers(t *testing.T) (numbers map[string]float64) {
	must(t, json.Unmarshal(s.Expect, &numbers))
	return
}

// stringList is a string or a list of them.
type stringList []string

func (l *stringList) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*l = stringList{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

type contractParams struct {
	OutDtype       int32   `json:"out_dtype"`
	SoftmaxScale   float32 `json:"softmax_scale"`
	LogitSoftcap   float32 `json:"logit_softcap"`
	SlidingWindow  int64   `json:"sliding_window"`
	SinkLogits     string  `json:"sink_logits"`
	HistoryOnly    int     `json:"history_only"`
	VisibleBegin   string  `json:"visible_begin"`
	VisibleEnd     string  `json:"visible_end"`
	TreeMask       string  `json:"tree_mask"`
	TreeWords      int32   `json:"tree_words"`
	AlibiSlopes    string  `json:"alibi_slopes"`
	QTokenStride   int64   `json:"q_token_stride"`
	QHeadStride    int64   `json:"q_head_stride"`
	OutTokenStride int64   `json:"out_token_stride"`
	OutHeadStride  int64   `json:"out_head_stride"`
}

type contractConfig struct {
	DeviceType        int32             `json:"device_type"`
	DeviceID          int32             `json:"device_id"`
	NumLayers         int32             `json:"num_layers"`
	NumQHeads         int32             `json:"num_q_heads"`
	NumKVHeads        int32             `json:"num_kv_heads"`
	HeadDim           int32             `json:"head_dim"`
	ValueDim          int32             `json:"value_dim"`
	IODtype           int32             `json:"io_dtype"`
	KeyBits           int32             `json:"key_bits"`
	ValueBits         int32             `json:"value_bits"`
	CodeFamily        int32             `json:"code_family"`
	LayerKeyBits      []int32           `json:"layer_key_bits"`
	LayerValueBits    []int32           `json:"layer_value_bits"`
	Rotation          int32             `json:"rotation"`
	KeyScaleRule      int32             `json:"key_scale_rule"`
	ValueScaleRule    int32             `json:"value_scale_rule"`
	PageSize          int32             `json:"page_size"`
	RotationSeed      uint64            `json:"rotation_seed"`
	FirstLayer        int32             `json:"first_layer"`
	FirstKVHead       int32             `json:"first_kv_head"`
	KeyCodebook       *contractCodebook `json:"key_codebook"`
	ValueCodebook     *contractCodebook `json:"value_codebook"`
	MaxTokens         int64             `json:"max_tokens"`
	MaxReserveTokens  int64             `json:"max_reserve_tokens"`
	MaxSequenceTokens int64             `json:"max_sequence_tokens"`
	MaxSequences      int32             `json:"max_sequences"`
	MaxBatchSequences int32             `json:"max_batch_sequences"`
	MaxBatchTokens    int64             `json:"max_batch_tokens"`
	MaxRawTokens      int64             `json:"max_raw_tokens"`
	WindowTokens      int32             `json:"window_tokens"`
	SinkTokens        int32             `json:"sink_tokens"`
	RollbackTokens    int32             `json:"rollback_tokens"`
	NumThreads        int32             `json:"num_threads"`
	Flags             uint64            `json:"flags"`
	Layers            []contractLayer   `json:"layers"`
	KeyFamily         int32             `json:"key_family"`
	ValueFamily       int32             `json:"value_family"`
	GroupSize         int32             `json:"group_size"`
	Sketch            int32             `json:"sketch"`
	SketchRule        int32             `json:"sketch_rule"`
	SketchFactor      float32           `json:"sketch_factor"`
	LayerKind         int32             `json:"layer_kind"`
}

type contractLayer struct {
	NumQHeads     int32 `json:"num_q_heads"`
	NumKVHeads    int32 `json:"num_kv_heads"`
	HeadDim       int32 `json:"head_dim"`
	ValueDim      int32 `json:"value_dim"`
	KeyBits       int32 `json:"key_bits"`
	ValueBits     int32 `json:"value_bits"`
	KeyFamily     int32 `json:"key_family"`
	ValueFamily   int32 `json:"value_family"`
	Rotation      int32 `json:"rotation"`
	SlidingWindow int32 `json:"sliding_window"`
	SharesLayer   int32 `json:"shares_layer"`
	FirstKVHead   int32 `json:"first_kv_head"`
	GroupSize     int32 `json:"group_size"`
	LayerKind     int32 `json:"layer_kind"`
	KeyBands      *struct {
		Bits  []int32 `json:"bits"`
		Order []int32 `json:"order"`
	} `json:"key_bands"`
}

func layersOf(layers []contractLayer) (result []tqkv.LayerConfig) {
	for _, l := range layers {
		result = append(result, tqkv.LayerConfig{NumQHeads: l.NumQHeads, NumKVHeads: l.NumKVHeads,
			HeadDim: l.HeadDim, ValueDim: l.ValueDim, KeyBits: l.KeyBits, ValueBits: l.ValueBits,
			KeyFamily: tqkv.CodeFamily(l.KeyFamily), ValueFamily: tqkv.CodeFamily(l.ValueFamily),
			Rotation: tqkv.Rotation(l.Rotation), SlidingWindow: l.SlidingWindow, SharesLayer: l.SharesLayer,
			FirstKVHead: l.FirstKVHead, GroupSize: l.GroupSize, LayerKind: tqkv.LayerKind(l.LayerKind)})
		if l.KeyBands != nil {
			result[len(result)-1].KeyBands = &tqkv.KeyBands{Bits: l.KeyBands.Bits, Order: l.KeyBands.Order}
		}
	}
	return result
}

type contractCodebook struct {
	Bits      int32
	Unit      float32
	Magnitude []int
}

func (b *contractCodebook) codebook() *tqkv.Codebook {
	if b == nil {
		return nil
	}
	result := &tqkv.Codebook{Bits: b.Bits, Unit: b.Unit}
	for _, m := range b.Magnitude {
		result.Magnitude = append(result.Magnitude, uint8(m))
	}
	return result
}

func (c *contractConfig) config() *tqkv.Config {
	return &tqkv.Config{
		DeviceType: tqkv.DeviceType(c.DeviceType), DeviceID: c.DeviceID, NumLayers: c.NumLayers,
		NumQHeads: c.NumQHeads, NumKVHeads: c.NumKVHeads, HeadDim: c.HeadDim, ValueDim: c.ValueDim,
		IODtype: tqkv.Dtype(c.IODtype), KeyBits: c.KeyBits, ValueBits: c.ValueBits,
		CodeFamily: tqkv.CodeFamily(c.CodeFamily), LayerKeyBits: c.LayerKeyBits,
		LayerValueBits: c.LayerValueBits, Rotation: tqkv.Rotation(c.Rotation),
		KeyScaleRule: tqkv.ScaleRule(c.KeyScaleRule), ValueScaleRule: tqkv.ScaleRule(c.ValueScaleRule),
		PageSize: c.PageSize, RotationSeed: c.RotationSeed, FirstLayer: c.FirstLayer,
		FirstKVHead: c.FirstKVHead, Layers: layersOf(c.Layers), KeyCodebook: c.KeyCodebook.codebook(),
		ValueCodebook: c.ValueCodebook.codebook(), MaxTokens: c.MaxTokens,
		MaxReserveTokens: c.MaxReserveTokens, MaxSequenceTokens: c.MaxSequenceTokens, MaxSequences: c.MaxSequences,
		MaxBatchSequences: c.MaxBatchSequences, MaxBatchTokens: c.MaxBatchTokens,
		MaxRawTokens: c.MaxRawTokens,
		WindowTokens: c.WindowTokens, SinkTokens: c.SinkTokens, RollbackTokens: c.RollbackTokens,
		NumThreads: c.NumThreads, Flags: c.Flags, KeyFamily: tqkv.CodeFamily(c.KeyFamily),
		ValueFamily: tqkv.CodeFamily(c.ValueFamily), GroupSize: c.GroupSize,
		Sketch: tqkv.Sketch(c.Sketch), SketchRule: tqkv.SketchRule(c.SketchRule), SketchFactor: c.SketchFactor,
		LayerKind: tqkv.LayerKind(c.LayerKind),
	}
}

// tensor holds numbers as they are stored: f32, or the bits of f16 and bf16; masks, which have no dtype here.
type tensor struct {
	dtype tqkv.Dtype
	f32   []float32
	u16   []uint16
	i32   []int32
	u64   []uint64
}

func (x *tensor) UnmarshalJSON(data []byte) error {
	var raw struct {
		Dtype string
		Shape []int
		Data  []byte // base64
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	count := 1
	for _, n := range raw.Shape {
		count *= n
	}
	if len(raw.Data) == 4*count && raw.Dtype == "i32" {
		x.i32 = make([]int32, count)
		_, err := binary.Decode(raw.Data, binary.LittleEndian, x.i32)
		return err
	}
	if len(raw.Data) == 8*count && raw.Dtype == "u64" {
		x.u64 = make([]uint64, count)
		_, err := binary.Decode(raw.Data, binary.LittleEndian, x.u64)
		return err
	}
	dtypes := map[string]tqkv.Dtype{"f32": tqkv.Float32, "f16": tqkv.Float16, "bf16": tqkv.BFloat16}
	x.dtype = dtypes[raw.Dtype]
	width := 2
	if x.dtype == tqkv.Float32 {
		width = 4
	}
	if x.dtype == 0 || len(raw.Data) != count*width {
		return fmt.Errorf("tensor of type %s with %d numbers has %d bytes", raw.Dtype, count, len(raw.Data))
	}
	for i := range count {
		if width == 4 {
			x.f32 = append(x.f32, math.Float32frombits(binary.LittleEndian.Uint32(raw.Data[4*i:])))
		} else {
			x.u16 = append(x.u16, binary.LittleEndian.Uint16(raw.Data[2*i:]))
		}
	}
	return nil
}

// float32s is the numbers of a tensor, nil for "".
func (r *runner) float32s(name string) []float32 {
	if name == "" {
		return nil
	}
	return r.tensor(name).f32
}

// masks is the tensor of a name, or an empty one for "".
func (r *runner) masks(name string) *tensor {
	if name == "" {
		return &tensor{}
	}
	return r.tensor(name)
}

// blank is a tensor full of NaN.
func blank(dtype tqkv.Dtype, count int64) *tensor {
	x := &tensor{dtype: dtype}
	if dtype == tqkv.Float32 {
		x.f32 = nans(count)
		return x
	}
	x.u16 = make([]uint16, max(count, 0))
	for i := range x.u16 {
		x.u16[i] = 0x7fff // NaN in both types
	}
	return x
}

// from is the tensor's memory from an element on.
func (x *tensor) from(offset int) tqkv.HostSlice {
	switch x.dtype {
	case tqkv.Float16:
		return tqkv.F16(x.u16[offset:])
	case tqkv.BFloat16:
		return tqkv.BF16(x.u16[offset:])
	}
	return tqkv.F32(x.f32[offset:])
}

func half(bits uint16) float32 {
	sign, exponent, mantissa := uint32(bits>>15)<<31, int(bits>>10&31), uint32(bits&1023)
	switch exponent {
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | mantissa<<13)
	case 0:
		value := float32(mantissa) / (1 << 24)
		return math.Float32frombits(sign | math.Float32bits(value))
	}
	return math.Float32frombits(sign | uint32(exponent-15+127)<<23 | mantissa<<13)
}

func (x *tensor) widened() []float32 {
	switch x.dtype {
	case tqkv.Float16:
		numbers := make([]float32, len(x.u16))
		for i, bits := range x.u16 {
			numbers[i] = half(bits)
		}
		return numbers
	case tqkv.BFloat16:
		return widened(x.u16)
	}
	return x.f32
}

// compare: norm of the difference, largest difference, or equal numbers; infinities always exactly.
func (x *tensor) compare(what string, found []float32, relative, absolute *float64) error {
	expected := x.widened()
	if len(found) != len(expected) {
		return broken{fmt.Sprintf("%s: %d elements, expected %d", what, len(found), len(expected))}
	}
	var e, length, largest float64
	for i, y := range expected {
		difference := float64(found[i]) - float64(y)
		exact := math.IsInf(float64(y), 0) || relative == nil && absolute == nil
		if found[i] != found[i] || exact && found[i] != y {
			return broken{fmt.Sprintf("%s[%d] = %g, expected %g", what, i, found[i], y)}
		}
		if !exact {
			e += difference * difference
			length += float64(y) * float64(y)
			largest = max(largest, math.Abs(difference))
		}
	}
	if relative != nil && math.Sqrt(e) > *relative*math.Sqrt(length) {
		return broken{fmt.Sprintf("%s: relative error %g > %g", what, math.Sqrt(e/length), *relative)}
	}
	if absolute != nil && largest > *absolute {
		return broken{fmt.Sprintf("%s: error %g > %g", what, largest, *absolute)}
	}
	return nil
}

// aligned is bytes at a multiple of 256.
func aligned(bytes int) []byte {
	memory := make([]byte, bytes+256)
	offset := -int(uintptr(unsafe.Pointer(&memory[0]))) & 255
	return memory[offset : offset+bytes : offset+bytes]
}
