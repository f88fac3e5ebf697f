// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"runtime"
	"sync"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// A closed batch never acts on another, although the next batch gets its address in C.
func TestAClosedBatchIsNotTheNextOne(t *testing.T) {
	cache, first, sequence := opened(t, config(tqkv.Float32))
	for range 20 {
		must(t, first.Close())
		next, err := cache.CreateBatch()
		must(t, err)
		want(t, first.Plan(tqkv.Decode(sequence, 1)), tqkv.ErrInvalidState, "batch: is closed")
		must(t, first.Close()) // does nothing, above all not to the next one
		must(t, next.Plan(tqkv.Decode(sequence, 1)))
		first = next
	}
}

// The count of a plan is never taken from another batch than the one that made it: this read out of bounds.
func TestAPlanThroughAClosedBatchIsRefused(t *testing.T) {
	cache, closed, sequence := opened(t, config(tqkv.Float32))
	must(t, closed.Close())
	batch, err := cache.CreateBatch()
	must(t, err)
	must(t, batch.Plan(tqkv.Decode(sequence, 1)))
	want(t, closed.Plan(tqkv.Decode(sequence, 200)), tqkv.ErrInvalidState, "batch: is closed")
	one := make(tqkv.F32, kvHeads*dim)
	must(t, cache.Append(0, batch, one, one, nil))
	length, err := cache.Length(sequence)
	if err != nil || length != 1 {
		t.Errorf("length %d, %v", length, err)
	}
}

// What the garbage collector finds of a closed batch does not touch the next one.
func TestACollectedBatchIsNotTheNextOne(t *testing.T) {
	cache, batch, sequence := opened(t, config(tqkv.Float32))
	for range 20 {
		must(t, batch.Close())
		next, err := cache.CreateBatch()
		must(t, err)
		batch = nil
		for range 3 {
			runtime.GC()
			runtime.Gosched()
		}
		must(t, next.Plan(tqkv.Decode(sequence, 1)))
		batch = next
	}
}

// Copies of the structs are the same batch and cache; zero values and nil are errors, not crashes in C.
func TestCopiesAndZeroValues(t *testing.T) {
	cache, batch, sequence := opened(t, config(tqkv.Float32))
	cacheCopy, batchCopy := *cache, *batch
	must(t, batchCopy.Plan(tqkv.Decode(sequence, 1)))
	must(t, batch.Close())
	want(t, batchCopy.Plan(), tqkv.ErrInvalidState, "batch: is closed")
	must(t, cache.Close())
	_, err := cacheCopy.CreateBatch()
	want(t, err, tqkv.ErrInvalidState, "cache: is closed")

	for _, b := range []*tqkv.Batch{nil, {}} {
		bad := []error{b.Plan(), b.Close(), cache.Append(0, b, nil, nil, nil)}
		for _, err := range bad {
			want(t, err, tqkv.ErrInvalidArgument, "batch: nil")
		}
	}
	for _, c := range []*tqkv.Cache{nil, {}} {
		_, err := c.CreateSequence()
		want(t, err, tqkv.ErrInvalidArgument, "cache: nil")
		want(t, c.Close(), tqkv.ErrInvalidArgument, "cache: nil")
	}
	for _, l := range []*tqkv.Library{nil, {}} {
		_, err := l.DeviceCount(tqkv.CPU)
		want(t, err, tqkv.ErrInvalidArgument, "library: nil")
		_, err = l.NewCache(config(tqkv.Float32))
		want(t, err, tqkv.ErrInvalidArgument, "library: nil")
		want(t, l.CheckConfig(config(tqkv.Float32)), tqkv.ErrInvalidArgument, "library: nil")
		func() {
			defer func() {
				why, _ := recover().(error)
				want(t, why, tqkv.ErrInvalidArgument, "not made by Open")
			}()
			l.Version()
		}()
	}
}

func TestRows(t *testing.T) {
	cache, batch, a := opened(t, config(tqkv.Float32))
	b, err := cache.CreateSequence()
	must(t, err)
	other, err := cache.CreateBatch()
	must(t, err)
	expect := func(batch *tqkv.Batch, expected tqkv.BatchRows) {
		t.Helper()
		if rows, err := batch.Rows(); err != nil || rows != expected {
			t.Errorf("%+v, %v, expected %+v", rows, err, expected)
		}
	}
	expect(batch, tqkv.BatchRows{})
	must(t, batch.Plan(tqkv.Step{Sequence: a, NewTokens: 5, QueryTokens: 2}, tqkv.Decode(b, 1)))
	expect(batch, tqkv.BatchRows{NewTokens: 6, QueryTokens: 3, InForce: true})
	// Out of force: another batch has planned one of its sequences.
	must(t, other.Plan(tqkv.Decode(b, 2)))
	expect(batch, tqkv.BatchRows{})
	expect(other, tqkv.BatchRows{NewTokens: 2, QueryTokens: 2, InForce: true})
	kv := tqkv.F32(random(1, 6*kvHeads*dim))
	want(t, cache.Append(0, batch, kv, kv, nil), tqkv.ErrInvalidState, "plan")
	must(t, cache.Free(b))
	expect(other, tqkv.BatchRows{})
	must(t, other.Close())
	_, err = other.Rows()
	want(t, err, tqkv.ErrInvalidState, "batch: is closed")
}

// Batches and the cache are closed while others use them, and batches are forgotten: every call works or says
// that something is closed. Run under the race detector too.
func TestClosingWhileInUse(t *testing.T) {
	for range 10 {
		cache, err := open(t).NewCache(config(tqkv.Float32))
		must(t, err)
		shared, err := cache.CreateBatch()
		must(t, err)
		allowed := func(err error) bool {
			if err != nil {
				want(t, err, tqkv.ErrInvalidState, "is closed")
			}
			return err == nil
		}
		var wait sync.WaitGroup
		for g := range 4 {
			wait.Add(1)
			go func() {
				defer wait.Done()
				sequence, err := cache.CreateSequence()
				kv, q := tqkv.F32(random(uint32(g), kvHeads*dim)), tqkv.F32(random(9, qHeads*dim))
				out, lse := make(tqkv.F32, qHeads*dim), make([]float32, qHeads)
				for call := 0; allowed(err) && call < 30; call++ {
					mine, made := cache.CreateBatch()
					if !allowed(made) {
						return
					}
					if err = mine.Plan(tqkv.Decode(sequence, 1)); err == nil {
						err = cache.Append(0, mine, kv, kv, nil)
					}
					if err == nil {
						err = cache.Attend(0, mine, q, out, lse, nil)
					}
					if call%2 == 0 {
						allowed(mine.Close()) // else it is forgotten
					}
					allowed(shared.Plan())
				}
			}()
		}
		for range 2 {
			wait.Add(2)
			go func() {
				defer wait.Done()
				runtime.GC()
				allowed(shared.Close())
			}()
			go func() {
				defer wait.Done()
				for range 50 {
					runtime.Gosched()
				}
				allowed(cache.Close())
			}()
		}
		wait.Wait()
	}
}
