"""Write the two files that docs/guide.md works with: reviews with one label each, and repair orders with entities.

python -m demo.make_guide_data

The same seed gives the same bytes. The texts are composed from the lists below; nothing in them is real.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parent.parent / "data/sample"
SEED = 7
ROWS_OF_A_LABEL = 150
ORDERS = 600
_SLOT = re.compile(r"\{(\w+)\}")

GOODS = [
    "电饭煲",
    "保温杯",
    "双肩包",
    "台灯",
    "羽绒服",
    "运动鞋",
    "充电宝",
    "蓝牙耳机",
    "炒锅",
    "床单",
    "雨伞",
    "行李箱",
    "书架",
    "键盘",
    "鼠标垫",
    "毛巾",
    "牛仔裤",
    "茶壶",
    "枕头",
    "积木",
    "手机壳",
    "拖把",
    "衬衫",
    "围巾",
    "电风扇",
]
DAYS = ["两天", "三天", "四天", "五天", "一周", "八天", "十天", "半个月"]
WHO = ["我", "家里老人", "孩子", "同事", "爱人", "室友", "妈妈", "邻居"]

# label → the sentences that only reviews about it have
ABOUT = {
    "质量": (
        "{goods}用了{days}就开裂了",
        "{goods}做工很扎实",
        "材质摸着挺厚实",
        "{goods}的接缝处脱线",
        "洗了一次就褪色",
        "{goods}有一股刺鼻的味道",
        "用了{days}还跟新的一样",
        "{goods}的边角毛糙，划手",
        "面料很舒服，不掉毛",
        "{goods}刚用{days}就坏了",
        "做工粗糙，线头很多",
        "{goods}结实耐用",
    ),
    "物流": (
        "下单{days}才发货",
        "快递第二天就送到了",
        "{goods}在路上走了{days}",
        "包裹被压扁了",
        "快递员直接扔在门口",
        "物流信息{days}没有更新",
        "送货上门，快递小哥很辛苦",
        "包装严实，路上没有磕碰",
        "{goods}发错了仓库，又等了{days}",
        "快递柜放了{days}都没通知",
        "发货很快，当天就揽收了",
        "包裹丢了一件",
    ),
    "服务": (
        "客服半天不回消息",
        "客服很耐心，一直教{who}怎么用",
        "申请退款{days}没人处理",
        "售后态度很差，互相推脱",
        "问什么都回自动回复",
        "换货的流程很顺，客服主动联系",
        "客服答应补寄，{days}了没有下文",
        "店家的解答很详细",
        "打电话给售后没人接",
        "客服说话很客气，问题当场解决",
        "投诉之后店家才肯道歉",
        "售后登记了{days}，还是让{who}等",
    ),
    "价格": (
        "刚买完{goods}就降价了",
        "比超市便宜不少",
        "优惠券用不了，还是原价买的",
        "{goods}卖得太贵",
        "搞活动买的，很划算",
        "同样的{goods}别家便宜一半",
        "满减之后性价比很高",
        "说好的保价，差价不退",
        "这个价钱买{goods}，值了",
        "价格虚高，先涨再打折",
        "凑单才能减，算下来不便宜",
        "花这么少的钱买到{goods}，赚了",
    ),
}
# sentences that any review may have
COMMON = (
    "给{who}买的",
    "{goods}收到了",
    "{who}挺喜欢",
    "以后再看看吧",
    "第二次买{goods}了",
    "总的来说还行",
    "有点失望",
    "颜色和图片一样",
    "推荐给{who}了",
    "下次还会来",
)

PRODUCTS = [
    "空调",
    "冰箱",
    "洗衣机",
    "热水器",
    "电视",
    "油烟机",
    "燃气灶",
    "微波炉",
    "电饭煲",
    "净水器",
    "扫地机",
    "洗碗机",
    "烤箱",
    "电磁炉",
    "加湿器",
    "消毒柜",
    "马桶盖",
    "电风扇",
    "除湿机",
    "吸尘器",
    "浴霸",
    "豆浆机",
    "投影仪",
    "门锁",
    "打印机",
]
FAULTS = [
    "不制冷",
    "漏水",
    "有异响",
    "打不着火",
    "黑屏",
    "不通电",
    "开不了机",
    "不加热",
    "跳闸",
    "不排水",
    "漏电",
    "屏幕闪",
    "按键失灵",
    "一直报警",
    "不出水",
    "冒烟",
    "转不动",
    "有焦味",
    "不脱水",
    "遥控没反应",
    "噪音很大",
    "结冰",
    "指示灯不亮",
    "自动关机",
    "连不上网",
]
_PERIODS = ["上午", "下午", "晚上", "中午"]
_DATES = [
    "今天",
    "明天",
    "后天",
    "周一",
    "周二",
    "周三",
    "周四",
    "周五",
    "周六",
    "周日",
    "下周一",
    "下周六",
    "这周末",
    "月底",
]
_CLOCKS = ["八点", "九点", "十点半", "两点", "三点半", "五点"]
NEIGHBOURS = ["三楼", "隔壁", "客厅", "厨房", "阳台", "卧室", "店里", "办公室", "老家", "宿舍"]

# with entities: {PROD}, {FAULT}, {TIME} are marked, {where} is not
WITH_ENTITIES = (
    "{PROD}{FAULT}了，师傅{TIME}能来吗？",
    "{where}的{PROD}{FAULT}，麻烦{TIME}过来看看。",
    "您好，我家{PROD}{FAULT}，什么时候能修？",
    "{PROD}用了两年，最近总是{FAULT}。",
    "报修：{PROD}，{FAULT}，{TIME}在家。",
    "{TIME}装的{PROD}，现在{FAULT}。",
    "{PROD}和{PROD}都{FAULT}，请派人来。",
    "{PROD}一开就{FAULT}，{where}都没法用了。",
    "上次修过的{PROD}又{FAULT}了，还收费吗？",
    "{PROD}先是{FAULT}，后来{FAULT}，换新的要多少钱？",
    "能不能{TIME}上门？{PROD}{FAULT}。",
    "{where}那台{PROD}{FAULT}，保修期到{TIME}。",
    "{TIME}约了师傅修{PROD}，到现在没来。",
    "想问一下{PROD}怎么清洗。",
    "我要退{PROD}，才买来就{FAULT}。",
    "{PROD}{FAULT}，按说明书重启了也没用。",
    "请把上门改到{TIME}，{where}没人。",
    "老人说{PROD}{FAULT}，{TIME}来的话先打电话。",
)
WITHOUT_ENTITIES = (
    "上次来的师傅态度很好。",
    "请问{where}上门要加钱吗？",
    "发票还没有收到，麻烦补开一张。",
    "电话一直占线，请回电。",
    "{where}的地址写错了，帮我改一下。",
    "怎么投诉？没人理我。",
    "费用能用微信付吗？",
    "谢谢，{where}的问题已经解决了。",
)


def reviews() -> str:
    """The reviews as CSV: columns ``text`` and ``label``, four labels, the same number of rows for each."""
    random = Random(SEED)
    rows = [
        (text, label)
        for label, sentences in ABOUT.items()
        for text in _distinct(ROWS_OF_A_LABEL, lambda sentences=sentences: _review(random, sentences))
    ]
    random.shuffle(rows)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    return file.getvalue()


def orders() -> str:
    """The repair orders as JSON lines: ``text`` and ``entities`` with ``start``, ``end`` (exclusive) and ``label``."""
    random = Random(SEED)
    rows = _distinct(ORDERS, lambda: _order(random))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in map(_as_row, rows))


def _distinct(count: int, draw: Callable[[], object]) -> list:
    """The first ``count`` different values of ``draw()``."""
    values: dict = {}
    while len(values) < count:
        values[draw()] = None
    return list(values)


def _review(random: Random, sentences: tuple[str, ...]) -> str:
    """One or two sentences about the label's subject, among up to two that say nothing about it."""
    parts = random.sample(sentences, random.choice((1, 1, 2))) + random.sample(COMMON, random.choice((0, 1, 2)))
    random.shuffle(parts)
    words = {"goods": GOODS, "days": DAYS, "who": WHO}
    text = "，".join(_SLOT.sub(lambda slot: random.choice(words[slot[1]]), part) for part in parts)
    return text + random.choice("。。！")


def _order(random: Random) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """A text, and its entities as ``(start, end, label)``."""
    template = random.choice(WITHOUT_ENTITIES if random.random() < 0.12 else WITH_ENTITIES)
    text, entities, done = "", [], 0
    for slot in _SLOT.finditer(template):
        text += template[done : slot.start()]
        word, done = _word(random, slot[1]), slot.end()
        if slot[1] != "where":
            entities.append((len(text), len(text) + len(word), slot[1]))
        text += word
    return text + template[done:], tuple(entities)


def _word(random: Random, slot: str) -> str:
    if slot == "TIME":
        time = random.choice(_DATES) + random.choice(_PERIODS)
        return time + random.choice(_CLOCKS) if random.random() < 0.3 else time
    return random.choice({"PROD": PRODUCTS, "FAULT": FAULTS, "where": NEIGHBOURS}[slot])


def _as_row(order: tuple[str, tuple[tuple[int, int, str], ...]]) -> dict:
    text, entities = order
    return {
        "text": text,
        "entities": [{"start": start, "end": end, "label": label} for start, end, label in entities],
    }


if __name__ == "__main__":
    (FOLDER / "reviews.csv").write_text(reviews(), encoding="utf-8", newline="\n")
    (FOLDER / "orders.jsonl").write_text(orders(), encoding="utf-8", newline="\n")
