# SPDX-License-Identifier: Apache-2.0
"""vLLM's real engine on tiny models: the same tokens at 16 bits as with its own attention, and at fewer bits
what does not depend on how vLLM schedules. What a run is to show (chunks, drafts, hits, preemptions) is read
from the engine's own counters, so a run that did not show it fails."""
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import coded
import pytest

HERE = Path(__file__).resolve().parent


def prompts_of(lengths, seed=1):
    random.seed(seed)
    return [[random.randrange(1, 500) for _ in range(length)] for length in lengths]


PROMPTS = [prompts_of((20, 75, 130, 33))]


def llama(models, **fields):
    return models("llama" + "".join(f"{k}{v}" for k, v in fields.items()), "Llama", **fields)


def closeness(a, b):
    """Largest difference of the log probabilities of the tokens that both runs agree on up to there."""
    worst, agreed, of = 0.0, 0, 0
    for own_tokens, own, other_tokens, other in zip(a["tokens"], a["logprobs"], b["tokens"], b["logprobs"]):
        of += len(own)
        for x, p, y, q in zip(own_tokens, own, other_tokens, other):
            if x != y:
                break
            worst, agreed = max(worst, abs(p - q)), agreed + 1
    return worst, agreed / of


# Raw sides of a float32 model are float16: keys and values are off by 2^-12 of each number, at random, so a
# layer's output by about 2^-12 of its size; with attention's own part (2^-12, tests/contract) three
# layers make 2^-9 at most of logits up to 16 in size.
RAW = 2**-5


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_raw_sides_are_vllms_own_attention(run, models, dtype):
    """bfloat16: keys and values are kept as they are; but the model's activations round to 2^-9, in an order
    that follows from where attention rounded, which 2^3 times the bound allows for."""
    model = llama(models)
    own, ours = (run(model, PROMPTS, widths, dtype=dtype) for widths in (None, "16+16"))
    worst, agreed = closeness(own, ours)
    assert worst < RAW * (1 if dtype == "float32" else 8) and agreed >= 0.8, (worst, agreed)
    assert all((heads, content) == (2, 128) for _, heads, _, content in ours["caches"])  # 2 * 32 * 2 bytes


def test_fewer_bits_hold_more_tokens_and_stay_near(run, models):
    """What they say is what codes of these widths let the model say: coded.py. At 8 bits within the bound of
    16. What attention rounds moves some keys and values of later layers into the next code: as many as there
    are boundaries, 2^bits, each by a step, 2^-bits, at random: 2^(-bits / 2) together."""
    model = llama(models, head_dim=64, num_attention_heads=4)
    raw, eight, four = (run(model, PROMPTS, widths) for widths in ("16+16", "8+8", "4+4"))
    tokens = {name: r["counters"]["num_gpu_blocks"] * r["caches"][0][2]
              for name, r in (("raw", raw), ("eight", eight), ("four", four))}
    assert tokens["eight"] / tokens["raw"] == pytest.approx(256 / 132, rel=0.02)
    assert tokens["four"] / tokens["raw"] == pytest.approx(256 / 68, rel=0.02)
    (worst_eight, agreed), (worst_four, _) = closeness(raw, eight), closeness(raw, four)
    assert worst_eight < 0.3 and agreed > 0.6, (worst_eight, agreed)
    assert worst_four < 3
    for widths, found in (((8, 8), eight), ((4, 4), four)):
        expected = coded.log_probabilities(model, widths, PROMPTS[0], found["tokens"])
        pairs = zip(found["logprobs"], expected)
        worst = max(abs(p - q) for mine, other in pairs for p, q in zip(mine, other))
        assert worst < RAW * 2**((8 - widths[0]) / 2), (widths, worst)


SCHEDULES = {
    "chunks": dict(max_num_batched_tokens=64, max_num_seqs=4),
    "few_blocks": dict(num_gpu_blocks_override=14, block_size=32, max_num_seqs=4, max_model_len=256,
                       enable_prefix_caching=False),
    "drafts": dict(speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2,
                                       "prompt_lookup_min": 1}),
    "shared_prefix": dict(enable_prefix_caching=True, block_size=32)
}
COUNTED = {"chunks": "prompt_chunks", "few_blocks": "vllm:num_preemptions",
           "drafts": "vllm:spec_decode_num_accepted_tokens", "shared_prefix": "vllm:prefix_cache_hits"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduling_changes_no_token(run, models, name):
    """Codes do not depend on what else is in a step, so neither do tokens: but for the other layers of the
    model, whose products vLLM computes in other shapes, and rounds otherwise."""
    model = llama(models)
    prompts = [prompts_of((20, 75, 100, 33))]
    max_tokens = 12
    if name == "drafts":  # what repeats is guessed
        prompts = [[(prompt * 4)[:100] for prompt in prompts_of((9, 12, 15))]]
        max_tokens = 40
    if name == "few_blocks":
        prompts, max_tokens = [prompts_of((90, 90, 90, 90))], 40
    if name == "shared_prefix":
        prompts = [[prompts[0][2]], [prompts[0][2][:80] + prompts[0][0]]]
    plain = run(model, prompts, "4+3", max_tokens, enable_prefix_caching=False)
    other = run(model, prompts, "4+3", max_tokens, **SCHEDULES[name])
    if name in COUNTED:
        assert other["counters"][COUNTED[name]] > 0, other["counters"]
        assert plain["counters"].get(COUNTED[name], 0) == 0
    worst, agreed = closeness(plain, other)
    print(name, worst, agreed)
    assert agreed >= 0.9 and worst < RAW, (worst, agreed)


def test_layers_that_slide(run, models):
    """Mistral's window, shorter than the prompts; vLLM gives blocks in front of it away."""
    model = models("mistral", "Mistral", sliding_window=40)
    own, ours = run(model, PROMPTS), run(model, PROMPTS, "16+16")
    worst, agreed = closeness(own, ours)
    assert agreed >= 0.9 and worst < RAW, (worst, agreed)


def test_soft_capped_logits_and_layers_of_both_kinds(run, models):
    model = models("gemma2", "Gemma2", sliding_window=40, head_dim=32, query_pre_attn_scalar=32,
                   attn_logit_softcapping=5.0, num_hidden_layers=4, hidden_activation="gelu_pytorch_tanh",
                   tie_word_embeddings=True)
    own, ours = run(model, PROMPTS), run(model, PROMPTS, "16+16")
    worst, agreed = closeness(own, ours)
    assert agreed >= 0.9 and worst < RAW, (worst, agreed)


def test_widths_by_kv_cache_dtype_and_skipped_layers(run, models):
    """With turboquant_* vLLM itself keeps the first and the last two layers as they are."""
    model = llama(models, num_hidden_layers=6)
    raw, plain = run(model, PROMPTS, "16+16"), run(model, PROMPTS, "3+4")
    named = run(model, PROMPTS, "1", kv_cache_dtype="turboquant_k3v4_nc", kv_cache_dtype_skip_layers=["3"])

    def contents(result):
        return [cache[3] for cache in result["caches"]]

    assert contents(plain) == [32] * 6 and contents(named) == [128, 128, 32, 128, 128, 128]
    # a random model at 3 bits soon says something else; with most layers raw it says the same for longer
    (_, named_agreed), (_, plain_agreed) = closeness(raw, named), closeness(raw, plain)
    assert named_agreed > plain_agreed, (named_agreed, plain_agreed)


def test_a_trained_model(run, smollm2):
    """SmolLM2-135M on a sentence whose end it knows: raw sides say what vLLM's own attention says, word for
    word; 8 bits are as sure of the same words, until two are nearly as likely; 4 bits begin as they do."""
    france = [[[504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 4521, 314]]]
    own, raw, eight, four = (run(smollm2, france, widths, 34) for widths in (None, "16+16", "8+8", "4+4"))
    assert raw["tokens"] == own["tokens"] and closeness(own, raw)[0] < RAW
    worst, agreed = closeness(own, eight)
    assert worst < 0.1 and agreed > 0.3, (worst, agreed)
    worst, agreed = closeness(own, four)
    assert worst < 1 and agreed > 0.2, (worst, agreed)


def test_the_sample_of_the_readme(with_tokenizer, plugin):
    """As it stands, in one process; two answers of 100 words, by tqkv's attention on pages of 4+3 bits."""
    text = (HERE.parents[1] / "README.md").read_text()
    code = re.search(r"<!-- example: vllm;.*?-->\n```python\n(.*?)```", text, re.S).group(1)
    code = re.sub(r'"Qwen[^"]*"', f'"{with_tokenizer}"', code) + """
layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
print("SEEN", *{(type(layer.impl).__name__, layer.kv_cache.shape[3]) for layer in layers})
"""
    environment = dict(os.environ, PYTHONPATH=f"{HERE.parents[1] / 'bindings' / 'python'}:{plugin}",
                       VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
    environment.pop("TQKV_VLLM", None)
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment,
                          timeout=600)
    assert "SEEN ('TqkvImpl', 32)" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    lines = re.findall(r"^(?: ?(?:w\d+|The|laws|of|are|motion|thermodynamics)\b){9}.*", done.stdout, re.M)
    answers = [line.split() for line in lines]
    assert len(answers) == 2 and all(90 < len(words) <= 100 for words in answers)  # some have no word


def test_what_is_refused(run, models):
    model = llama(models)
    run(model, PROMPTS, "7+4", fails="TQKV_VLLM: 7+4: widths must be among")
    run(model, PROMPTS, "four", fails="TQKV_VLLM = 'four'")
    run(model, PROMPTS, "4+4", kv_cache_dtype="fp8", fails="kv_cache_dtype = fp8")
    run(model, PROMPTS, "4+4", additional_config={"tqkv": {"bits": 4}}, fails="unknown bits")
