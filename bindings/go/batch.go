// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
// #cgo noescape tqkv_batch_plan
// #cgo noescape tqkv_batch_rows
// #cgo nocallback tqkv_batch_plan
// #cgo nocallback tqkv_batch_rows
import "C"

import "runtime"

// Batch is room for one plan. It keeps its cache alive; closing the cache closes it.
type Batch struct {
	cache *Cache
	state *batchState
}

// batchState is what a Batch and its cleanup share, and by which the cache knows the batch. Its address is
// the batch's identity: nothing else gets it as long as one of them holds it. The library's address is none:
// the next batch may lie where a destroyed one lay.
type batchState struct {
	raw *C.tq_batch // nil once closed; guarded by core.mutex
}

// CreateBatch makes room for one plan of up to MaxBatchSequences sequences. A cache may have several batches,
// each with its own plan.
func (c *Cache) CreateBatch() (*Batch, error) {
	b := &Batch{cache: c, state: &batchState{}}
	err := c.locked(func(c *core) error {
		err := c.text.result(C.tqkv_batch_create(c.api, c.cache, &b.state.raw, c.text.c()))
		if err == nil {
			c.batches[b.state] = struct{}{}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	type owned struct {
		core  *core
		state *batchState
	}
	runtime.AddCleanup(b, func(o owned) { o.core.destroyBatch(o.state) }, owned{c.core, b.state})
	return b, nil
}

// Close gives the batch back. Calling it again does nothing.
func (b *Batch) Close() error {
	if err := b.check(); err != nil {
		return err
	}
	return b.cache.core.destroyBatch(b.state)
}

func (c *core) destroyBatch(state *batchState) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.destroyLocked(state)
}

// destroyLocked destroys a batch that is not destroyed yet. The lock is held.
func (c *core) destroyLocked(state *batchState) error {
	if state.raw == nil {
		return nil
	}
	raw := state.raw
	state.raw = nil
	delete(c.batches, state)
	return c.text.result(C.tqkv_batch_destroy(c.api, raw, c.text.c()))
}

func (b *Batch) check() error {
	if b == nil || b.state == nil {
		return argumentError("batch: nil, or not made by CreateBatch")
	}
	return nil
}

// locked is Cache.locked for a batch of this cache that must be alive.
func (b *Batch) locked(owner *Cache, call func(c *core, batch *C.tq_batch) error) error {
	if err := b.check(); err != nil {
		return err
	}
	defer runtime.KeepAlive(b)
	return owner.locked(func(c *core) error {
		if b.cache.core != c {
			return argumentError("batch: belongs to another cache")
		}
		if b.state.raw == nil {
			return &Error{ErrInvalidState, "batch: is closed"}
		}
		return call(c, b.state.raw)
	})
}

// Step is one line of a plan: Sequence gets NewTokens more tokens and asks QueryTokens queries, which are its
// last tokens.
type Step struct {
	Sequence    Sequence
	NewTokens   int64
	QueryTokens int64
}

// Decode is the step that most plans are made of: n new tokens that all ask.
func Decode(sequence Sequence, n int64) Step { return Step{sequence, n, n} }

// Plan plans one step: it reserves room for the new tokens of these sequences in all layers; their lengths
// grow at once. [Cache.Append] and [Cache.Attend] of every layer follow the plan, until the next plan,
// truncate or free of one of its sequences. If the pool or a limit is used up ([ErrCapacity]), nothing has
// changed.
func (b *Batch) Plan(steps ...Step) error { return b.PlanOn(0, steps...) }

// PlanOn is [Batch.Plan] in the order of a stream.
func (b *Batch) PlanOn(stream Stream, steps ...Step) error {
	if err := b.check(); err != nil {
		return err
	}
	count, err := int32Of("len(steps)", len(steps))
	if err != nil {
		return err
	}
	// One allocation for the three arrays.
	numbers, n := make([]int64, 3*len(steps)), len(steps)
	ids, news, queries := numbers[:n], numbers[n:2*n], numbers[2*n:]
	for i, step := range steps {
		ids[i], news[i], queries[i] = int64(step.Sequence), step.NewTokens, step.QueryTokens
	}
	return b.locked(b.cache, func(c *core, batch *C.tq_batch) error {
		defer runtime.KeepAlive(numbers)
		return c.text.result(C.tqkv_batch_plan(c.api, batch, count, (*C.int64_t)(ptr(ids)),
			(*C.int64_t)(ptr(news)), (*C.int64_t)(ptr(queries)), C.uintptr_t(stream), c.text.c()))
	})
}

// BatchRows are the rows of a batch's plan, as the library has them.
type BatchRows struct {
	NewTokens   int64 // rows of k and v in Append
	QueryTokens int64 // rows of q, out and lse in Attend
	InForce     bool  // whether Append and Attend accept the plan now; if not, the counts are 0
}

// Rows says how long the slices of [Cache.Append] and [Cache.Attend] must be.
func (b *Batch) Rows() (rows BatchRows, err error) {
	if err := b.check(); err != nil {
		return rows, err
	}
	err = b.locked(b.cache, func(c *core, batch *C.tq_batch) (err error) {
		rows, err = c.rows(batch)
		return err
	})
	return rows, err
}

// rows asks the library, so that slices are checked by the very counts that it will use. The lock is held.
func (c *core) rows(batch *C.tq_batch) (BatchRows, error) {
	var newTokens, queryTokens C.int64_t
	var inForce C.int32_t
	err := c.text.result(C.tqkv_batch_rows(c.api, batch, &newTokens, &queryTokens, &inForce, c.text.c()))
	return BatchRows{int64(newTokens), int64(queryTokens), inForce != 0}, err
}
