// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
// #cgo noescape tqkv_batch_plan
// #cgo noescape tqkv_sequence_length
// #cgo nocallback tqkv_batch_plan
// #cgo nocallback tqkv_sequence_length
import "C"

import (
	"runtime"
	"sync"
)

// core is what a Cache, its batches and their cleanups share: the C objects, the lock that makes calls take
// turns, and the buffer for a failure's text.
type core struct {
	mutex   sync.Mutex
	library *Library
	cache   *C.tq_cache              // nil once closed
	batches map[*C.tq_batch]struct{} // alive
	text    textBuffer
	config  Config // resolved
}

// Cache is a KV cache held as codes, for all layers and many sequences. Its methods may be called from
// several goroutines; they take turns.
type Cache struct{ core *core }

// NewCache makes a cache and allocates all it will ever need.
func (l *Library) NewCache(config *Config) (*Cache, error) { return l.NewCacheOn(config, 0) }

// NewCacheOn is [Library.NewCache] with the work of setting up on a stream.
func (l *Library) NewCacheOn(config *Config, stream Stream) (*Cache, error) {
	p, err := config.parts()
	if err != nil {
		return nil, err
	}
	c := &core{library: l, batches: map[*C.tq_batch]struct{}{}}
	if err := c.text.result(C.tqkv_cache_create(l.api, &p.config, p.layerKeyBits, p.layerValueBits, p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool,
		C.uintptr_t(stream), &c.cache, c.text.c())); err != nil {
		return nil, err
	}
	cache := &Cache{c}
	if c.config, err = cache.Config(); err != nil {
		c.close()
		return nil, err
	}
	// A net for caches that were forgotten; whoever wants to hear of a failure calls Close.
	runtime.AddCleanup(cache, func(c *core) { c.close() }, c)
	return cache, nil
}

// Close frees the cache and its batches. Calling it again does nothing. A cache that is not closed is freed
// some time after it became unreachable.
func (c *Cache) Close() error { return c.core.close() }

func (c *core) close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.cache == nil {
		return nil
	}
	var first error
	for batch := range c.batches {
		if err := c.text.result(C.tqkv_batch_destroy(c.library.api, batch, c.text.c())); err != nil && first == nil {
			first = err
		}
	}
	clear(c.batches)
	if err := c.text.result(C.tqkv_cache_destroy(c.library.api, c.cache, c.text.c())); err != nil && first == nil {
		first = err
	}
	c.cache = nil
	return first
}

// locked runs a call while no other runs. The lock's holder keeps the core and its cache alive.
func (c *Cache) locked(call func(c *core) error) error {
	defer runtime.KeepAlive(c)
	c.core.mutex.Lock()
	defer c.core.mutex.Unlock()
	if c.core.cache == nil {
		return &Error{ErrInvalidState, "cache: is closed"}
	}
	return call(c.core)
}

// Library is the library that the cache belongs to.
func (c *Cache) Library() *Library { return c.core.library }

// Config is the configuration with every default resolved.
func (c *Cache) Config() (config Config, err error) {
	err = c.locked(func(c *core) error {
		var raw C.tq_cache_config
		err := c.text.result(C.tqkv_cache_get_config(c.library.api, c.cache, &raw, c.text.c()))
		if err == nil {
			config = configOf(&raw)
		}
		return err
	})
	return
}

// SetCentres sets fixed vectors that are subtracted before coding, per kv head: key is [NumKVHeads][HeadDim],
// value [NumKVHeads][ValueDim]; nil leaves one as it is. Exact for attention; lowers the error where keys
// spend much of their length on a constant. Before the first token only.
func (c *Cache) SetCentres(layer int, key, value []float32) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return c.locked(func(c *core) error {
		heads := int64(c.config.NumKVHeads)
		if key != nil {
			if err := checkLength("key_centre", len(key), shape{1, heads, int64(c.config.HeadDim)}, 0, 0); err != nil {
				return err
			}
		}
		if value != nil {
			if err := checkLength("value_centre", len(value), shape{1, heads, int64(c.config.ValueDim)}, 0, 0); err != nil {
				return err
			}
		}
		return c.text.result(C.tqkv_cache_set_centres(c.library.api, c.cache, l, (*C.float)(ptr(key)), (*C.float)(ptr(value)), c.text.c()))
	})
}

// Memory is what the cache holds, by the host's bookkeeping.
func (c *Cache) Memory() (memory Memory, err error) {
	err = c.locked(func(c *core) error {
		var raw C.tq_cache_memory_t
		err := c.text.result(C.tqkv_cache_memory(c.library.api, c.cache, &raw, c.text.c()))
		if err == nil {
			memory = Memory{int(raw.num_sequences), int64(raw.tokens), int64(raw.pages_used), int64(raw.pages_total), int64(raw.stored_bytes_used),
				int64(raw.raw_bytes), int64(raw.device_bytes), int64(raw.host_bytes), float64(raw.compression)}
		}
		return err
	})
	return
}

// Fingerprint is a hash of all that decides the meaning of page bytes: equal if and only if pages are
// exchangeable.
func (c *Cache) Fingerprint() (fingerprint uint64, err error) {
	err = c.locked(func(c *core) error {
		var raw C.uint64_t
		err := c.text.result(C.tqkv_cache_fingerprint(c.library.api, c.cache, &raw, c.text.c()))
		fingerprint = uint64(raw)
		return err
	})
	return
}

// Check waits for the stream's work, then returns and clears the asynchronous error, and what was noticed
// since the last check.
func (c *Cache) Check(stream Stream) (noticed Noticed, err error) {
	err = c.locked(func(c *core) error {
		var flags C.uint64_t
		err := c.text.result(C.tqkv_cache_check(c.library.api, c.cache, C.uintptr_t(stream), &flags, c.text.c()))
		noticed = Noticed(flags)
		return err
	})
	return
}

// CreateSequence makes a new, empty sequence.
func (c *Cache) CreateSequence() (sequence Sequence, err error) {
	err = c.locked(func(c *core) error {
		var id C.int64_t
		err := c.text.result(C.tqkv_sequence_create(c.library.api, c.cache, &id, c.text.c()))
		sequence = Sequence(id)
		return err
	})
	return
}

// Free gives a sequence's pages back; pages shared with a fork stay. A batch that has it in its plan must be
// planned again.
func (c *Cache) Free(sequence Sequence) error { return c.FreeOn(sequence, 0) }

// FreeOn is [Cache.Free] in the order of a stream.
func (c *Cache) FreeOn(sequence Sequence, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_free(c.library.api, c.cache, C.int64_t(sequence), C.uintptr_t(stream), c.text.c()))
	})
}

// Fork makes a new sequence with the same tokens: pages are shared, and copied when one side writes into a
// shared page. Fork after a step's appends: layers into which a plan in force has not been appended yet
// refuse it afterwards.
func (c *Cache) Fork(source Sequence) (Sequence, error) { return c.ForkOn(source, 0) }

// ForkOn is [Cache.Fork] in the order of a stream.
func (c *Cache) ForkOn(source Sequence, stream Stream) (sequence Sequence, err error) {
	err = c.locked(func(c *core) error {
		var id C.int64_t
		err := c.text.result(C.tqkv_sequence_fork(c.library.api, c.cache, C.int64_t(source), C.uintptr_t(stream), &id, c.text.c()))
		sequence = Sequence(id)
		return err
	})
	return
}

// Truncate shortens a sequence to length tokens, as if the later ones had never been appended (the exact
// window included, as long as no more than RollbackTokens go).
func (c *Cache) Truncate(sequence Sequence, length int64) error {
	return c.TruncateOn(sequence, length, 0)
}

// TruncateOn is [Cache.Truncate] in the order of a stream.
func (c *Cache) TruncateOn(sequence Sequence, length int64, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_truncate(c.library.api, c.cache, C.int64_t(sequence), C.int64_t(length), C.uintptr_t(stream), c.text.c()))
	})
}

// Length is the number of a sequence's tokens, planned ones included.
func (c *Cache) Length(sequence Sequence) (length int64, err error) {
	err = c.locked(func(c *core) error {
		var raw C.int64_t
		err := c.text.result(C.tqkv_sequence_length(c.library.api, c.cache, C.int64_t(sequence), &raw, c.text.c()))
		length = int64(raw)
		return err
	})
	return
}

// Noticed is what was noticed in a sequence since it was created. It does not wait: on a CUDA cache it may be
// early.
func (c *Cache) Noticed(sequence Sequence) (noticed Noticed, err error) {
	err = c.locked(func(c *core) error {
		var raw C.uint64_t
		err := c.text.result(C.tqkv_sequence_flags(c.library.api, c.cache, C.int64_t(sequence), &raw, c.text.c()))
		noticed = Noticed(raw)
		return err
	})
	return
}

// Batch is room for one plan. Its cache must not be closed while it is used; closing the cache closes it.
type Batch struct {
	cache *Cache
	batch *C.tq_batch
	// Tokens of the last plan made: what append and attend will read and write. 0 without one; the library knows
	// and refuses.
	newTokens, queryTokens int64
}

// CreateBatch makes room for one plan of up to MaxBatchSequences sequences. A cache may have several batches,
// each with its own plan.
func (c *Cache) CreateBatch() (*Batch, error) {
	b := &Batch{cache: c}
	err := c.locked(func(c *core) error {
		err := c.text.result(C.tqkv_batch_create(c.library.api, c.cache, &b.batch, c.text.c()))
		if err == nil {
			c.batches[b.batch] = struct{}{}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	type pair struct {
		core  *core
		batch *C.tq_batch
	}
	runtime.AddCleanup(b, func(p pair) { p.core.destroyBatch(p.batch) }, pair{c.core, b.batch})
	return b, nil
}

// Close gives the batch back. Calling it again does nothing.
func (b *Batch) Close() error { return b.cache.core.destroyBatch(b.batch) }

func (c *core) destroyBatch(batch *C.tq_batch) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if _, alive := c.batches[batch]; !alive {
		return nil
	}
	delete(c.batches, batch)
	return c.text.result(C.tqkv_batch_destroy(c.library.api, batch, c.text.c()))
}

// locked is Cache.locked for a batch that must be alive.
func (b *Batch) locked(owner *Cache, call func(c *core) error) error {
	if b == nil || b.cache.core != owner.core {
		return argumentError("batch: nil, or belongs to another cache")
	}
	defer runtime.KeepAlive(b)
	return owner.locked(func(c *core) error {
		if _, alive := c.batches[b.batch]; !alive {
			return &Error{ErrInvalidState, "batch: is closed"}
		}
		return call(c)
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
	count, err := int32Of("len(steps)", len(steps))
	if err != nil {
		return err
	}
	// One allocation for the three arrays.
	numbers := make([]int64, 3*len(steps))
	ids, news, queries := numbers[:len(steps)], numbers[len(steps):2*len(steps)], numbers[2*len(steps):]
	var newTokens, queryTokens int64
	for i, step := range steps {
		ids[i], news[i], queries[i] = int64(step.Sequence), step.NewTokens, step.QueryTokens
		newTokens += step.NewTokens
		queryTokens += step.QueryTokens
	}
	return b.locked(b.cache, func(c *core) error {
		err := c.text.result(C.tqkv_batch_plan(c.library.api, b.batch, count, (*C.int64_t)(ptr(ids)), (*C.int64_t)(ptr(news)), (*C.int64_t)(ptr(queries)),
			C.uintptr_t(stream), c.text.c()))
		if err == nil {
			// The library has accepted them, so that they are not negative and their sums small.
			b.newTokens, b.queryTokens = newTokens, queryTokens
		}
		return err
	})
}

// WorkspaceBytes is the workspace that [Cache.Attend] needs for the batch's plan, and for every smaller one,
// if it is not to use the cache's own.
func (b *Batch) WorkspaceBytes() (bytes int, err error) {
	err = b.locked(b.cache, func(c *core) error {
		var raw C.size_t
		err := c.text.result(C.tqkv_attend_workspace_bytes(c.library.api, c.cache, b.batch, &raw, c.text.c()))
		bytes = int(raw)
		return err
	})
	return
}
