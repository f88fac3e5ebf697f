# SPDX-License-Identifier: Apache-2.0
"""Tasks and paired runs on the constructed model: its own cache is right, itself again the same to the bit, a
broken cache wrong, few bits worse than many; and a cache that was filled is one that was prefilled."""
import pytest
import torch
import tqkv
import transformers

from tqkv import eval as tqeval
from tqkv.eval._runs import forward, generate, opened, prefill, turbo
from tqkv.transformers import TurboCache

# task: (context, count)
SIZES = {"needle": (500, 1), "needles": (900, 6), "pairs": (900, 10), "tracking": (700, 3),
         "words": (900, 3), "chat": (600, 5)}


def coded(bits, **options):
    return tqeval.Variant(str(bits), lambda subject, prefilled: turbo(
        subject, prefilled, "turboquant-s3", key_bits=bits, value_bits=bits, num_threads=1, **options), True)


@pytest.fixture(scope="module")
def prompts(constructed):
    made = {task: tqeval.make(constructed, task, context, 0.3, 0, 1, count)
            for task, (context, count) in SIZES.items()}
    return {task: (prompt, prefill(constructed, prompt.context)) for task, prompt in made.items()}


def scores(subject, variant, prompt, seed=None):
    return [record["right"] for record in tqeval.ask(subject, variant, *prompt, seed)]


@pytest.mark.parametrize("task", SIZES)
def test_the_exact_cache_is_right_and_the_broken_one_wrong(task, constructed, prompts):
    right = scores(constructed, tqeval.BASELINE, prompts[task])
    wrong = scores(constructed, tqeval.BROKEN, prompts[task])
    assert right == [1.0] * len(right) and max(wrong) < 0.5
    if len(right) > 5:
        assert tqeval.compare(right, wrong).p < 0.05
    assert scores(constructed, coded(8), prompts[task]) == right


@pytest.mark.parametrize("seed", (None, 7))
def test_the_same_cache_says_the_same(constructed, prompts, seed):
    said = [tqeval.ask(constructed, variant, *prompts["pairs"], seed)
            for variant in (tqeval.BASELINE, tqeval.AGAIN)]
    assert said[0] == said[1]
    ids = constructed.ids(" The amber river")
    both = [forward(constructed, ids, opened(constructed, variant, prompts["pairs"][1]))
            for variant in (tqeval.BASELINE, tqeval.AGAIN)]
    assert torch.equal(*both)


def test_few_bits_forget(constructed, prompts):
    shares = [sum(scores(constructed, coded(bits), prompts["pairs"])) for bits in (16, 6, 2)]
    assert shares[0] == shares[1] == 10 > shares[2]


def test_sampling_follows_the_seed_and_the_logits():
    subject = tqeval.load("random")
    ids = subject.ids("What follows is")
    prefilled = prefill(subject, subject.ids("any text at all"))
    said = [generate(subject, opened(subject, tqeval.BASELINE, prefilled), ids, 16, seed)
            for seed in (3, 3, 4, None)]
    assert said[0] == said[1] != said[2] and said[3] not in said[:3]


@pytest.mark.parametrize("bits", (16, 4, 2))
def test_a_filled_cache_is_a_prefilled_one(constructed, bits):
    """Keys and values of the model's own attention, put into a cache, are those that it would have taken."""
    prompt = tqeval.make(constructed, "needles", 500, 0.5, 0, 1, 4)
    options = dict(key_bits=bits, value_bits=bits, window_tokens=8, sink_tokens=4, num_threads=1)
    filled = turbo(constructed, prefill(constructed, prompt.context), "turboquant-s3", **options)
    plain = TurboCache(constructed.model, "turboquant-s3", **options)
    forward(constructed, prompt.context, plain)
    assert filled.get_seq_length() == plain.get_seq_length() == prompt.context.shape[1]
    ids = constructed.ids(prompt.questions[0].text)
    first, second = (forward(constructed, ids, cache) for cache in (filled, plain))
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-3)  # prefill's float32 sums differ by its blocks


def test_centres_and_skipped_layers_are_options(constructed, prompts):
    calibration = TurboCache.calibrate(constructed.model, prompts["needle"][0].context)
    for options in (dict(calibration=calibration), dict(skip_layers=[3])):
        assert sum(scores(constructed, coded(3, **options), prompts["pairs"])) >= 9


def test_layers_with_a_window_are_prefilled_again():
    """Random weights: nothing is right, but at 16 bits the same is said, and the logits are those of a
    DynamicCache, whose layers keep a window's tokens only; float32 sums and float16 tokens differ."""
    subject = tqeval.load("random")
    config = transformers.MistralConfig(**{**subject.model.config.to_dict(), "model_type": "mistral",
                                           "sliding_window": 24})
    torch.manual_seed(1)
    model = transformers.MistralForCausalLM(config).eval()
    subject = subject._replace(model=model, attention=model.config._attn_implementation)
    prompt = tqeval.make(subject, "needle", 300, 0.5, 0, 1, 1)
    prefilled = prefill(subject, prompt.context)
    ids = subject.ids(prompt.questions[0].text)
    exact, held = (forward(subject, ids, opened(subject, variant, prefilled))
                   for variant in (tqeval.BASELINE, coded(16)))
    assert (exact - held).abs().max() < 0.01 * exact.abs().max()
    wrong = forward(subject, ids, opened(subject, coded(2), prefilled))
    assert (exact - wrong).abs().max() > 0.05 * exact.abs().max()


class Lossy:
    """A tokenizer that forgets digits."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, text, **options):
        return self.inner("".join("0" if c.isdigit() else c for c in text), **options)

    def decode(self, *arguments, **options):
        return self.inner.decode(*arguments, **options)


def test_a_code_that_is_not_in_the_tokens_is_noticed(constructed):
    lossy = constructed._replace(tokenizer=Lossy(constructed.tokenizer))
    with pytest.raises(tqkv.NotSupported, match="stands 0 times in its own tokens"):
        tqeval.make(lossy, "needle", 500, 0.5, 0, 0, 1)


def test_prompts_follow_their_seed_and_size(constructed):
    first, again, other = (tqeval.make(constructed, "needle", 700, 0.5, 0, seed, 1) for seed in (1, 1, 2))
    assert torch.equal(first.context, again.context) and first.questions == again.questions
    assert first.questions != other.questions and 660 < first.context.shape[1] < 740
    at = {depth: constructed.text(tqeval.make(constructed, "needle", 700, depth, 0, 1, 1).context)
          for depth in (0.0, 0.5, 1.0)}
    places = [text.index("access code") / len(text) for text in at.values()]
    assert places[0] < 0.1 and 0.4 < places[1] < 0.6 and places[2] > 0.9
    for arguments, text in ((("riddle", 700, 0, 0, 0, 1), "riddle"), (("needles", 60, 0, 0, 0, 9), "no room"),
                            (("needle", 1 << 20, 0, 0, 0, 1), "positions for 262144")):
        with pytest.raises(tqkv.InvalidArgument, match=text):
            tqeval.make(constructed, *arguments)


def test_chat_follows_the_models_template(constructed):
    """A template with an end of turn, as instruct models have it; and one that rewrites what was said."""
    _, tokenizer = tqeval.construct()
    subject = constructed._replace(tokenizer=tokenizer)
    loop = "{% for m in messages %}[{{ m.role }}] {{ m.content }} |{% endfor %}"
    tokenizer.chat_template = loop + "{% if add_generation_prompt %}[assistant] {% endif %}"
    prompt = tqeval.make(subject, "chat", 600, 0.5, 0, 1, 4)
    assert subject.text(prompt.context).startswith("[user] ")
    assert all(q.text.startswith(" |[user] The access code") and "|[assistant] The access" in q.text
               for q in prompt.questions)
    assert scores(subject, tqeval.BASELINE, (prompt, prefill(subject, prompt.context))) == [1.0] * 4
    tokenizer.chat_template = "{{ messages | length }}" + loop
    with pytest.raises(tqkv.NotSupported, match="changes earlier turns"):
        tqeval.make(subject, "chat", 600, 0.5, 0, 1, 4)
