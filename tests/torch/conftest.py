# SPDX-License-Identifier: Apache-2.0
"""TQKV_LIBRARY names the library under test, TQKV_TEST_DEVICE the device (cpu, cuda). The operators are
compiled here, every warning an error, unless TQKV_TORCH_OPS names them or an earlier run left them in
XDG_CACHE_HOME."""
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "bindings" / "python"), str(HERE)]

import torch  # noqa: E402
import torch._inductor.config  # noqa: E402

from tqkv import _torch_extension  # noqa: E402

torch.set_num_threads(1)
if "TQKV_TORCH_OPS" not in os.environ and not _torch_extension.cached_path().exists():
    usual = os.environ.get("CXX")
    os.environ["CXX"] = f"{usual or 'c++'} -Werror"
    _torch_extension.build(_torch_extension.cached_path())
    del os.environ["CXX"]
    if usual is not None:
        os.environ["CXX"] = usual
# Few and small kernels are compiled: sooner here and at once than by helpers, with headers compiled
# beforehand and trials of what instructions there are.
torch._inductor.config.compile_threads = 1
torch._inductor.config.cpp.vec_isa_ok = False
torch._inductor.config.cpp_cache_precompile_headers = False
