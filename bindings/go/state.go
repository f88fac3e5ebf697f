// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"bufio"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/cgo"
	"unsafe"
)

// Part says which part of a sequence: numbers of the whole model. A count of 0 stands for all.
type Part struct {
	FirstLayer, NumLayers   int32
	FirstKVHead, NumKVHeads int32
	FirstToken, NumTokens   int64
}

// State is what a part is: plain numbers, which travel beside its bytes. The fields are those of tq_state.
type State struct {
	FirstLayer, NumLayers   int32
	FirstKVHead, NumKVHeads int32 // NumKVHeads 0: all of each layer, where layers have different ones
	IODtype                 Dtype // of the exact copies; 0 = the part has none
	FirstToken, NumTokens   int64
	ExactSinks, ExactFirst  int64 // tokens before the first, and from the second on, have exact copies
	RollbackTokens          int64 // of layers with a sliding window: tokens in front of the window's
	Flags                   Noticed
	Identity                uint64     // hash of what the bytes mean
	Bytes                   int64      // of the part in memory
	Fields                  [16]uint32 // hashes by which an error names the field that differs; zeros: unknown
}

func (s *State) c() C.tq_state {
	raw := C.tq_state{first_layer: C.int32_t(s.FirstLayer), num_layers: C.int32_t(s.NumLayers),
		first_kv_head: C.int32_t(s.FirstKVHead), num_kv_heads: C.int32_t(s.NumKVHeads),
		io_dtype: C.int32_t(s.IODtype), first_token: C.int64_t(s.FirstToken),
		num_tokens: C.int64_t(s.NumTokens), exact_sinks: C.int64_t(s.ExactSinks),
		exact_first: C.int64_t(s.ExactFirst), rollback_tokens: C.int64_t(s.RollbackTokens),
		flags: C.uint64_t(s.Flags), identity: C.uint64_t(s.Identity), bytes: C.int64_t(s.Bytes)}
	for i, hash := range s.Fields {
		raw.fields[i] = C.uint32_t(hash)
	}
	return raw
}

func stateOf(s *C.tq_state) State {
	var fields [16]uint32
	for i, hash := range s.fields {
		fields[i] = uint32(hash)
	}
	return State{int32(s.first_layer), int32(s.num_layers), int32(s.first_kv_head), int32(s.num_kv_heads),
		Dtype(s.io_dtype), int64(s.first_token), int64(s.num_tokens), int64(s.exact_sinks),
		int64(s.exact_first), int64(s.rollback_tokens), Noticed(s.flags), uint64(s.identity), int64(s.bytes),
		fields}
}

// DescribeSequence is what [Cache.ExportSequence] would give of a part.
func (c *Cache) DescribeSequence(sequence Sequence, part Part) (state State, err error) {
	err = c.locked(func(c *core) error {
		raw := C.tq_state{first_layer: C.int32_t(part.FirstLayer), num_layers: C.int32_t(part.NumLayers),
			first_kv_head: C.int32_t(part.FirstKVHead), num_kv_heads: C.int32_t(part.NumKVHeads),
			first_token: C.int64_t(part.FirstToken), num_tokens: C.int64_t(part.NumTokens)}
		err := c.text.result(C.tqkv_sequence_describe(c.api, c.cache, C.int64_t(sequence), &raw, c.text.c()))
		if err == nil {
			state = stateOf(&raw)
		}
		return err
	})
	return
}

// alignedBytes are bytes that begin at a multiple of 16.
func alignedBytes(count int64) []byte {
	memory := make([]byte, count+15)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(memory))) % 16
	return memory[skip : skip+uintptr(count) : skip+uintptr(count)]
}

// ExportSequence gives a part of a sequence as bytes on the host. Equal states give equal bytes, whatever the
// page size and device.
func (c *Cache) ExportSequence(sequence Sequence, part Part) (State, []byte, error) {
	state, err := c.DescribeSequence(sequence, part)
	if err != nil {
		return State{}, nil, err
	}
	memory := alignedBytes(state.Bytes)
	if err := c.ExportSequenceTo(sequence, state, memory, 0); err != nil {
		return State{}, nil, err
	}
	return state, memory, nil
}

// ExportSequenceTo is [Cache.ExportSequence] of a part that was described, into memory of the caller's, which
// begins at a multiple of 16. A CUDA cache waits for the stream, unless the memory is pinned by CUDA: then
// the bytes are there when the stream has passed the call.
func (c *Cache) ExportSequenceTo(sequence Sequence, state State, memory []byte, stream Stream) error {
	return c.locked(func(c *core) error {
		raw := state.c()
		return c.text.result(C.tqkv_sequence_export(c.api, c.cache, C.int64_t(sequence), &raw,
			(*C.uint8_t)(ptr(memory)), C.size_t(len(memory)), C.uintptr_t(stream), c.text.c()))
	})
}

// ImportSequence puts a part behind the tokens that its layers hold. By layer: the sequence grows with the
// first part, and each layer holds the tokens once its own part has come. The bytes, which begin at a
// multiple of 16, are trusted.
func (c *Cache) ImportSequence(sequence Sequence, state State, memory []byte) error {
	return c.ImportSequenceOn(sequence, state, memory, 0)
}

// ImportSequenceOn is [Cache.ImportSequence] in the order of a stream; memory as for ExportSequenceTo.
func (c *Cache) ImportSequenceOn(sequence Sequence, state State, memory []byte, stream Stream) error {
	return c.locked(func(c *core) error {
		raw := state.c()
		return c.text.result(C.tqkv_sequence_import(c.api, c.cache, C.int64_t(sequence), &raw,
			(*C.uint8_t)(ptr(memory)), C.size_t(len(memory)), C.uintptr_t(stream), c.text.c()))
	})
}

// An end is the other end of a save or load, and what went wrong there. Neither errors nor panics pass C.
type end struct {
	writer   io.Writer
	reader   io.Reader
	mac      hash.Hash
	failed   error
	panicked any
}

func (e *end) guarded(call func() (int32, error)) (result int32) {
	result = -1
	defer func() { e.panicked = recover() }()
	done, err := call()
	if err != nil {
		e.failed = err
		return
	}
	return done
}

// finish is the result of the call; what the other end did comes first.
func (e *end) finish(err error) error {
	if e.panicked != nil {
		panic(e.panicked)
	}
	if e.failed != nil {
		return fmt.Errorf("%w: %w", ErrIO, e.failed)
	}
	return err
}

//export tqkvGoWrite
func tqkvGoWrite(user C.uintptr_t, bytes unsafe.Pointer, count C.size_t) C.int32_t {
	e := cgo.Handle(user).Value().(*end)
	return C.int32_t(e.guarded(func() (int32, error) {
		// copied, because a writer may keep what it gets longer than the library's memory lives
		_, err := e.writer.Write(C.GoBytes(bytes, C.int(count)))
		return 0, err
	}))
}

//export tqkvGoRead
func tqkvGoRead(user C.uintptr_t, bytes unsafe.Pointer, count C.size_t) C.int32_t {
	e := cgo.Handle(user).Value().(*end)
	return C.int32_t(e.guarded(func() (int32, error) {
		_, err := io.ReadFull(e.reader, unsafe.Slice((*byte)(bytes), int(count)))
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return 1, nil
		}
		return 0, err
	}))
}

//export tqkvGoMac
func tqkvGoMac(user C.uintptr_t, bytes unsafe.Pointer, count C.size_t, tag unsafe.Pointer) C.int32_t {
	e := cgo.Handle(user).Value().(*end)
	return C.int32_t(e.guarded(func() (int32, error) {
		if tag != nil {
			copy(unsafe.Slice((*byte)(tag), min(e.mac.Size(), 64)), e.mac.Sum(nil))
			return 0, nil
		}
		_, err := e.mac.Write(C.GoBytes(bytes, C.int(count)))
		return 0, err
	}))
}

// macBytes is the length of the MAC, 0 without one.
func (e *end) macBytes() C.int32_t {
	if e.mac == nil {
		return 0
	}
	return C.int32_t(e.mac.Size())
}

// SaveSequence writes a sequence, all layers and tokens, with checksums. A failure of w is wrapped beside
// [ErrIO]. w must not use the cache.
func (c *Cache) SaveSequence(sequence Sequence, w io.Writer) error {
	return c.SaveSequenceMAC(sequence, w, nil)
}

// SaveSequenceMAC is [Cache.SaveSequence] with a MAC at the end, by which [Cache.LoadSequenceMAC] knows who
// wrote: a fresh keyed hash of 16 to 64 bytes, such as hmac.New(sha256.New, key). nil: none.
func (c *Cache) SaveSequenceMAC(sequence Sequence, w io.Writer, mac hash.Hash) error {
	e := &end{writer: w, mac: mac}
	handle := cgo.NewHandle(e)
	defer handle.Delete()
	return e.finish(c.locked(func(c *core) error {
		return c.text.result(C.tqkv_sequence_save(c.api, c.cache, C.int64_t(sequence), C.uintptr_t(handle),
			e.macBytes(), C.uintptr_t(0), c.text.c()))
	}))
}

// LoadSequence makes a new sequence from what [Cache.SaveSequence] wrote; nothing behind it is read. r must
// not use the cache.
func (c *Cache) LoadSequence(r io.Reader) (Sequence, error) { return c.LoadSequenceMAC(r, nil) }

// LoadSequenceMAC is [Cache.LoadSequence] of what was saved with this MAC alone; anything else is
// [ErrCorruptData].
func (c *Cache) LoadSequenceMAC(r io.Reader, mac hash.Hash) (sequence Sequence, err error) {
	e := &end{reader: r, mac: mac}
	handle := cgo.NewHandle(e)
	defer handle.Delete()
	err = e.finish(c.locked(func(c *core) error {
		var id C.int64_t
		err := c.text.result(C.tqkv_sequence_load(c.api, c.cache, C.uintptr_t(handle), e.macBytes(),
			C.uintptr_t(0), &id, c.text.c()))
		sequence = Sequence(id)
		return err
	}))
	return
}

// SaveSequenceFile is [Cache.SaveSequence] to a file, which is replaced as a whole: killed at any moment, the
// old file or the new one is there.
func (c *Cache) SaveSequenceFile(sequence Sequence, path string) error {
	return replaceFile(path, func(file *os.File) error { return c.SaveSequence(sequence, file) })
}

// LoadSequenceFile is [Cache.LoadSequence] from a file.
func (c *Cache) LoadSequenceFile(path string) (Sequence, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrIO, err)
	}
	defer file.Close()
	return c.LoadSequence(bufio.NewReader(file))
}

// replaceFile writes a file beside path, syncs it and puts it in path's place. A symbolic link stays one; a
// process that is killed leaves at worst a .NAME.*.tmp.
func replaceFile(path string, write func(file *os.File) error) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	folder, name := filepath.Split(path)
	if folder == "" {
		folder = "."
	}
	fresh := filepath.Join(folder, fmt.Sprintf(".%s.%08x.tmp", name, rand.Uint32()))
	file, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIO, err)
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(fresh)
		}
	}()
	if err = write(file); err != nil {
		return err
	}
	for _, step := range []func() error{file.Sync, file.Close, func() error { return os.Rename(fresh, path) }} {
		if err = step(); err != nil {
			return fmt.Errorf("%w: %w", ErrIO, err)
		}
	}
	parent, openErr := os.Open(folder)
	if openErr != nil {
		return fmt.Errorf("%w: %w", ErrIO, openErr)
	}
	defer parent.Close()
	if syncErr := parent.Sync(); syncErr != nil {
		return fmt.Errorf("%w: %w", ErrIO, syncErr)
	}
	return nil
}
