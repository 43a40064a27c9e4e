"""NFC with the offsets of entities, and literals in cells. Run: pytest tests/test_text.py"""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.errors import RowError
from sft.tasks.ner import Ner
from sft.text import read_literal, shifted_offsets

# Characters that NFC changes (marks, Jamo, compatibility ideographs, marks that reorder) among others.
TRICKY = st.text(
    st.sampled_from("ae北京，\u0301\u0323\u0327\u1100\u1161\u11a8\uac00\uf900\u212b\u2126\u0344\u0f73\u0958🙂")
)


@given(TRICKY | st.text())
def test_offsets_cover_the_normalised_text_in_order(text):
    offsets = shifted_offsets(text)
    assert len(offsets) == len(text) + 1
    assert offsets[0][0] == 0 and offsets[-1] == (len(unicodedata.normalize("NFC", text)),) * 2
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert [end for _, end in offsets] == sorted(end for _, end in offsets)
    assert all(start <= end for start, end in offsets)


@given(TRICKY, TRICKY, TRICKY)
def test_an_entity_keeps_its_text_up_to_nfc(before, surface, after):
    """The moved offsets of a span that begins at a whole character give the span's own text, normalised."""
    surface = f"北{surface}"
    text = f"{before}，{surface}。{after}"
    start = len(before) + 1
    moved_start = shifted_offsets(text)[start][0]
    moved_end = shifted_offsets(text)[start + len(surface)][1]
    composed = unicodedata.normalize("NFC", text)
    assert composed[moved_start:moved_end] == unicodedata.normalize("NFC", surface)


@given(TRICKY.filter(str.strip), st.data())
def test_a_converted_entity_is_the_text_at_its_offsets(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    row = {"text": text, "entities": [{"start_idx": start, "end_idx": end, "entity_label": "X"}]}
    record = Ner.convert(row)
    (entity,) = record["entities"]
    assert unicodedata.is_normalized("NFC", record["text"])
    assert record["text"][entity["start"] : entity["end"]] == entity["text"] != ""
    assert unicodedata.is_normalized("NFC", entity["text"])


def test_every_code_point_that_nfc_changes_keeps_its_place():
    changing = [chr(code) for code in range(0x110000) if not unicodedata.is_normalized("NFC", chr(code))]
    changing = [character for character in changing if not 0xD800 <= ord(character) < 0xE000]
    assert len(changing) > 1000
    for character in changing:
        text = f"甲{character}乙"
        row = {"text": text, "entities": [{"start_idx": 2, "end_idx": 3, "entity_text": "乙", "entity_label": "X"}]}
        assert Ner.convert(row)["entities"][0]["text"] == "乙"


def test_overlap_that_normalisation_makes_is_rejected():
    """Two entities that share a character after composition cannot both keep it."""
    items = [
        {"start_idx": 0, "end_idx": 1, "entity_label": "X"},
        {"start_idx": 1, "end_idx": 3, "entity_label": "X"},
    ]
    with pytest.raises(RowError, match="重叠"):
        Ner.convert({"text": "e\u0301京", "entities": items})


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]))))
def test_a_list_reads_back_from_either_notation(options):
    assert read_literal(repr(options)) == options
    assert read_literal(json.dumps(options)) == options
    assert read_literal(json.dumps(options, ensure_ascii=False)) == options


@pytest.mark.parametrize(
    "text", ["", "体育", "[", "[1", "__import__('os')", "[" * 100_000, "['a' + 1]", "\x00", "a\nb"]
)
def test_what_is_no_literal_is_a_value_error(text):
    with pytest.raises(ValueError, match="neither"):
        read_literal(text)
