"""The frame of pages: everything escaped, nothing loaded, and a policy that names exactly the page's scripts."""

import base64
import hashlib
import os
import re

import pytest

from minimind_sft.errors import UserError
from minimind_sft.report.page import Badge, Column, Figure, Note, Table, checked_page, policy, render, write_page

EVIL = "<script>alert(1)</script>\"' onload=x &"


def test_the_policy_has_the_hash_of_each_script():
    empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="  # of no bytes
    assert policy([""]) == ("default-src 'none'; style-src 'unsafe-inline'; "
                            f"script-src 'sha256-{empty}'; base-uri 'none'; form-action 'none'")
    assert "connect-src 'self'" in policy([], connects=True) and "connect-src" not in policy([])


def test_the_script_in_the_page_is_the_one_that_the_policy_allows():
    page = render("base.html.jinja")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'") == (
        policy([script])) and digest in page
    assert not re.search(r"(src|href)\s*=\s*[\"']|url\(|@import|https?:", page)


def test_parts_escape_what_they_show(tmp_path, monkeypatch):
    template = """{% import "parts.html.jinja" as parts %}
{{ parts.verdict("fine", evil) }}{{ parts.figures([figure]) }}{{ parts.notes([note]) }}{{ parts.table(table) }}
{{ parts.facts([(evil, evil)]) }}"""
    (tmp_path / "try_out").mkdir()
    (tmp_path / "try_out/__init__.py").touch()
    (tmp_path / "try_out/try.html.jinja").write_text(template)
    monkeypatch.syspath_prepend(tmp_path)
    table = Table([Column(EVIL), Column("n", True)], [[EVIL, Badge("fine", EVIL)]])
    page = render("try.html.jinja", package="try_out", evil=EVIL, figure=Figure(EVIL, EVIL, EVIL, "wrong"),
                  note=Note("hint", EVIL), table=table)
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39; onload=x &amp;") == 10
    assert '<span class="badge fine">' in page and '<td class="number">' in page
    page = render("try.html.jinja", package="try_out", evil="a\x1b[2J\x00\u202eb\tc\n", figure=Figure("\x07", "\x9b"),
                  note=Note("hint", "\u2066"), table=Table([Column("\x7f")], [["两 العربية\u200f"]]))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", page)
    assert "a\\u001b[2J\\u0000\\u202eb\tc\n" in page and "两 العربية\u200f" in page


def test_characters_that_cannot_be_encoded_are_written_as_escapes(tmp_path):
    write_page(tmp_path / "a.html", "a\ud800b")
    assert (tmp_path / "a.html").read_bytes() == b"a\\ud800b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_page_in_place_of_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.html")
    with pytest.raises(UserError, match=r"a\.html: a pipe, expected a file or nothing"):
        checked_page(str(tmp_path / "a.html"))
