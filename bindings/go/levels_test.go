// SPDX-License-Identifier: Apache-2.0

package tqkv_test

import (
	"reflect"
	"testing"

	tqkv "github.com/tqkv/tqkv/bindings/go"
)

// Levels of a layer's own, and the cache's for the others: what comes back is what went in.
func TestLevelsOfLayers(t *testing.T) {
	c := config(tqkv.Float32)
	c.NumLayers, c.CodeFamily, c.KeyBits, c.ValueBits = 0, tqkv.CodeLevels, 1, 2
	c.KeyLevels = &tqkv.Levels{Levels: []float32{-0.1, 0.1}, Boundaries: []float32{0}, Unit: 1}
	c.ValueLevels = &tqkv.Levels{Levels: []float32{-0.3, -0.1, 0.1, 0.3}, Boundaries: []float32{-0.2, 0, 0.2},
		Unit: 1}
	own := &tqkv.Levels{Levels: []float32{-0.2, 0.15}, Boundaries: []float32{0.05}, Unit: 0.5}
	c.Layers = []tqkv.LayerConfig{{}, {KeyLevels: own}}
	cache, batch, sequence := opened(t, c)
	resolved, err := cache.Config()
	must(t, err)
	if !reflect.DeepEqual(resolved.KeyLevels, c.KeyLevels) ||
		!reflect.DeepEqual(resolved.ValueLevels, c.ValueLevels) ||
		!reflect.DeepEqual(resolved.Layers[1].KeyLevels, own) {
		t.Errorf("%+v", resolved)
	}
	must(t, batch.Plan(tqkv.Decode(sequence, 1)))
	k, v := make(tqkv.F32, kvHeads*dim), make(tqkv.F32, kvHeads*dim)
	for i := range k {
		k[i] = float32(i%7) - 3
	}
	keys := [2]tqkv.F32{make(tqkv.F32, len(k)), make(tqkv.F32, len(k))}
	for layer := range 2 {
		must(t, cache.Append(layer, batch, k, v, nil))
		must(t, cache.Read(layer, sequence, 0, 1, keys[layer], nil, nil))
	}
	if reflect.DeepEqual(keys[0], keys[1]) {
		t.Error("both layers have the same levels")
	}
	c.Layers[1].KeyLevels = &tqkv.Levels{Levels: []float32{-1, 1}, Boundaries: []float32{0, 1}}
	_, err = open(t).NewCache(c)
	want(t, err, tqkv.ErrInvalidArgument, "layers[1].key_levels: 2 levels and 2 boundaries")
	c.Layers[1].KeyLevels = &tqkv.Levels{Levels: []float32{-1, 1, 2, 3}, Boundaries: []float32{0, 1, 2}}
	want(t, open(t).CheckConfig(c), tqkv.ErrInvalidArgument, "layers[1].key_levels")
}

// Bands of a layer's keys: what comes back is what went in, and a wrong order is named.
func TestKeyBandsOfLayers(t *testing.T) {
	c := config(tqkv.Float32)
	c.NumLayers = 0
	order := make([]int32, kvHeads*dim)
	for i := range order {
		order[i] = int32(dim - 1 - i%dim)
	}
	bands := &tqkv.KeyBands{Bits: []int32{4, 3, 3, 2}[:(dim+31)/32], Order: order}
	c.Layers = []tqkv.LayerConfig{{}, {KeyBands: bands}}
	cache, batch, sequence := opened(t, c)
	resolved, err := cache.Config()
	must(t, err)
	if !reflect.DeepEqual(resolved.Layers[1].KeyBands, bands) || resolved.Layers[0].KeyBands != nil {
		t.Errorf("%+v", resolved.Layers)
	}
	must(t, batch.Plan(tqkv.Decode(sequence, 1)))
	k, v := make(tqkv.F32, kvHeads*dim), make(tqkv.F32, kvHeads*dim)
	must(t, cache.Append(0, batch, k, v, nil))
	must(t, cache.Append(1, batch, k, v, nil))
	c.Layers[1].KeyBands = &tqkv.KeyBands{Bits: bands.Bits, Order: order[1:]}
	_, err = open(t).NewCache(c)
	want(t, err, tqkv.ErrInvalidArgument, "layers[1].key_bands.order")
	order[0] = 1
	c.Layers[1].KeyBands = bands
	want(t, open(t).CheckConfig(c), tqkv.ErrInvalidArgument, "layers[1].key_bands.order[0]")
}
