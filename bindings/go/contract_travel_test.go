// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"bytes"
	"errors"
	"slices"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// Contract steps of state that travels, and of an engine's pages.

type contractTravel struct {
	Layers, Tokens, Slots         []int64
	KVHeads                       []int64 `json:"kv_heads"`
	Part, File, Codec, Name, Step string
	Pages                         string
	Change                        *contractChange
	MAC                           *int  `json:"mac"`
	NumBlocks                     int64 `json:"num_blocks"`
	BlockSize                     int32 `json:"block_size"`
	Order                         int32
	SlotMapping                   []int64   `json:"slot_mapping"`
	BlockTable                    [][]int32 `json:"block_table"`
	SeqLens                       []int32   `json:"seq_lens"`
	QueryStartLoc                 []int32   `json:"query_start_loc"`
	MaxQueryLen                   int32     `json:"max_query_len"`
	MaxSeqLen                     int32     `json:"max_seq_len"`
	Pairs                         [][2]int64
}

type contractChange struct {
	Identity       uint64
	NumLayers      *int32 `json:"num_layers"`
	NumTokens      *int64 `json:"num_tokens"`
	FirstToken     *int64 `json:"first_token"`
	ExactSinks     *int64 `json:"exact_sinks"`
	ExactFirst     *int64 `json:"exact_first"`
	RollbackTokens *int64 `json:"rollback_tokens"`
	Cut, At        int
	Xor            byte
}

type part struct {
	state  tqkv.State
	memory []byte
}

// travel is the things of such steps by their names.
type travel struct {
	parts  map[string]part
	files  map[string][]byte
	codecs map[string]*tqkv.PagedCodec
	blocks map[string]*tqkv.Pages
	steps  map[string]*tqkv.PagedStep
}

func newTravel() travel {
	return travel{map[string]part{}, map[string][]byte{}, map[string]*tqkv.PagedCodec{},
		map[string]*tqkv.Pages{}, map[string]*tqkv.PagedStep{}}
}

// caseMAC is the MAC of the cases: 16 bytes (README).
type caseMAC struct {
	key, at int
	tag     [16]byte
}

func (m *caseMAC) Write(data []byte) (int, error) {
	for _, b := range data {
		m.tag[m.at%16] = 31*m.tag[m.at%16] + b + byte(m.key)
		m.at++
	}
	return len(data), nil
}
func (m *caseMAC) Sum(b []byte) []byte { return append(b, m.tag[:]...) }
func (m *caseMAC) Reset()              { *m = caseMAC{key: m.key} }
func (m *caseMAC) Size() int           { return 16 }
func (m *caseMAC) BlockSize() int      { return 1 }

func (r *runner) export(s contractStep, n *named) error {
	var p tqkv.Part
	for _, side := range []struct {
		given        []int64
		first, count func(int64)
	}{
		{s.Layers, func(x int64) { p.FirstLayer = int32(x) }, func(x int64) { p.NumLayers = int32(x) }},
		{s.KVHeads, func(x int64) { p.FirstKVHead = int32(x) }, func(x int64) { p.NumKVHeads = int32(x) }},
		{s.Tokens, func(x int64) { p.FirstToken = x }, func(x int64) { p.NumTokens = x }},
	} {
		if side.given != nil {
			side.first(side.given[0])
			side.count(side.given[1])
		}
	}
	state, memory, err := n.cache.ExportSequence(n.sequences[s.Sequence], p)
	if err != nil {
		return err
	}
	if s.Expect != nil {
		if err := r.figures(s, map[string]float64{
			"first_layer": float64(state.FirstLayer), "num_layers": float64(state.NumLayers),
			"first_kv_head": float64(state.FirstKVHead), "num_kv_heads": float64(state.NumKVHeads),
			"first_token": float64(state.FirstToken), "num_tokens": float64(state.NumTokens),
			"exact_sinks": float64(state.ExactSinks), "exact_first": float64(state.ExactFirst),
		}); err != nil {
			return err
		}
	}
	if s.Equals != "" && !bytes.Equal(memory, r.parts[s.Equals].memory) {
		return broken{"other bytes than " + s.Equals}
	}
	r.parts[s.Save] = part{state, memory}
	return nil
}

func (r *runner) importPart(s contractStep, n *named) error {
	p := r.parts[s.Part]
	if change := s.Change; change != nil {
		p.state.Identity ^= change.Identity
		set(&p.state.NumLayers, change.NumLayers)
		set(&p.state.NumTokens, change.NumTokens)
		set(&p.state.FirstToken, change.FirstToken)
		set(&p.state.ExactSinks, change.ExactSinks)
		set(&p.state.ExactFirst, change.ExactFirst)
		set(&p.state.RollbackTokens, change.RollbackTokens)
		p.memory = p.memory[:len(p.memory)-change.Cut]
	}
	return n.cache.ImportSequence(n.sequences[s.Sequence], p.state, p.memory)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func (r *runner) save(s contractStep, n *named) error {
	var file bytes.Buffer
	var err error
	if s.MAC != nil {
		err = n.cache.SaveSequenceMAC(n.sequences[s.Sequence], &file, &caseMAC{key: *s.MAC})
	} else {
		err = n.cache.SaveSequence(n.sequences[s.Sequence], &file)
	}
	if err != nil {
		return err
	}
	if s.Equals != "" && !bytes.Equal(file.Bytes(), r.files[s.Equals]) {
		return broken{"other bytes than " + s.Equals}
	}
	r.files[s.Save] = file.Bytes()
	return nil
}

func (r *runner) load(s contractStep, n *named) (err error) {
	file := slices.Clone(r.files[s.File])
	if change := s.Change; change != nil {
		at := change.At
		if at < 0 {
			at += len(file)
		}
		file[at] ^= change.Xor
		file = file[:len(file)-change.Cut]
	}
	var sequence tqkv.Sequence
	if s.MAC != nil {
		sequence, err = n.cache.LoadSequenceMAC(bytes.NewReader(file), &caseMAC{key: *s.MAC})
	} else {
		sequence, err = n.cache.LoadSequence(bytes.NewReader(file))
	}
	if err == nil {
		n.sequences[s.Sequence] = sequence
	}
	return err
}

// paged is a step of a codec, and whether it is one.
func (r *runner) paged(s contractStep) (err error, known bool) {
	if s.Op == "codec_create" {
		codec, err := r.library.NewPagedCodec(s.Config.config())
		if err == nil {
			r.codecs["main"] = codec
		}
		return err, true
	}
	codec := r.codecs["main"]
	step := r.steps[s.Step]
	if step == nil && codec != nil {
		step = codec.NewStep()
		r.steps[s.Step] = step
	}
	switch s.Op {
	case "codec_check":
		noticed, err := codec.Check()
		return errors.Join(err, equal("flags", float64(noticed), s.number(r.t))), true
	case "codec_centres":
		return codec.SetCentres(s.Layer, r.float32s(s.KeyCentre), r.float32s(s.ValueCentre)), true
	case "pages":
		return r.makePages(s, codec), true
	case "paged_plan":
		return step.Plan(tqkv.StepArrays{SlotMapping: s.SlotMapping, BlockTable: slices.Concat(s.BlockTable...),
			SeqLens: s.SeqLens, QueryStartLoc: s.QueryStartLoc, MaxQueryLen: s.MaxQueryLen,
			MaxSeqLen: s.MaxSeqLen}), true
	case "paged_append":
		return step.Append(s.Layer, r.blocks[s.Pages], r.tensor(s.K).from(0), r.tensor(s.V).from(0)), true
	case "paged_attend":
		return r.pagedAttend(s, codec, step), true
	case "paged_read":
		return r.pagedRead(s, codec), true
	case "paged_copy":
		return codec.Copy(s.Layer, r.blocks[s.Source], r.blocks[s.Target], s.Pairs), true
	}
	return nil, false
}

func (r *runner) makePages(s contractStep, codec *tqkv.PagedCodec) error {
	order := tqkv.PageOrder(max(s.Order, 1))
	layout, err := codec.PageLayout(s.Layer, s.BlockSize, s.NumBlocks, order)
	if err != nil {
		return err
	}
	if err := r.figures(s, map[string]float64{"total_bytes": float64(layout.TotalBytes),
		"block_head_bytes": float64(layout.BlockHeadBytes)}); err != nil {
		return err
	}
	pages, err := codec.Allocate(s.Layer, s.NumBlocks, s.BlockSize, order)
	r.blocks[s.Name] = pages
	return err
}

func pagedLayer(codec *tqkv.PagedCodec, number int) (tqkv.Config, tqkv.LayerConfig, error) {
	config, err := codec.Config()
	if err != nil {
		return config, tqkv.LayerConfig{}, err
	}
	if number < 0 || number >= len(config.Layers) {
		number = 0
	}
	return config, config.Layers[number], nil
}

func (r *runner) pagedAttend(s contractStep, codec *tqkv.PagedCodec, step *tqkv.PagedStep) error {
	_, layer, err := pagedLayer(codec, s.Layer)
	if err != nil {
		return err
	}
	rows := int64(len(r.tensor(s.Q).widened())) / int64(layer.HeadDim)
	out, lse := nans(rows*int64(layer.ValueDim)), nans(rows)
	params, err := r.attendParams(s)
	if err != nil {
		return err
	}
	if err := step.Attend(s.Layer, r.blocks[s.Pages], r.tensor(s.Q).from(0), tqkv.F32(out), lse,
		params); err != nil {
		return err
	}
	if s.Status != "" {
		return nil // it should have failed: nothing to compare with
	}
	return errors.Join(r.tensor(s.Out).compare("out", out, s.OutL2, nil),
		r.tensor(s.LSE).compare("lse", lse, nil, s.LSEAbs))
}

func (r *runner) pagedRead(s contractStep, codec *tqkv.PagedCodec) error {
	config, layer, err := pagedLayer(codec, s.Layer)
	if err != nil {
		return err
	}
	rows := int64(len(s.Slots)) * int64(layer.NumKVHeads)
	k := blank(config.IODtype, rows*int64(layer.HeadDim))
	v := blank(config.IODtype, rows*int64(layer.ValueDim))
	if err := codec.Read(s.Layer, r.blocks[s.Pages], s.Slots, k.from(0), v.from(0)); err != nil {
		return err
	}
	if s.Status != "" {
		return nil // it should have failed: nothing to compare with
	}
	return errors.Join(r.tensor(s.K).compare("k", k.widened(), s.KL2, nil),
		r.tensor(s.V).compare("v", v.widened(), s.VL2, nil))
}

// close frees the codecs and what was made of them.
func (t travel) close() (err error) {
	for _, step := range t.steps {
		step.Close()
	}
	for _, codec := range t.codecs {
		err = errors.Join(err, codec.Close())
	}
	return err
}
