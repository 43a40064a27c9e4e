"""Every format with a small file and what it becomes. `tests/test_format_examples.py` checks each; the pages
``docs/formats.md`` and ``docs/formats_en.md`` are written from them: python -m tests.format_examples
"""

# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "formats.md", DOCS / "formats_en.md")


class Example(NamedTuple):
    """A file of one format.

    Attributes:
        title: in Chinese and in English.
        file: its name.
        content: at least three rows; the page shows the first three lines.
        becomes: the text and the gold of the first row: a label, or entities as ``(start, end, label)``.
        note: what is worth knowing, in Chinese and in English.
        labels: ``--labels`` for the conversion, if the labels are not to be learned from the data.
    """

    title: tuple[str, str]
    file: str
    content: str
    becomes: tuple[str, str | list[tuple[int, int, str]]]
    note: tuple[str, str] = ("", "")
    labels: str | None = None

    @property
    def answers(self) -> str:
        """``label`` or ``entities``."""
        return "label" if isinstance(self.becomes[1], str) else "entities"


def _lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


LABEL_EXAMPLES = [
    Example(
        ("每行自带候选（fudan-news）", "options in each row (fudan-news)"),
        "fudan.jsonl",
        _lines(
            {"text": "昨晚主队客场取胜。", "category": "['体育', '交通']", "output": "体育"},
            {"text": "高铁新线下月通车。", "category": "['交通', '体育']", "output": "交通"},
            {"text": "球队换了教练。", "category": "['体育', '交通']", "output": "体育"},
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "候选写成列表、JSON 列表或 Python 列表都可以",
            "the options may be a list, a JSON list or a Python list in a string",
        ),
    ),
    Example(
        ("文本和标签的 JSON 行", "JSON lines of text and label"),
        "rows.jsonl",
        _lines(
            {"text": "昨晚主队客场取胜。", "label": "体育"},
            {"text": "高铁新线下月通车。", "label": "交通"},
            {"text": "球队换了教练。", "label": "体育"},
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "列名认得 text、content、sentence、文本、内容、评论、标题……和 label、output、标签、类别……；"
            "别的用 --text_column、--label_column 指明，嵌套的写成 meta.label；整数标签 0、1 当成文字",
            "known names: text, content, sentence, 文本, 内容, 评论, 标题 … and label, output, 标签, 类别 …; name others by "
            "--text_column and --label_column, nested ones as meta.label; integer labels become words",
        ),
    ),
    Example(
        ("一整个 JSON 数组", "one JSON array"),
        "rows.json",
        json.dumps(
            [
                {"text": "昨晚主队客场取胜。", "label": "体育"},
                {"text": "高铁新线下月通车。", "label": "交通"},
                {"text": "球队换了教练。", "label": "体育"},
            ],
            ensure_ascii=False,
            indent=1,
        ),
        ("昨晚主队客场取胜。", "体育"),
        ("下面各种写法也都可以是 JSON 数组", "every notation below may be a JSON array as well"),
    ),
    Example(
        ("有表头的表格", "a table with a header"),
        "rows.csv",
        "id,文本,标签\n1,昨晚主队客场取胜。,体育\n2,高铁新线下月通车。,交通\n3,球队换了教练。,体育\n",
        ("昨晚主队客场取胜。", "体育"),
        (
            "CSV、TSV、分号或竖线分隔都认；叫 .txt 也认；Excel 的 .xlsx 要先 pip install -r requirements-excel.txt；"
            ".parquet 和 .arrow（datasets 的）也认，里面写了类别名的用名字，分成几个文件的给出任意一个",
            "CSV, TSV, semicolons or bars; also when it is called .txt; for Excel's .xlsx first pip install -r "
            "requirements-excel.txt; .parquet and .arrow (of datasets) too, with the names of classes that they list; of "
            "a data set in several files give any one",
        ),
    ),
    Example(
        ("没有表头的表格", "a table without a header"),
        "rows.tsv",
        "昨晚主队客场取胜。\t0\n高铁新线下月通车。\t1\n球队换了教练。\t0\n",
        ("昨晚主队客场取胜。", "0"),
        (
            "哪一列是什么由内容判断，认不准就请你给出列号；--labels 0=体育,1=交通 给标签起名；没有标签列，一类一个文件（体育.txt、交通.txt，"
            "每行一条）或一类一个文件夹（一个 .txt 一条）时给出它们所在的目录，名字就是标签",
            "the cells show which column is which, in doubt you are asked for the column's number; --labels 0=体育,1=交通 "
            "names the labels; if there is no column of labels but a file for each class (体育.txt, 交通.txt, a text in each "
            "line) or a folder for each (a text in each .txt), give the folder that holds them: their names are the labels",
        ),
    ),
    Example(
        ("alpaca", "alpaca"),
        "alpaca.json",
        json.dumps(
            [
                {"instruction": "判断新闻的类别", "input": "昨晚主队客场取胜。", "output": "体育"},
                {"instruction": "判断新闻的类别", "input": "高铁新线下月通车。", "output": "交通"},
                {"instruction": "判断新闻的类别", "input": "球队换了教练。", "output": "体育"},
            ],
            ensure_ascii=False,
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "input 是文本，output 是标签；指令换成本项目的",
            "input is the text, output the label; the instruction becomes ours",
        ),
    ),
    Example(
        ("ShareGPT、messages", "ShareGPT, messages"),
        "messages.jsonl",
        _lines(
            {
                "messages": [
                    {"role": "user", "content": "昨晚主队客场取胜。"},
                    {"role": "assistant", "content": "体育"},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": "高铁新线下月通车。"},
                    {"role": "assistant", "content": "交通"},
                ]
            },
            {"messages": [{"role": "user", "content": "球队换了教练。"}, {"role": "assistant", "content": "体育"}]},
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "也认 conversations 里的 human、gpt；多轮的拒绝",
            "also conversations with human and gpt; several turns are refused",
        ),
    ),
    Example(
        ("doccano 分类", "doccano classification"),
        "doccano.jsonl",
        _lines(
            {"id": 1, "text": "昨晚主队客场取胜。", "label": ["体育"]},
            {"id": 2, "text": "高铁新线下月通车。", "label": ["交通"]},
            {"id": 3, "text": "球队换了教练。", "label": ["体育"]},
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "一行有几个标签的（multi-label）拒绝，并说有几行",
            "rows with several labels (multi-label) are refused and counted",
        ),
    ),
    Example(
        ("Label Studio", "Label Studio"),
        "label-studio.json",
        json.dumps(
            [
                {
                    "data": {"text": text},
                    "annotations": [
                        {
                            "result": [
                                {
                                    "from_name": "label",
                                    "to_name": "text",
                                    "type": "choices",
                                    "value": {"choices": [label]},
                                }
                            ]
                        }
                    ],
                }
                for text, label in (
                    ("昨晚主队客场取胜。", "体育"),
                    ("高铁新线下月通车。", "交通"),
                    ("球队换了教练。", "体育"),
                )
            ],
            ensure_ascii=False,
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "JSON 和 JSON-MIN 都认；没有标注的、跳过的任务不要；predict.py --output_format label_studio 写出可以导入的预标注",
            "JSON and JSON-MIN; tasks without annotation, or skipped, are left out; "
            "predict.py --output_format label_studio writes pre-annotations to import",
        ),
    ),
    Example(
        ("fastText", "fastText"),
        "fasttext.txt",
        "__label__体育 昨晚 主队 客场 取胜\n__label__交通 高铁 新线 下月 通车\n__label__体育 球队 换 了 教练\n",
        ("昨晚主队客场取胜", "体育"),
        ("汉字之间的空格是分词，去掉", "blanks between Chinese characters are the segmentation and go"),
    ),
    Example(
        ("今日头条 `_!_`", "Toutiao `_!_`"),
        "toutiao.txt",
        "650_!_103_!_news_sports_!_昨晚主队客场取胜_!_客场,主队\n"
        "651_!_107_!_news_car_!_新车下月上市_!_新车\n"
        "652_!_103_!_news_sports_!_球队换了教练_!_教练\n",
        ("昨晚主队客场取胜", "news_sports"),
    ),
    Example(
        ("标签编号旁边有名字（TNEWS、IFLYTEK）", "a label's number beside its name (TNEWS, IFLYTEK)"),
        "tnews.json",
        _lines(
            {"label": "103", "label_desc": "news_sports", "sentence": "昨晚主队客场取胜。", "keywords": ""},
            {"label": "107", "label_desc": "news_car", "sentence": "新车下月上市。", "keywords": ""},
            {"label": "103", "label_desc": "news_sports", "sentence": "球队换了教练。", "keywords": ""},
        ),
        ("昨晚主队客场取胜。", "news_sports"),
        ("取名字；要编号就加 --label_column label", "the name is taken; --label_column label takes the number"),
    ),
    Example(
        ("Label Studio JSON-MIN", "Label Studio JSON-MIN"),
        "label-studio-min.json",
        json.dumps(
            [
                {
                    "text": text,
                    "id": number,
                    "sentiment": label,
                    "annotator": 1,
                    "annotation_id": number,
                    "lead_time": 2.5,
                }
                for number, (text, label) in enumerate(
                    (("昨晚主队客场取胜。", "体育"), ("高铁新线下月通车。", "交通"), ("球队换了教练。", "体育"))
                )
            ],
            ensure_ascii=False,
        ),
        ("昨晚主队客场取胜。", "体育"),
        (
            "标注的名字不常见时用 --label_column 指明；CSV、TSV 导出也认",
            "--label_column names a tag with an unusual name; CSV and TSV exports, too",
        ),
    ),
    Example(
        ("Prodigy", "Prodigy"),
        "prodigy.jsonl",
        _lines(
            {
                "text": "昨晚主队客场取胜。",
                "options": [{"id": "体育"}, {"id": "交通"}],
                "accept": ["体育"],
                "answer": "accept",
            },
            {
                "text": "高铁新线下月通车。",
                "options": [{"id": "体育"}, {"id": "交通"}],
                "accept": ["交通"],
                "answer": "accept",
            },
            {
                "text": "球队换了教练。",
                "options": [{"id": "体育"}, {"id": "交通"}],
                "accept": ["体育"],
                "answer": "accept",
            },
        ),
        ("昨晚主队客场取胜。", "体育"),
        ("没有接受（reject、ignore）的行不要", "rows that were not accepted are left out"),
    ),
]

_ENTITIES = [(0, 2, "PER"), (3, 5, "LOC")]
ENTITY_EXAMPLES = [
    Example(
        ("CCFBDCI", "CCFBDCI"),
        "ccfbdci.jsonl",
        _lines(
            {
                "text": "赵一到青湖",
                "entities": [
                    {"start_idx": 0, "end_idx": 2, "entity_text": "赵一", "entity_label": "PER"},
                    {"start_idx": 3, "end_idx": 5, "entity_text": "青湖", "entity_label": "LOC"},
                ],
            },
            {"text": "今天没课", "entities": []},
            {
                "text": "红山下雨",
                "entities": [{"start_idx": 0, "end_idx": 2, "entity_text": "红山", "entity_label": "LOC"}],
            },
        ),
        ("赵一到青湖", [(0, 2, "人名"), (3, 5, "地点")]),
        (
            "GPE、LOC、ORG、PER 这四种自动改成中文名；终点不含",
            "the four labels GPE, LOC, ORG, PER get Chinese names; ends are exclusive",
        ),
    ),
    Example(
        ("CoNLL", "CoNLL"),
        "train.conll",
        "赵 B-PER\n一 I-PER\n到 O\n青 B-LOC\n湖 I-LOC\n\n今 O\n天 O\n没 O\n课 O\n\n红 B-LOC\n山 I-LOC\n下 O\n雨 O\n",
        ("赵一到青湖", _ENTITIES),
        (
            "BIO、BIOES、BMES、BILOU；制表符也行，中间有别的列也行，注释行跳过，第一列是序号的去掉（是句子的编号就照它分句）；只有两列时逗号也行；整个文件没有一个空行的（200 行起）在 。！？ 后面分句；英文词之间补一个空格",
            "BIO, BIOES, BMES, BILOU; tabs, more columns in between and comment lines are fine, a running number in the "
            "first column is dropped (the number of a sentence divides sentences); a comma between two columns will do; a "
            "file of 200 lines or more without one blank line is divided after 。！？; Latin words are joined with a blank",
        ),
    ),
    Example(
        ("字后带序号的 CoNLL（Weibo）", "CoNLL with a number behind the character (Weibo)"),
        "weibo.conll",
        "赵0\tB-PER\n一1\tI-PER\n到0\tO\n青0\tB-LOC\n湖1\tI-LOC\n\n今0\tO\n天1\tO\n没0\tO\n课0\tO\n\n红0\tB-LOC\n山1\tI-LOC\n下0\tO\n雨1\tO\n",
        ("赵一到青湖", _ENTITIES),
        ("序号不算文字；自成一行的数字是文字", "the number is no text; a digit in a line of its own is"),
    ),
    Example(
        ("每行一句", "one sentence a line"),
        "sentences.txt",
        "text_a\tlabel\n赵\x02一\x02到\x02青\x02湖\tB-PER\x02I-PER\x02O\x02B-LOC\x02I-LOC\n"
        "今\x02天\x02没\x02课\tO\x02O\x02O\x02O\n红\x02山\x02下\x02雨\tB-LOC\x02I-LOC\x02O\x02O\n",
        ("赵一到青湖", _ENTITIES),
        (
            "字与字、标记与标记之间是 \\x02 或空格",
            "\\x02 or a blank stands between the characters and between the tags",
        ),
    ),
    Example(
        ("tokens 和 ner_tags（Hugging Face）", "tokens and ner_tags (Hugging Face)"),
        "tokens.jsonl",
        _lines(
            {"tokens": list("赵一到青湖"), "ner_tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]},
            {"tokens": list("今天没课"), "ner_tags": ["O"] * 4},
            {"tokens": list("红山下雨"), "ner_tags": ["B-LOC", "I-LOC", "O", "O"]},
        ),
        ("赵一到青湖", _ENTITIES),
    ),
    Example(
        ("W2NER", "W2NER"),
        "w2ner.json",
        json.dumps(
            [
                {
                    "sentence": list("赵一到青湖"),
                    "ner": [{"index": [0, 1], "type": "PER"}, {"index": [3, 4], "type": "LOC"}],
                },
                {"sentence": list("今天没课"), "ner": []},
                {"sentence": list("红山下雨"), "ner": [{"index": [0, 1], "type": "LOC"}]},
            ],
            ensure_ascii=False,
        ),
        ("赵一到青湖", _ENTITIES),
        (
            "一个字一项；SpERT 的 tokens 和 entities（start、end）也认",
            "one character an item; tokens and entities (start, end) of SpERT are read, too",
        ),
    ),
    Example(
        ("起止位置（spans）", "spans"),
        "spans.jsonl",
        _lines(
            {
                "text": "赵一到青湖",
                "entities": [{"start": 0, "end": 2, "label": "PER"}, {"start": 3, "end": 5, "label": "LOC"}],
            },
            {"text": "今天没课", "entities": []},
            {"text": "红山下雨", "entities": [{"start": 0, "end": 2, "label": "LOC"}]},
        ),
        ("赵一到青湖", _ENTITIES),
        (
            "认得 start_offset、start_pos、start_char、type、entity……这些名字；带实体原文的可以看出终点含不含",
            "also start_offset, start_pos, start_char, type, entity …; the entity's own text shows whether ends are inclusive",
        ),
    ),
    Example(
        ("doccano 序列标注", "doccano sequence labelling"),
        "doccano-ner.jsonl",
        _lines(
            {"text": "赵一到青湖", "label": [[0, 2, "PER"], [3, 5, "LOC"]]},
            {"text": "今天没课", "label": []},
            {"text": "红山下雨", "label": [[0, 2, "LOC"]]},
        ),
        ("赵一到青湖", _ENTITIES),
    ),
    Example(
        ("CLUENER", "CLUENER"),
        "cluener.json",
        _lines(
            {"text": "赵一到青湖", "label": {"PER": {"赵一": [[0, 1]]}, "LOC": {"青湖": [[3, 4]]}}},
            {"text": "今天没课", "label": {}},
            {"text": "红山下雨", "label": {"LOC": {"红山": [[0, 1]]}}},
        ),
        ("赵一到青湖", _ENTITIES),
        ("终点含最后一个字", "ends are inclusive"),
    ),
    Example(
        ("Label Studio", "Label Studio"),
        "label-studio-ner.json",
        json.dumps(
            [
                {
                    "data": {"text": text},
                    "annotations": [
                        {
                            "result": [
                                {
                                    "from_name": "label",
                                    "to_name": "text",
                                    "type": "labels",
                                    "value": {"start": start, "end": end, "text": text[start:end], "labels": [label]},
                                }
                                for start, end, label in spans
                            ]
                        }
                    ],
                }
                for text, spans in (("赵一到青湖", _ENTITIES), ("今天没课", []), ("红山下雨", [(0, 2, "LOC")]))
            ],
            ensure_ascii=False,
        ),
        ("赵一到青湖", _ENTITIES),
        ("没有标注的、跳过的任务不要", "tasks without annotation, or skipped, are left out"),
    ),
    Example(
        ("alpaca", "alpaca"),
        "alpaca-ner.jsonl",
        _lines(
            {
                "instruction": "抽取实体",
                "input": "赵一到青湖",
                "output": '{"entity_text": "赵一", "entity_label": "PER"}\n{"entity_text": "青湖", "entity_label": "LOC"}',
            },
            {"instruction": "抽取实体", "input": "今天没课", "output": "没有找到任何实体"},
            {"instruction": "抽取实体", "input": "红山下雨", "output": '[{"text": "红山", "label": "LOC"}]'},
        ),
        ("赵一到青湖", _ENTITIES),
        (
            "没有位置的实体按出现的顺序在原文里找；原文里没有的，这一行拒绝",
            "entities without positions are looked up in the order of the text; a row with one that is not there is "
            "rejected",
        ),
    ),
    Example(
        ("标在原文里的 `{{类型:文字}}`", "marked in the text, `{{type:text}}`"),
        "inline.txt",
        "{{PER:赵一}}到{{LOC:青湖}}\n今天没课\n{{LOC:红山}}下雨\n",
        ("赵一到青湖", _ENTITIES),
    ),
    Example(
        ("YEDDA", "YEDDA"),
        "yedda.ann",
        "[@赵一#PER*]到[@青湖#LOC*]\n今天没课\n[@红山#LOC*]下雨\n",
        ("赵一到青湖", _ENTITIES),
    ),
    Example(
        ("CHIP 2020（CMeEE 的第一版）", "CHIP 2020 (the first CMeEE)"),
        "chip.txt",
        "赵一到青湖|||0    1    PER|||3    4    LOC|||\n今天没课|||\n红山下雨|||0    1    LOC|||\n",
        ("赵一到青湖", _ENTITIES),
        ("终点含最后一个字；嵌套的实体同 CMeEE", "ends are inclusive; nested entities as in CMeEE"),
    ),
    Example(
        ("人民日报 `词/词性`", "People's Daily `word/tag`"),
        "words.txt",
        "赵/nr 一/nr 到/v 青湖/ns\n今天/t 没/v 课/n\n红山/ns 下/v 雨/n\n",
        ("赵一到青湖", [(0, 2, "nr"), (3, 5, "ns")]),
        (
            "nr、ns、nt、nz 是实体，相邻的姓和名合成一个；--labels nr=人名,ns=地点 给标签起名",
            "nr, ns, nt and nz are entities, a family name and a given name become one; --labels nr=人名,ns=地点 names them",
        ),
    ),
    Example(
        ("文本旁边的标记（IMCS）", "tags beside the text (IMCS)"),
        "imcs.jsonl",
        _lines(
            {"sentence": "赵一到青湖", "BIO_label": "B-PER I-PER O B-LOC I-LOC"},
            {"sentence": "今天没课", "BIO_label": "O O O O"},
            {"sentence": "红山下雨", "BIO_label": "B-LOC I-LOC O O"},
        ),
        ("赵一到青湖", _ENTITIES),
        ("标记写成列表也行，也可以在表格的一列里", "the tags may be a list, and stand in a table's column"),
    ),
    Example(
        ("CMeEE", "CMeEE"),
        "cmeee.json",
        json.dumps(
            [
                {
                    "text": text,
                    "entities": [
                        {"start_idx": start, "end_idx": end - 1, "type": label, "entity": text[start:end]}
                        for start, end, label in spans
                    ],
                }
                for text, spans in (("赵一到青湖", _ENTITIES), ("今天没课", []), ("红山下雨", [(0, 2, "LOC")]))
            ],
            ensure_ascii=False,
            indent=1,
        ),
        ("赵一到青湖", _ENTITIES),
        (
            "终点含不含最后一个字由 entity 看出；嵌套的实体拒绝，加 --nested outer 或 inner 只留一层",
            "entity shows whether ends are inclusive; nested entities are refused, or one layer is kept by --nested outer or inner",
        ),
    ),
    Example(
        ("CCKS 2019", "CCKS 2019"),
        "ccks.jsonl",
        _lines(
            {
                "originalText": "赵一到青湖",
                "entities": [
                    {"label_type": "PER", "overlap": 0, "start_pos": 0, "end_pos": 2},
                    {"label_type": "LOC", "overlap": 0, "start_pos": 3, "end_pos": 5},
                ],
            },
            {"originalText": "今天没课", "entities": []},
            {
                "originalText": "红山下雨",
                "entities": [{"label_type": "LOC", "overlap": 0, "start_pos": 0, "end_pos": 2}],
            },
        ),
        ("赵一到青湖", _ENTITIES),
    ),
    Example(
        ("spaCy", "spaCy"),
        "spacy.json",
        json.dumps(
            [
                ["赵一到青湖", {"entities": _ENTITIES}],
                ["今天没课", {"entities": []}],
                ["红山下雨", {"entities": [[0, 2, "LOC"]]}],
            ],
            ensure_ascii=False,
        ),
        ("赵一到青湖", _ENTITIES),
        (
            '也认 {"classes": …, "annotations": […]}；brat 的 .txt 和 .ann 给出 .txt 或目录就行，一行是一条',
            'also {"classes": …, "annotations": […]}; of brat name the .txt beside its .ann, or the folder: each line is a row',
        ),
    ),
]
EXAMPLES = LABEL_EXAMPLES + ENTITY_EXAMPLES


def page(language: int) -> str:
    """A page of all formats, in Chinese (0) or English (1)."""
    title = ("# 认得的数据格式", "# The formats that are recognised")[language]
    intro = (
        "转换（`transfer_*.py`）和预测（`predict.py`）用同一套识别，格式、编码和列都自动认；认不准就停下，用一行话说该给哪个参数。"
        "每种格式三行，后面是第一行变成的文本和标注（位置从 0 数，不含终点）。本页由 `python -m tests.format_examples` 生成，例子就是测试。",
        "Conversion (`transfer_*.py`) and prediction (`predict.py`) recognise files in the same way: format, encoding and "
        "columns by themselves; in doubt they stop, with one line that says which flag to give. Three lines of each format, "
        "then the text and the annotation that the first row becomes (offsets from 0, ends exclusive). This page is "
        "written by `python -m tests.format_examples`; the examples are the tests.",
    )[language]
    parts = [title, "", intro]
    headings = (("## 文本分类", "## 命名实体识别"), ("## Text classification", "## Named-entity recognition"))[
        language
    ]
    for heading, examples in zip(headings, (LABEL_EXAMPLES, ENTITY_EXAMPLES), strict=True):
        parts += ["", heading]
        for example in examples:
            parts += ["", *_section(example, language)]
    return "\n".join(parts) + "\n"


def _section(example: Example, language: int) -> list[str]:
    shown = [_short(line) for line in example.content.splitlines()[:3]]
    text, gold = example.becomes
    if not isinstance(gold, str):
        gold = "，".join(f"{text[start:end]}（{start}, {end}）{label}" for start, end, label in gold)
    becomes = ("变成", "becomes")[language]
    section = [f"### {example.title[language]}", "", f"`{example.file}`", "", "```", *shown, "```", ""]
    section.append(f"→ {becomes} `{text}`：{gold}")
    return [*section, "", example.note[language]] if example.note[language] else section


def _short(line: str) -> str:
    line = line.replace("\x02", "␂")
    return line if len(line) <= 110 else line[:107] + "…"


def write_pages() -> None:
    """Write both pages."""
    for language, path in enumerate(PAGES):
        path.write_text(page(language), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_pages()
