// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

const qHeads, kvHeads, dim = 4, 2, 64

func open(t testing.TB) *tqkv.Library {
	t.Helper()
	library, err := tqkv.Open("")
	if err != nil {
		t.Fatal(err)
	}
	return library
}

func config(dtype tqkv.Dtype) *tqkv.Config {
	return &tqkv.Config{NumLayers: 1, NumQHeads: qHeads, NumKVHeads: kvHeads, HeadDim: dim, IODtype: dtype,
		KeyBits: 8, ValueBits: 8, MaxTokens: 256, MaxSequences: 4, NumThreads: 1}
}

// opened is a cache with a batch and a sequence, closed at the end of the test.
func opened(t testing.TB, c *tqkv.Config) (*tqkv.Cache, *tqkv.Batch, tqkv.Sequence) {
	t.Helper()
	cache, err := open(t).NewCache(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, cache.Close()) })
	batch, err := cache.CreateBatch()
	must(t, err)
	sequence, err := cache.CreateSequence()
	must(t, err)
	return cache, batch, sequence
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err error, kind tqkv.Status, parts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%v is not %v", err, kind)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("'%s' is not in: %v", part, err)
		}
	}
}

// random is about normal numbers, the same everywhere.
func random(seed uint32, count int) []float32 {
	numbers := make([]float32, count)
	for i := range numbers {
		sum := float32(-6)
		for range 12 {
			seed = seed*1664525 + 1013904223
			sum += float32(seed>>8) / 16777216
		}
		numbers[i] = sum
	}
	return numbers
}

func distance(found, expected []float32) float64 {
	var e, length float64
	for i, y := range expected {
		e += float64(found[i]-y) * float64(found[i]-y)
		length += float64(y) * float64(y)
	}
	return math.Sqrt(e / length)
}

func TestIntroduction(t *testing.T) {
	library := open(t)
	if library.Version() != tqkv.Version || library.ABIVersion() != 0 ||
		!strings.Contains(library.BuildInfo(), tqkv.Version) {
		t.Errorf("%s, %d, %s", library.Version(), library.ABIVersion(), library.BuildInfo())
	}
	if name := library.StatusName(tqkv.ErrCapacity); name != "TQ_ERROR_CAPACITY" {
		t.Error(name)
	}
	count, err := library.DeviceCount(tqkv.CPU)
	must(t, err)
	info, err := library.DeviceInfo(tqkv.CPU, 0)
	if err != nil || count != 1 || info.NumUnits < 1 || info.Name == "" {
		t.Errorf("%d, %+v, %v", count, info, err)
	}
	_, err = library.DeviceInfo(tqkv.CPU, 1)
	want(t, err, tqkv.ErrNoDevice, "index")
	_, err = library.DeviceInfo(tqkv.CPU, 1<<40)
	want(t, err, tqkv.ErrInvalidArgument, "index = 1099511627776")
	_, err = library.DeviceCount(7)
	want(t, err, tqkv.ErrInvalidArgument, "type = 7")
	var failure *tqkv.Error
	if !errors.As(err, &failure) || failure.Status != tqkv.ErrInvalidArgument ||
		errors.Is(err, tqkv.ErrCapacity) {
		t.Errorf("%#v", err)
	}
}

func bf16(numbers []float32) []uint16 {
	bits := make([]uint16, len(numbers))
	for i, x := range numbers {
		bits[i] = uint16(math.Float32bits(x) >> 16)
	}
	return bits
}

func widened(bits []uint16) []float32 {
	numbers := make([]float32, len(bits))
	for i, x := range bits {
		numbers[i] = math.Float32frombits(uint32(x) << 16)
	}
	return numbers
}

func TestBFloat16(t *testing.T) {
	cache, batch, sequence := opened(t, config(tqkv.BFloat16))
	k, v, q := bf16(random(1, 3*kvHeads*dim)), bf16(random(2, 3*kvHeads*dim)), bf16(random(3, qHeads*dim))
	must(t, batch.Plan(tqkv.Step{Sequence: sequence, NewTokens: 3, QueryTokens: 1}))
	must(t, cache.Append(0, batch, tqkv.BF16(k), tqkv.BF16(v), nil))
	kBack, vBack := make([]uint16, len(k)), make([]uint16, len(v))
	must(t, cache.Read(0, sequence, 0, 3, tqkv.BF16(kBack), tqkv.BF16(vBack), nil))
	// 8-bit codes: a step is the largest coordinate / 127; 2 % of the length is generous.
	if distance(widened(kBack), widened(k)) > 0.02 || distance(widened(vBack), widened(v)) > 0.02 {
		t.Error("read is not what was appended")
	}
	out, out32 := make([]uint16, qHeads*dim), make([]float32, qHeads*dim)
	must(t, cache.Attend(0, batch, tqkv.BF16(q), tqkv.BF16(out), nil, nil))
	must(t, cache.Attend(0, batch, tqkv.BF16(q), tqkv.F32(out32), nil, nil))
	if distance(widened(out), out32) > 1.0/256 { // half a unit in the last place is 2^-9
		t.Error("out in bfloat16 is not out in float32")
	}
	bad := tqkv.ErrInvalidArgument
	want(t, cache.Append(0, batch, tqkv.F16(k), tqkv.F16(v), nil), bad, "k: of type 2", "io_dtype = 3")
	want(t, cache.Attend(0, batch, tqkv.BF16(q), tqkv.F16(out), nil, nil), bad, "out: of type 2")
}

func TestShortSlices(t *testing.T) {
	cache, batch, sequence := opened(t, config(tqkv.Float32))
	must(t, batch.Plan(tqkv.Decode(sequence, 2)))
	kv := tqkv.F32(random(1, 2*kvHeads*dim))
	bad := tqkv.ErrInvalidArgument
	want(t, cache.Append(0, batch, kv[1:], kv, nil), bad, "k: a slice of 255")
	want(t, cache.Append(0, batch, kv, kv[:200], nil), bad, "v: a slice of 200")
	want(t, cache.Append(0, batch, kv, nil, nil), bad, "v = NULL")
	want(t, cache.Append(0, batch, kv, kv, &tqkv.Layout{KeyTokenStride: 1000}), bad, "k:")
	negative := &tqkv.Layout{ValueHeadStride: -64}
	want(t, cache.Append(0, batch, kv, kv, negative), bad, "v:", "must not be negative")
	want(t, cache.Append(1<<40, batch, kv, kv, nil), bad, "layer = 1099511627776")
	must(t, cache.Append(0, batch, kv, kv, nil))

	q, out, lse := tqkv.F32(random(2, 2*qHeads*dim)), make(tqkv.F32, 2*qHeads*dim), make([]float32, 2*qHeads)
	want(t, cache.Attend(0, batch, q[1:], out, nil, nil), bad, "q:")
	want(t, cache.Attend(0, batch, q, out[1:], nil, nil), bad, "out:")
	want(t, cache.Attend(0, batch, nil, out, nil, nil), bad, "must not be nil")
	want(t, cache.Attend(0, batch, q, out, lse[1:], nil), bad, "lse:")
	sinks := &tqkv.AttendParams{SinkLogits: make([]float32, 3)}
	want(t, cache.Attend(0, batch, q, out, nil, sinks), bad, "sink_logits")
	want(t, cache.AttendDevice(0, batch, tqkv.DeviceAttend{}, sinks, 0), bad, "SinkLogits")
	masks := &tqkv.AttendParams{VisibleBegin: make([]int32, 2), VisibleEnd: make([]int32, 1)}
	want(t, cache.Attend(0, batch, q, out, nil, masks), bad, "visible_end")
	want(t, cache.AttendDevice(0, batch, tqkv.DeviceAttend{}, masks, 0), bad, "VisibleBegin")
	masks = &tqkv.AttendParams{TreeMask: make([]uint64, 3), TreeWords: 2}
	want(t, cache.Attend(0, batch, q, out, nil, masks), bad, "tree_mask")
	must(t, cache.Attend(0, batch, q, out, lse, nil))

	k := make(tqkv.F32, 2*kvHeads*dim)
	want(t, cache.Read(0, sequence, 0, 2, k[1:], nil, nil), bad, "k:")
	want(t, cache.Read(0, sequence, 0, math.MaxInt64, k, nil, nil), bad, "k:")
	must(t, cache.Read(0, sequence, 0, 2, k, nil, nil))
	want(t, cache.SetCentres(0, make([]float32, 3), nil), bad, "key_centre")
	library := open(t)
	want(t, library.MergeStates([]tqkv.HostSlice{k}, nil, 1, 64, k, nil), bad, "lses")
	want(t, library.MergeStates([]tqkv.HostSlice{k}, [][]float32{lse}, 9, 64, k, nil), bad, "outs[0]")
	want(t, library.MergeStates([]tqkv.HostSlice{nil}, [][]float32{lse}, 1, 64, k, nil), bad, "outs[0] = nil")
}

func TestListsOfTheWrongLength(t *testing.T) {
	c := config(tqkv.Float32)
	c.LayerKeyBits = []int32{4, 4}
	_, err := open(t).NewCache(c)
	want(t, err, tqkv.ErrInvalidArgument, "layer_key_bits: 2 entries")
	c = config(tqkv.Float32)
	c.ValueCodebook = &tqkv.Codebook{Bits: 4, Unit: 0.01, Magnitude: make([]uint8, 9)}
	want(t, open(t).CheckConfig(c), tqkv.ErrInvalidArgument, "value_codebook: 9 magnitudes", "need 8")
	_, err = open(t).NewCache(nil)
	want(t, err, tqkv.ErrInvalidArgument, "config = nil")
	c = config(tqkv.Float32)
	c.Allocator.Alloc = 8
	_, err = open(t).NewCache(c)
	want(t, err, tqkv.ErrInvalidArgument, "allocator")
}

func TestSlicesAreMeasuredByTheLayerThatIsNamed(t *testing.T) {
	c := config(tqkv.Float32)
	c.NumLayers = 0
	c.Layers = []tqkv.LayerConfig{{}, {NumQHeads: 3, NumKVHeads: 1, HeadDim: 32, KeyBits: 8, SlidingWindow: 5},
		{NumQHeads: 2, SharesLayer: 1}}
	cache, batch, sequence := opened(t, c)
	resolved, err := cache.Config()
	must(t, err)
	if l := resolved.Layers; len(l) != 3 || l[0].ValueDim != dim || l[1].KeyBits != 8 ||
		l[2].NumKVHeads != kvHeads || l[2].SharesLayer != 1 {
		t.Errorf("%+v", l)
	}
	var sum int64
	for layer := range 3 {
		bytes, err := open(t).ConfigLayerBytes(c, layer)
		must(t, err)
		sum += bytes.PageBytes
		if layer == 1 && bytes.FP16TokenBytes != 2*2*32 || layer == 2 && bytes.PageBytes != 0 {
			t.Errorf("layer %d: %+v", layer, bytes)
		}
	}
	if whole, err := open(t).ConfigBytes(c); err != nil || sum != whole.PageBytes {
		t.Errorf("%d, %+v, %v", sum, whole, err)
	}
	_, err = open(t).ConfigLayerBytes(c, 3)
	want(t, err, tqkv.ErrInvalidArgument, "layer = 3")
	must(t, batch.Plan(tqkv.Decode(sequence, 2)))
	kv, bad := make(tqkv.F32, 2*kvHeads*dim), tqkv.ErrInvalidArgument
	must(t, cache.Append(0, batch, kv, kv, nil))
	want(t, cache.Append(1, batch, kv[:63], kv, nil), bad, "k:")
	must(t, cache.Append(1, batch, kv[:64], kv[:64], nil))
	want(t, cache.Append(2, batch, kv, kv, nil), bad, "layer")
	q, out := make(tqkv.F32, 2*qHeads*dim), make(tqkv.F32, 2*qHeads*dim)
	want(t, cache.Attend(1, batch, q, out[:191], nil, nil), bad, "out:")
	must(t, cache.Attend(1, batch, q, out[:192], nil, nil))
	must(t, cache.Attend(2, batch, q, out[:2*2*dim], nil, nil))
	for _, layer := range []int{-1, 3} {
		want(t, cache.Append(layer, batch, kv, kv, nil), bad, "layer")
		want(t, cache.Attend(layer, batch, q, out, nil, nil), bad, "layer")
		want(t, cache.SetCentres(layer, kv, nil), bad, "layer")
	}
	c.NumLayers = 2
	want(t, open(t).CheckConfig(c), bad, "layers: 3 entries, but num_layers = 2")
}

func TestResolvedConfig(t *testing.T) {
	c := config(tqkv.BFloat16)
	c.NumLayers, c.LayerValueBits, c.KeyBits, c.RotationSeed = 2, []int32{0, 3}, 2, 99
	c.FirstLayer, c.FirstKVHead = 3, 4
	c.KeyCodebook = &tqkv.Codebook{Bits: 2, Unit: 0.015625, Magnitude: []uint8{27, 98}}
	first, _, _ := opened(t, c)
	resolved, err := first.Config()
	must(t, err)
	if resolved.ValueDim != 64 || resolved.PageSize != 64 || resolved.MaxSequenceTokens != 256 ||
		fmt.Sprint(*resolved.KeyCodebook) != fmt.Sprint(*c.KeyCodebook) {
		t.Errorf("%+v", resolved)
	}
	second, _, _ := opened(t, &resolved)
	one, err := first.Fingerprint()
	must(t, err)
	two, err := second.Fingerprint()
	if err != nil || one != two {
		t.Errorf("%x, %x, %v", one, two, err)
	}
}

func TestClosing(t *testing.T) {
	cache, batch, sequence := opened(t, config(tqkv.Float32))
	other, otherBatch, _ := opened(t, config(tqkv.Float32))
	kv := make(tqkv.F32, kvHeads*dim)
	want(t, cache.Append(0, otherBatch, kv, kv, nil), tqkv.ErrInvalidArgument, "another cache")
	want(t, cache.Append(0, nil, kv, kv, nil), tqkv.ErrInvalidArgument, "nil")
	must(t, batch.Plan(tqkv.Decode(sequence, 1)))
	for range 3 {
		must(t, batch.Close())
	}
	want(t, batch.Plan(tqkv.Decode(sequence, 1)), tqkv.ErrInvalidState, "batch: is closed")
	for range 3 {
		must(t, other.Close())
	}
	must(t, otherBatch.Close())
	_, err := other.CreateSequence()
	want(t, err, tqkv.ErrInvalidState, "cache: is closed")
	want(t, otherBatch.Plan(), tqkv.ErrInvalidState, "cache: is closed")
}

// Raw keys hold +-65504 at most; a coded side has no such bound.
func TestNoticed(t *testing.T) {
	c := config(tqkv.Float32)
	c.KeyBits = 16
	cache, batch, sequence := opened(t, c)
	k, v := tqkv.F32(random(1, kvHeads*dim)), tqkv.F32(random(2, kvHeads*dim))
	appended := func(expected tqkv.Noticed) {
		t.Helper()
		must(t, batch.Plan(tqkv.Decode(sequence, 1)))
		must(t, cache.Append(0, batch, k, v, nil))
		if noticed, err := cache.Check(0); err != nil || noticed != expected {
			t.Errorf("noticed %d, %v, expected %d", noticed, err, expected)
		}
	}
	appended(0)
	v[3] = 1e6
	appended(0)
	k[5] = -1e6
	appended(tqkv.NoticedSaturated)
	k[5], v[3] = 0, float32(math.NaN())
	appended(tqkv.NoticedNonfinite)
	all, err := cache.Noticed(sequence)
	if err != nil || all != tqkv.NoticedSaturated|tqkv.NoticedNonfinite {
		t.Errorf("noticed %d, %v", all, err)
	}
}

func TestStreamOnTheCPU(t *testing.T) {
	_, batch, sequence := opened(t, config(tqkv.Float32))
	want(t, batch.PlanOn(8, tqkv.Decode(sequence, 1)), tqkv.ErrInvalidArgument, "stream")
}

func TestCudaCacheWithoutCuda(t *testing.T) {
	count, err := open(t).DeviceCount(tqkv.CUDA)
	must(t, err)
	c := config(tqkv.Float32)
	c.DeviceType, c.DeviceID = tqkv.CUDA, int32(count)
	_, err = open(t).NewCache(c)
	if !errors.Is(err, tqkv.ErrNoDevice) && !errors.Is(err, tqkv.ErrDriver) &&
		!errors.Is(err, tqkv.ErrNotSupported) {
		t.Error(err)
	}
}

// The text of a failure comes from the call that failed, whatever other goroutines do on the same thread in
// between.
func TestErrorTextsStayWithTheirGoroutine(t *testing.T) {
	const goroutines, calls = 64, 2000
	library := open(t)
	cache, _, _ := opened(t, config(tqkv.Float32))
	var wait sync.WaitGroup
	crossed := make(chan string, goroutines)
	for g := range goroutines {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for call := range calls {
				id := 1_000_000*(g+1) + call
				var err error
				if call%2 == 0 {
					_, err = library.DeviceInfo(tqkv.CPU, id)
				} else {
					err = cache.Truncate(tqkv.Sequence(-id), 0)
				}
				if err == nil || !strings.Contains(err.Error(), fmt.Sprint(id)) {
					crossed <- fmt.Sprintf("%d is not in: %v", id, err)
					return
				}
				if call%16 == 0 {
					runtime.Gosched()
				}
			}
		}()
	}
	wait.Wait()
	close(crossed)
	for text := range crossed {
		t.Error(text)
	}
}

// Calls on one cache from several goroutines take turns.
func TestGoroutinesShareACache(t *testing.T) {
	cache, _, _ := opened(t, config(tqkv.Float32))
	var wait sync.WaitGroup
	for g := range 3 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			batch, err := cache.CreateBatch()
			if err != nil {
				t.Error(err)
				return
			}
			sequence, err := cache.CreateSequence()
			if err != nil {
				t.Error(err)
				return
			}
			kv, q := tqkv.F32(random(uint32(g), kvHeads*dim)), tqkv.F32(random(9, qHeads*dim))
			out := make(tqkv.F32, qHeads*dim)
			for range 40 {
				err := errors.Join(batch.Plan(tqkv.Decode(sequence, 1)), cache.Append(0, batch, kv, kv, nil),
					cache.Attend(0, batch, q, out, nil, nil))
				if err != nil {
					t.Error(err)
					return
				}
			}
			// Every token is the same vector, so that attention gives it back (8-bit codes: within 2 %).
			for h := range qHeads {
				kvHead := h / (qHeads / kvHeads)
				if e := distance(out[h*dim:(h+1)*dim], kv[kvHead*dim:(kvHead+1)*dim]); e > 0.02 {
					t.Errorf("goroutine %d, head %d: off by %g", g, h, e)
				}
			}
		}()
	}
	wait.Wait()
}

func BenchmarkAttendCallOverhead(b *testing.B) {
	cache, batch, sequence := opened(b, config(tqkv.Float32))
	must(b, batch.Plan(tqkv.Decode(sequence, 1)))
	kv, q := tqkv.F32(random(1, kvHeads*dim)), tqkv.F32(random(9, qHeads*dim))
	out := make(tqkv.F32, qHeads*dim)
	must(b, cache.Append(0, batch, kv, kv, nil))
	b.ReportAllocs()
	for b.Loop() {
		must(b, cache.Attend(0, batch, q, out, nil, nil))
	}
}
