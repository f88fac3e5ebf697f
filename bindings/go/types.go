// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"math"
	"unsafe"
)

// Version is the release of this package, which is that of the header it was made with.
const Version = "0.1.0"

// DeviceType says where a cache lives.
type DeviceType int32

// Device types; 0 is the CPU in a [Config].
const (
	CPU  DeviceType = C.TQ_DEVICE_CPU
	CUDA DeviceType = C.TQ_DEVICE_CUDA
)

// Dtype is the type of the numbers that go in and come out.
type Dtype int32

// Types of numbers.
const (
	Float32  Dtype = C.TQ_F32
	Float16  Dtype = C.TQ_F16
	BFloat16 Dtype = C.TQ_BF16
)

// Rotation is the random rotation before coding.
type Rotation int32

// Rotations; 0 is Hadamard.
const (
	RotationHadamard Rotation = C.TQ_ROTATION_HADAMARD // random signs and a Hadamard transform
	RotationDense    Rotation = C.TQ_ROTATION_DENSE    // QR of a seeded Gaussian matrix; CPU only
)

// ScaleRule says how the scale of a coded vector is chosen.
type ScaleRule int32

// Scale rules; 0 is ScaleUnbiased.
const (
	ScaleLS       ScaleRule = C.TQ_SCALE_LS       // least squares: smallest error of a vector, shorter than it
	ScaleUnbiased ScaleRule = C.TQ_SCALE_UNBIASED // no shrinkage: products and averages stay right
	ScaleNorm     ScaleRule = C.TQ_SCALE_NORM     // the vector keeps its length
	ScalePaper    ScaleRule = C.TQ_SCALE_PAPER    // length times the published codebook
)

// CodeFamily is the family of codes.
type CodeFamily int32

// Code families; 0 is scalar.
const (
	CodeScalar  CodeFamily = C.TQ_CODE_SCALAR  // Lloyd-Max levels for each coordinate
	CodeProd    CodeFamily = C.TQ_CODE_PROD    // at one bit less, and signs of a sketch of the residual
	CodeGrouped CodeFamily = C.TQ_CODE_GROUPED // min/max of groups of neighbours, without a rotation
	CodeLevels  CodeFamily = C.TQ_CODE_LEVELS  // levels and boundaries of the caller's
	CodeTrellis CodeFamily = C.TQ_CODE_TRELLIS // twice the levels, told apart by neighbours in a chain
)

// LayerKind is what a layer's tokens are.
type LayerKind int32

// Kinds of layers; 0 is keys and values.
const (
	LayerKeysValues LayerKind = C.TQ_KEYS_VALUES
	LayerLatent     LayerKind = C.TQ_LATENT // keys whose first ValueDim coordinates are the values too
)

// Flags of a configuration.
const (
	FlagNoZeroOnFree   uint64 = C.TQ_FLAG_NO_ZERO_ON_FREE // do not scrub the memory of freed sequences
	FlagNoScaleSearch  uint64 = C.TQ_FLAG_NO_SCALE_SEARCH // one quantisation step, not the best of several
	FlagBatchInvariant uint64 = C.TQ_FLAG_BATCH_INVARIANT // one arithmetic for any number of query rows
	FlagStoreOnce      uint64 = C.TQ_FLAG_STORE_ONCE      // a token of the window gets its codes when it leaves
	FlagExactChunk     uint64 = C.TQ_FLAG_EXACT_CHUNK     // see DeviceAttend.ChunkK
)

// Noticed is what the library noticed in appended vectors, and of a sequence.
type Noticed uint64

const (
	// NoticedNonfinite: an appended vector held NaN, an infinity or a magnitude above 2^64; it was replaced.
	NoticedNonfinite Noticed = C.TQ_NOTICED_NONFINITE
	// NoticedSaturated: a finite number beyond +-65504 went into a raw side of a float32 cache and was stored
	// as +-65504.
	NoticedSaturated Noticed = C.TQ_NOTICED_SATURATED
	// NoticedShortWindow, of a sequence, as long as it is so: a truncate went back further than
	// RollbackTokens, and fewer than WindowTokens are exact.
	NoticedShortWindow Noticed = C.TQ_NOTICED_SHORT_WINDOW
)

// Sequence is the id of a sequence of a cache: a slot and a generation, so that the id of a freed sequence
// stays invalid. 0 is never valid. To another cache it says nothing.
type Sequence int64

// Stream is a cudaStream_t or CUstream as a number. CPU caches take only 0; for CUDA caches that is the
// legacy default stream.
type Stream uintptr

// DevicePtr is an address in device memory. This package cannot check it.
type DevicePtr uintptr

// HostSlice is a slice of numbers in host memory: [F32], [F16] or [BF16]. nil stands for none where that is
// allowed.
type HostSlice interface {
	host() (memory unsafe.Pointer, length int, dtype Dtype)
}

// F32 is a slice of float32.
type F32 []float32

// F16 is a slice of the bits of IEEE half precision numbers.
type F16 []uint16

// BF16 is a slice of the bits of bfloat16 numbers: the upper halves of float32 bits.
type BF16 []uint16

func (s F32) host() (unsafe.Pointer, int, Dtype)  { return ptr(s), len(s), Float32 }
func (s F16) host() (unsafe.Pointer, int, Dtype)  { return ptr(s), len(s), Float16 }
func (s BF16) host() (unsafe.Pointer, int, Dtype) { return ptr(s), len(s), BFloat16 }

// Layout says where element (token, head, dim) of k and v lies: token * TokenStride + head * HeadStride +
// dim. Strides in elements; 0 = dense [token][head][dim].
type Layout struct {
	KeyTokenStride, KeyHeadStride     int64
	ValueTokenStride, ValueHeadStride int64
}

// copied is the layout, dense for nil. What is checked is what C gets, whatever happens to the caller's
// meanwhile.
func (l *Layout) copied() Layout {
	if l == nil {
		return Layout{}
	}
	return *l
}

func (l Layout) c() C.tq_tensor_layout {
	return C.tq_tensor_layout{
		key_token_stride: C.int64_t(l.KeyTokenStride), key_head_stride: C.int64_t(l.KeyHeadStride),
		value_token_stride: C.int64_t(l.ValueTokenStride), value_head_stride: C.int64_t(l.ValueHeadStride),
	}
}

// ptr is the address of a slice's first element, nil if it has none.
func ptr[T any](s []T) unsafe.Pointer {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Pointer(unsafe.SliceData(s))
}

// shape of a tensor [tokens][heads][dim].
type shape struct{ tokens, heads, dim int64 }

// checkLength says whether a slice is long enough for what the library will read or write in it, strides 0 =
// dense. It may be longer. Counts below 0 need nothing: the library refuses them, as it does all else that is
// wrong about strides.
func checkLength(name string, have int, s shape, tokenStride, headStride int64) error {
	if s.tokens <= 0 || s.heads <= 0 || s.dim <= 0 {
		return nil
	}
	if headStride == 0 {
		headStride = s.dim
	}
	if tokenStride == 0 {
		tokenStride = s.heads * s.dim
	}
	if headStride < 0 || tokenStride < 0 {
		return argumentError("%s: token stride %d and head stride %d must not be negative", name, tokenStride,
			headStride)
	}
	tokens, tokensFit := multiply(s.tokens-1, tokenStride)
	heads, headsFit := multiply(s.heads-1, headStride)
	if tokensFit && headsFit && tokens <= math.MaxInt64-heads && tokens+heads <= math.MaxInt64-s.dim &&
		tokens+heads+s.dim <= int64(have) {
		return nil
	}
	return argumentError("%s: a slice of %d elements is too short for %d tokens x %d heads x %d with "+
		"strides %d and %d", name, have, s.tokens, s.heads, s.dim, tokenStride, headStride)
}

func multiply(a, b int64) (product int64, fits bool) {
	if a == 0 || b == 0 {
		return 0, true
	}
	product = a * b
	return product, a <= math.MaxInt64/b
}

// int32Of is a number of Go's int as the library's int32.
func int32Of(name string, value int) (C.int32_t, error) {
	if int(int32(value)) != value {
		return 0, argumentError("%s = %d: passes 32 bits", name, value)
	}
	return C.int32_t(value), nil
}
