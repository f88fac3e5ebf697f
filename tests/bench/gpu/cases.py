# SPDX-License-Identifier: Apache-2.0
"""What bench.py measures, as data, and the arithmetic on it: bytes, floating-point operations, how many
caches are rotated. No GPU, no library."""
import dataclasses
import math

WIDTHS = ((4, 4), (3, 3), (2, 2), (4, 2), (8, 8))
PAGE_TOKENS = 64
# relative L2 error of a row of the timed output against float64 attention over the same decoded values
GATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    kind: str  # "decode", "prefill", "append decode", "append bulk"
    batch: int
    tokens: int  # of each sequence; prefill: of the history, 0: a prompt that sees itself, causal
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    q_len: int = 1
    widths: tuple = WIDTHS
    window: int = 0  # last tokens of a sequence that are read exactly
    sinks: int = 0  # first ones
    families: tuple = ()  # of codes other than scalar ones: fields of the configuration and their values
    bands: tuple = ()  # widths of keys in bands, in an order of the head's own
    turned: bool = False  # keys by a matrix for each head
    latent: int = 0  # value_dim of latent layers, whose keys alone are stored; widths are (rest, latent)
    values: int = 0  # value_dim of other layers where it is not head_dim

    def fields(self):
        """As JSON gives them back; widths are told with each measurement."""
        result = {**dataclasses.asdict(self), "families": dict(self.families), "bands": list(self.bands)}
        del result["widths"]
        return result

    def value_dim(self):
        return self.latent or self.values or self.head_dim

    def side_bytes(self, kind, bits):
        """Stored bytes of one token and kv head, kind "key" or "value"."""
        if kind == "key" and self.bands:
            return 4 * sum(self.bands) + 2 * len(self.bands)
        dim = self.value_dim() if kind == "value" else self.head_dim - self.latent
        family = dict(self.families).get(f"{kind}_family", "scalar")
        scales = {"prod": 4, "grouped": 4 * math.ceil(dim / 32)}.get(family, 2 if bits < 16 else 0)
        stored = {80: 96, 112: 128}.get(dim, dim) if bits < 16 else dim
        return stored * bits // 8 + scales

    @property
    def causal(self):
        return self.tokens == 0

    @property
    def seen_tokens(self):
        """Of each sequence, by its last query."""
        return self.tokens or self.q_len

    def fp16_bytes(self):
        """Keys and values of all sequences in float16."""
        if self.latent:
            return 2 * self.batch * self.seen_tokens * self.kv_heads * self.head_dim
        return self.batch * self.seen_tokens * self.exact_bytes()

    def exact_bytes(self):
        """Key and value of one token in float16, all kv heads."""
        return 2 * self.kv_heads * (self.head_dim + (self.values or self.head_dim))

    def operations(self):
        """Multiplications and additions of attention, of what queries see."""
        pairs = self.q_len * (self.q_len + 1) // 2 if self.causal else self.q_len * self.tokens
        return 2 * self.batch * self.q_heads * pairs * (self.head_dim + self.value_dim())

    def stored_bytes(self, token_bytes):
        """token_bytes: of one token in one layer, all kv heads. Attention reads whole tiles of 32 tokens, and
        exact tokens from float16 copies instead."""
        exact = self.window + self.sinks
        coded = math.ceil((self.seen_tokens - exact) / 32) * 32
        return self.batch * (coded * token_bytes + exact * self.exact_bytes())


TABLE = (Case("B8 n32768", "decode", 8,
              32768), Case("B32 n8192", "decode", 32,
                           8192), Case("B32 n32768", "decode", 32,
                                       32768), Case("B1 n131072", "decode", 1,
                                                    131072), Case("B64 n1024", "decode", 64,
                                                                  1024), Case("B1 n8192", "decode", 1, 8192))
MORE = (Case("B8 n32768, d 64", "decode", 8, 32768,
             head_dim=64), Case("B8 n32768, d 256", "decode", 8, 32768, head_dim=256),
        Case("B8 n32768, 1 query head per kv head", "decode", 8, 32768,
             q_heads=8), Case("B8 n32768, 8 query heads per kv head", "decode", 8, 32768, q_heads=64),
        Case("B8 n32768, 16 query heads per kv head", "decode", 8, 32768, q_heads=128),
        Case("2048 queries over 32768 tokens",
             "prefill",
             1,
             32768,
             q_len=2048,
             widths=((4, 4), (3, 3), (2, 2), (8, 8))))
APPEND = (Case("64 sequences x 1 token", "append decode", 64,
               128), Case("65536 tokens", "append bulk", 1, 65536))
BESIDE = tuple(
    dataclasses.replace(case, widths=((4, 4), (4, 2), (3, 3), (2, 2)))
    for case in (TABLE[0], Case("B8 n16384", "decode", 8, 16384), TABLE[4],
                 Case("B1 n32768", "decode", 1, 32768), TABLE[1]))
# What is off the path that the table measures: exact tokens, raw sides, widths without a kernel of their own,
# many rows, few tokens. Lengths that differ: ragged.py.
CLIFFS = (Case("B8 n32768", "decode", 8, 32768,
               widths=((4, 4), (8, 4), (16, 16), (16, 4), (4, 16), (5, 5), (6, 6), (5, 3))),
          *(Case(f"B8 n32768, {group} query heads per kv head", "decode", 8, 32768, q_heads=8 * group,
                 widths=((4, 4), (2, 2))) for group in (5, 7, 8, 16)),
          *(Case(f"B8 n32768, {drafts} drafts", "prefill", 8, 32768, q_len=drafts, widths=((4, 4), (2, 2)))
            for drafts in (4, 8)),
          *(Case(f"B8 n32768, d {head_dim}", "decode", 8, 32768, head_dim=head_dim, widths=((4, 4), ))
            for head_dim in (64, 80, 112)),
          *(Case(f"B1 n{tokens}", "decode", 1, tokens, widths=((4, 4), ))
            for tokens in (1024, 2048, 4096, 8192, 16384)),
          Case("B64 n1024", "decode", 64, 1024, widths=((4, 4), )),
          Case("B128 n2048", "decode", 128, 2048, widths=((4, 4), )),
          *(Case(f"B8 n32768, window {window}", "decode", 8, 32768, widths=((4, 4), ), window=window)
            for window in (1, 32, 128, 512)),
          Case("B8 n32768, sinks 4", "decode", 8, 32768, widths=((4, 4), (2, 2)), sinks=4),
          Case("B8 n32768, window 128, sinks 4", "decode", 8, 32768,
               widths=((4, 4), (2, 2), (16, 4), (16, 16)), window=128, sinks=4),
          Case("B64 n1024, window 128, sinks 4", "decode", 64, 1024, widths=((4, 4), ), window=128, sinks=4),
          Case("B8 n32768, 8 query heads per kv head, window 128", "decode", 8, 32768, q_heads=64,
               widths=((4, 4), (16, 16)), window=128),
          Case("B8 n32768, d 64, window 128", "decode", 8, 32768, head_dim=64,
               widths=((4, 4), (16, 16)), window=128))
PREFILL = tuple(
    Case(f"{q_len} queries over {tokens} tokens" + (f", d {head_dim}" if head_dim != 128 else ""),
         "prefill",
         1,
         tokens,
         head_dim=head_dim,
         q_len=q_len,
         widths=((4, 4), (3, 3), (2, 2), (8, 8)) if head_dim == 128 else ((4, 4), (8, 8)))
    for head_dim, shapes in ((128, ((2048, 32768), (512, 32768), (8192, 0), (128, 32768))),
                             (64, ((2048, 32768), (512, 32768))), (192, ((2048, 32768), )),
                             (256, ((2048, 32768), (512, 32768)))) for q_len, tokens in shapes)
# Latent attention expanded to heads, as DeepSeek-V2-Lite's.
PREFILL += tuple(
    Case(f"{q_len} queries over 32768 tokens, d 192/128", "prefill", 1, 32768, q_heads=16, kv_heads=16,
         head_dim=192, values=128, q_len=q_len, widths=((4, 4), (8, 8))) for q_len in (2048, 512))
PREFILL += (Case("8192 queries over 0 tokens, window 128, sinks 4", "prefill", 1, 0, q_len=8192,
                 widths=((4, 4), ), window=128, sinks=4), )
# Codes by rows.
PROD, GROUPED = ("key_family", "prod"), ("value_family", "grouped")
MODES = (Case("B8 n32768, prod keys", "decode", 8, 32768, widths=((4, 4), (3, 3), (2, 2)), families=(PROD, )),
         Case("B8 n32768, grouped values", "decode", 8, 32768, widths=((4, 4), (4, 2)), families=(GROUPED, )),
         Case("B8 n32768, grouped", "decode", 8, 32768, widths=((4, 4), (2, 2)),
              families=(("key_family", "grouped"), GROUPED)),
         Case("B64 n1024, prod keys", "decode", 64, 1024, widths=((4, 4), ), families=(PROD, )),
         *(dataclasses.replace(case, name=f"{case.name}, {name}", widths=((4, 4), ), families=families)
           for case in APPEND
           for name, families in (("prod keys", (PROD, )), ("grouped values", (GROUPED, )))))
# More quality in the same bytes.
TRELLIS = (("key_family", "trellis"), ("value_family", "trellis"))
QUALITY = tuple(dataclasses.replace(case, name=f"{case.name}, trellis", widths=((4, 4), (3, 3), (2, 2)),
                                    families=TRELLIS)
                for case in (TABLE[0], TABLE[2], TABLE[4], MORE[0], MORE[1], *APPEND))
# Keys in bands: patterns with a kernel of their own, then 2.5 and 3.5 bits, which have that of their sum.
BANDS = ((4, 3, 3, 2), 3), ((5, 3, 2, 2), 3), ((3, 2, 2, 1), 2), ((4, 2, 1, 1), 2)
HALVES = ((4, 3, 2, 1), 2), ((5, 4, 3, 2), 3)


def banded(case, bands, value_bits, families):
    name = f"{case.name}, bands {'-'.join(map(str, bands))}" + (", trellis" if families else "")
    return dataclasses.replace(case, name=name, bands=bands, families=families,
                               widths=((sum(bands) // len(bands), value_bits), ))


QUALITY += tuple(banded(case, bands, bits, families)
                 for families in ((), TRELLIS)
                 for case, patterns in ((TABLE[0], BANDS + HALVES), (TABLE[2], BANDS[:1]),
                                        *((append, BANDS[:1]) for append in APPEND))
                 for bands, bits in patterns)
QUALITY += tuple(
    dataclasses.replace(case, name=f"{case.name}, trellis", widths=((4, 4), (3, 3), (2, 2)), families=TRELLIS)
    for case in PREFILL[:2]) + tuple(
        banded(PREFILL[0], bands, bits, families) for families in ((), TRELLIS) for bands, bits in BANDS[:1])
QUALITY += tuple(
    dataclasses.replace(case, name=f"{case.name}, key matrices", widths=((4, 4), ), turned=True)
    for case in (TABLE[0], TABLE[4], PREFILL[0], PREFILL[2], *APPEND))
# DeepSeek V2, V3, R1 and their like: one kv head, 512 + 64.
LATENT_SHAPE = {"kv_heads": 1, "head_dim": 576, "latent": 512}
LATENT = (*(Case(f"latent, {heads} query heads, B{batch} n{tokens}", "decode", batch, tokens, q_heads=heads,
                 widths=((8, 4), (16, 4), (4, 4)) if heads == 16 and batch == 8 else ((8, 4), ),
                 **LATENT_SHAPE)
            for heads in (16, 32, 64, 128) for batch, tokens in ((8, 16384), (64, 4096))),
          *(Case(f"latent, {heads} query heads, window 128, 4 sinks, B8 n16384", "decode", 8, 16384,
                 q_heads=heads, widths=((8, 4), ), window=128, sinks=4, **LATENT_SHAPE)
            for heads in (16, 128)),
          *(Case(f"latent, {heads} query heads, {drafts} drafts, B8 n16384", "prefill", 8, 16384,
                 q_heads=heads, q_len=drafts, widths=((8, 4), ), **LATENT_SHAPE)
            for heads, drafts in ((16, 2), (16, 3), (16, 4), (64, 4), (128, 2))))
SETS = {
    "latent": LATENT, "prefill": PREFILL, "short": TABLE + (dataclasses.replace(APPEND[0], widths=(
        (4, 4), )), dataclasses.replace(APPEND[1], widths=((4, 4), ))), "full": TABLE + MORE + APPEND,
    "peers": BESIDE, "cliffs": CLIFFS, "modes": MODES, "quality": QUALITY
}


def named(name, only):
    """Whether it holds one of the texts, which | separates."""
    return any(text in name for text in only.split("|"))


def rotated(set_bytes, l2_bytes, most=64):
    """How many sets of bytes are used in turn so that they exceed three times the second-level cache."""
    return max(1, min(most, math.ceil(3 * l2_bytes / set_bytes)))


def launches(sets, guess_us, least=10, wanted_us=2000.0):
    """How many launches a graph holds: whole rounds over the sets, at least `least` launches and about
    wanted_us."""
    rounds = max(math.ceil(least / sets), min(200, math.ceil(wanted_us / (sets * max(guess_us, 1.0)))))
    return rounds * sets


def pieces(case, new, most_rows=131072):
    """How a cache is filled: tokens of each sequence in every plan before the last, which appends `new`."""
    if case.latent:  # rows that a plan's launches take at once
        most_rows = 65536 // case.q_heads
    left, step, result = case.tokens + (case.q_len if case.kind == "prefill" else 0) - new, max(
        1, most_rows // case.batch), []
    while left > 0:
        result.append(min(step, left))
        left -= result[-1]
    return result


def spread(times):
    """{us, us_low, us_high, us_quartiles} of the microseconds of one launch."""
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.25, 0.5, 0.75)]
    return {
        "us": round(at[1], 3), "us_low": round(ordered[0], 3), "us_high": round(ordered[-1], 3),
        "us_quartiles": [round(at[0], 3), round(at[2], 3)]
    }
