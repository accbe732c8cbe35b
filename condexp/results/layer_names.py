"""Layers' names where there is little room for them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

MAX_LETTERS = 24


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten layers' names for labels.

    Args:
        names: The names.

    Returns:
        Names of few letters: first go the modules that a long name begins with, as far as they have
        no number and what is left is no other layer's, then letters of words.
    """
    suffixes = Counter(suffix for name in names for suffix in _suffixes(name))
    return [_shortened(_without_first_parts(name, suffixes)) for name in names]


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _without_first_parts(name: str, suffixes: Mapping[str, int]) -> str:
    kept = name
    while len(kept) > MAX_LETTERS:
        first, _, rest = kept.partition(".")
        if not rest or suffixes[rest] > 1 or any(map(str.isdigit, first)):
            break
        kept = rest
    return kept


def _shortened(name: str) -> str:
    """Shorten a name.

    Args:
        name: The name.

    Returns:
        The name, of few letters: the numbers in it tell layers apart, so only its words lose
        some, the longest first.
    """
    tokens = re.findall(r"[^\W\d]+|[\W\d]+", name)
    words = [i for i, token in enumerate(tokens) if token[0].isalpha()]
    while words and sum(map(len, tokens)) > MAX_LETTERS:
        longest = max(words, key=lambda i: len(tokens[i]))
        if len(tokens[longest]) == 1:
            break
        tokens[longest] = tokens[longest][:-1]
    return "".join(tokens)
