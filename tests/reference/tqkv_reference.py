# SPDX-License-Identifier: Apache-2.0
"""The oracle's public names in one place.

An independent reading of src/format/FORMAT.md (not of the C++ that follows it), bit-exact where the format
is: every float32 operation is one NumPy operation on float32 arrays, in the order of the text, never a NumPy
sum or product of matrices, whose order of summation is NumPy's own affair. Attention is float64 and only
approximately comparable.

All functions work on many vectors at once, arrays [n, d]. Use it with tests/ on the module path:

    from reference import tqkv_reference as ref
    config = ref.SideConfig(head_dim=128, bits=4, kind=ref.KEY, seed=1)
    encoded = ref.encode(vectors, config)                  # codes [n, D], scales [n], nonfinite [n]
    decoded = ref.decode(encoded.codes, encoded.scales, config)
"""
from .attention import attend, exact_token_mask, visible_tokens
from .encode import (KEY, LS, NORM, PAPER, UNBIASED, VALUE, Codebook, Encoded, SideConfig, bf16_bits,
                     bf16_to_float, decode, encode, load_codebook, rotated_side, sanitise, stored_dim)
from .grouped import decode_grouped, encode_grouped, pack_rows, unpack_rows
from .rotation import (DENSE, HADAMARD, dct_factor, dense_rotation, rotate_dense, rotate_hadamard, sign_bits,
                       split_dim, stream_words, stream_base, tree_sum, unrotate_dense, unrotate_hadamard)
from .tile import (coded_positions, pack_side, page_bytes, raw_bits, raw_side_bytes, tile_bytes,
                   tile_num_bytes, unpack_side)
