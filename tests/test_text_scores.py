"""Scores of texts, beside sacrebleu and rouge-score."""

import pytest

from minimind_sft.evaluation import text_scores
from minimind_sft.evaluation.text_scores import (
    bleu,
    chrf,
    missing_packages,
    normalised,
    rouge_l,
    token_f1,
    tokens,
)

ENGLISH = [("The cat sat on the mat.", "A cat is sitting on the mat."), ("It is 5.", "It is 5."), ("", "Nothing"),
           ("I'd say: yes, yes!", "yes"), ("one two three four five", "five four three two one"),
           ("Paris -- the capital of", "paris, capital of France, in Europe")]
CHINESE = [("我是小明，一个语言模型。", "我是小明，一个小型语言模型。"), ("星期六", "星期六。"), ("不知道", "北京"),
           ("用 Python 写代码", "用 python 编写代码")]


@pytest.mark.parametrize(("text", "expected"), [
    ("The  Cat's mat.", "cats mat"), ("“Ｙｅｓ”，是的！", "yes是的"), ("an apple a day", "apple day"),
    ("Theatre", "theatre"), ("A", ""), ("3.5 < 4", "35 4")])
def test_normalised(text: str, expected: str):
    assert normalised(text) == expected


def test_tokens_of_two_languages():
    assert tokens("用 Python3 写，the code") == ["用", "python3", "写", "code"]


@pytest.mark.parametrize(("pair", "f1"), [*zip(ENGLISH, [2 / 3, 1.0, 0.0, 2 / 5, 1.0, 2 / 3], strict=True)])
def test_f1_by_hand(pair: tuple[str, str], f1: float):
    """The first pair: cat, on and mat are shared; they are 3 of 4 and 3 of 5 tokens without articles."""
    assert token_f1(*pair) == pytest.approx(f1)


def test_f1_of_chinese_counts_characters():
    assert token_f1("北京市", "北京") == pytest.approx(2 * 2 / 5)
    assert token_f1("。", "！") == 1.0  # both are empty when normalised
    assert token_f1("。", "北京") == 0.0


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh"), (ENGLISH + CHINESE, "zh")])
def test_bleu_and_chrf_are_those_of_sacrebleu(pairs: list[tuple[str, str]], tokenizer: str):
    sacrebleu = pytest.importorskip("sacrebleu")
    answers, expected = map(list, zip(*pairs, strict=True))
    score, signature = bleu(answers, expected)
    assert score == sacrebleu.corpus_bleu(answers, [expected], tokenize=tokenizer).score > 0
    assert f"tok:{tokenizer}" in signature and "version:" in signature
    score, signature = chrf(answers, expected)
    assert score == sacrebleu.corpus_chrf(answers, [expected]).score > 0
    assert signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


def test_bleu_of_texts_without_four_tokens_is_not_a_number():
    pytest.importorskip("sacrebleu")
    assert bleu(["Rome", "It is."], ["Rome", "It is."])[0] is None
    assert bleu(["Rome", "wrong"], ["Rome", "It is 5."])[0] == 0.0
    assert bleu(["星期六。"], ["星期六。"])[0] == pytest.approx(100)


@pytest.mark.parametrize(("answer", "expected"), ENGLISH)
def test_rouge_l_of_english_is_that_of_rouge_score(answer: str, expected: str):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(expected, answer)["rougeL"].fmeasure
    assert rouge_l(answer, expected) == theirs


def test_rouge_l_of_chinese_counts_words():
    pytest.importorskip("rouge_score")
    jieba = pytest.importorskip("jieba")
    assert jieba.lcut("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]
    assert rouge_l("我来到清华大学", "我来到北京清华大学。") == pytest.approx(2 * 3 / 7)
    assert rouge_l("在北京 drink Tea", "北京 tea") == pytest.approx(2 * 2 / 6)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(text_scores, "_is_installed", lambda package: package == "rouge-score")
    assert missing_packages(["Rome"]) == {"bleu": "sacrebleu", "chrf": "sacrebleu"}
    assert missing_packages(["Rome", "罗马"]) == {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge_l": "jieba"}
    monkeypatch.setattr(text_scores, "_is_installed", lambda package: package == "jieba")
    assert missing_packages(["罗马"])["rouge_l"] == "rouge-score"
