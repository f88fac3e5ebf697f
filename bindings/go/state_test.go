// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// lived is a cache with a sequence of 70 tokens.
func lived(t *testing.T, c *tqkv.Config) (*tqkv.Cache, *tqkv.Batch, tqkv.Sequence) {
	t.Helper()
	cache, batch, sequence := opened(t, c)
	const tokens = 70
	must(t, batch.Plan(tqkv.Step{Sequence: sequence, NewTokens: tokens}))
	numbers := make(tqkv.F32, tokens*kvHeads*dim)
	for i := range numbers {
		numbers[i] = float32(i*7919%257) / 64
	}
	must(t, cache.Append(0, batch, numbers, numbers, nil))
	return cache, batch, sequence
}

// decoded are the sequence's keys, as the cache reads them.
func decoded(t *testing.T, cache *tqkv.Cache, sequence tqkv.Sequence) tqkv.F32 {
	t.Helper()
	length, err := cache.Length(sequence)
	must(t, err)
	k := make(tqkv.F32, length*kvHeads*dim)
	must(t, cache.Read(0, sequence, 0, length, k, nil, nil))
	return k
}

func TestSaveAndLoad(t *testing.T) {
	cache, _, sequence := lived(t, config(tqkv.Float32))
	path := filepath.Join(t.TempDir(), "prompt.tqkv")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, cache.SaveSequenceFile(sequence, path))
	other, _, _ := opened(t, config(tqkv.Float32))
	loaded, err := other.LoadSequenceFile(path)
	must(t, err)
	if !slices.Equal(decoded(t, other, loaded), decoded(t, cache, sequence)) {
		t.Error("other numbers after the load")
	}
	var stream bytes.Buffer
	must(t, other.SaveSequence(loaded, &stream))
	if file, err := os.ReadFile(path); err != nil || !bytes.Equal(file, stream.Bytes()) {
		t.Error("saved again it is another file", err)
	}
	stream.WriteString("rest")
	if _, err = cache.LoadSequence(&stream); err != nil || stream.String() != "rest" {
		t.Errorf("%v, and %d bytes are left", err, stream.Len())
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Error("files are left", files, err)
	}
}

func TestExportAndImport(t *testing.T) {
	cache, _, sequence := lived(t, config(tqkv.Float32))
	other, _, copied := opened(t, config(tqkv.Float32))
	for head := range int32(kvHeads) {
		state, memory, err := cache.ExportSequence(sequence, tqkv.Part{FirstKVHead: head, NumKVHeads: 1})
		must(t, err)
		if state.NumTokens != 70 || state.Bytes != int64(len(memory)) {
			t.Error(state)
		}
		must(t, other.ImportSequence(copied, state, memory))
	}
	if !slices.Equal(decoded(t, other, copied), decoded(t, cache, sequence)) {
		t.Error("other numbers after the import")
	}
	state, memory, err := cache.ExportSequence(sequence, tqkv.Part{})
	must(t, err)
	again, second, err := other.ExportSequence(copied, tqkv.Part{})
	if err != nil || again != state || !bytes.Equal(second, memory) {
		t.Error("other bytes", state, again, err)
	}
	if err := other.ImportSequence(copied, state, memory[:64]); !errors.Is(err, tqkv.ErrInvalidArgument) {
		t.Error(err)
	}
	state.Identity++
	if err := other.ImportSequence(copied, state, memory); !errors.Is(err, tqkv.ErrIncompatible) {
		t.Error(err)
	}
	if _, err := cache.DescribeSequence(sequence, tqkv.Part{FirstLayer: 1, NumLayers: 1}); !errors.Is(err,
		tqkv.ErrInvalidArgument) {
		t.Error(err)
	}
}

type brokenEnd struct{ err error }

func (b brokenEnd) Write([]byte) (int, error) { return 0, b.err }
func (b brokenEnd) Read([]byte) (int, error)  { panic(b.err) }

func TestWhatGoesWrongOutside(t *testing.T) {
	cache, _, sequence := lived(t, config(tqkv.Float32))
	full := errors.New("disk full")
	err := cache.SaveSequence(sequence, brokenEnd{full})
	if !errors.Is(err, full) || !errors.Is(err, tqkv.ErrIO) {
		t.Error(err)
	}
	func() {
		defer func() {
			if recover() != full {
				t.Error("the reader's panic is lost")
			}
		}()
		_, _ = cache.LoadSequence(brokenEnd{full})
	}()
	var stream bytes.Buffer
	must(t, cache.SaveSequence(sequence, &stream))
	for _, cut := range []int64{0, 7, 300, int64(stream.Len()) - 1} {
		if _, err := cache.LoadSequence(io.LimitReader(bytes.NewReader(stream.Bytes()), cut)); !errors.Is(err,
			tqkv.ErrCorruptData) {
			t.Error(cut, err)
		}
	}
	path := filepath.Join(t.TempDir(), "none", "prompt.tqkv")
	err = cache.SaveSequenceFile(sequence, path)
	if !errors.Is(err, os.ErrNotExist) || !errors.Is(err, tqkv.ErrIO) {
		t.Error(err)
	}
	if _, err := cache.LoadSequenceFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if memory, err := cache.Memory(); err != nil || memory.NumSequences != 1 {
		t.Error("sequences are left", memory, err)
	}
}
