# SPDX-License-Identifier: Apache-2.0
"""A retrieval model made by construction: a Transformers SmolLM3 whose weights are set by formula.

It copies: where the last seven tokens stood before, it predicts what followed them; elsewhere the most common
word. So needle and key-value prompts have a true answer at any length, without training or a download.

Layers 1 to 3 have rotary positions: a constant query, turned back by 1, 2 and 4 tokens, finds the constant
key of that token, whose values carry what the residual stream there holds of itself and of the 0, 1 and 3
tokens before it. Layer 4 has none: its first head compares the last seven tokens with the seven before every
token, and copies that token; its second head averages all words that have a meaning, as random signs.
Elsewhere a token's identity is one of 1,024 words of the second-order Reed-Muller code without the all-ones
word: 16 signs, of which two tokens share at most 12. Hence the margins: one token of the seven that differs
costs half a match, `margin` in the logit, so 1,000 near misses at 12 together take less than 1 % of the
weight; the nearest other position costs 16, and any other within 2^18 tokens 37.

`key_bias` gives the keys of layer 4 a large constant part, as models with biases have: it changes no weight
of the softmax, but costs codes their precision, unless centres take it away. `sink`: the first token's key,
which queries that match less than four tokens attend to; its value is zero.
"""
import math
from typing import Any, Tuple

import torch

from ._words import GLUE, VOCABULARY
from ..errors import InvalidArgument

TOKENS, SIGNS, HISTORY, DIM, HEADS = 1024, 16, 7, 128, 2
THETA = 2.0     # of the rotary positions: 64 frequencies between 1/2 and 1 radian a token
POSITION = 64.0  # logit of the token that a positional layer looks for
SINK = 4.0      # matches
CONST, BOS, FILL, CODE = 0, 1, 2, 3
WORD = CODE + SIGNS * (HISTORY + 1)
COMMON = WORD + DIM
OUT = COMMON + DIM
HIDDEN = OUT + SIGNS
GAIN = 4.0  # the constant coordinate, which keeps the norm of the residual stream


def identities() -> torch.Tensor:
    """[1024][16]: unit vectors, inner products of two at most 1/2 in magnitude."""
    points = torch.arange(16)[:, None] >> torch.arange(4) & 1
    pairs = [points[:, i] * points[:, j] for i in range(4) for j in range(i)]
    monomials = torch.stack([*points.T, *pairs])
    bits = (torch.arange(TOKENS)[:, None] >> torch.arange(10) & 1) @ monomials % 2
    return (1.0 - 2.0 * bits) / 4.0


def tokenizer():
    """Words behind a space, single digits and characters; what it reads it gives back as it was (ASCII)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<bos>", "<unk>", "\n", *map(chr, range(32, 127)), *(" " + word for word in VOCABULARY)]
    if len(tokens) > TOKENS:
        raise InvalidArgument(f"vocabulary: has {len(tokens)} tokens, room is for {TOKENS}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="",
                                      max_input_chars_per_word=1000))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\d|\s|[^\sA-Za-z\d]"), "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", unk_token="<unk>",
                                   clean_up_tokenization_spaces=False)


def construct(margin: float = 12.0, key_bias: float = 1.0, seed: int = 0) -> Tuple[Any, Any]:
    """(model, tokenizer), float32 on the CPU; 128k positions and more. model.save_pretrained packs it as a
    checkpoint without code of its own.

    margin    logits that one differing token of the seven costs
    key_bias  length of the constant part of layer 4's keys over that of the rest
    seed      of the bases in which heads hold what they hold
    """
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    if not margin > 0 or not key_bias >= 0:
        raise InvalidArgument(f"margin = {margin}, key_bias = {key_bias}: must be > 0 and >= 0")
    config = SmolLM3Config(vocab_size=TOKENS, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=4,
                           num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=DIM,
                           max_position_embeddings=1 << 18, no_rope_layers=[1, 1, 1, 0], attention_bias=True,
                           rope_parameters={"rope_type": "default", "rope_theta": THETA}, bos_token_id=0,
                           eos_token_id=None, pad_token_id=None, tie_word_embeddings=False)
    model = SmolLM3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        codes = identities()
        signs = torch.randint(0, 2, (TOKENS, DIM), generator=generator)
        words = (2.0 * signs - 1.0) / math.sqrt(DIM)
        _embed(model.model.embed_tokens.weight, codes, words)
        for layer, offset in enumerate((1, 2, 4)):
            _look_back(model.model.layers[layer].self_attn, offset, _norm(offset - 1), generator)
        _induce(model.model.layers[3].self_attn, margin, key_bias, generator)
        scale = _norm(HISTORY + 1) / math.sqrt(HIDDEN)
        head = model.lm_head.weight
        head[:, OUT:OUT + SIGNS] = codes * 40.0 * scale
        head[:, COMMON:COMMON + DIM] = words * 100.0 * scale
    return model, tokenizer()


def _norm(previous):
    """Of the residual stream that holds so many unit vectors beside those of the embedding."""
    return math.sqrt(GAIN**2 + 2 + previous)


def _embed(weight, codes, words):
    first_word = 2 + 1 + 95
    counted = [first_word + i for i, word in enumerate(VOCABULARY) if word not in GLUE]
    weight[:, CONST] = GAIN
    weight[:, CODE:CODE + SIGNS] = codes
    weight[:, FILL] = 1.0
    weight[counted, WORD:WORD + DIM] = words[counted]
    weight[counted, FILL] = 0.0
    weight[0] = 0.0
    weight[0, CONST], weight[0, BOS] = GAIN, math.sqrt(2.0)


def _basis(rows, generator):
    """[128][rows] orthonormal columns."""
    return torch.linalg.qr(torch.randn(DIM, rows, generator=generator, dtype=torch.float64))[0].float()


def _look_back(attention, offset, norm, generator):
    """Heads share the payload: one holds its even coordinates, one its odd ones."""
    undo = norm / math.sqrt(HIDDEN)
    half = DIM // 2
    angle = offset * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    size = math.sqrt(POSITION * math.sqrt(DIM) / half)
    query = torch.cat((angle.cos(), -angle.sin())).float() * size
    key = torch.cat((torch.ones(half), torch.zeros(half))) * size
    for head in range(HEADS):
        at = slice(head * DIM, (head + 1) * DIM)
        attention.q_proj.weight[at, CONST] = query * undo / GAIN
        attention.k_proj.weight[at, CONST] = key * undo / GAIN
        source = torch.arange(CODE + head, CODE + offset * SIGNS, HEADS)
        basis = _basis(len(source), generator)
        attention.v_proj.weight[at, source] = basis * undo
        attention.o_proj.weight[source + offset * SIGNS, at] = basis.T


def _induce(attention, margin, key_bias, generator):
    undo = _norm(HISTORY) / math.sqrt(HIDDEN)
    turn, match = _basis(DIM, generator), 2.0 * margin * math.sqrt(DIM)  # q . k of one token that is the same
    query, key = torch.zeros(DIM, HIDDEN), torch.zeros(DIM, HIDDEN)
    width = SIGNS * HISTORY
    query[:width, CODE:CODE + width] = key[:width, CODE + SIGNS:CODE + SIGNS + width] = torch.eye(width)
    query[width, CONST] = SINK / GAIN
    key[width, BOS] = 1.0 / math.sqrt(2.0)
    size = math.sqrt(match)
    attention.q_proj.weight[:DIM] = turn @ query * undo * size
    attention.k_proj.weight[:DIM] = turn @ key * undo * size
    direction = torch.randn(DIM, generator=generator)
    attention.k_proj.bias[:DIM] = direction / direction.norm() * key_bias * size * math.sqrt(HISTORY)
    # The second head's query is zero: all tokens weigh alike.
    attention.k_proj.weight[DIM:, CODE:CODE + SIGNS] = _basis(SIGNS, generator) * undo
    for head, (source, target, width) in enumerate(((CODE, OUT, SIGNS), (WORD, COMMON, DIM))):
        at, basis = slice(head * DIM, (head + 1) * DIM), _basis(width, generator)
        attention.v_proj.weight[at, source:source + width] = basis * undo
        attention.o_proj.weight[target:target + width, at] = basis.T
