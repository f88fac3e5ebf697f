// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

const fed = 320

// permutation is 4 at (i, placeOf(i)): codes of keys so turned are those of the keys in another order, four
// times as long.
func permutation() []float32 {
	matrix := make([]float32, kvHeads*dim*dim)
	for row := range kvHeads * dim {
		matrix[row*dim+placeOf(row%dim)] = 4
	}
	return matrix
}

func placeOf(i int) int { return (27*i + 5) % dim }

func reordered(rows []float32, factor float32) tqkv.F32 {
	found := make(tqkv.F32, len(rows))
	for i := range found {
		found[i] = rows[i/dim*dim+placeOf(i%dim)] * factor
	}
	return found
}

func turning() *tqkv.Config {
	c := config(tqkv.Float32)
	c.KeyBits, c.ValueBits, c.MaxTokens = 3, 4, 512
	return c
}

func attended(t *testing.T, matrix []float32, q, k, v tqkv.F32) (out tqkv.F32, fingerprint uint64) {
	t.Helper()
	cache, batch, sequence := opened(t, turning())
	if matrix != nil {
		must(t, cache.SetKeyMatrix(0, matrix))
	}
	must(t, batch.Plan(tqkv.Step{Sequence: sequence, NewTokens: fed, QueryTokens: fed}))
	must(t, cache.Append(0, batch, k, v, nil))
	out = make(tqkv.F32, fed*qHeads*dim)
	must(t, cache.Attend(0, batch, q, out, nil, nil))
	want(t, cache.SetKeyMatrix(0, permutation()), tqkv.ErrInvalidState,
		"key matrices are fixed once a sequence holds tokens")
	fingerprint, err := cache.Fingerprint()
	must(t, err)
	return
}

func sides() (q, k, v tqkv.F32) {
	return random(1, fed*qHeads*dim), random(2, fed*kvHeads*dim), random(3, fed*kvHeads*dim)
}

func TestCodesAreThoseOfTurnedKeys(t *testing.T) {
	q, k, v := sides()
	out, turned := attended(t, permutation(), q, k, v)
	wanted, plain := attended(t, nil, reordered(q, 0.25), reordered(k, 4), v)
	if !slices.Equal(out, wanted) || turned == plain {
		t.Errorf("other attention, or one fingerprint: %x, %x", turned, plain)
	}
}

func TestKeyMatricesThatDoNotFit(t *testing.T) {
	cache, _, _ := opened(t, turning())
	good, bad := permutation(), tqkv.ErrInvalidArgument
	want(t, cache.SetKeyMatrix(0, good[1:]), bad, "matrix: a slice of 8191 elements")
	want(t, cache.SetKeyMatrix(0, nil), bad, "matrix: a slice of 0 elements")
	want(t, cache.SetKeyMatrix(1, good), bad, "layer = 1")
	singular := slices.Clone(good)
	clear(singular[:dim])
	want(t, cache.SetKeyMatrix(0, singular), bad, "matrix[0] of layer 0: has no inverse")
	c := turning()
	c.KeyBits = 16
	raw, _, _ := opened(t, c)
	want(t, raw.SetKeyMatrix(0, good), tqkv.ErrNotSupported, "a key matrix is for")
}

func calibration(t *testing.T) *tqkv.Calibration {
	t.Helper()
	made, err := open(t).NewCalibration(&tqkv.CalibrationConfig{NumLayers: 1, NumQHeads: qHeads,
		NumKVHeads: kvHeads, HeadDim: dim})
	must(t, err)
	t.Cleanup(func() { must(t, made.Close()) })
	return made
}

func TestACalibrationCarriesMatrices(t *testing.T) {
	q, k, v := sides()
	for i := range k {
		k[i] = k[i]*float32(1+i%dim/16) + 2
	}
	made := calibration(t)
	if c := made.Config(); c.ValueDim != dim || c.HeldOutTokens != 128 {
		t.Errorf("%+v", c)
	}
	if matrix, err := made.KeyMatrix(0); matrix != nil || err != nil {
		t.Error(matrix, err)
	}
	must(t, made.SetKeyMatrix(0, permutation()))
	must(t, made.Feed(0, fed, q, k, v))
	goal := tqkv.CalibrationGoal{KeyBits: 3, ValueBits: 3}
	found, err := made.Choose(goal)
	must(t, err)
	if found.Error <= 0 || found.Error > found.UniformError || found.RawLayers != 0 || len(found.Layers) != 1 {
		t.Errorf("%+v", found)
	}
	var file bytes.Buffer
	must(t, made.Save(&file))
	again, err := open(t).LoadCalibration(bytes.NewReader(file.Bytes()))
	must(t, err)
	defer again.Close()
	if second, err := again.Choose(goal); err != nil || !reflect.DeepEqual(second, found) {
		t.Errorf("%+v, %+v, %v", found, second, err)
	}
	if matrix, err := again.KeyMatrix(0); err != nil || !slices.Equal(matrix, permutation()) {
		t.Error("another matrix", err)
	}
	key, value, err := again.Centres(0)
	must(t, err)

	c := turning()
	c.KeyBits, c.ValueBits, c.Layers = 0, 0, found.Layers
	set, _, _ := opened(t, c)
	own, _, _ := opened(t, c)
	must(t, again.SetCentres(set))
	must(t, own.SetCentres(0, key, value))
	must(t, own.SetKeyMatrix(0, permutation()))
	first, _ := set.Fingerprint()
	if second, err := own.Fingerprint(); err != nil || first != second {
		t.Errorf("fingerprints %x, %x, %v", first, second, err)
	}

	path := filepath.Join(t.TempDir(), "calibration")
	must(t, again.SaveFile(path))
	if bytesThere, err := os.ReadFile(path); err != nil || !bytes.Equal(bytesThere, file.Bytes()) {
		t.Error("another file", err)
	}
	third, err := open(t).LoadCalibrationFile(path)
	must(t, err)
	want(t, third.Feed(0, fed, q, k, v), tqkv.ErrInvalidState, "it was loaded")
	must(t, third.Close())
	must(t, third.Close())
	want(t, third.SaveFile(path), tqkv.ErrInvalidState, "is closed")
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

func TestCalibrationsThatCannotBe(t *testing.T) {
	bad := tqkv.ErrInvalidArgument
	_, err := open(t).NewCalibration(nil)
	want(t, err, bad, "config = nil")
	_, err = open(t).NewCalibration(&tqkv.CalibrationConfig{NumLayers: 1, NumQHeads: 4, NumKVHeads: 2,
		HeadDim: 66, KeyFamily: tqkv.CodeGrouped})
	want(t, err, bad, "head_dim = 66", "key_family = 3")
	var none *tqkv.Calibration
	want(t, none.Close(), bad, "calibration: nil")
	want(t, none.Feed(0, 1, nil, nil, nil), bad, "calibration: nil")
	want(t, none.SetKeyMatrix(0, nil), bad, "calibration: nil")

	made := calibration(t)
	q, k, v := sides()
	want(t, made.Feed(0, fed+1, q, k, v), bad, "q: a slice of")
	want(t, made.Feed(0, fed, q, k[1:], v), bad, "k: a slice of")
	want(t, made.Feed(0, fed, q, k, nil), bad, "v = nil")
	want(t, made.Feed(0, 1, make(tqkv.F16, qHeads*dim), k, v), bad, "q: of type 2, but")
	want(t, made.Feed(1, 1, q, k, v), bad, "layer = 1")
	want(t, made.Feed(0, -1, q, k, v), bad, "count = -1")
	if made.FeedDevice(0, 1, 0, 0, 0, 0, 0) == nil { // with a device too: nothing is there
		t.Error("fed from no memory")
	}
	goal := tqkv.CalibrationGoal{KeyBits: 3, ValueBits: 3}
	_, err = made.Choose(goal)
	want(t, err, tqkv.ErrInvalidState, "layer 0 was fed 0 tokens")
	must(t, made.Feed(0, fed, q, k, v))
	want(t, made.SetKeyMatrix(0, permutation()[1:]), bad, "matrix: a slice of")
	want(t, made.SetKeyMatrix(0, permutation()), tqkv.ErrInvalidState, "its key matrix comes before them")
	_, err = made.Choose(tqkv.CalibrationGoal{KeyBits: 2.25, ValueBits: 9})
	want(t, err, bad, "goal.key_bits = 2.25", "goal.value_bits = 9")
	_, err = made.KeyMatrix(5)
	want(t, err, bad, "layer = 5")
	turning, err := open(t).NewCalibration(&tqkv.CalibrationConfig{NumLayers: 1, NumQHeads: qHeads,
		NumKVHeads: kvHeads, HeadDim: dim, TurnKeys: true})
	must(t, err)
	defer turning.Close()
	_, err = turning.KeyMatrix(0)
	want(t, err, tqkv.ErrInvalidState, "layer 0 was fed 0 tokens")
	_, _, err = made.Centres(-1)
	want(t, err, bad, "layer = -1")
	want(t, made.SetCentres(nil), bad, "cache: nil")

	err = made.Save(fullDisk{})
	want(t, err, tqkv.ErrIO, "the disk is full")
	var file bytes.Buffer
	must(t, made.Save(&file))
	file.Bytes()[file.Len()/2] ^= 1
	_, err = open(t).LoadCalibration(&file)
	want(t, err, tqkv.ErrCorruptData, "checksum")
	_, err = open(t).LoadCalibrationFile("/nonexistent/calibration")
	want(t, err, tqkv.ErrIO, "/nonexistent/calibration")
}
