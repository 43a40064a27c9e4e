"""Draw img/prefix_tree.svg: the same four rows padded and as a prefix tree, and the tree's attention mask.

python benchmarks/draw_prefix_tree.py
"""

from __future__ import annotations

from pathlib import Path

PREFIX, BRANCHES = 6, (3, 2, 4, 1)
COLOURS = {"prefix": "#4c78a8", "own": "#72b07a", "padding": "#e4e4e4", "unseen": "#f6f6f6"}
CELL = 14
TEXT = 'font-family="sans-serif" font-size="13" fill="#333"'


def main() -> None:
    """Write the SVG file."""
    parts = [*draw_padded(20, 40), *draw_tree(20, 140), *draw_mask(330, 40)]
    legend = (("prefix", "共有的开头"), ("own", "各行自己的"), ("padding", "补齐"))
    for number, (kind, text) in enumerate(legend):
        parts += [cell(20 + 100 * number, 215, kind), label(40 + 100 * number, 226, text)]
    picture = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 590 290">{"".join(parts)}</svg>\n'
    path = Path(__file__).resolve().parents[1] / "img" / "prefix_tree.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(picture, encoding="utf-8")


def draw_padded(left: int, top: int) -> list[str]:
    """Draw four rows, each with its own copy of the prefix, padded to the longest row."""
    width = PREFIX + max(BRANCHES)
    parts = [label(left, top - 12, f"补齐：{len(BRANCHES)} × {width} = {len(BRANCHES) * width} 个词元")]
    for row, own in enumerate(BRANCHES):
        kinds = ["prefix"] * PREFIX + ["own"] * own + ["padding"] * (width - PREFIX - own)
        parts += [cell(left + CELL * column, top + CELL * row, kind) for column, kind in enumerate(kinds)]
    return parts


def draw_tree(left: int, top: int) -> list[str]:
    """Draw the prefix tree as one sequence: the prefix once, then every branch after it."""
    parts = [
        label(left, top - 12, f"前缀树：{PREFIX} + {' + '.join(map(str, BRANCHES))} = {PREFIX + sum(BRANCHES)} 个词元")
    ]
    place = 0
    for length, kind in [(PREFIX, "prefix"), *((own, "own") for own in BRANCHES)]:
        parts += [cell(left + CELL * (place + step), top, kind) for step in range(length)]
        place += length
        x = left + CELL * place
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top - 3}" y2="{top + 17}" stroke="#333"/>')
    return parts


def draw_mask(left: int, top: int) -> list[str]:
    """Draw the mask, queries down and keys across: each token sees the prefix and the earlier tokens of its branch."""
    runs = [0] * PREFIX + [number for number, own in enumerate(BRANCHES, start=1) for _ in range(own)]
    parts = [label(left, top - 12, "谁看得见谁（行：查询，列：键）")]
    for query, query_run in enumerate(runs):
        for key, key_run in enumerate(runs):
            sees = key <= query and key_run in (0, query_run)
            kind = "unseen" if not sees else "prefix" if key_run == 0 else "own"
            parts.append(cell(left + CELL * key, top + CELL * query, kind))
    return parts


def cell(left: int, top: int, kind: str) -> str:
    """Draw one token as a square."""
    return f'<rect x="{left}" y="{top}" width="{CELL - 1}" height="{CELL - 1}" fill="{COLOURS[kind]}"/>'


def label(left: int, base: int, text: str) -> str:
    """Draw a line of text."""
    return f'<text x="{left}" y="{base}" {TEXT}>{text}</text>'


if __name__ == "__main__":
    main()
