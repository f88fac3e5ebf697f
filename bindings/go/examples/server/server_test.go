// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// 24 requests at once are answered as one at a time, and several of them in one step.
func TestAnswersDoNotDependOnOthers(t *testing.T) {
	e := newEngine()
	server := httptest.NewServer(e)
	defer server.Close()
	ask := func(i int) string {
		response, err := http.Get(fmt.Sprintf("%s?prompt=question+%d&tokens=%d", server.URL, i, 20+i))
		if err != nil {
			t.Error(err)
			return ""
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return string(text)
	}
	var together [24]string
	var all sync.WaitGroup
	for i := range together {
		all.Add(1)
		go func() { defer all.Done(); together[i] = ask(i) }()
	}
	all.Wait()
	if e.most < 2 {
		t.Errorf("the largest step had %d sequences", e.most)
	}
	different := map[string]bool{}
	for i, text := range together {
		question := fmt.Sprintf("question %d", i)
		if !strings.HasPrefix(text, question) || len(text) != len(question)+20+i+1 {
			t.Errorf("request %d: %q", i, text)
		}
		if alone := ask(i); alone != text {
			t.Errorf("request %d: together %q, alone %q", i, text, alone)
		}
		different[strings.TrimPrefix(text, question)[:20]] = true
	}
	if len(different) < 12 {
		t.Errorf("only %d different answers", len(different))
	}
	response, err := http.Get(server.URL + "?prompt=hello&tokens=0")
	if err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("tokens=0: %v, %v", response, err)
	}
}
