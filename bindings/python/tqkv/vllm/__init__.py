# SPDX-License-Identifier: Apache-2.0
"""vLLM (v1, 0.32) on codes: a plug-in that puts tqkv in the place of vLLM's attention, on the CPU and CUDA.

    TQKV_VLLM=4+3 python serve.py            # keys in 4 bits, values in 3, in every layer

    llm = vllm.LLM(model, kv_cache_dtype="turboquant_k3v4_nc", kv_cache_dtype_skip_layers=["0", "15"])

The package brings the entry point vllm.general_plugins: tqkv, so vLLM finds it by itself; without TQKV_VLLM
it does nothing. vLLM's own memory planner counts the bytes of codes, so the same memory holds as many more
tokens; scheduling, chunked prefill, prefix caching, preemption and speculation stay vLLM's.

TQKV_VLLM
    unset, "", "0"  off
    "1"             widths as kv_cache_dtype says: "auto" = raw 16 bits, turboquant_k8v4, turboquant_4bit_nc,
                    turboquant_k3v4_nc, turboquant_3bit_nc = the bits in the name
    "K+V"           widths of keys and values (2 3 4 5 6 8 16), with kv_cache_dtype "auto"
additional_config={"tqkv": {..}} says more: key_bits, value_bits (they win over TQKV_VLLM), rotation_seed,
                    num_threads (0 = torch's). Other names are errors.
kv_cache_dtype_skip_layers
                    with a turboquant_* kv_cache_dtype: these layers keep raw 16 bits, and so do the first
                    and the last two, which vLLM adds to them

What is there: decoder attention of any ratio of heads, sliding windows, attention sinks, ALiBi, soft-capped
logits, layers that share another's cache, non-causal requests; tensor parallelism by global numbers of kv
heads and layers, so pages of a rank are those that one process would write. Results do not depend on what
else is in the batch. What is not: encoder and cross-attention, latent attention; they are errors, never
another path.

CUDA: every decoder layer for which no attention backend is named gets this one (vLLM's name for it: CUSTOM),
or an error. Full graphs of any batch (AttentionCGSupport.ALWAYS): the plan of a step is captured with it. The
workspace of the largest step is taken once for each group of layers, beside what vLLM plans for blocks.
"""
from ._settings import Settings, enabled

__all__ = ["Settings", "register"]

_VERSIONS = ("0.32.", )


def register() -> None:
    """The entry point: called by vLLM in each of its processes, any number of times."""
    if not enabled():
        return
    import vllm
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from ..errors import NotSupported
    if not vllm.__version__.startswith(_VERSIONS):
        raise NotSupported(f"vllm {vllm.__version__}: tqkv.vllm is made for {', '.join(_VERSIONS)}x; unset "
                           "TQKV_VLLM to run vLLM without it")
    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        raise NotSupported(f"vllm on {current_platform.device_type}: tqkv.vllm runs on the CPU and CUDA; "
                           "unset TQKV_VLLM to run vLLM without it")
    Settings.from_environment()  # what is wrong in it is said now
    # On the CPU vLLM knows one name of a backend, which an override may take.
    name = AttentionBackendEnum.CPU_ATTN if current_platform.is_cpu() else AttentionBackendEnum.CUSTOM
    register_backend(name, f"{__name__}._backend.TqkvBackend")
    if current_platform.is_cuda():
        _prefer(type(current_platform), name)


def _prefer(platform, backend):
    """Where no backend is named vLLM would choose among its own, and keep its own cache without a word."""
    if getattr(platform.get_attn_backend_cls, "by_tqkv", False):
        return
    choose = platform.get_attn_backend_cls

    def get_attn_backend_cls(cls, selected_backend, *arguments, **named):
        return choose(backend if selected_backend is None else selected_backend, *arguments, **named)
    get_attn_backend_cls.by_tqkv = True
    platform.get_attn_backend_cls = classmethod(get_attn_backend_cls)
