# SPDX-License-Identifier: Apache-2.0
"""Prompts with a known answer. A prompt is a context, which is prefilled, and questions, which are asked of
the cache that then holds it: what a question reads are codes, the answer's first token included.

needle    one fact at a depth of a text
needles   facts in all depths of a text, each asked for
pairs     nothing but pairs of key and value, keys that differ in one word among them
tracking  chains of links; each answer is the next question's key, so that one wrong hop loses the chain
words     a list in which some words are ten times as frequent as others; asked is which
chat      a conversation, in whose every turn one fact is told and an earlier one asked for

All are made from a seed. Their tokens are decoded again, and every fact must be found in them exactly once.
"""
import random
from typing import List, NamedTuple, Tuple

import torch

from ..errors import InvalidArgument, NotSupported
from . import _words
from ._models import Subject


class Question(NamedTuple):
    text: str
    answer: str
    depth: float  # of what is asked for, 0 = begin of the context


class Prompt(NamedTuple):
    context: torch.Tensor          # [1][tokens]
    questions: List[Question]
    chains: bool = False           # questions depend on the answers: Question.answer lists all hops
    turns: bool = False            # questions are turns: each stays in the cache for the next
    candidates: Tuple[str, ...] = ()  # ranked by their first token, the answer being the best of them


def make(subject: Subject, task: str, context: int, depth: float, trial: int, seed: int,
         count: int) -> Prompt:
    """context  tokens of the context, about
    depth    of the needle, 0 .. 1
    count    of facts asked for, hops, common words or turns
    """
    if task not in TASKS:
        raise InvalidArgument(f"task = {task!r}: must be one of {', '.join(TASKS)}")
    if context > subject.limit():
        raise InvalidArgument(f"context = {context}: the model has positions for {subject.limit()}")
    generator = random.Random(f"{seed} {task} {context} {depth} {trial}")
    return TASKS[task](subject, generator, context, depth, count)


def _compose(subject, generator, context, facts):
    """Filler with facts [(text, depth)] in it, as tokens; cut to `context` tokens in the filler."""
    pieces = [subject.ids(text)[0] for text, _ in facts]
    room = context - sum(map(len, pieces)) - 1
    if room < 16:
        raise InvalidArgument(f"context = {context}: has no room for {len(facts)} facts of "
                              f"{sum(map(len, pieces))} tokens")
    begin = subject.ids(next(_words.sentences(generator)), special=True)[0]
    filler, length, source = [begin], len(begin), _words.sentences(generator)
    while length < room:
        filler.append(subject.ids(next(source))[0])
        length += len(filler[-1])
    parts = []
    for at, sentence in enumerate(filler):
        parts.append(sentence)
        parts += [piece for piece, (_, depth) in zip(pieces, facts) if round(depth * (len(filler) - 1)) == at]
    return torch.cat(parts)[None]


def _check(subject, context, texts):
    """Every text is in the decoded tokens, once."""
    decoded = subject.text(context)
    for text in texts:
        found = decoded.count(text.strip())
        if found != 1:
            raise NotSupported(f"prompt: {text.strip()!r} stands {found} times in its own tokens: this "
                               "tokenizer does not give a text back as it was")


def _needles(subject, generator, context, depths):
    style, count = subject.style, len(depths)
    keys, codes = style.keys(generator, count), style.codes(generator, count)
    facts = [(style.fact.format(key=k, code=c), d) for k, c, d in zip(keys, codes, depths)]
    ids = _compose(subject, generator, context, facts)
    _check(subject, ids, [text for text, _ in facts] + codes)
    return Prompt(ids, [Question(style.ask.format(key=k), style.answer.format(code=c), d)
                        for k, c, d in zip(keys, codes, depths)])


def _needle(subject, generator, context, depth, count):
    return _needles(subject, generator, context, [depth])


def _many(subject, generator, context, depth, count):
    prompt = _needles(subject, generator, context, [(i + 0.5) / count for i in range(count)])
    return prompt._replace(questions=generator.sample(prompt.questions, count))


def _list(subject, generator, make_texts, context):
    """As many of the texts as fill the context."""
    texts = make_texts(max(8, context // 4))
    each = [subject.ids(text)[0] for text in texts]
    ids, length, kept = [subject.ids("", special=True)[0].long()], 0, 0
    while kept < len(each) and length + len(each[kept]) < context:
        length += len(each[kept])
        ids.append(each[kept])
        kept += 1
    return torch.cat(ids)[None], kept


def _pairs(subject, generator, context, depth, count):
    style, made = subject.style, []

    def texts(most):
        most = min(most, 8000)
        made[:] = zip(style.short_keys(generator, most), style.short_values(generator, most))
        return [style.pair.format(key=k, value=v) for k, v in made]

    ids, kept = _list(subject, generator, texts, context)
    _check(subject, ids, [style.pair.format(key=k, value=v) for k, v in made[:kept]])
    asked = generator.sample(range(kept), min(count, kept))
    return Prompt(ids, [Question(style.ask_pair.format(key=made[i][0]),
                                 style.answer_pair.format(value=made[i][1]), i / kept) for i in asked])


def _tracking(subject, generator, context, depth, count):
    """Chains of count hops, mixed; those of the facts that close one are asked for, at most four chains."""
    style, hops, chains = subject.style, count, []

    def texts(most):
        names = style.short_keys(generator, min(most, 8000))
        chains[:] = [names[i:i + hops + 1] for i in range(0, len(names) - hops, hops + 1)]
        links = [(a, b) for chain in chains for a, b in zip(chain, chain[1:])]
        links = links[:4 * hops] + generator.sample(links[4 * hops:], len(links) - 4 * hops)
        return [style.link.format(key=a, value=b) for a, b in links]

    ids, kept = _list(subject, generator, texts, context)
    whole = chains[:min(4, kept // hops)]
    _check(subject, ids, [style.link.format(key=a, value=b) for chain in whole
                          for a, b in zip(chain, chain[1:])])
    asked = [Question(chain[0], "\n".join(chain[1:]), 0.0) for chain in whole]
    return Prompt(ids, asked, chains=True)


def _common(subject, generator, context, depth, count):
    words = generator.sample(_words.NOUNS, min(len(_words.NOUNS), 6 * count))
    words = [word for word in words if word not in _words.GLUE]
    first = {word: subject.ids(" " + word)[0, 0].item() for word in words}
    if len(set(first.values())) < len(words):  # a first token must tell words apart
        words = list({token: word for word, token in first.items()}.values())
    if len(words) < 2 * count:
        raise NotSupported(f"only {len(words)} words of this tokenizer differ in their first token")
    common, rare = words[:count], words[count:]
    repeats = max(1, context // sum(subject.ids(" " + w).shape[1] * (10 if w in common else 1)
                                    for w in words))
    drawn = common * (10 * repeats) + rare * repeats
    generator.shuffle(drawn)
    ids = torch.cat([subject.ids("", special=True).long(), subject.ids("".join(" " + w for w in drawn))], 1)
    question = Question("\nOf these words, the most common one is", "\n".join(sorted(common)), 0.5)
    return Prompt(ids, [question], candidates=tuple(sorted(words)))


def _chat(subject, generator, context, depth, count):
    """Question.text is what a turn says up to the answer's first word; the answers stay in the cache."""
    style, source, said = subject.style, _words.sentences(generator), []
    keys, codes = style.keys(generator, count), style.codes(generator, count)
    room = max(1, context // (count + 1))

    def turn(user, assistant):
        """The conversation so far, up to the assistant's answer."""
        while subject.ids(user).shape[1] < room - 24:
            user += next(source)
        said.append({"role": "user", "content": user.strip()})
        return _rendered(subject, said) + assistant.strip()

    told = turn(next(source), "We remember that.")
    begin = subject.ids(told, special=not _templated(subject))
    said.append({"role": "assistant", "content": "We remember that."})
    turns = []
    for number in range(count):
        asked = generator.randrange(number + 1)
        ask, answer = style.ask.format(key=keys[asked]), style.answer.format(code=codes[asked])
        text = turn(style.fact.format(key=keys[number], code=codes[number]), ask)
        if not text.startswith(told):
            raise NotSupported("this model's template changes earlier turns when later ones come")
        turns.append(Question(text[len(told):], answer, (number - asked) / count))
        told = text + answer
        said.append({"role": "assistant", "content": ask.strip() + answer})
    return Prompt(begin, turns, turns=True)


def _templated(subject):
    return bool(getattr(subject.tokenizer, "chat_template", None))


def _rendered(subject, messages):
    """As the tokenizer's chat template has it, or in plain words; ends where the assistant begins."""
    if _templated(subject):
        return subject.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return "".join(f"\n{m['role'].capitalize()}: {m['content']}" for m in messages) + "\nAssistant: "


TASKS = {"needle": _needle, "needles": _many, "pairs": _pairs, "tracking": _tracking, "words": _common,
         "chat": _chat}
