// SPDX-License-Identifier: Apache-2.0

// Server: many requests at once on one cache. Handlers run side by side and hand their prompts to one engine,
// which plans all sequences that are alive in every step: prompts of new ones, one token of the others. The
// bits of a sequence do not depend on what else is planned, so every answer is what the prompt gets alone.
//
//	go run ./examples/server localhost:8080        curl 'localhost:8080/?prompt=hello&tokens=20'
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// ServeHTTP runs in as many goroutines as there are requests.
func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	prompt := r.FormValue("prompt")
	count, _ := strconv.Atoi(r.FormValue("tokens"))
	if prompt == "" || count < 1 || len(prompt)+count > mostTokens {
		http.Error(w, "prompt: not empty; tokens: 1 or more; both: at most 1024", http.StatusBadRequest)
		return
	}
	if text, err := e.answer(prompt, count); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	} else {
		fmt.Fprintln(w, text)
	}
}

// answer waits for a free sequence, and until the engine has generated.
func (e *engine) answer(prompt string, count int) (string, error) {
	e.slots <- struct{}{}
	defer func() { <-e.slots }()
	sequence, err := e.cache.CreateSequence()
	if err != nil {
		return "", err
	}
	defer e.cache.Free(sequence)
	j := &job{[]byte(prompt), len(prompt), count, sequence, make(chan error)}
	e.queue <- j
	err = <-j.done
	return string(j.text), err
}

func newEngine() *engine {
	library, err := tqkv.Open("")
	if err != nil {
		log.Fatal(err)
	}
	e := &engine{queue: make(chan *job, mostSequences), slots: make(chan struct{}, mostSequences)}
	if e.cache, err = library.NewCache(&tqkv.Config{NumLayers: layers, NumQHeads: queryHeads,
		NumKVHeads: kvHeads, HeadDim: dim, IODtype: tqkv.Float32, KeyBits: 4, ValueBits: 4,
		MaxTokens: mostSequences * (mostTokens + 64), MaxSequences: mostSequences}); err != nil {
		log.Fatal(err)
	}
	if e.batch, err = e.cache.CreateBatch(); err != nil {
		log.Fatal(err)
	}
	go e.run()
	return e
}

func main() { log.Fatal(http.ListenAndServe(os.Args[1], newEngine())) }
