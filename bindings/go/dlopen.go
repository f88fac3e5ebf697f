// SPDX-License-Identifier: Apache-2.0

//go:build !tqkv_link

package tqkv

// #cgo LDFLAGS: -ldl
import "C"

const linked = false
