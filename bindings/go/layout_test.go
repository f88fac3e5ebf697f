// SPDX-License-Identifier: Apache-2.0

package tqkv

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// repositoryFile reads a file outside the module; a module by itself lacks them.
func repositoryFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
	if os.IsNotExist(err) {
		if _, outside := os.Stat(filepath.Join("..", "..", "include")); outside != nil {
			t.Skip("not inside the repository of tqkv")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestHeaderIsACopy(t *testing.T) {
	mine, err := os.ReadFile("tqkv.h")
	if err != nil {
		t.Fatal(err)
	}
	if string(mine) != repositoryFile(t, "include/tqkv.h") {
		t.Error("bindings/go/tqkv.h is not include/tqkv.h: run bindings/generate.py")
	}
}

// The same lines as the table that a C program prints: every type, struct, field and constant, and no other.
func TestLayout(t *testing.T) {
	expected := strings.Split(strings.TrimSpace(repositoryFile(t, "tests/capi/layout.txt")), "\n")
	var found []string
	add := func(format string, values ...any) { found = append(found, fmt.Sprintf(format, values...)) }
	for _, number := range layoutNumbers() {
		signed := 0
		if kind := number.kind.Kind(); kind >= reflect.Int && kind <= reflect.Int64 {
			signed = 1
		}
		add("type %s size %d signed %d", number.name, number.kind.Size(), signed)
	}
	for _, s := range layoutStructs() {
		add("struct %s size %d align %d", s.name, s.kind.Size(), s.kind.Align())
		for i := range s.kind.NumField() {
			if field := s.kind.Field(i); field.Name != "_" {
				add("%s.%s offset %d size %d", s.name, field.Name, field.Offset, field.Type.Size())
			}
		}
	}
	for _, c := range layoutConstants() {
		add("constant %s %d", c.name, c.value)
	}
	if len(expected) < 100 {
		t.Fatalf("layout.txt has %d lines", len(expected))
	}
	for _, line := range expected {
		if !slices.Contains(found, line) {
			t.Errorf("only in C: %s", line)
		}
	}
	for _, line := range found {
		if !slices.Contains(expected, line) {
			t.Errorf("only here: %s", line)
		}
	}
}

func TestEveryStatusHasANameAndAText(t *testing.T) {
	for _, c := range layoutConstants() {
		if _, known := statusTexts[Status(c.value)]; strings.HasPrefix(c.name, "TQ_ERROR_") && !known {
			t.Errorf("%s has no text", c.name)
		}
	}
}

func TestVersionsAgree(t *testing.T) {
	c := map[string]int64{}
	for _, constant := range layoutConstants() {
		c[constant.name] = constant.value
	}
	header := fmt.Sprintf("%d.%d.%d", c["TQ_VERSION_MAJOR"], c["TQ_VERSION_MINOR"], c["TQ_VERSION_PATCH"])
	if Version != header {
		t.Errorf("Version = %s, the header's is %s", Version, header)
	}
	if soname := fmt.Sprintf("libtqkv.so.%d", c["TQ_ABI_VERSION"]); SONAME != soname {
		t.Errorf("SONAME = %s, the header's is %s", SONAME, soname)
	}
}

func TestLengthsNeverOverflow(t *testing.T) {
	const most = 1<<63 - 1
	for _, c := range []struct {
		have                    int
		s                       shape
		tokenStride, headStride int64
		fits                    bool
	}{
		{12, shape{3, 2, 2}, 0, 0, true},
		{11, shape{3, 2, 2}, 0, 0, false},
		{0, shape{0, 2, 2}, 0, 0, true},
		{0, shape{-1, 2, 2}, 0, 0, true},
		{most, shape{most, 1, 64}, 0, 0, false},
		{most, shape{2, 1, 1}, most, 0, false},
		{most, shape{2, 2, 1}, most - 1, most - 1, false},
		{most, shape{2, 1, 1}, most - 1, 0, true},
		{most, shape{3, 1, 1}, most, 0, false},
		{100, shape{2, 2, 2}, -4, 0, false},
		{8, shape{2, 2, 2}, 2, 4, true},
		{7, shape{2, 2, 2}, 2, 4, false},
	} {
		if err := checkLength("x", c.have, c.s, c.tokenStride, c.headStride); (err == nil) != c.fits {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
