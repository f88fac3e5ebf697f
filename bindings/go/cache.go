// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
// #cgo noescape tqkv_sequence_length
// #cgo nocallback tqkv_sequence_length
import "C"

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// core is what a Cache, its batches and their cleanups share: the C objects, the lock that makes calls take
// turns, and the buffer for a failure's text.
type core struct {
	mutex   sync.Mutex
	library *Library
	api     *C.tqkv_api
	cache   *C.tq_cache              // nil once closed
	batches map[*batchState]struct{} // alive
	text    textBuffer
	number  uint64 // of the cache, in the order of making
	geometry
}

var cachesMade atomic.Uint64

// Cache is a KV cache held as codes, for all layers and many sequences. Its methods may be called from
// several goroutines; they take turns.
type Cache struct{ core *core }

// NewCache makes a cache and allocates all it will ever need.
func (l *Library) NewCache(config *Config) (*Cache, error) { return l.NewCacheOn(config, 0) }

// NewCacheOn is [Library.NewCache] with the work of setting up on a stream.
func (l *Library) NewCacheOn(config *Config, stream Stream) (*Cache, error) {
	api, err := l.table()
	if err != nil {
		return nil, err
	}
	p, err := config.parts()
	if err != nil {
		return nil, err
	}
	defer p.unpin()
	c := &core{library: l, api: api, batches: map[*batchState]struct{}{}, number: cachesMade.Add(1)}
	if err := c.text.result(C.tqkv_cache_create(api, &p.config, p.layerKeyBits, p.layerValueBits,
		p.layers, p.keyCodebook, p.valueCodebook, p.user, p.alloc, p.free, p.pool, C.uintptr_t(stream),
		&c.cache, c.text.c())); err != nil {
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
func (c *Cache) Close() error {
	if err := c.check(); err != nil {
		return err
	}
	return c.core.close()
}

func (c *core) close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.cache == nil {
		return nil
	}
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	for state := range c.batches {
		keep(c.destroyLocked(state))
	}
	keep(c.text.result(C.tqkv_cache_destroy(c.api, c.cache, c.text.c())))
	c.cache = nil
	return first
}

func (c *Cache) check() error {
	if c == nil || c.core == nil {
		return argumentError("cache: nil, or not made by NewCache")
	}
	return nil
}

// locked runs a call while no other runs. The lock's holder keeps the core and its cache alive.
func (c *Cache) locked(call func(c *core) error) error {
	if err := c.check(); err != nil {
		return err
	}
	defer runtime.KeepAlive(c)
	c.core.mutex.Lock()
	defer c.core.mutex.Unlock()
	if c.core.cache == nil {
		return &Error{ErrInvalidState, "cache: is closed"}
	}
	return call(c.core)
}

// lockedWith is locked for two caches, or for one given twice. Every call locks two in the same order.
func (c *Cache) lockedWith(target *Cache, call func(c, target *core) error) error {
	if err := c.check(); err != nil {
		return err
	}
	if target.check() != nil {
		return argumentError("target: nil, or not made by NewCache")
	}
	first, second := c, target
	if first.core == second.core {
		return c.locked(func(c *core) error { return call(c, c) })
	}
	if first.core.number > second.core.number {
		first, second = second, first
	}
	return first.locked(func(*core) error {
		return second.locked(func(*core) error { return call(c.core, target.core) })
	})
}

// Library is the library that the cache belongs to.
func (c *Cache) Library() *Library { return c.core.library }

// Config is the configuration with every default resolved.
func (c *Cache) Config() (config Config, err error) {
	err = c.locked(func(c *core) error {
		var raw C.tq_cache_config
		err := c.text.result(C.tqkv_cache_get_config(c.api, c.cache, &raw, c.text.c()))
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
		if err := c.checkCentres(l, key, value); err != nil {
			return err
		}
		return c.text.result(C.tqkv_cache_set_centres(c.api, c.cache, l, (*C.float)(ptr(key)),
			(*C.float)(ptr(value)), c.text.c()))
	})
}

// SetKeyMatrix sets a matrix for each kv head's keys, [NumKVHeads][HeadDim][HeadDim] row by row: codes are of
// matrix * (key - centre), and queries meet them times the inverse transpose, so that attention is that of
// keys as they came. For calibrated rotations. Before the first token only; [ErrInvalidArgument] where there
// is no inverse, [ErrNotSupported] on CUDA, in latent layers, and for keys of 16 bits or grouped codes.
func (c *Cache) SetKeyMatrix(layer int, matrix []float32) error {
	l, err := int32Of("layer", layer)
	if err != nil {
		return err
	}
	return c.locked(func(c *core) error {
		if err := c.checkKeyMatrix(l, matrix); err != nil {
			return err
		}
		return c.text.result(C.tqkv_cache_set_key_matrix(c.api, c.cache, l, (*C.float)(ptr(matrix)),
			c.text.c()))
	})
}

// Reserve raises MaxTokens, up to the configuration's MaxReserveTokens, in place: plans stay in force, and
// what graphs hold stays where it is. It waits for its memory.
func (c *Cache) Reserve(maxTokens int64) error {
	return c.ReserveOn(maxTokens, 0)
}

// ReserveOn is [Cache.Reserve] in the order of a stream.
func (c *Cache) ReserveOn(maxTokens int64, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_cache_reserve(c.api, c.cache, C.int64_t(maxTokens), C.uintptr_t(stream),
			c.text.c()))
	})
}

// Memory is what the cache holds, by the host's bookkeeping.
func (c *Cache) Memory() (memory Memory, err error) {
	err = c.locked(func(c *core) error {
		var raw C.tq_cache_memory
		err := c.text.result(C.tqkv_cache_get_memory(c.api, c.cache, &raw, c.text.c()))
		if err == nil {
			memory = memoryOf(&raw)
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
		err := c.text.result(C.tqkv_cache_fingerprint(c.api, c.cache, &raw, c.text.c()))
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
		err := c.text.result(C.tqkv_cache_check(c.api, c.cache, C.uintptr_t(stream), &flags, c.text.c()))
		noticed = Noticed(flags)
		return err
	})
	return
}

// CreateSequence makes a new, empty sequence.
func (c *Cache) CreateSequence() (sequence Sequence, err error) {
	err = c.locked(func(c *core) error {
		var id C.int64_t
		err := c.text.result(C.tqkv_sequence_create(c.api, c.cache, &id, c.text.c()))
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
		return c.text.result(C.tqkv_sequence_free(c.api, c.cache, C.int64_t(sequence), C.uintptr_t(stream),
			c.text.c()))
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
		err := c.text.result(C.tqkv_sequence_fork(c.api, c.cache, C.int64_t(source), C.uintptr_t(stream), &id,
			c.text.c()))
		sequence = Sequence(id)
		return err
	})
	return
}

// Copy makes a new sequence of target (which may be the cache itself) with the same tokens. Codes are moved
// as they are, so it attends to the same bits however often it moves; page sizes, windows and capacities may
// differ, and one cache may be the CPU's.
func (c *Cache) Copy(source Sequence, target *Cache) (Sequence, error) {
	return c.CopyOn(source, target, 0)
}

// CopyOn is [Cache.Copy] in the order of a stream of the CUDA cache.
func (c *Cache) CopyOn(source Sequence, target *Cache, stream Stream) (sequence Sequence, err error) {
	err = c.lockedWith(target, func(c, to *core) error {
		var id C.int64_t
		err := c.text.result(C.tqkv_sequence_copy(c.api, c.cache, C.int64_t(source), to.cache,
			C.uintptr_t(stream), &id, c.text.c()))
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
		return c.text.result(C.tqkv_sequence_truncate(c.api, c.cache, C.int64_t(sequence), C.int64_t(length),
			C.uintptr_t(stream), c.text.c()))
	})
}

// Flush gives up the exact copies of a sequence's window, not those of its sinks: queries to come read these
// tokens as codes.
func (c *Cache) Flush(sequence Sequence) error {
	return c.FlushOn(sequence, 0)
}

// FlushOn is [Cache.Flush] in the order of a stream.
func (c *Cache) FlushOn(sequence Sequence, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_flush(c.api, c.cache, C.int64_t(sequence), C.uintptr_t(stream),
			c.text.c()))
	})
}

// Remove takes count tokens from first on out of a sequence; later ones move down, bit for bit. Positions for
// rotary embeddings stay the caller's business: a key stays rotated for the position that it was appended at.
func (c *Cache) Remove(sequence Sequence, first, count int64) error {
	return c.RemoveOn(sequence, first, count, 0)
}

// RemoveOn is [Cache.Remove] in the order of a stream.
func (c *Cache) RemoveOn(sequence Sequence, first, count int64, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_remove(c.api, c.cache, C.int64_t(sequence), C.int64_t(first),
			C.int64_t(count), C.uintptr_t(stream), c.text.c()))
	})
}

// Select keeps a sequence's tokens at these rising positions alone; as [Cache.Remove] otherwise.
func (c *Cache) Select(sequence Sequence, positions []int64) error {
	return c.SelectOn(sequence, positions, 0)
}

// SelectOn is [Cache.Select] in the order of a stream.
func (c *Cache) SelectOn(sequence Sequence, positions []int64, stream Stream) error {
	return c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_select(c.api, c.cache, C.int64_t(sequence),
			(*C.int64_t)(ptr(positions)), C.int64_t(len(positions)), C.uintptr_t(stream), c.text.c()))
	})
}

// Length is the number of a sequence's tokens, planned ones included.
func (c *Cache) Length(sequence Sequence) (length int64, err error) {
	err = c.locked(func(c *core) error {
		var raw C.int64_t
		err := c.text.result(C.tqkv_sequence_length(c.api, c.cache, C.int64_t(sequence), &raw, c.text.c()))
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
		err := c.text.result(C.tqkv_sequence_flags(c.api, c.cache, C.int64_t(sequence), &raw, c.text.c()))
		noticed = Noticed(raw)
		return err
	})
	return
}

// AttendWorkspaceBytes is the workspace that [Cache.Attend] needs if it is not to use the cache's own: enough
// for every plan that the cache admits.
func (c *Cache) AttendWorkspaceBytes() (bytes int, err error) {
	err = c.locked(func(c *core) error {
		var raw C.size_t
		err := c.text.result(C.tqkv_attend_workspace_bytes(c.api, c.cache, &raw, c.text.c()))
		bytes = int(raw)
		return err
	})
	return
}
