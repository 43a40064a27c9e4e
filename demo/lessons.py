"""The pretraining data of the demonstration model: made-up exercises in reading, copying and following formats.

No exercise is one of the toolkit's two tasks: names of entity kinds, categories, instructions and answer formats all
differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

from demo import corpus, ner_sentences, words
from demo.names import NameMaker
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.ner import CCFBDCI_LABELS

# Kinds of span and their names in the lessons. The labels of the sample data are not among the names.
KIND_NAMES = {
    "PER": ("姓名", "人物", "名字"),
    "GPE": ("国家城市", "行政区", "国名市名"),
    "LOC": ("山水景点", "场所", "地标"),
    "ORG": ("单位", "机构", "企业机关"),
    "job": ("职务", "身份"),
    "thing": ("事项", "事情"),
    "food": ("食物", "吃的"),
    "animal": ("动物",),
    "tool": ("物品", "用品"),
    "colour": ("颜色",),
    "weather": ("天气现象",),
    "date": ("日期", "时间"),
    "money": ("金额", "钱数"),
}
NAME_KINDS = corpus.ENTITY_LABELS
WORD_KINDS = tuple(kind for kind in KIND_NAMES if kind not in NAME_KINDS)
NOTHING = ("无", "没有", "未找到", "空")

QUOTE_SENTENCES = (
    "他反复念着“{}”这几个字。",
    "墙上写着“{}”。",
    "有一本书叫《{}》，很少有人读过。",
    "请记住暗号（{}），不要告诉别人。",
    "昨天的节目《{}》很好看，大家都喜欢。",
    "老师问：“{}”是什么意思？",
    "纸条上只有“{}”，别的什么也没有。",
)
COPY_SYSTEMS = ("请把用户的话原样重复一遍。", "复述下面的内容。", "你是复读机，照抄原文。", "原样输出，不要改动。")
QUOTE_SYSTEMS = ("写出引号或括号里的内容。", "只输出被标出的词。", "找到标出来的文字并抄下来。")
NEXT_SYSTEMS = ("用户给出一串词和其中一个词，请写出它后面的那个词。", "查找下一个词。")
TELL_SYSTEMS = ("继续写下去。", "你是一个会写文章的助手。", "随便说点什么。")
EXTRACT_SYSTEMS = (
    "请从句子中找出{kinds}，每个写一行，格式为{example}，没有就写“{nothing}”。",
    "你要阅读句子，按先后顺序列出其中的{kinds}。写法：{example}。没有时回答“{nothing}”。",
    "任务：标出{kinds}。输出形如{example}。如果都没有，输出“{nothing}”。",
    "哪些是{kinds}？照这个样子回答：{example}。一个也没有时，只写“{nothing}”。",
)
CHOOSE_SYSTEMS = (
    "读一读下面的话，它主要讲什么？从给出的主题里挑一个。",
    "用户会给出一段话和若干主题，回答最合适的主题。",
    "判断内容属于哪个主题，只回答主题名。",
    "选一个主题。",
)
CHOOSE_FORMS = (
    "主题：{options}\n内容：{text}",
    "{text}\n可选主题：{options}",
    "【{options}】{text}",
    "内容：{text}\n从{options}里选",
)
FORMATS: tuple[Callable[[str, str], str], ...] = (
    lambda text, kind: f"{kind}：{text}",
    lambda text, kind: f"{text}（{kind}）",
    lambda text, kind: f"{text}={kind}",
    lambda text, kind: f"{text} | {kind}",
    lambda text, kind: json.dumps({"类": kind, "词": text}, ensure_ascii=False),
    lambda text, kind: json.dumps({"mention": text, "type": kind}, ensure_ascii=False),
    lambda text, kind: json.dumps({"span": text, "kind": kind}, ensure_ascii=False),
    lambda text, kind: json.dumps([text, kind], ensure_ascii=False),
)


@dataclass(frozen=True)
class Lesson:
    """One exercise.

    Attributes:
        system: the instruction.
        turns: one or more pairs of a user message and its answer.
        weight: the weight of each answer token in the loss.
    """

    system: str
    turns: list[tuple[str, str]]
    weight: float = 1.0


def fixed_text() -> list[str]:
    """The fixed texts of the lessons, to train the tokenizer on."""
    parts = [line for part in ner_sentences.PARTS for line in part]
    lines = [*parts, *QUOTE_SENTENCES, *COPY_SYSTEMS, *QUOTE_SYSTEMS, *NEXT_SYSTEMS]
    lines += [*TELL_SYSTEMS, *EXTRACT_SYSTEMS, *CHOOSE_SYSTEMS, *CHOOSE_FORMS, *words.OTHER_TOPICS, *NOTHING]
    lines += [name for names in KIND_NAMES.values() for name in names]
    return lines + [write("甲", "乙") for write in FORMATS] * 20


class Teacher:
    """Draws lessons.

    Args:
        random: where every choice comes from.
        held_out: names that must not occur in any lesson.
        characters: what meaningless strings are made of.
    """

    def __init__(self, random: Random, held_out: corpus.HeldOutNames, characters: str) -> None:
        self._random = random
        self._held_out = held_out
        self._characters = characters
        self._names = NameMaker(random, "pretraining", corpus.ordinary_text())
        self._fillers = corpus.Fillers(random, words.THINGS)
        self._words = corpus.training_words()
        # The labels of the two tasks occur only as words to copy, so that their tokens are trained.
        self._words += [*CCFBDCI_LABELS.values(), NO_ENTITY, "entity_text", "entity_label"]
        self._words += [topic.label for topic in words.TOPICS]

    def lesson(self, shares: dict[str, float]) -> Lesson:
        """One lesson of a kind drawn from ``shares`` (method name → share)."""
        while True:
            kind = self._random.choices(list(shares), list(shares.values()))[0]
            lesson = getattr(self, kind)()
            if not any(self._held_out.occur_in(text) for turn in lesson.turns for text in turn):
                return lesson

    def copy(self) -> Lesson:
        """Copy a list of words, names and meaningless strings."""
        random = self._random
        separator = random.choice(("、", "，", " ", "\n", "；"))
        texts = [separator.join(self._item() for _ in range(random.randint(1, 5))) for _ in range(self._turns())]
        return Lesson(random.choice(COPY_SYSTEMS), [(text, text) for text in texts])

    def quote(self) -> Lesson:
        """Write the text between quotation marks or brackets."""
        turns = [self._quotation() for _ in range(self._turns())]
        return Lesson(self._random.choice(QUOTE_SYSTEMS), turns)

    def _quotation(self) -> tuple[str, str]:
        random = self._random
        item = self._item()
        pieces = [self._sentence(()).text for _ in range(random.randint(0, 2))]
        pieces.insert(random.randint(0, len(pieces)), random.choice(QUOTE_SENTENCES).format(item))
        return "".join(pieces), item

    def next_word(self) -> Lesson:
        """Find a word in a list and write the word after it."""
        random = self._random
        items = list(dict.fromkeys(self._item() for _ in range(random.randint(3, 8))))
        place = random.randrange(max(1, len(items) - 1))
        user = "、".join(items) + f"\n{items[place]}"
        answer = items[place + 1] if place + 1 < len(items) else items[0]
        return Lesson(random.choice(NEXT_SYSTEMS), [(user, answer)])

    def tell(self) -> Lesson:
        """Write plain text, without a question: sentences or an article."""
        random = self._random
        if random.random() < 0.5:
            topic = random.choice(words.TOPICS)
            text = corpus.news_article(random, self._names, topic, corpus.TRAIN_TEMPLATES, 60, 220).text
        else:
            text = "".join(self._sentence(()).text for _ in range(random.randint(1, 4)))
        return Lesson(random.choice(TELL_SYSTEMS), [(random.choice(("写", "说", "请")), text)], 0.25)

    def extract(self) -> Lesson:
        """Find the spans of some kinds in a sentence and write them in one of many formats."""
        random = self._random
        kinds = list(NAME_KINDS) if random.random() < 0.6 else random.sample(NAME_KINDS, random.randint(1, 3))
        if random.random() < 0.4:
            kinds += random.sample(WORD_KINDS, random.randint(1, 2))
        random.shuffle(kinds)
        kind_names = {kind: random.choice(KIND_NAMES[kind]) for kind in kinds}
        write, nothing = random.choice(FORMATS), random.choice(NOTHING)
        example = write("某某", kind_names[kinds[0]])
        instruction = random.choice(EXTRACT_SYSTEMS).format(
            kinds="、".join(kind_names.values()), example=example, nothing=nothing
        )
        return Lesson(instruction, [self._extraction(kind_names, write, nothing) for _ in range(self._turns())])

    def _extraction(
        self, kind_names: dict[str, str], write: Callable[[str, str], str], nothing: str
    ) -> tuple[str, str]:
        sentence = self._sentence(kind_names)
        if self._random.random() < 0.2:
            sentence.append(self._sentence(kind_names))
        spans = zip(sentence.surfaces(), sentence.entities, strict=True)
        lines = [write(surface, kind_names[kind]) for surface, (_, _, kind) in spans]
        return sentence.text, "\n".join(lines) or nothing

    def choose(self) -> Lesson:
        """Choose the topic of a short text. The topics have other names than the categories of the sample."""
        random = self._random
        names = [topic.other_label for topic in words.TOPICS] + list(words.OTHER_TOPICS)
        if random.random() < 0.75:
            topic = random.choice(words.TOPICS)
            right, text = topic.other_label, self._snippet(topic)
        else:
            right = random.choice(list(words.OTHER_TOPICS))
            text = self._other_snippet(words.OTHER_TOPICS[right])
        options = [right, *random.sample([name for name in names if name != right], random.randint(2, 5))]
        random.shuffle(options)
        user = random.choice(CHOOSE_FORMS).format(options="、".join(options), text=text)
        return Lesson(random.choice(CHOOSE_SYSTEMS), [(user, right)])

    def _turns(self) -> int:
        return self._random.randint(1, 4)

    def _snippet(self, topic: words.Topic) -> str:
        length = self._random.choice((30, 30, 60, 60, 120, 200))
        return corpus.news_article(
            self._random, self._names, topic, corpus.TRAIN_TEMPLATES, length, 2 * length + 60
        ).text

    def _other_snippet(self, things: Sequence[str]) -> str:
        random = self._random
        lines = [line for line in corpus.TRAIN_TEMPLATES.news if "{act}" not in line and "{role}" not in line]
        fillers = corpus.Fillers(random, things)
        chosen = random.sample(lines, random.randint(1, 4))
        return "".join(corpus.fill(line, self._names, fillers).text for line in chosen)

    def _sentence(self, entity_kinds: Collection[str]) -> corpus.Sentence:
        """A sentence from a template, or composed from an opening, a subject, a predicate and a tail."""
        random = self._random
        chance = random.random()
        if chance < 0.65:
            template = corpus.composed_template(random)
        else:
            template = random.choice(corpus.TRAIN_TEMPLATES.entity if chance < 0.85 else corpus.TRAIN_TEMPLATES.empty)
        return corpus.fill(template, self._names, self._fillers, random.random() < 0.1, entity_kinds)

    def _item(self) -> str:
        random = self._random
        chance = random.random()
        if chance < 0.35:
            return self._names.name(random.choice(NAME_KINDS))
        if chance < 0.5:
            return random.choice(self._words)
        return "".join(random.choice(self._characters) for _ in range(random.randint(1, 8)))
