"""The entities of the answers so far, to guess where the next answers find theirs."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from sft.decoding.rules import Source

HEAD_BYTES = 3  # names are looked up by so many of their first bytes: a Han character
PASSED_OVER = 2  # counts so many times as one that was found: a guess shall be right two times of three


class Names:
    """Names that answers found, and the tokens with which names began; neither where it was mostly passed over."""

    def __init__(self) -> None:
        self._found: Counter[bytes] = Counter()
        self._begun: Counter[int] = Counter()
        self._lengths: dict[bytes, list[int]] = {}  # the first bytes of names → their lengths, the longest first

    def learn(self, name: bytes) -> None:
        """Count an entity of an answer."""
        self._found[name] += 1
        lengths = self._lengths.setdefault(name[:HEAD_BYTES], [])
        if len(name) not in lengths:
            lengths.append(len(name))
            lengths.sort(reverse=True)

    def learn_beginning(self, source: Source, cursor: int, token_id: int) -> None:
        """Count the token with which a name begins that is looked for from ``cursor`` on, and those passed over."""
        for place in source.places[bisect_left(source.places, cursor) :]:
            other = source.tokens[place]
            if other == token_id:
                self._begun[other] += 1
                return
            self._begun[other] -= PASSED_OVER
            if name := self.at(source.text, place):
                self._found[name] -= PASSED_OVER

    def learn_end(self, source: Source, cursor: int) -> None:
        """Count that from ``cursor`` on no name was found."""
        self.learn_beginning(source, cursor, -1)

    def at(self, text: bytes, place: int) -> bytes | None:
        """The longest known name that stands at ``place`` in ``text`` and is mostly found."""
        for length in self._lengths.get(text[place : place + HEAD_BYTES], ()):
            name = text[place : place + length]
            if self._found[name] > 0:
                return name
        return None

    def next_place(self, source: Source, cursor: int) -> int | None:
        """The first place from ``cursor`` on where a name is likely to begin; None without any."""
        for place in source.places[bisect_left(source.places, cursor) :]:
            if self._begun[source.tokens[place]] > 0 or self.at(source.text, place):
                return place
        return None
