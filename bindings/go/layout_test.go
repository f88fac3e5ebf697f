// SPDX-License-Identifier: Apache-2.0

package tqkv

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
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
		t.Error("bindings/go/tqkv.h is not include/tqkv.h: cp include/tqkv.h bindings/go/")
	}
}

// The shim's table has every function of the header and no other.
func TestFunctions(t *testing.T) {
	header, err := os.ReadFile("tqkv.h")
	if err != nil {
		t.Fatal(err)
	}
	shim, err := os.ReadFile("shim.h")
	if err != nil {
		t.Fatal(err)
	}
	names := func(text []byte, pattern string) (list []string) {
		for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			list = append(list, string(match[1]))
		}
		slices.Sort(list)
		return list
	}
	declared, taken := names(header, `TQ_API [^;(]*?\b(tq_\w+)\(`), names(shim, `X\((tq_\w+)\)`)
	if len(declared) < 30 || !slices.Equal(declared, taken) {
		t.Errorf("the header has\n%v\nthe shim\n%v", declared, taken)
	}
}

// The same lines as the table that a C program prints: every type, struct, field and constant, and no other.
func TestLayout(t *testing.T) {
	expected := strings.Split(strings.TrimSpace(repositoryFile(t, "tests/capi/layout.txt")), "\n")
	var found []string
	add := func(format string, values ...any) { found = append(found, fmt.Sprintf(format, values...)) }
	for name, kind := range layoutTypes() {
		signed := 0
		if kind.Kind() >= reflect.Int && kind.Kind() <= reflect.Int64 {
			signed = 1
		}
		add("type %s size %d signed %d", name, kind.Size(), signed)
	}
	for name, kind := range layoutStructs() {
		add("struct %s size %d align %d", name, kind.Size(), kind.Align())
		for i := range kind.NumField() {
			if field := kind.Field(i); field.Name != "_" {
				add("%s.%s offset %d size %d", name, field.Name, field.Offset, field.Type.Size())
			}
		}
	}
	for name, value := range layoutConstants() {
		add("constant %s %d", name, value)
	}
	for name, value := range map[string]int64{
		"TQ_ERROR_INVALID_ARGUMENT": int64(ErrInvalidArgument), "TQ_ERROR_INVALID_STATE": int64(ErrInvalidState), "TQ_ERROR_OUT_OF_MEMORY": int64(ErrOutOfMemory),
		"TQ_ERROR_CAPACITY": int64(ErrCapacity), "TQ_ERROR_NOT_SUPPORTED": int64(ErrNotSupported), "TQ_ERROR_NO_DEVICE": int64(ErrNoDevice),
		"TQ_ERROR_DRIVER": int64(ErrDriver), "TQ_ERROR_CUDA": int64(ErrCuda), "TQ_ERROR_VERSION": int64(ErrVersion), "TQ_ERROR_CORRUPT_DATA": int64(ErrCorruptData),
		"TQ_ERROR_INCOMPATIBLE": int64(ErrIncompatible), "TQ_ERROR_WORKSPACE_TOO_SMALL": int64(ErrWorkspaceTooSmall), "TQ_ERROR_CAPTURE": int64(ErrCapture),
		"TQ_ERROR_IO": int64(ErrIO), "TQ_ERROR_INTERNAL": int64(ErrInternal), "TQ_DEVICE_CPU": int64(CPU), "TQ_DEVICE_CUDA": int64(CUDA), "TQ_F32": int64(Float32),
		"TQ_F16": int64(Float16), "TQ_BF16": int64(BFloat16), "TQ_ROTATION_HADAMARD": int64(RotationHadamard), "TQ_ROTATION_DENSE": int64(RotationDense),
		"TQ_SCALE_LS": int64(ScaleLS), "TQ_SCALE_UNBIASED": int64(ScaleUnbiased), "TQ_SCALE_NORM": int64(ScaleNorm), "TQ_SCALE_PAPER": int64(ScalePaper),
		"TQ_CODE_SCALAR": int64(CodeScalar), "TQ_FLAG_NO_ZERO_ON_FREE": int64(FlagNoZeroOnFree), "TQ_FLAG_NO_SCALE_SEARCH": int64(FlagNoScaleSearch),
		"TQ_NOTICED_NONFINITE": int64(NoticedNonfinite),
	} {
		add("constant %s %d", name, value)
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

func TestVersionsAgree(t *testing.T) {
	c := layoutConstants()
	if header := fmt.Sprintf("%d.%d.%d", c["TQ_VERSION_MAJOR"], c["TQ_VERSION_MINOR"], c["TQ_VERSION_PATCH"]); Version != header {
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
		{12, shape{3, 2, 2}, 0, 0, true}, {11, shape{3, 2, 2}, 0, 0, false}, {0, shape{0, 2, 2}, 0, 0, true}, {0, shape{-1, 2, 2}, 0, 0, true},
		{most, shape{most, 1, 64}, 0, 0, false}, {most, shape{2, 1, 1}, most, 0, false}, {most, shape{2, 2, 1}, most - 1, most - 1, false},
		{most, shape{2, 1, 1}, most - 1, 0, true}, {most, shape{3, 1, 1}, most, 0, false}, {100, shape{2, 2, 2}, -4, 0, false},
		{8, shape{2, 2, 2}, 2, 4, true}, {7, shape{2, 2, 2}, 2, 4, false},
	} {
		if err := checkLength("x", c.have, c.s, c.tokenStride, c.headStride); (err == nil) != c.fits {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
