"""Draw img/prefix_tree.svg and img/prefix_tree_en.svg: the same four rows padded and as a prefix tree, and its mask.

python benchmarks/draw_prefix_tree.py
"""

from __future__ import annotations

from pathlib import Path

PREFIX, BRANCHES = 6, (3, 2, 4, 1)
COLOURS = {"prefix": "#4c78a8", "own": "#72b07a", "padding": "#dddddd", "unseen": "#f4f4f4"}
CELL = 18
WIDTH, HEIGHT = 720, 366
TEXT = "font-family=\"'PingFang SC','Microsoft YaHei','Noto Sans CJK SC',sans-serif\" font-size=\"17\" fill=\"#222\""
WORDS = {
    "": {
        "padded": "补齐：{rows} 行 × {width} = {tokens} 个 token",
        "tree": "前缀树：共有的开头只算一次，{tokens} 个 token",
        "mask": "每个 token 看得见哪些",
        "kinds": {"prefix": "共有的开头", "own": "各行自己的", "padding": "补齐"},
    },
    "_en": {
        "padded": "Padded: {rows} rows × {width} = {tokens} tokens",
        "tree": "Prefix tree: the shared start once, {tokens} tokens",
        "mask": "What each token can see",
        "kinds": {"prefix": "shared start", "own": "each row's own", "padding": "padding"},
    },
}


def main() -> None:
    """Write the SVG files."""
    folder = Path(__file__).resolve().parents[1] / "img"
    folder.mkdir(exist_ok=True)
    for ending, words in WORDS.items():
        parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
        parts += [*draw_padded(20, 48, words["padded"]), *draw_tree(20, 182, words["tree"])]
        parts += draw_mask(424, 48, words["mask"])
        left = 20
        for kind, text in words["kinds"].items():
            parts += [cell(left, 318, kind), label(left + CELL + 8, 333, text)]
            left += 48 + (17 if ending == "" else 8) * len(text)
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        picture = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'
        (folder / f"prefix_tree{ending}.svg").write_text(picture, encoding="utf-8")


def draw_padded(left: int, top: int, title: str) -> list[str]:
    """Draw four rows, each with its own copy of the prefix, padded to the longest row."""
    rows, width = len(BRANCHES), PREFIX + max(BRANCHES)
    parts = [label(left, top - 14, title.format(rows=rows, width=width, tokens=rows * width))]
    for row, own in enumerate(BRANCHES):
        kinds = ["prefix"] * PREFIX + ["own"] * own + ["padding"] * (width - PREFIX - own)
        parts += [cell(left + CELL * column, top + CELL * row, kind) for column, kind in enumerate(kinds)]
    return parts


def draw_tree(left: int, top: int, title: str) -> list[str]:
    """Draw the prefix once, and from its end a line to every branch."""
    parts = [label(left, top - 14, title.format(tokens=PREFIX + sum(BRANCHES)))]
    step = CELL + 8
    middle = top + step * (len(BRANCHES) - 1) / 2
    parts += [cell(left + CELL * column, middle, "prefix") for column in range(PREFIX)]
    start, end = left + CELL * PREFIX, left + CELL * PREFIX + 44
    for row, own in enumerate(BRANCHES):
        y = top + step * row
        parts.append(
            f'<path d="M{start} {middle + CELL / 2} C{start + 24} {middle + CELL / 2} {end - 24} {y + CELL / 2} '
            f'{end - 3} {y + CELL / 2}" fill="none" stroke="#888" stroke-width="1.6"/>'
        )
        parts += [cell(end + CELL * column, y, "own") for column in range(own)]
    return parts


def draw_mask(left: int, top: int, title: str) -> list[str]:
    """Draw the mask, queries down and keys across: each token sees the prefix and the earlier tokens of its branch."""
    runs = [0] * PREFIX + [number for number, own in enumerate(BRANCHES, start=1) for _ in range(own)]
    parts = [label(left, top - 14, title)]
    for query, query_run in enumerate(runs):
        for key, key_run in enumerate(runs):
            sees = key <= query and key_run in (0, query_run)
            kind = "unseen" if not sees else "prefix" if key_run == 0 else "own"
            parts.append(cell(left + (CELL - 1) * key, top + (CELL - 1) * query, kind, CELL - 1))
    return parts


def cell(left: float, top: float, kind: str, size: int = CELL) -> str:
    """Draw one token as a square."""
    return f'<rect x="{left:g}" y="{top:g}" width="{size - 1}" height="{size - 1}" fill="{COLOURS[kind]}"/>'


def label(left: int, base: int, text: str) -> str:
    """Draw a line of text."""
    return f'<text x="{left}" y="{base}" {TEXT}>{text}</text>'


if __name__ == "__main__":
    main()
