// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"errors"
	"fmt"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// A cache of one layer, a prompt of three tokens, and one decoded token.
func Example() {
	library, err := tqkv.Open("")
	if err != nil {
		fmt.Println(err)
		return
	}
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 1, NumQHeads: 4, NumKVHeads: 2, HeadDim: 64, IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4,
		MaxTokens: 1024})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	batch, _ := cache.CreateBatch()
	sequence, _ := cache.CreateSequence()

	// What the model computes for a prompt of three tokens, of which only the last one's output is wanted.
	k, v, q, out := make(tqkv.F32, 3*2*64), make(tqkv.F32, 3*2*64), make(tqkv.F32, 4*64), make(tqkv.F32, 4*64)
	prompt := tqkv.Step{Sequence: sequence, NewTokens: 3, QueryTokens: 1}
	if err := errors.Join(batch.Plan(prompt), cache.Append(0, batch, k, v, nil), cache.Attend(0, batch, q, out, nil, nil)); err != nil {
		fmt.Println(err)
		return
	}
	// One token more.
	if err := errors.Join(batch.Plan(tqkv.Decode(sequence, 1)), cache.Append(0, batch, k, v, nil), cache.Attend(0, batch, q, out, nil, nil)); err != nil {
		fmt.Println(err)
		return
	}
	length, _ := cache.Length(sequence)
	fmt.Println(length, "tokens")
	// Output: 4 tokens
}

// The kind of a failure is asked for with errors.Is.
func ExampleStatus() {
	library, err := tqkv.Open("")
	if err != nil {
		fmt.Println(err)
		return
	}
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64, IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4,
		MaxTokens: 64})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	if _, err := cache.CreateSequence(); err != nil {
		fmt.Println(err)
	}
	_, err = cache.CreateSequence()
	fmt.Println(errors.Is(err, tqkv.ErrCapacity))
	// Output: true
}

// A shared prompt: the fork shares its pages, and a rejected draft is taken back.
func ExampleCache_Fork() {
	library, err := tqkv.Open("")
	if err != nil {
		fmt.Println(err)
		return
	}
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64, IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4,
		MaxTokens: 1024, MaxSequences: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	batch, _ := cache.CreateBatch()
	prompt, _ := cache.CreateSequence()
	k, v := make(tqkv.F32, 100*64), make(tqkv.F32, 100*64)
	if err := errors.Join(batch.Plan(tqkv.Step{Sequence: prompt, NewTokens: 100}), cache.Append(0, batch, k, v, nil)); err != nil {
		fmt.Println(err)
		return
	}
	answer, err := cache.Fork(prompt)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := errors.Join(batch.Plan(tqkv.Step{Sequence: answer, NewTokens: 5}), cache.Append(0, batch, k, v, nil), cache.Truncate(answer, 103)); err != nil {
		fmt.Println(err)
		return
	}
	memory, _ := cache.Memory()
	fmt.Println(memory.Tokens, "tokens in", memory.PagesUsed, "pages of 64")
	// Output: 203 tokens in 3 pages of 64
}
