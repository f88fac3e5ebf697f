// SPDX-License-Identifier: Apache-2.0

package tqkv

import (
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// eventually collects garbage until the condition holds.
func eventually(t *testing.T, what string, c *core, condition func() bool) {
	t.Helper()
	for range 500 {
		runtime.GC()
		c.mutex.Lock()
		held := condition()
		c.mutex.Unlock()
		if held {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%s: did not happen", what)
}

// Forgotten caches and batches are freed, in whatever order they are collected, and not before they are
// unreachable.
func TestForgottenObjectsAreFreed(t *testing.T) {
	library, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	make2 := func() (*Cache, *Batch) {
		cache, err := library.NewCache(&Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64,
			IODtype: Float32, KeyBits: 4, ValueBits: 4, MaxTokens: 64})
		if err != nil {
			t.Fatal(err)
		}
		batch, err := cache.CreateBatch()
		if err != nil {
			t.Fatal(err)
		}
		return cache, batch
	}
	for range 20 {
		cache, batch := make2()
		c := cache.core
		eventually(t, "both alive", c, func() bool { return c.cache != nil && len(c.batches) == 1 })
		runtime.KeepAlive(batch)
		batch = nil
		eventually(t, "the batch is freed", c, func() bool { return c.cache != nil && len(c.batches) == 0 })
		runtime.KeepAlive(cache)

		// A batch keeps its cache.
		cache, batch = make2()
		c = cache.core
		cache = nil
		eventually(t, "the cache stays", c, func() bool { return c.cache != nil })
		if err := batch.Plan(); err != nil {
			t.Error(err)
		}
		batch = nil
		eventually(t, "both are freed", c, func() bool { return c.cache == nil && len(c.batches) == 0 })
	}
}

// A shifty slice changes its mind about its memory between two questions.
type shifty struct {
	F32
	asked *int
}

func (s shifty) host() (unsafe.Pointer, int, Dtype) {
	if *s.asked++; *s.asked > 1 {
		return nil, 0, Float32
	}
	return s.F32.host()
}

// What is checked is what C gets: a slice is asked for its memory once a call.
func TestSlicesAreAskedOnce(t *testing.T) {
	library, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := library.NewCache(&Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64,
		IODtype: Float32, KeyBits: 4, ValueBits: 4, MaxTokens: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	batch, _ := cache.CreateBatch()
	sequence, _ := cache.CreateSequence()
	slice := func() HostSlice { return shifty{make(F32, 64), new(int)} }
	for i, err := range []error{
		batch.Plan(Decode(sequence, 1)),
		cache.Append(0, batch, slice(), slice(), nil),
		cache.Attend(0, batch, slice(), slice(), nil, nil),
		cache.Read(0, sequence, 0, 1, slice(), slice(), nil),
		library.MergeStates([]HostSlice{slice()}, [][]float32{{0}}, 1, 64, slice(), nil),
	} {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
