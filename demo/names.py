"""Names composed from syllables. Each composed name belongs to exactly one split."""

from __future__ import annotations

import zlib
from random import Random

from demo import words

SPLITS = ("train", "test", "pretraining")
# Of every 100 possible names, 20 are for test, 35 for train, and the rest for pretraining.
_TEST_SHARE, _TRAIN_SHARE = 20, 55


def split_of(core: str) -> str:
    """The split that a composed name belongs to. It is the same on every machine."""
    share = zlib.crc32(core.encode()) % 100
    return "test" if share < _TEST_SHARE else "train" if share < _TRAIN_SHARE else "pretraining"


class NameMaker:
    """Composes names of one split.

    Args:
        random: where the choices come from.
        split: one of ``SPLITS``.
        ordinary_text: text without names. A composed name that occurs in it is an ordinary word and is not used.
    """

    def __init__(self, random: Random, split: str, ordinary_text: str = "") -> None:
        self._random = random
        self._split = split
        self._ordinary_text = ordinary_text

    def name(self, label: str) -> str:
        """A name for an entity label of the sample data: PER, GPE, LOC or ORG."""
        makers = {"PER": self.person, "GPE": self.place, "LOC": self.landmark, "ORG": self.organisation}
        return makers[label]()

    def person(self) -> str:
        """A Chinese or a transliterated foreign personal name."""
        if self._random.random() < 0.22:
            return self._of_split(self._foreign_person)
        return self._of_split(self._chinese_person)

    def place(self) -> str:
        """A country, province, city or county, with or without its suffix."""
        chance = self._random.random()
        if chance < 0.25 and self._split != "pretraining":
            real = words.REAL_PLACES_TEST if self._split == "test" else words.REAL_PLACES_TRAIN
            return self._random.choice(real)
        if chance < 0.40:
            return self._of_split(self._foreign_place)
        suffix = self._random.choice(words.PLACE_SUFFIXES) if chance < 0.85 else ""
        return self._place_core() + suffix

    def landmark(self) -> str:
        """A mountain, river, square, road or the like."""
        return self._place_core() + self._random.choice(words.LANDMARK_SUFFIXES)

    def organisation(self) -> str:
        """A company, or an institution with the name of a place."""
        if self._random.random() < 0.45:
            return self._of_split(self._brand) + self._random.choice(words.COMPANY_SUFFIXES)
        return self.place() + self._random.choice(words.INSTITUTION_SUFFIXES)

    def _place_core(self) -> str:
        return self._of_split(lambda: self._characters(words.PLACE_CHARACTERS, 2))

    def _of_split(self, compose) -> str:
        while True:
            core = compose()
            if split_of(core) == self._split and core not in self._ordinary_text:
                return core

    def _characters(self, pool: str, count: int) -> str:
        return "".join(self._random.sample(pool, count))

    def _chinese_person(self) -> str:
        random = self._random
        surname = random.choice(words.COMPOUND_SURNAMES) if random.random() < 0.04 else random.choice(words.SURNAMES)
        return surname + self._characters(words.GIVEN_CHARACTERS, 2 if random.random() < 0.75 else 1)

    def _foreign_person(self) -> str:
        ending = self._random.choice(words.FOREIGN_PERSON_ENDINGS)
        name = self._characters(words.FOREIGN_CHARACTERS, self._random.randint(1, 3)) + ending
        if self._random.random() < 0.15:
            name = self._characters(words.FOREIGN_CHARACTERS, 2) + "·" + name
        return name

    def _foreign_place(self) -> str:
        ending = self._random.choice(words.FOREIGN_PLACE_ENDINGS)
        return self._characters(words.FOREIGN_CHARACTERS, self._random.randint(1, 2)) + ending

    def _brand(self) -> str:
        return self._characters(words.BRAND_CHARACTERS, 2)
