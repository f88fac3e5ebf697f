// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"fmt"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// Contract steps that look at several caches.

func (r *runner) fingerprint(s contractStep, of interface{ Fingerprint() (uint64, error) }) error {
	found, err := of.Fingerprint()
	if err != nil {
		return err
	}
	if s.Save != "" {
		r.fingerprints[s.Save] = found
	}
	saved := r.fingerprints
	if s.Equals != "" && saved[s.Equals] != found || s.Differs != "" && saved[s.Differs] == found {
		return broken{fmt.Sprintf("fingerprint %x: equals %s, differs from %s", found, s.Equals, s.Differs)}
	}
	return nil
}

func (r *runner) copy(s contractStep, n *named) error {
	target := r.caches[s.Target]
	sequence, err := n.cache.Copy(n.sequences[s.Source], target.cache)
	if err == nil {
		target.sequences[s.Sequence] = sequence
	}
	return err
}

// attendParams is the parameters of an attend step, nil if it has none.
func (r *runner) attendParams(s contractStep) (*tqkv.AttendParams, error) {
	var params *tqkv.AttendParams
	if p := s.Params; p != nil {
		params = &tqkv.AttendParams{
			OutDtype: tqkv.Dtype(p.OutDtype), SoftmaxScale: p.SoftmaxScale, LogitSoftcap: p.LogitSoftcap,
			SlidingWindow: p.SlidingWindow, SinkLogits: r.float32s(p.SinkLogits),
			HistoryOnly: p.HistoryOnly == 1, QTokenStride: p.QTokenStride, QHeadStride: p.QHeadStride,
			OutTokenStride: p.OutTokenStride, OutHeadStride: p.OutHeadStride,
			VisibleBegin: r.masks(p.VisibleBegin).i32, VisibleEnd: r.masks(p.VisibleEnd).i32,
			TreeMask: r.masks(p.TreeMask).u64, TreeWords: p.TreeWords, AlibiSlopes: r.float32s(p.AlibiSlopes),
		}
		if p.HistoryOnly < 0 || p.HistoryOnly > 1 {
			return nil, inexpressible // in a bool
		}
	}
	return params, nil
}
