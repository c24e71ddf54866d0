"""Shown tokens, bars of lengths and quantiles."""

from collections import Counter

from chats import BUNDLED, TOKENIZER, chat

from minimind_sft.data.example import make_example
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.inspection import figures
from minimind_sft.inspection.shown import shown_tokens

ROWS = SFTEncoder(BUNDLED, 60)
CONTROL = {TOKENIZER.token_to_id(token) for token in TOKENIZER.control_tokens(BUNDLED.source)}


def test_tokens_of_one_character_are_shown_together():
    example = ROWS.encode([("", chat("龘", "龘"))])[0].samples[0][0]
    tokens = shown_tokens(ROWS, example, CONTROL)
    # The line end after the last end of turn is neither an input nor a label.
    assert [one for token in tokens for one in token.ids] == example.input_ids.tolist()
    assert [(token.text, len(token.ids), token.supervised) for token in tokens if "龘" in token.text] == [
        ("龘", 2, False), ("龘", 2, True)]


def test_a_truncated_character_is_shown_as_a_replacement():
    ids = [*TOKENIZER.encode("👩\u200d👧龘")[:-1], BUNDLED.end_of_turn_id]
    tokens = shown_tokens(ROWS, make_example(ids, [False] * (len(ids) - 1) + [True]), CONTROL)
    assert "".join(token.text for token in tokens) == "👩\u200d👧\ufffd<|im_end|>"
    assert tokens[-1] == ("<|im_end|>", (2,), True, True) and tokens[-2].text == "\ufffd"


def test_bars_and_quantiles():
    lengths = Counter({1: 3, 12: 2, 13: 1, 30: 4})
    found = figures.bars(lengths, 24)
    assert [(bar.first, bar.last) for bar in found[:2]] == [(1, 2), (3, 4)] and len(found) == 13
    assert [bar.sequences for bar in found] == [3, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 4]
    assert found[-1] == (25, 30, 4, True) and found[-2].last == 24
    assert [bar[:3] for bar in figures.bars(lengths, 1000)][-1] == (28, 30, 4)
    assert figures.bars(Counter(), 9) == []
    assert [figures.quantile(lengths, share) for share in (0, 0.3, 0.5, 0.6, 1)] == [1, 1, 12, 13, 30]
