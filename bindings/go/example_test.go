// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// The README's program.
func Example() {
	if err := decode(); err != nil {
		fmt.Println(err)
	}
	// Output: 10 tokens
}

func decode() error {
	library, err := tqkv.Open("") // TQKV_LIBRARY=/path/to/libtqkv.so, else libtqkv.so.0
	if err != nil {
		return err
	}
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 2, NumQHeads: 4, NumKVHeads: 2, HeadDim: 64,
		IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4, MaxTokens: 1024}) // zero is the default throughout
	if err != nil {
		return err
	}
	defer cache.Close()
	batch, err := cache.CreateBatch()
	if err != nil {
		return err
	}
	sequence, err := cache.CreateSequence()
	if err != nil {
		return err
	}

	// One token's keys, values and queries, as a model computes them, RoPE applied.
	k, v, q := make(tqkv.F32, 2*64), make(tqkv.F32, 2*64), make(tqkv.F32, 4*64)
	out := make(tqkv.F32, 4*64)
	for range 10 {
		if err := batch.Plan(tqkv.Decode(sequence, 1)); err != nil { // once a step
			return err
		}
		for layer := range 2 {
			if err := cache.Append(layer, batch, k, v, nil); err != nil { // once a layer
				return err
			}
			if err := cache.Attend(layer, batch, q, out, nil, nil); err != nil {
				return err
			}
		}
	}
	length, err := cache.Length(sequence)
	fmt.Println(length, "tokens")
	return err
}

// The README shows the body of decode.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Skip("not inside the module's folder: ", err)
	}
	program, err := os.ReadFile("example_test.go")
	must(t, err)
	_, shown, found := strings.Cut(string(readme), "```go\n")
	shown, _, closed := strings.Cut(shown, "```\n")
	lines := strings.ReplaceAll("\t"+strings.TrimSpace(shown), "\n", "\n\t")
	lines = strings.ReplaceAll(lines, "\n\t\n", "\n\n")
	if !found || !closed || !strings.Contains(string(program), lines) {
		t.Errorf("example_test.go does not hold the README's program:\n%s", lines)
	}
}

// The kind of a failure is asked for with errors.Is.
func ExampleStatus() {
	library, err := tqkv.Open("")
	if err != nil {
		fmt.Println(err)
		return
	}
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64,
		IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4, MaxTokens: 64})
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
	cache, err := library.NewCache(&tqkv.Config{NumLayers: 1, NumQHeads: 1, NumKVHeads: 1, HeadDim: 64,
		IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4, MaxTokens: 1024, MaxSequences: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()
	batch, _ := cache.CreateBatch()
	prompt, _ := cache.CreateSequence()
	k, v := make(tqkv.F32, 100*64), make(tqkv.F32, 100*64)
	if err := errors.Join(batch.Plan(tqkv.Step{Sequence: prompt, NewTokens: 100}),
		cache.Append(0, batch, k, v, nil)); err != nil {
		fmt.Println(err)
		return
	}
	answer, err := cache.Fork(prompt)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := errors.Join(batch.Plan(tqkv.Step{Sequence: answer, NewTokens: 5}),
		cache.Append(0, batch, k, v, nil), cache.Truncate(answer, 103)); err != nil {
		fmt.Println(err)
		return
	}
	memory, _ := cache.Memory()
	fmt.Println(memory.Tokens, "tokens in", memory.PagesUsed, "pages of 64")
	// Output: 203 tokens in 3 pages of 64
}
