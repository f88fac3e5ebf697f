// SPDX-License-Identifier: Apache-2.0

package tqkv

// #include "shim.h"
import "C"

import (
	"bytes"
	"fmt"
)

// Status is the kind of a failure. It is an error itself, so that errors.Is(err, ErrCapacity) works on
// whatever a call returned.
type Status int32

// The kinds of failure: those of tqkv.h, and ErrLoad.
const (
	ErrInvalidArgument   Status = C.TQ_ERROR_INVALID_ARGUMENT    // a value is out of range or inconsistent
	ErrInvalidState      Status = C.TQ_ERROR_INVALID_STATE       // right arguments, wrong moment
	ErrOutOfMemory       Status = C.TQ_ERROR_OUT_OF_MEMORY       // host or device allocation failed
	ErrCapacity          Status = C.TQ_ERROR_CAPACITY            // a limit is used up; nothing has changed
	ErrNotSupported      Status = C.TQ_ERROR_NOT_SUPPORTED       // valid, but not here: the text says why
	ErrNoDevice          Status = C.TQ_ERROR_NO_DEVICE           // no such device
	ErrDriver            Status = C.TQ_ERROR_DRIVER              // the driver is absent or too old
	ErrCuda              Status = C.TQ_ERROR_CUDA                // a CUDA call failed
	ErrVersion           Status = C.TQ_ERROR_VERSION             // the library is too old or of another ABI
	ErrCorruptData       Status = C.TQ_ERROR_CORRUPT_DATA        // saved bytes fail their checks
	ErrIncompatible      Status = C.TQ_ERROR_INCOMPATIBLE        // saved bytes of another format or geometry
	ErrWorkspaceTooSmall Status = C.TQ_ERROR_WORKSPACE_TOO_SMALL // the text says how many bytes are needed
	ErrCapture           Status = C.TQ_ERROR_CAPTURE             // not while the stream is being captured
	ErrIO                Status = C.TQ_ERROR_IO                  // reading or writing failed
	ErrInternal          Status = C.TQ_ERROR_INTERNAL            // a bug in the library
	ErrLoad              Status = -1                             // not of the library: it could not be opened
)

var statusTexts = map[Status]string{
	ErrInvalidArgument:   "invalid argument",
	ErrInvalidState:      "invalid state",
	ErrOutOfMemory:       "out of memory",
	ErrCapacity:          "capacity used up",
	ErrNotSupported:      "not supported",
	ErrNoDevice:          "no such device",
	ErrDriver:            "driver absent or too old",
	ErrCuda:              "CUDA call failed",
	ErrVersion:           "version mismatch",
	ErrCorruptData:       "corrupt data",
	ErrIncompatible:      "incompatible data",
	ErrWorkspaceTooSmall: "workspace too small",
	ErrCapture:           "not allowed in stream capture",
	ErrIO:                "input or output failed",
	ErrInternal:          "internal error",
	ErrLoad:              "library not loaded",
}

// Error says what kind of failure it is.
func (s Status) Error() string {
	text, known := statusTexts[s]
	if !known {
		text = fmt.Sprintf("unknown status %d", int32(s))
	}
	return "tqkv: " + text
}

// Error is a failed call.
type Error struct {
	Status  Status
	Message string // which argument, which values
}

// Error is the kind and the text.
func (e *Error) Error() string { return e.Status.Error() + ": " + e.Message }

// Unwrap makes errors.Is work with the Err values.
func (e *Error) Unwrap() error { return e.Status }

func argumentError(format string, values ...any) error {
	return &Error{ErrInvalidArgument, fmt.Sprintf(format, values...)}
}

// A textBuffer receives the text of a failure inside the C call that failed.
type textBuffer [C.TQKV_TEXT]byte

func (t *textBuffer) c() *C.char { return (*C.char)(ptr(t[:])) }

func (t *textBuffer) String() string {
	if end := bytes.IndexByte(t[:], 0); end >= 0 {
		return string(t[:end])
	}
	return string(t[:])
}

func (t *textBuffer) result(status C.tq_status) error {
	if status == C.TQ_OK {
		return nil
	}
	return &Error{Status(status), t.String()}
}
