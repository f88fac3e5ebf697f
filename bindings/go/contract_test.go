// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// TestContract runs the cases that all bindings share: tests/contract/cases.json, described in the README
// beside it.
func TestContract(t *testing.T) {
	data, err := os.ReadFile("../../tests/contract/cases.json")
	if os.IsNotExist(err) {
		t.Skip("not inside the repository of tqkv")
	}
	must(t, err)
	var file struct {
		Version int
		Cases   []contractCase
		Tensors map[string]*tensor
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // a step that this runner does not understand must not pass
	must(t, decoder.Decode(&file))
	if file.Version != 1 || len(file.Cases) < 12 {
		t.Fatalf("version %d, %d cases", file.Version, len(file.Cases))
	}
	library := open(t)
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			r := &runner{t, library, file.Tensors, map[string]*named{}, map[string]uint64{}, newTravel()}
			for i, step := range c.Steps {
				if why := r.expect(step, r.step(step)); why != "" {
					t.Fatalf("step %d (%s): %s", i, step.Op, why)
				}
			}
			for _, n := range r.caches {
				for _, b := range n.batches {
					must(t, b.batch.Close())
				}
				must(t, n.cache.Close())
			}
			must(t, r.travel.close())
		})
	}
}

// broken is a broken expectation; any other error is the library's answer.
type broken struct{ why string }

func (b broken) Error() string { return b.why }

// inexpressible stands for an argument that Go's types exclude.
var inexpressible = errors.New("cannot be expressed")

type namedBatch struct {
	batch   *tqkv.Batch
	queries int64
}

type named struct {
	cache     *tqkv.Cache
	config    tqkv.Config
	sequences map[string]tqkv.Sequence
	batches   map[string]*namedBatch
}

type runner struct {
	t            *testing.T
	library      *tqkv.Library
	tensors      map[string]*tensor
	caches       map[string]*named
	fingerprints map[string]uint64
	travel
}

// expect: a step without status must succeed, one with a status fail with it and a text that holds the given
// ones.
func (r *runner) expect(s contractStep, err error) string {
	var b broken
	var failure *tqkv.Error
	switch {
	case errors.As(err, &b):
		return b.why
	case err == nil && s.Status != "":
		return "succeeded, expected " + s.Status
	case err == nil:
		return ""
	case s.Status == "":
		return err.Error()
	case errors.Is(err, inexpressible):
		return ""
	case !errors.As(err, &failure):
		return "not a tqkv.Error: " + err.Error()
	}
	if name := r.library.StatusName(failure.Status); name != s.Status {
		return fmt.Sprintf("%s (%v), expected %s", name, err, s.Status)
	}
	for _, part := range s.Text {
		if !strings.Contains(failure.Message, part) {
			return fmt.Sprintf("the text lacks '%s': %s", part, failure.Message)
		}
	}
	return ""
}

func (r *runner) named(s contractStep) *named {
	if s.Cache == "" {
		s.Cache = "main"
	}
	n := r.caches[s.Cache]
	if n == nil {
		r.t.Fatalf("no cache %s", s.Cache)
	}
	return n
}

func (r *runner) tensor(name string) *tensor {
	x := r.tensors[name]
	if x == nil {
		r.t.Fatalf("no tensor '%s'", name)
	}
	return x
}

// batch makes a batch when it is first named.
func (n *named) batch(name string) (*namedBatch, error) {
	if b := n.batches[name]; b != nil {
		return b, nil
	}
	made, err := n.cache.CreateBatch()
	if err != nil {
		return nil, err
	}
	n.batches[name] = &namedBatch{batch: made}
	return n.batches[name], nil
}

func equal[T comparable](what string, found, expected T) error {
	if found != expected {
		return broken{fmt.Sprintf("%s: %v, expected %v", what, found, expected)}
	}
	return nil
}

func (r *runner) step(s contractStep) error {
	switch s.Op {
	case "create":
		return r.create(s)
	case "config_bytes":
		return r.configBytes(s)
	case "merge":
		return r.merge(s)
	}
	if err, known := r.paged(s); known {
		return err
	}
	if s.Op == "fingerprint" && s.Codec != "" {
		return r.fingerprint(s, r.codecs[s.Codec])
	}
	n := r.named(s)
	bind := func(sequence tqkv.Sequence, err error) error {
		if err == nil {
			n.sequences[s.Sequence] = sequence
		}
		return err
	}
	switch s.Op {
	case "memory":
		return r.memory(s, n)
	case "fingerprint":
		return r.fingerprint(s, n.cache)
	case "check":
		noticed, err := n.cache.Check(0)
		return errors.Join(err, equal("flags", float64(noticed), s.number(r.t)))
	case "set_centres":
		return n.cache.SetCentres(s.Layer, r.float32s(s.KeyCentre), r.float32s(s.ValueCentre))
	case "sequence_create":
		return bind(n.cache.CreateSequence())
	case "sequence_fork":
		return bind(n.cache.Fork(n.sequences[s.Source]))
	case "sequence_copy":
		return r.copy(s, n)
	case "sequence_truncate":
		return n.cache.Truncate(n.sequences[s.Sequence], s.Length)
	case "sequence_flush":
		return n.cache.Flush(n.sequences[s.Sequence])
	case "reserve":
		return n.cache.Reserve(s.MaxTokens)
	case "sequence_remove":
		return n.cache.Remove(n.sequences[s.Sequence], s.First, s.Count)
	case "sequence_select":
		return n.cache.Select(n.sequences[s.Sequence], s.Positions)
	case "sequence_free":
		return n.cache.Free(n.sequences[s.Sequence])
	case "sequence_length", "sequence_flags":
		if s.Op == "sequence_flags" {
			noticed, err := n.cache.Noticed(n.sequences[s.Sequence])
			if err != nil {
				return err
			}
			return equal("flags", float64(noticed), s.number(r.t))
		}
		length, err := n.cache.Length(n.sequences[s.Sequence])
		if err != nil {
			return err
		}
		return equal("length", float64(length), s.number(r.t))
	case "batch_create":
		_, err := n.batch(s.Batch)
		return err
	case "plan":
		return r.plan(s, n)
	case "append":
		return r.append(s, n)
	case "attend":
		return r.attend(s, n)
	case "read":
		return r.read(s, n)
	case "export":
		return r.export(s, n)
	case "import":
		return r.importPart(s, n)
	case "save":
		return r.save(s, n)
	case "load":
		return r.load(s, n)
	}
	r.t.Fatalf("op %s", s.Op)
	return nil
}

func (r *runner) create(s contractStep) error {
	config := s.Config.config()
	checked := r.library.CheckConfig(config)
	cache, err := r.library.NewCache(config)
	if (checked == nil) != (err == nil) {
		return broken{fmt.Sprintf("CheckConfig: %v, NewCache: %v", checked, err)}
	}
	if err != nil {
		if why := r.expect(s, checked); why != "" {
			return broken{"CheckConfig: " + why}
		}
		return err
	}
	resolved, err := cache.Config()
	if err != nil {
		return err
	}
	if s.Cache == "" {
		s.Cache = "main"
	}
	r.caches[s.Cache] = &named{cache, resolved, map[string]tqkv.Sequence{}, map[string]*namedBatch{}}
	return nil
}

func (r *runner) configBytes(s contractStep) error {
	bytes, err := r.library.ConfigBytes(s.Config.config())
	if err != nil {
		return err
	}
	found := map[string]float64{
		"token_bytes": float64(bytes.TokenBytes), "fp16_token_bytes": float64(bytes.FP16TokenBytes),
		"page_bytes": float64(bytes.PageBytes), "num_pages": float64(bytes.NumPages),
	}
	return r.figures(s, found)
}

func (r *runner) memory(s contractStep, n *named) error {
	m, err := n.cache.Memory()
	if err != nil {
		return err
	}
	return r.figures(s, map[string]float64{
		"num_sequences": float64(m.NumSequences), "tokens": float64(m.Tokens), "compression": m.Compression,
		"pages_used": float64(m.PagesUsed), "pages_total": float64(m.PagesTotal),
		"stored_bytes_used": float64(m.StoredBytesUsed), "raw_bytes_used": float64(m.RawBytesUsed),
	})
}

func (r *runner) figures(s contractStep, found map[string]float64) error {
	for name, expected := range s.numbers(r.t) {
		value, known := found[name]
		if !known {
			r.t.Fatalf("expect.%s", name)
		}
		if value != expected && (name != "compression" || math.Abs(value-expected) > 1e-12*expected) {
			return broken{fmt.Sprintf("%s: %v, expected %v", name, value, expected)}
		}
	}
	return nil
}

func (r *runner) plan(s contractStep, n *named) error {
	b, err := n.batch(s.Batch)
	if err != nil {
		return err
	}
	if s.QueryTokens == nil {
		s.QueryTokens = s.NewTokens
	}
	steps, queries := make([]tqkv.Step, len(s.Sequences)), int64(0)
	for i, name := range s.Sequences {
		steps[i] = tqkv.Step{n.sequences[name], s.NewTokens[i], s.QueryTokens[i]}
		queries += s.QueryTokens[i]
	}
	if err := b.batch.Plan(steps...); err != nil {
		return err
	}
	b.queries = queries
	return nil
}

func (r *runner) append(s contractStep, n *named) error {
	b, err := n.batch(s.Batch)
	if err != nil {
		return err
	}
	k := r.tensor(s.K).from(s.KOffset)
	var v tqkv.HostSlice // none: the layer is latent
	if s.V != "" {
		v = r.tensor(s.V).from(s.VOffset)
	}
	var layout *tqkv.Layout
	if s.Layout != nil {
		layout = &tqkv.Layout{
			KeyTokenStride: s.Layout["key_token_stride"], KeyHeadStride: s.Layout["key_head_stride"],
			ValueTokenStride: s.Layout["value_token_stride"], ValueHeadStride: s.Layout["value_head_stride"],
		}
	}
	return n.cache.Append(s.Layer, b.batch, k, v, layout)
}

func nans(count int64) []float32 {
	numbers := make([]float32, max(count, 0))
	for i := range numbers {
		numbers[i] = float32(math.NaN())
	}
	return numbers
}

// layer is that layer; for a number that there is not, the first one.
func (n *named) layer(number int) tqkv.LayerConfig {
	if number < 0 || number >= len(n.config.Layers) {
		number = 0
	}
	return n.config.Layers[number]
}

func (r *runner) attend(s contractStep, n *named) error {
	b, err := n.batch(s.Batch)
	if err != nil {
		return err
	}
	layer := n.layer(s.Layer)
	rows := b.queries * int64(layer.NumQHeads)
	if s.Status != "" {
		rows = max(rows, int64(layer.NumQHeads))
	}
	out, lse := nans(rows*int64(layer.ValueDim)), nans(rows)
	params, err := r.attendParams(s)
	if err != nil {
		return err
	}
	if s.Workspace != "" {
		bytes, err := n.cache.AttendWorkspaceBytes()
		if err != nil {
			return err
		}
		if s.Workspace == "short" {
			bytes = 1
		}
		if params == nil {
			params = &tqkv.AttendParams{}
		}
		params.Workspace = aligned(bytes)
	}
	q := r.tensor(s.Q).from(0)
	if err := n.cache.Attend(s.Layer, b.batch, q, tqkv.F32(out), lse, params); err != nil {
		return err
	}
	if s.Status != "" {
		return nil // it should have failed: nothing to compare with
	}
	return errors.Join(r.tensor(s.Out).compare("out", out, s.OutL2, nil),
		r.tensor(s.LSE).compare("lse", lse, nil, s.LSEAbs))
}

func (r *runner) read(s contractStep, n *named) error {
	layer := n.layer(s.Layer)
	rows := max(s.Count, 0) * int64(layer.NumKVHeads)
	k := blank(n.config.IODtype, rows*int64(layer.HeadDim))
	v := blank(n.config.IODtype, rows*int64(layer.ValueDim))
	if err := n.cache.Read(s.Layer, n.sequences[s.Sequence], s.First, s.Count, k.from(0), v.from(0),
		nil); err != nil {
		return err
	}
	if s.Status != "" {
		return nil // it should have failed: nothing to compare with
	}
	return errors.Join(r.tensor(s.K).compare("k", k.widened(), s.KL2, nil),
		r.tensor(s.V).compare("v", v.widened(), s.VL2, nil))
}

func (r *runner) merge(s contractStep) error {
	var outs []tqkv.HostSlice
	var lses [][]float32
	for i, name := range s.Outs {
		outs, lses = append(outs, r.tensor(name).from(0)), append(lses, r.tensor(s.LSEs[i]).f32)
	}
	out, lse := nans(int64(s.Rows*s.Dim)), nans(int64(s.Rows))
	if tqkv.Dtype(s.Dtype) != tqkv.Float32 {
		return inexpressible // the type is that of the slices
	}
	if err := r.library.MergeStates(outs, lses, s.Rows, s.Dim, tqkv.F32(out), lse); err != nil {
		return err
	}
	if s.Status != "" {
		return nil // it should have failed: nothing to compare with
	}
	return errors.Join(r.tensor(s.Out).compare("out", out, s.OutL2, nil),
		r.tensor(s.LSE).compare("lse", lse, nil, s.LSEAbs))
}
