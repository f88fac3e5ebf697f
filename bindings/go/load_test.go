// SPDX-License-Identifier: Apache-2.0

//go:build !tqkv_link

package tqkv_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// fakeLibrary compiles a library with every function of the header but one, this ABI number, and structs this
// much larger than ours.
func fakeLibrary(t *testing.T, without string, abi, larger int) string {
	t.Helper()
	header, err := os.ReadFile("tqkv.h")
	if err != nil {
		t.Fatal(err)
	}
	code := "#include \"tqkv.h\"\n"
	found := func(pattern string) [][]string {
		return regexp.MustCompile(pattern).FindAllStringSubmatch(string(header), -1)
	}
	for _, match := range found(`TQ_API [^;(]*?\b(tq_\w+)\(`) {
		switch name := match[1]; name {
		case without:
		case "tq_version":
			code += "const char *tq_version(void) { return \"9.8.7\"; }\n"
		case "tq_abi_version":
			code += fmt.Sprintf("int32_t tq_abi_version(void) { return %d; }\n", abi)
		case "tq_struct_size":
			code += "size_t tq_struct_size(int32_t id) { switch (id) {"
			for _, s := range found(`#define (TQ_STRUCT_(\w+))`) {
				code += fmt.Sprintf("case %s: return sizeof(tq_%s) + %d;", s[1], strings.ToLower(s[2]),
					larger)
			}
			code += "} return 0; }\n"
		default:
			// Under another name in C, so that the declaration in the header does not clash.
			code += fmt.Sprintf("int32_t fake_%[1]s(void) __asm__(\"%[1]s\");\n"+
				"int32_t fake_%[1]s(void) { return 99; }\n", name)
		}
	}
	folder := t.TempDir()
	source, library := filepath.Join(folder, "fake.c"), filepath.Join(folder, "libfake.so")
	if err := os.WriteFile(source, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	compile := exec.Command("cc", "-I", here, "-shared", "-fPIC", "-o", library, source)
	compile.Env = append(os.Environ(), "LD_PRELOAD=") // a sanitizer watches this program, not the compiler
	if output, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return library
}

func TestMissingLibrary(t *testing.T) {
	_, err := tqkv.Open("/nonexistent/libtqkv.so")
	want(t, err, tqkv.ErrLoad, "/nonexistent/libtqkv.so", "the path given", "No such file", "TQKV_LIBRARY",
		"Install tqkv")
	_, err = tqkv.Open("go.mod")
	want(t, err, tqkv.ErrLoad, "cannot open go.mod")
}

func TestVariableIsNeverFallenThrough(t *testing.T) {
	t.Setenv(tqkv.LibraryVariable, "/nonexistent/x.so")
	_, err := tqkv.Open("")
	want(t, err, tqkv.ErrLoad, "cannot open /nonexistent/x.so (from the variable TQKV_LIBRARY)")
	good := fakeLibrary(t, "", 0, 0)
	t.Setenv(tqkv.LibraryVariable, good)
	library, err := tqkv.Open("")
	if err != nil || library.Name() != good || library.Version() != "9.8.7" {
		t.Errorf("%v, %v", library, err)
	}
	again, err := tqkv.Open(good)
	if again != library || err != nil {
		t.Errorf("loaded twice, or %v", err)
	}
}

func TestUnfitLibraries(t *testing.T) {
	_, err := tqkv.Open(fakeLibrary(t, "tq_sequence_flags", 0, 0))
	want(t, err, tqkv.ErrVersion, "lacks tq_sequence_flags:", "older than this package")
	_, err = tqkv.Open(fakeLibrary(t, "", 5, 0))
	want(t, err, tqkv.ErrVersion, "tqkv 9.8.7 with ABI 5", "speaks ABI 0")
	_, err = tqkv.Open(fakeLibrary(t, "", 0, -8))
	want(t, err, tqkv.ErrVersion, "tq_device_info has", "too old")
	if _, err = tqkv.Open(fakeLibrary(t, "", 0, 8)); err != nil {
		t.Errorf("a newer library of the same ABI: %v", err)
	}
}
