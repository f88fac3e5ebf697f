# SPDX-License-Identifier: Apache-2.0
"""tqkv.eval: what a cache of codes does to a model, beside the model's own cache on the same prompts.

    tqkv-eval release --model NAME --out FOLDER --quick        (or python -m tqkv.eval)

Needs torch and Transformers 5.17 or later; plots need matplotlib. Models: any that TurboCache takes, by
folder or hub name, and "constructed", a retrieval model whose weights are set by formula.

    load, pack          models by name; as a checkpoint
    construct           the constructed model and its tokenizer
    make, ask           a prompt with known answers; a cache's answers to it
    compare             paired statistics of two lists of scores

Names are imported when they are used: torch reads its environment when it is loaded.
"""
import importlib

_FROM = {"load": "_models", "pack": "_models", "Subject": "_models", "construct": "constructed",
         "make": "_tasks", "Prompt": "_tasks", "Question": "_tasks", "TASKS": "_tasks", "STYLES": "_styles",
         "Style": "_styles", "ask": "_runs", "prefill": "_runs", "turbo": "_runs", "Variant": "_runs",
         "BASELINE": "_runs", "AGAIN": "_runs", "BROKEN": "_runs", "compare": "_stats", "Paired": "_stats"}

__all__ = sorted(_FROM)


def __getattr__(name):
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("." + _FROM[name], __name__), name)
