// SPDX-License-Identifier: Apache-2.0

// Server: many requests at once on one cache. Handlers run side by side and hand their prompts to one engine,
// which plans all sequences that are alive in every step: prompts of new ones, one token of the others. The
// bits of a sequence do not depend on what else is planned, so every answer is what the prompt gets alone.
//
//	go run ./examples/server & curl 'localhost:8080/?prompt=hello&tokens=20'
package main

import (
	"log"
	"math"
	"net/http"
	"strconv"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

const layers, queryHeads, kvHeads, dim, mostSequences, mostTokens = 2, 4, 2, 64, 32, 1024

type job struct { // one request
	text          []byte // prompt and answer
	pending, left int    // tokens at the end of text that are not in the cache yet; tokens to generate
	sequence      tqkv.Sequence
	done          chan error
}

type engine struct { // owns the cache: its goroutine plans and computes
	cache *tqkv.Cache
	batch *tqkv.Batch
	queue chan *job
	most  int // sequences in the largest step
}

// project stands for a model's projection of one token: numbers in [-1, 1).
func project(to tqkv.F32, count int, token byte, seed int) tqkv.F32 {
	for state := uint32(token)*7919 + uint32(seed); count > 0; count-- {
		state = state*1664525 + 1013904223
		to = append(to, float32(int(state>>16%2048)-1024)/1024)
	}
	return to
}

// step computes one step of all jobs, appends a token to each, and returns those that go on.
func (e *engine) step(jobs []*job) (alive []*job) {
	steps, k, v, q := []tqkv.Step{}, tqkv.F32{}, tqkv.F32{}, tqkv.F32{}
	for _, j := range jobs {
		steps = append(steps, tqkv.Step{Sequence: j.sequence, NewTokens: int64(j.pending), QueryTokens: 1})
		for _, token := range j.text[len(j.text)-j.pending:] {
			k, v = project(k, kvHeads*dim, token, 1), project(v, kvHeads*dim, token, 2)
		}
		q = project(q, queryHeads*dim, j.text[len(j.text)-1], 3)
	}
	e.most = max(e.most, len(jobs))
	out, err := make(tqkv.F32, len(q)), e.batch.Plan(steps...)
	for layer := 0; layer < layers && err == nil; layer++ {
		if err = e.cache.Append(layer, e.batch, k, v, nil); err == nil {
			err = e.cache.Attend(layer, e.batch, q, out, nil, nil)
		}
		q, out = out, q // what comes out goes into the next layer
	}
	for i, j := range jobs { // in place of a vocabulary: letters, by the bits of the output
		j.text = append(j.text, 'a'+byte(math.Float32bits(q[i*queryHeads*dim])%26))
		if j.pending, j.left = 1, j.left-1; err != nil || j.left == 0 {
			j.done <- err
		} else {
			alive = append(alive, j)
		}
	}
	return alive
}

// run computes steps for ever, each of all jobs that are there.
func (e *engine) run() {
	for jobs := []*job{}; ; jobs = e.step(jobs) {
		for len(jobs) == 0 || len(e.queue) > 0 {
			jobs = append(jobs, <-e.queue)
		}
	}
}

// ServeHTTP runs in as many goroutines as there are requests; each waits for the engine.
func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	prompt := r.FormValue("prompt")
	count, _ := strconv.Atoi(r.FormValue("tokens"))
	if prompt == "" || count < 1 || len(prompt)+count > mostTokens {
		http.Error(w, "prompt: not empty; tokens: 1 or more; both: at most 1024", http.StatusBadRequest)
		return
	}
	sequence, err := e.cache.CreateSequence()
	j := &job{[]byte(prompt), len(prompt), count, sequence, make(chan error)}
	if err == nil {
		defer e.cache.Free(sequence)
		e.queue <- j
		err = <-j.done
	}
	if err != nil { // all sequences are in use, for one
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	} else {
		w.Write(append(j.text, '\n'))
	}
}

func must[T any](made T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return made
}

func newEngine() *engine {
	cache := must(must(tqkv.Open("")).NewCache(&tqkv.Config{NumLayers: layers, NumQHeads: queryHeads,
		NumKVHeads: kvHeads, HeadDim: dim, IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4,
		MaxTokens: mostSequences * (mostTokens + 64), MaxSequences: mostSequences}))
	e := &engine{cache: cache, batch: must(cache.CreateBatch()), queue: make(chan *job, mostSequences)}
	go e.run()
	return e
}

func main() { log.Fatal(http.ListenAndServe("localhost:8080", newEngine())) }
