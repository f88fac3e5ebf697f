// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import "fmt"

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
