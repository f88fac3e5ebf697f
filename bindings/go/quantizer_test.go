// SPDX-License-Identifier: Apache-2.0

package tqkv

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

const (
	vectorDim   = 100
	vectorCount = 200
)

func floats(count int, state uint64) F32 {
	x := make(F32, count)
	for i := range x {
		state = state*6364136223846793005 + 1442695040888963407
		x[i] = float32(state>>40)/8388608 - 1
	}
	return x
}

func product(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return
}

func newQuantizer(t *testing.T, config QuantizerConfig) *Quantizer {
	t.Helper()
	library, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	config.Dim, config.NumThreads = vectorDim, 1
	quantizer, err := library.NewQuantizer(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := quantizer.Close(); err != nil {
			t.Error(err)
		}
	})
	return quantizer
}

func thereAndBack(t *testing.T, config QuantizerConfig, most float64) {
	t.Helper()
	quantizer := newQuantizer(t, config)
	x, q, bias := floats(vectorCount*vectorDim, 1), floats(7*vectorDim, 2), floats(vectorCount, 3)
	codes, back := make([]byte, vectorCount*quantizer.CodeBytes()), make(F32, len(x))
	if noticed, err := quantizer.Encode(x, vectorCount, codes); err != nil || noticed != 0 {
		t.Fatal(noticed, err)
	}
	if err := quantizer.Decode(codes, vectorCount, back); err != nil {
		t.Fatal(err)
	}
	off := make(F32, len(x))
	for i := range off {
		off[i] = x[i] - back[i]
	}
	if e := product(off, off) / product(x, x); e > most || e < most/2 {
		t.Errorf("%+v: error %g, at most %g", config, e, most)
	}
	out := make([]float32, 7*vectorCount)
	if err := quantizer.InnerProducts(q, 7, codes, vectorCount, out); err != nil {
		t.Fatal(err)
	}
	scores, ids, err := quantizer.Search(q, 7, codes, vectorCount, bias, 5)
	if err != nil {
		t.Fatal(err)
	}
	for row := range 7 {
		query, products := q[row*vectorDim:(row+1)*vectorDim], out[row*vectorCount:(row+1)*vectorCount]
		order := make([]int, vectorCount)
		for i := range order {
			order[i] = i
			vector := back[i*vectorDim : (i+1)*vectorDim]
			bound := 4e-4 * math.Sqrt(product(query, query)*product(vector, vector))
			if math.Abs(float64(products[i])-product(query, vector)) > bound {
				t.Fatalf("query %d, vector %d: %g", row, i, products[i])
			}
		}
		sort.SliceStable(order, func(a, b int) bool {
			return products[order[a]]+bias[order[a]] > products[order[b]]+bias[order[b]]
		})
		for i, best := range order[:5] {
			if ids[row*5+i] != int64(best) || scores[row*5+i] != products[best]+bias[best] {
				t.Errorf("query %d, place %d: %d, expected %d", row, i, ids[row*5+i], best)
			}
		}
	}
}

func TestQuantizerFamilies(t *testing.T) {
	thereAndBack(t, QuantizerConfig{Bits: 4}, .0105)
	thereAndBack(t, QuantizerConfig{Bits: 3, Family: CodeProd}, .08)
	thereAndBack(t, QuantizerConfig{Bits: 3, Family: CodeProd, Sketch: SketchGaussian,
		SketchRule: SketchLeastError}, .085)
	thereAndBack(t, QuantizerConfig{Bits: 4, Family: CodeGrouped, GroupSize: 32}, .0045)
	thereAndBack(t, QuantizerConfig{Bits: 2, OutlierChannels: []int32{3, 50}}, .13)
}

// goldenCase is the metadata of a case in tests/golden/quantizer.safetensors.
type goldenCase struct {
	Dim, Bits          int32
	Family             CodeFamily
	Rule               ScaleRule
	Rotation           Rotation
	Search             bool
	Seed               uint64
	Group              int32
	Sketch             Sketch
	SketchRule         SketchRule `json:"sketch_rule"`
	Factor, Unit       float32
	Outliers           []int32
	Levels, Boundaries []float32
}

func (c *goldenCase) config() *QuantizerConfig {
	config := &QuantizerConfig{Dim: c.Dim, Bits: c.Bits, Family: c.Family, Rotation: c.Rotation,
		ScaleRule: c.Rule, SketchFactor: c.Factor, OutlierChannels: c.Outliers, Seed: c.Seed}
	if !c.Search {
		config.Flags = FlagNoScaleSearch
	}
	if c.Family == CodeGrouped {
		config.Rotation, config.GroupSize = 0, c.Group
	}
	if c.Family == CodeProd {
		config.Sketch, config.SketchRule = c.Sketch, c.SketchRule
	}
	if len(c.Levels) > 0 {
		config.Levels = &Levels{c.Levels, c.Boundaries, c.Unit}
	}
	return config
}

// The records of the golden file, which all bindings make: every family, field and rule of a configuration.
func TestQuantizerGoldenRecords(t *testing.T) {
	blob, err := os.ReadFile("../../tests/golden/quantizer.safetensors")
	if os.IsNotExist(err) {
		t.Skip("not inside the repository of tqkv")
	}
	if err != nil {
		t.Fatal(err)
	}
	length := binary.LittleEndian.Uint64(blob)
	var header map[string]json.RawMessage
	var cases map[string]string
	if err := json.Unmarshal(blob[8:8+length], &header); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(header["__metadata__"], &cases); err != nil || len(cases) < 40 {
		t.Fatal(len(cases), err)
	}
	tensor := func(name string) []byte {
		var place struct {
			Offsets [2]uint64 `json:"data_offsets"`
		}
		if header[name] == nil {
			return nil
		}
		if err := json.Unmarshal(header[name], &place); err != nil {
			t.Fatal(err)
		}
		return blob[8+length+place.Offsets[0] : 8+length+place.Offsets[1]]
	}
	numbers := func(bytes []byte) F32 {
		x := make(F32, len(bytes)/4)
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(bytes[4*i:]))
		}
		return x
	}
	library, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range cases {
		var c goldenCase
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatal(name, err)
		}
		quantizer, err := library.NewQuantizer(c.config())
		if err != nil {
			t.Fatal(name, err)
		}
		x, expected := numbers(tensor(fmt.Sprintf("d%d.input", c.Dim))), tensor(name+".records")
		codes := make([]byte, len(expected))
		if _, err := quantizer.Encode(x, 32, codes); err != nil || string(codes) != string(expected) {
			t.Errorf("%s: %v, or other records", name, err)
		}
		if decoded := tensor(name + ".decoded"); decoded != nil {
			back := make(F32, len(x))
			if err := quantizer.Decode(codes, 32, back); err != nil || !slices.Equal(back, numbers(decoded)) {
				t.Errorf("%s: %v, or other vectors", name, err)
			}
		}
		if err := quantizer.Close(); err != nil {
			t.Error(name, err)
		}
	}
}

func TestQuantizerCalibration(t *testing.T) {
	quantizer, x := newQuantizer(t, QuantizerConfig{Bits: 3, Family: CodeProd}), floats(2000*vectorDim, 5)
	levels, e, err := quantizer.CalibrateLevels(x, 2000, 3)
	if err != nil || e > .036 || e < .03 {
		t.Fatal(e, err)
	}
	thereAndBack(t, QuantizerConfig{Bits: 3, Family: CodeLevels, Levels: levels}, .04)
	factor, err := quantizer.CalibrateSketchFactor(x, 2000)
	if err != nil || math.Abs(float64(factor)-.798) > .01 ||
		math.Abs(float64(quantizer.SketchFactor())-1.2505) > 1e-3 {
		t.Error(factor, quantizer.SketchFactor(), err)
	}
}

func TestQuantizerRotation(t *testing.T) {
	quantizer := newQuantizer(t, QuantizerConfig{Bits: 1})
	if quantizer.Dim() != 100 || quantizer.RotatedDim() != 112 || quantizer.CodeBytes() != 16 {
		t.Error(quantizer.Dim(), quantizer.RotatedDim(), quantizer.CodeBytes())
	}
	x, y, back := floats(300, 6), make([]float32, 336), make(F32, 300)
	if err := quantizer.Rotate(x, 3, y); err != nil {
		t.Fatal(err)
	}
	if err := quantizer.Unrotate(y, 3, back); err != nil {
		t.Fatal(err)
	}
	if math.Abs(product(x, x)-product(y, y)) > 1e-5*product(x, x) {
		t.Error("the length has changed")
	}
	for i := range x {
		if math.Abs(float64(x[i]-back[i])) > 1e-6 {
			t.Fatal(i, x[i], back[i])
		}
	}
}

func TestQuantizerFromManyGoroutines(t *testing.T) {
	quantizer, x := newQuantizer(t, QuantizerConfig{Bits: 4}), floats(50*vectorDim, 7)
	var all [4][]byte
	var wait sync.WaitGroup
	for i := range all {
		wait.Add(1)
		go func() {
			defer wait.Done()
			all[i] = make([]byte, 50*quantizer.CodeBytes())
			if _, err := quantizer.Encode(x, 50, all[i]); err != nil {
				t.Error(err)
			}
		}()
	}
	wait.Wait()
	for _, codes := range all {
		if string(codes) != string(all[0]) {
			t.Error("records differ")
		}
	}
}

func TestQuantizerRefusals(t *testing.T) {
	refused := func(err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, expected %q", err, text)
		}
	}
	library, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = library.NewQuantizer(&QuantizerConfig{Dim: 100, Bits: 9})
	refused(err, "bits = 9")
	_, err = library.NewQuantizer(&QuantizerConfig{Dim: 100, Bits: 2, Family: CodeLevels,
		Levels: &Levels{Levels: make([]float32, 4), Boundaries: make([]float32, 4)}})
	refused(err, "4 levels")
	_, err = library.NewQuantizer(nil)
	refused(err, "config = nil")
	quantizer, x, codes := newQuantizer(t, QuantizerConfig{Bits: 4}), floats(200, 8), make([]byte, 100)
	_, err = quantizer.Encode(x, 2, codes)
	refused(err, "codes: a slice of 100 elements")
	_, err = quantizer.Encode(x[1:], 2, codes)
	refused(err, "x: a slice of 199 elements")
	_, err = quantizer.Encode(BF16(make([]uint16, 100)), 1, codes)
	refused(err, "x: of type 3, but IODtype is 1")
	_, err = quantizer.Encode(x, -1, codes)
	refused(err, "count = -1")
	_, _, err = quantizer.Search(x, 1, codes, 1, nil, 0)
	refused(err, "k = 0")
	if err := quantizer.Close(); err != nil {
		t.Fatal(err)
	}
	refused(quantizer.Decode(codes, 1, x), "quantizer: is closed")
}

// address is what C would be given for a slice: device methods of a CPU quantizer take it too.
func address[T any](slice []T) DevicePtr { return DevicePtr(uintptr(unsafe.Pointer(&slice[0]))) }

func TestQuantizerDeviceCalls(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	q := newQuantizer(t, QuantizerConfig{Dim: 100, Bits: 4})
	const count = 7
	x := make([]float32, count*100)
	for i := range x {
		x[i] = float32(math.Sin(float64(i) * 0.37))
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&x[0])
	bytes, width := count*q.CodeBytes(), count*q.RotatedDim()
	codes, other := make([]byte, bytes), make([]byte, bytes)
	back, otherBack := make([]float32, len(x)), make([]float32, len(x))
	y, otherY := make([]float32, width), make([]float32, width)
	out, otherOut := make([]float32, 2*count), make([]float32, 2*count)
	otherScores, otherIDs := make([]float32, 6), make([]int64, 6)
	for _, memory := range []any{&other[0], &otherBack[0], &otherY[0], &otherOut[0], &otherScores[0],
		&otherIDs[0]} {
		pinner.Pin(memory)
	}
	_, err := q.Encode(F32(x), count, codes)
	must(err)
	must(q.Decode(codes, count, F32(back)))
	must(q.Rotate(F32(x), count, y))
	must(q.InnerProducts(F32(x), 2, codes, count, out))
	scores, ids, err := q.Search(F32(x), 2, codes, count, nil, 3)
	must(err)
	must(q.EncodeDevice(address(x), count, address(other), 0))
	noticed, err := q.EncodeDeviceNoticing(address(x), count, address(other), 0)
	must(err)
	must(q.DecodeDevice(address(other), count, address(otherBack), 0))
	must(q.RotateDevice(address(x), count, address(otherY), 0))
	must(q.InnerProductsDevice(address(x), 2, address(other), count, address(otherOut), 0))
	must(q.SearchDevice(address(x), 2, address(other), count, 0, 3, address(otherScores),
		address(otherIDs), 0))
	if noticed != 0 || !slices.Equal(codes, other) || !slices.Equal(back, otherBack) ||
		!slices.Equal(y, otherY) || !slices.Equal(out, otherOut) || !slices.Equal(scores, otherScores) ||
		!slices.Equal(ids, otherIDs) {
		t.Error("calls on addresses differ from calls on slices")
	}
	must(q.Unrotate(y, count, F32(back)))
	must(q.UnrotateDevice(address(otherY), count, address(otherBack), 0))
	if !slices.Equal(back, otherBack) {
		t.Error("UnrotateDevice differs from Unrotate")
	}
	library, err := Open("")
	must(err)
	cuda, err := library.NewQuantizer(&QuantizerConfig{Dim: 100, Bits: 4, DeviceType: CUDA})
	if err == nil {
		defer cuda.Close()
		_, err = cuda.Encode(F32(x), count, codes)
	}
	if err == nil || !strings.Contains(err.Error(), "CUDA") {
		t.Errorf("slices for a CUDA quantizer: %v", err)
	}
}
