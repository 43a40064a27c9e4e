"""Compose sentences with labelled names, and news articles, from templates, word lists and a seeded random source."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from demo import ner_sentences, news_articles, words
from demo.names import NameMaker

ENTITY_LABELS = ("GPE", "LOC", "ORG", "PER")
_SLOT = re.compile(r"\{([A-Za-z]+)(\d?)\}")
_FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")
_FULL_WIDTH_SHARE = 0.12
_COMPOSED_SHARE = 0.4  # of the training rows with entities: their template is composed from parts
_SECOND_SENTENCE_SHARE = 0.25
_MOST_SENTENCES = 20  # of an article, besides up to two sentences that only its topic has
# Share of the training articles without any such sentence, where only the filled-in words show the topic.
_GENERAL_SHARE = 0.6
_STRAY_TOPIC_SHARE = 0.5  # share of the articles with one or two sentences about another topic


@dataclass
class Sentence:
    """A text and its entities as ``(start, end, label)`` in characters, end exclusive, in the order of the text."""

    text: str = ""
    entities: list[tuple[int, int, str]] = field(default_factory=list)

    def surfaces(self) -> list[str]:
        """The texts of the entities."""
        return [self.text[start:end] for start, end, _ in self.entities]

    def append(self, other: Sentence) -> None:
        """Append another sentence, and shift its entities."""
        offset = len(self.text)
        self.text += other.text
        self.entities += [(start + offset, end + offset, label) for start, end, label in other.entities]


@dataclass(frozen=True)
class Templates:
    """The sentence templates of one split.

    Attributes:
        entity: sentences with entities, for the NER sample.
        empty: sentences without entities, for the NER sample.
        news: sentences of articles on any topic.
        news_by_topic: further sentences for each topic, by its label.
    """

    entity: Sequence[str]
    empty: Sequence[str]
    news: Sequence[str]
    news_by_topic: dict[str, Sequence[str]]


TRAIN_TEMPLATES = Templates(
    ner_sentences.TRAIN, ner_sentences.TRAIN_EMPTY, news_articles.TRAIN, news_articles.TRAIN_BY_TOPIC
)
TEST_TEMPLATES = Templates(
    ner_sentences.TEST, ner_sentences.TEST_EMPTY, news_articles.TEST, news_articles.TEST_BY_TOPIC
)


@cache
def ordinary_text() -> str:
    """All text that contains no names: templates and word lists, one on each line."""
    pieces: list[str] = []
    for templates in (TRAIN_TEMPLATES, TEST_TEMPLATES):
        pieces += [*templates.entity, *templates.empty, *templates.news]
        pieces += [line for lines in templates.news_by_topic.values() for line in lines]
    for topic in words.TOPICS:
        pieces += [topic.label, topic.other_label, *topic.things, *topic.sample_things, *topic.acts, *topic.roles]
    pieces += ordinary_words()
    return "\n".join(pieces)


def ordinary_words() -> list[str]:
    """All words that are not names, as one list."""
    return [
        *words.JOBS,
        *words.THINGS,
        *words.SAMPLE_THINGS,
        *words.ADJECTIVES,
        *words.FOODS,
        *words.ANIMALS,
        *words.TOOLS,
        *words.COLOURS,
        *words.WEATHERS,
        *(word for topic_words in words.OTHER_TOPICS.values() for word in topic_words),
    ]


def training_words() -> list[str]:
    """Every word that pretraining may use, names not included."""
    sample_only = set(words.SAMPLE_THINGS)
    topic_words = [word for topic in words.TOPICS for word in (*topic.things, *topic.acts, *topic.roles)]
    return [*topic_words, *(word for word in ordinary_words() if word not in sample_only)]


class Fillers:
    """Draws the text for lower-case slots such as ``{thing}`` and ``{num}``.

    Args:
        random: where every choice comes from.
        things, acts, roles: the words for these slots.
    """

    def __init__(self, random: Random, things: Sequence[str], acts: Sequence[str] = (), roles: Sequence[str] = ()):
        self._random = random
        self._lists = {
            "thing": things,
            "act": acts,
            "role": roles,
            "job": words.JOBS,
            "adjective": words.ADJECTIVES,
            "food": words.FOODS,
            "animal": words.ANIMALS,
            "tool": words.TOOLS,
            "colour": words.COLOURS,
            "weather": words.WEATHERS,
        }

    def draw(self, kind: str) -> str:
        """A random word, number, date or amount of money for a slot of this kind."""
        return self._random.choice(self._lists[kind]) if kind in self._lists else getattr(self, f"_{kind}")()

    def _num(self) -> str:
        return str(self._random.randint(2, 60))

    def _percent(self) -> str:
        return f"{self._random.randint(2, 40)}%"

    def _money(self) -> str:
        return f"{self._random.randint(12, 960)}{self._random.choice(('万元', '亿元', '元', '万美元'))}"

    def _year(self) -> str:
        return f"{self._random.randint(1950, 2024)}年"

    def _date(self) -> str:
        random = self._random
        month, day = random.randint(1, 12), random.randint(1, 28)
        return random.choice(
            (f"{month}月{day}日", f"本月{day}日", f"{month}月", f"{random.randint(1995, 2024)}年{month}月")
        )


def fill(
    template: str,
    names: NameMaker,
    fillers: Fillers,
    wide_digits: bool = False,
    entity_kinds: Collection[str] = ENTITY_LABELS,
) -> Sentence:
    """Fill the slots of a template. The same slot always gets the same text; different name slots get different
    names.

    Args:
        wide_digits: write digits in full width.
        entity_kinds: the kinds of slot that become entities of the sentence.
    """
    sentence, chosen, cursor = Sentence(), {}, 0
    for slot in _SLOT.finditer(template):
        kind, key = slot[1], slot[0]
        while key not in chosen:
            text = names.name(kind) if kind in ENTITY_LABELS else fillers.draw(kind)
            if kind not in ENTITY_LABELS or text not in chosen.values():
                chosen[key] = text
        sentence.text += template[cursor : slot.start()]
        start = len(sentence.text)
        sentence.text += chosen[key]
        if kind in entity_kinds:
            sentence.entities.append((start, len(sentence.text), kind))
        cursor = slot.end()
    sentence.text += template[cursor:]
    if wide_digits:
        sentence.text = sentence.text.translate(_FULL_WIDTH)
    return sentence


def composed_template(random: Random) -> str:
    """A random template composed from parts. No test sentence is made this way."""
    return "".join(random.choice(part) for part in ner_sentences.PARTS)


def ner_sentence(random: Random, names: NameMaker, templates: Templates, empty_share: float = 0.25) -> Sentence:
    """The text of one NER row: one or two sentences; a share ``empty_share`` of them has no entity."""
    empty = random.random() < empty_share
    lines = (templates.entity, templates.empty)
    if templates is TRAIN_TEMPLATES:
        lines = (
            [*templates.entity, *ner_sentences.MORE_TRAIN],
            [*templates.empty, *ner_sentences.MORE_TRAIN_EMPTY],
        )
    fillers = Fillers(random, words.THINGS + words.SAMPLE_THINGS)
    wide_digits = random.random() < _FULL_WIDTH_SHARE
    if templates is TRAIN_TEMPLATES and not empty and random.random() < _COMPOSED_SHARE:
        template = composed_template(random)
    else:
        template = random.choice(lines[empty])
    sentence = fill(template, names, fillers, wide_digits)
    if random.random() < _SECOND_SENTENCE_SHARE:
        more = lines[1] if empty else (*lines[0], *lines[1])
        sentence.append(fill(random.choice(more), names, fillers, wide_digits))
    return sentence


def topic_fillers(random: Random, topic: words.Topic, for_sample: bool) -> Fillers:
    """Fillers with the words of a topic; ``for_sample`` adds ``sample_things``, which pretraining never uses."""
    things = topic.things + topic.sample_things if for_sample else topic.things
    return Fillers(random, things, topic.acts, topic.roles)


def news_article(
    random: Random,
    names: NameMaker,
    topic: words.Topic,
    templates: Templates,
    shortest: int = 200,
    longest: int = 500,
    for_sample: bool = False,
) -> Sentence:
    """An article about a topic; about half of them have one or two sentences about another topic.

    Args:
        shortest, longest: the range of its length in characters.
        for_sample: also use the topic's words that pretraining never uses.
    """
    fillers = topic_fillers(random, topic, for_sample)
    topic_lines = templates.news_by_topic[topic.label]
    if for_sample and templates is TRAIN_TEMPLATES and random.random() < _GENERAL_SHARE:
        topic_lines = []
    aim = shortest + int((longest - 60 - shortest) * random.random() ** 2)  # most articles are short
    candidates = [*random.sample(templates.news, len(templates.news)), *topic_lines]
    lines = [*random.sample(topic_lines, min(2, len(topic_lines))), *candidates[:_MOST_SENTENCES]]
    sentences = [fill(line, names, fillers) for line in lines]
    kept, length = [], 0
    for sentence in sentences:
        if length < aim and length + len(sentence.text) <= longest:
            kept.append(sentence)
            length += len(sentence.text)
    if random.random() < _STRAY_TOPIC_SHARE and len(kept) > 5:
        _add_other_topic(random, names, topic, templates, kept, range(shortest, longest + 1), for_sample)
    random.shuffle(kept)
    article = Sentence()
    for sentence in kept:
        article.append(sentence)
    return article


def _add_other_topic(
    random: Random,
    names: NameMaker,
    topic: words.Topic,
    templates: Templates,
    sentences: list[Sentence],
    lengths: range,
    for_sample: bool,
) -> None:
    """Replace one or two sentences by sentences about another topic if the total length stays in ``lengths``."""
    other = random.choice([other for other in words.TOPICS if other is not topic])
    fillers = topic_fillers(random, other, for_sample)
    for line in random.sample(templates.news, random.randint(1, 2)):
        replacement = fill(line, names, fillers)
        if sum(len(sentence.text) for sentence in sentences[:-1]) + len(replacement.text) in lengths:
            sentences[-1] = replacement
            random.shuffle(sentences)


class HeldOutNames:
    """The names of the test rows, which must not occur in anything that a model is trained on.

    Args:
        surfaces: the names.
    """

    def __init__(self, surfaces: Iterable[str]) -> None:
        self._surfaces = frozenset(surfaces)
        self._lengths = sorted({len(surface) for surface in self._surfaces})

    def occur_in(self, text: str) -> bool:
        """Whether any of the names occurs in a text."""
        return any(
            text[start : start + length] in self._surfaces
            for length in self._lengths
            for start in range(len(text) - length + 1)
        )
