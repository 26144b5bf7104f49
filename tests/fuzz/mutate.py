"""Mutations of valid files, for machines without a fuzzing engine: reproducible from a seed."""

import random
from collections.abc import Iterator

TOKENS = [
    b"\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"-1", b"nan", b"1e999", b"9" * 40, b"[", b"{", b'"', b"\n",
    b"#", b": ", b"&a ", b"*a", b"!!", b"${", b"..", b"/", b"PK\x03\x04", b"\x80\x05", b"cos\nsystem\n", b"R", b"\xc3(",
    b"~",
]  # fmt: skip


def mutations(seeds: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` files, each some seed after one to six changes; the first are the seeds themselves, and no bytes."""
    dice = random.Random(seed)
    yield from [*seeds, b""][:count]
    for _ in range(count - len(seeds) - 1):
        content = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 6)):
            change(content, dice, seeds)
        yield bytes(content)


def change(content: bytearray, dice: random.Random, seeds: list[bytes]) -> None:
    """One change in place: bits, bytes, tokens, cuts, copies, or a part of another seed."""
    at = dice.randrange(len(content) + 1)
    end = min(len(content), at + dice.choice([1, 2, 4, 8, 64]))
    kind = dice.randrange(7)
    if kind == 0 and at < len(content):
        content[at] ^= 1 << dice.randrange(8)
    elif kind == 1 and at < len(content):
        content[at] = dice.randrange(256)
    elif kind == 2:
        content[at:at] = dice.choice(TOKENS)
    elif kind == 3:
        content[at:end] = dice.choice(TOKENS)
    elif kind == 4:
        del content[at:end]
    elif kind == 5:
        content[at:at] = content[at:end] * dice.choice([1, 2, 50])
    else:
        other = dice.choice(seeds)
        start = dice.randrange(len(other) + 1)
        content[at:end] = other[start : start + dice.choice([1, 8, 64])]
