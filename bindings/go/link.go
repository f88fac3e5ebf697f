// SPDX-License-Identifier: Apache-2.0

//go:build tqkv_link

package tqkv

// #cgo pkg-config: tqkv
// #cgo CFLAGS: -DTQKV_LINK
import "C"

const linked = true
