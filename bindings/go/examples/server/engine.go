// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

const layers, queryHeads, kvHeads, dim, mostSequences, mostTokens = 2, 4, 2, 64, 8, 1024

// job is one request.
type job struct {
	text          []byte // prompt and answer
	pending, left int    // tokens at the end of text that are not in the cache yet; tokens to generate
	sequence      tqkv.Sequence
	done          chan error
}

// engine owns the cache: its goroutine plans and computes.
type engine struct {
	cache *tqkv.Cache
	batch *tqkv.Batch
	queue chan *job
	slots chan struct{} // bounds how many requests have a sequence
	most  int           // sequences in the largest step
}

// project stands for a model's projection of one token: numbers in [-1, 1).
func project(to tqkv.F32, count int, token byte, seed int) tqkv.F32 {
	for state := uint32(token)*7919 + uint32(seed); count > 0; count-- {
		state = state*1664525 + 1013904223
		to = append(to, float32(int(state>>16%2048)-1024)/1024)
	}
	return to
}

// step computes one step of all jobs and appends a token to each.
func (e *engine) step(jobs []*job) error {
	e.most = max(e.most, len(jobs))
	steps, out := make([]tqkv.Step, len(jobs)), make(tqkv.F32, len(jobs)*queryHeads*dim)
	for i, j := range jobs {
		steps[i] = tqkv.Step{Sequence: j.sequence, NewTokens: int64(j.pending), QueryTokens: 1}
	}
	err := e.batch.Plan(steps...)
	for layer := 0; layer < layers && err == nil; layer++ {
		var k, v, q tqkv.F32
		for _, j := range jobs {
			for _, token := range j.text[len(j.text)-j.pending:] {
				k, v = project(k, kvHeads*dim, token, 3*layer), project(v, kvHeads*dim, token, 3*layer+1)
			}
			q = project(q, queryHeads*dim, j.text[len(j.text)-1], 3*layer+2)
		}
		for i, x := range out { // of the layer before
			q[i] += x
		}
		if err = e.cache.Append(layer, e.batch, k, v, nil); err == nil {
			err = e.cache.Attend(layer, e.batch, q, out, nil, nil)
		}
	}
	for i, j := range jobs { // in place of a vocabulary: letters, by the bits of the output
		j.text = append(j.text, 'a'+byte(math.Float32bits(out[i*queryHeads*dim])%26))
		j.pending, j.left = 1, j.left-1
	}
	return err
}

// run computes steps for ever, each of all jobs that are there.
func (e *engine) run() {
	for jobs := []*job{}; ; {
		for len(jobs) == 0 || len(e.queue) > 0 {
			jobs = append(jobs, <-e.queue)
		}
		err := e.step(jobs)
		jobs = slices.DeleteFunc(jobs, func(j *job) bool {
			ended := err != nil || j.left == 0
			if ended {
				j.done <- err
			}
			return ended
		})
	}
}
