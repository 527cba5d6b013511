"""Marked blocks are drawn anew, and nothing else of a page changes."""

from __future__ import annotations

import pytest

from deqlm.reporting.page import blank, drawn, redraw, table

PAGE = "Words.\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nMore words.\n\n<!-- begin b -->\n<!-- end b -->\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_change_and_words_stay(page):
    assert redraw(page, {"a": "new", "b": "one\ntwo"}) == page
    assert page.read_text() == PAGE.replace("old", "new").replace("begin b -->\n", "begin b -->\none\ntwo\n")


def test_a_block_that_is_not_given_stays(page):
    redraw(page, {"b": "new"})
    assert "\nold\n" in page.read_text()


def test_drawing_twice_changes_nothing(page):
    blocks = {"a": r"a \1 group, a \n and {braces}", "b": ""}
    first = redraw(page, blocks).read_text()
    assert r"a \1 group, a \n and {braces}" in first
    assert redraw(page, blocks).read_text() == first


def test_drawn_writes_nothing(page):
    assert "new" in drawn(page, {"a": "new"})
    assert page.read_text() == PAGE


def test_a_page_without_the_mark_is_refused_and_stays(page):
    with pytest.raises(ValueError, match="has no block 'c': it needs <!-- begin c --> and <!-- end c -->"):
        redraw(page, {"a": "new", "c": "lost"})
    assert page.read_text() == PAGE


def test_a_page_that_is_not_there_needs_a_beginning(tmp_path):
    path = tmp_path / "folder/page.md"
    with pytest.raises(FileNotFoundError):
        redraw(path, {"a": "text"})
    assert not path.parent.exists()
    new = blank("Title", {"a": "Heading", "b": ""})
    text = redraw(path, {"a": "text", "b": "more"}, new=new).read_text()
    assert text.startswith(
        "# Title\n\n## Heading\n\n<!-- begin a -->\ntext\n<!-- end a -->\n\n<!-- begin b -->\nmore\n"
    )


def test_an_old_page_wins_over_the_beginning(page):
    redraw(page, {"a": "new"}, new="nothing")
    assert page.read_text() == PAGE.replace("old", "new")


def test_tables_align_numbers_to_the_right():
    rows = [["x", "1", "2"]]
    assert table(["a", "b", "c"], rows) == "| a | b | c |\n|---|---:|---:|\n| x | 1 | 2 |"
    assert table(["a", "b", "c"], rows, numbers=False) == "| a | b | c |\n|---|---|---|\n| x | 1 | 2 |"
    assert table(["a"], []) == "| a |\n|---|"
