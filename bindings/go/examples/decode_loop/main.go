// SPDX-License-Identifier: Apache-2.0

// Decode_loop: "replace your attention call". A decode loop on a tqkv cache: plan the step once, then append
// and attend in every layer; fork a sequence for a shared prompt; truncate it when a draft is rejected. The
// same program stands in packaging/smoke/decode_loop.c and in the other bindings, and all print the same
// lines.
//
// In place of a model there is a generator of numbers, the same in every language. A layer of a step takes k,
// then v, then q.
package main

import (
	"fmt"
	"log"
	"math"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

const layers, queryHeads, kvHeads, dim, prompt = 2, 4, 2, 64, 48

// model stands for the model: numbers in [-1, 1), exact in float32.
type model struct{ state uint32 }

func (m *model) numbers(count int64) tqkv.F32 {
	numbers := make(tqkv.F32, count)
	for i := range numbers {
		m.state = m.state*1664525 + 1013904223
		numbers[i] = float32(int(m.state>>16%2048)-1024) / 1024
	}
	return numbers
}

// step is one step of the model; it returns the norm of all outputs.
func (m *model) step(cache *tqkv.Cache, batch *tqkv.Batch, steps ...tqkv.Step) (float64, error) {
	var rows, queries int64
	for _, step := range steps {
		rows += step.NewTokens
		queries += step.QueryTokens
	}
	if err := batch.Plan(steps...); err != nil {
		return 0, err
	}
	out, sum := make(tqkv.F32, queries*queryHeads*dim), 0.0
	for layer := range layers {
		// Here the model computes k, v and q, rotary embedding applied.
		k, v, q := m.numbers(rows*kvHeads*dim), m.numbers(rows*kvHeads*dim), m.numbers(queries*queryHeads*dim)
		if err := cache.Append(layer, batch, k, v, nil); err != nil {
			return 0, err
		}
		if err := cache.Attend(layer, batch, q, out, nil, nil); err != nil {
			return 0, err
		}
		for _, x := range out {
			sum += float64(x) * float64(x)
		}
	}
	return math.Sqrt(sum), nil
}

func run() error {
	library, err := tqkv.Open("")
	if err != nil {
		return err
	}
	cache, err := library.NewCache(&tqkv.Config{
		NumLayers: layers, NumQHeads: queryHeads, NumKVHeads: kvHeads, HeadDim: dim, IODtype: tqkv.Float32,
		KeyBits: 4, ValueBits: 4, MaxTokens: 8192, MaxSequences: 2,
		MaxBatchTokens: 48, // the prompt's: a plan's queries need room for exact copies
		WindowTokens:   16, // the newest tokens are read exactly ..
		RollbackTokens: 4,  // .. also after a draft of up to 4 tokens was taken back
	})
	if err != nil {
		return err
	}
	defer cache.Close()
	batch, err := cache.CreateBatch()
	if err != nil {
		return err
	}
	a, err := cache.CreateSequence()
	if err != nil {
		return err
	}
	m := &model{state: 5}
	norm, err := m.step(cache, batch, tqkv.Step{Sequence: a, NewTokens: prompt, QueryTokens: 1})
	if err != nil {
		return err
	}
	fmt.Printf("prompt: %d tokens, norm %.3f\n", prompt, norm)

	b, err := cache.Fork(a) // a second answer to the same prompt: its pages are shared
	if err != nil {
		return err
	}
	memory, err := cache.Memory()
	if err != nil {
		return err
	}
	fmt.Printf("fork: %d sequences, %d tokens, %d page\n", memory.NumSequences, memory.Tokens,
		memory.PagesUsed)

	stepAndPrint := func(what string, steps ...tqkv.Step) error {
		norm, err := m.step(cache, batch, steps...)
		if err != nil {
			return err
		}
		lengthA, err := cache.Length(a)
		if err != nil {
			return err
		}
		lengthB, err := cache.Length(b)
		if err != nil {
			return err
		}
		fmt.Printf("%s: lengths %d and %d, norm %.3f\n", what, lengthA, lengthB, norm)
		return nil
	}
	for i := 1; i <= 4; i++ {
		if err := stepAndPrint(fmt.Sprintf("step %d", i), tqkv.Decode(a, 1), tqkv.Decode(b, 1)); err != nil {
			return err
		}
	}
	// Speculative decoding: four tokens at once, of which two turn out to be wrong.
	if err := stepAndPrint("draft", tqkv.Decode(a, 4)); err != nil {
		return err
	}
	length, err := cache.Length(a)
	if err != nil {
		return err
	}
	if err := cache.Truncate(a, length-2); err != nil {
		return err
	}
	if err := stepAndPrint("two rejected", tqkv.Decode(a, 1), tqkv.Decode(b, 1)); err != nil {
		return err
	}
	if memory, err = cache.Memory(); err != nil {
		return err
	}
	fmt.Printf("memory: %d tokens, %d pages, %.2f times smaller than float16\n", memory.Tokens,
		memory.PagesUsed, memory.Compression)
	return cache.Close()
}

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
