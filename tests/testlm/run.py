# SPDX-License-Identifier: Apache-2.0
"""Next-byte predictions of the test model with its KV cache held by libtqkv, against the exact model.

    python3 run.py [--folder ../shared/testlm] [--library build/libtqkv.so] [--bits 2,3,4] [--sequences 3]
    [--json]

Protocol, that of the folder's README: the first `sequences` sequences of each task, text cut to 1537 bytes;
in every layer K (after RoPE) and V of all positions go through the cache, the own token included, no exact
window. KL (nats, exact against quantised next-byte distribution), dNLL (nats/byte) and top-1 agreement are
averaged over the positions of the text sequences, and over those of all tasks in the columns "all"; recall
and needle are the share of asked bytes that the quantised model predicts. Centres are the per-head means of K
after RoPE and of V over text sequences that are not evaluated (number 8 to 11, cut to 1536 bytes).
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from library import CacheAttention, Library, find_library
from model import Model, exact_attention, read_safetensors

TEXT_BYTES = 1537
CENTRE_SEQUENCES = range(8, 12)
TASKS = ("text", "needle", "recall")
# name -> bits, key rule, value rule, scale search, centred, KL of the folder's README
ROWS = {
    "2 bit, paper scale": (2, "paper", "paper", False, False, 0.0824),
    "2 bit, least-squares scale": (2, "ls", "ls", False, False, 0.0670),
    "2 bit, defaults": (2, "default", "default", True, False, None),
    "2 bit, defaults, centred": (2, "default", "default", True, True, None),
    "3 bit, least-squares scale": (3, "ls", "ls", False, False, 0.0124),
    "3 bit, centred": (3, "ls", "ls", False, True, 0.0097),
    "3 bit, defaults": (3, "default", "default", True, False, None),
    "3 bit, defaults, centred": (3, "default", "default", True, True, None),
    "4 bit, least-squares scale": (4, "ls", "ls", False, False, 0.0028),
    "4 bit, defaults": (4, "default", "default", True, False, None),
    "4 bit, defaults, centred": (4, "default", "default", True, True, None),
}


def default_folder():
    named = os.environ.get("TQKV_TESTLM")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "testlm"


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def load_sequences(folder, count, tasks=TASKS):
    """[(task, bytes, mask over predictions of the bytes that answer a question)]"""
    data = read_safetensors(os.path.join(folder, "eval.safetensors"))
    sequences = []
    for task in tasks:
        for i in range(count):
            tokens = data[task][i][: TEXT_BYTES if task == "text" else None]
            asked = data[task +
                         ".asked"][i][1:].astype(bool) if task != "text" else np.zeros(len(tokens) - 1, bool)
            sequences.append((task, tokens, asked))
    return sequences


def take_centres(model, folder):
    """Per-head means [layers][kv heads, dim] of keys and values over CENTRE_SEQUENCES."""
    data = read_safetensors(os.path.join(folder, "eval.safetensors"))
    keys = np.zeros((model.layers, model.kv_heads, model.head_dim))
    values = np.zeros_like(keys)

    def collect(layer, q, k, v):
        keys[layer] += k.mean(axis=0) / len(CENTRE_SEQUENCES)
        values[layer] += v.mean(axis=0) / len(CENTRE_SEQUENCES)
        return exact_attention(layer, q, k, v)

    for i in CENTRE_SEQUENCES:
        model.logits(data["text"][i][: TEXT_BYTES - 1], collect)
    return keys.astype(np.float32), values.astype(np.float32)


def compare(exact, quantised, targets):
    """Per position: KL, dNLL, top-1 agreement, right byte predicted by the quantised model."""
    at = np.arange(len(targets))
    kl = (np.exp(exact) * (exact - quantised)).sum(axis=1)
    best = quantised.argmax(axis=1)
    return kl, exact[at, targets] - quantised[at, targets], best == exact.argmax(axis=1), best == targets


def evaluate(model, sequences, exact, attention_of):
    """attention_of(tokens) -> an attention function with close(). Returns the figures of one row."""
    found = {task: [] for task, _, _ in sequences}
    started = time.time()
    for (task, tokens, asked), reference in zip(sequences, exact):
        attention = attention_of(len(tokens) - 1)
        try:
            quantised = log_softmax(model.logits(tokens[:-1], attention))
        finally:
            attention.close()
        kl, delta, agree, right = compare(reference, quantised, tokens[1:])
        found[task].append((kl, delta, agree, right[asked]))
    result = {"seconds": time.time() - started}
    for i, name in enumerate(("kl", "delta_nll", "top1")):
        if "text" in found:
            result[name] = float(np.concatenate([row[i] for row in found["text"]]).mean())
        result["all_" + name] = float(
            np.concatenate([row[i] for rows in found.values() for row in rows]).mean())
    for task in ("needle", "recall"):
        if task in found:
            result[task] = float(np.concatenate([row[3] for row in found[task]]).mean())
    return result


def prepare(folder, count, tasks=TASKS):
    model = Model(folder)
    sequences = load_sequences(folder, count, tasks)
    return model, sequences, [log_softmax(model.logits(tokens[:-1])) for _, tokens, _ in sequences]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=default_folder())
    parser.add_argument("--library", default=find_library())
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--sequences", type=int, default=3, help="of each task, 1 .. 8")
    parser.add_argument("--seed", type=int, default=0, help="rotation seed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.library:
        parser.error("no libtqkv.so found in build*/; name one with --library or TQKV_LIBRARY")
    if not 1 <= arguments.sequences <= 8:
        parser.error("--sequences must be 1 .. 8: text sequences 8 to 11 give the centres")
    wanted = {int(part) for part in arguments.bits.split(",")}
    library = Library(arguments.library)
    print(library.build_info(), file=sys.stderr)
    model, sequences, exact = prepare(arguments.folder, arguments.sequences)
    losses = [
        -e[np.arange(len(e)), tokens[1:]] for (task, tokens, _), e in zip(sequences, exact) if task == "text"
    ]
    text_loss = float(np.concatenate(losses).mean())
    print(f"exact model: {text_loss:.4f} nats/byte on the evaluated text", file=sys.stderr)
    centres = take_centres(model, arguments.folder)
    rows = []
    if not arguments.json:
        print(
            f"{'K/V':28s} {'KL':>7s} {'README':>7s} {'dNLL':>8s} {'top-1':>6s} {'recall':>7s} {'needle':>7s} "
            f"{'KL all':>7s} {'dNLL all':>9s} {'top-1 all':>9s}")
    for name, (bits, key_rule, value_rule, search, centred, published) in ROWS.items():
        if bits not in wanted:
            continue
        row = evaluate(
            model, sequences, exact, lambda tokens: CacheAttention(library, model, tokens, bits, key_rule,
                                                                   value_rule, search, arguments.seed, centres
                                                                   if centred else None))
        rows.append({"name": name, "bits": bits, "published_kl": published, **row})
        if not arguments.json:
            known = f"{published:.4f}" if published else "-"
            print(
                f"{name:28s} {row['kl']:7.4f} {known:>7s} {row['delta_nll']:+8.4f} {row['top1']:6.3f} "
                f"{row['recall']:7.3f} {row['needle']:7.3f} {row['all_kl']:7.4f} "
                f"{row['all_delta_nll']:+9.4f} {row['all_top1']:9.3f}",
                flush=True)
    if arguments.json:
        print(
            json.dumps(
                {
                    "build": library.build_info(), "sequences": arguments.sequences, "seed": arguments.seed,
                    "exact_text_nats_per_byte": text_loss, "rows": rows
                },
                indent=1))


if __name__ == "__main__":
    main()
