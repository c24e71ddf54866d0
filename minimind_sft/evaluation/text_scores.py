"""Scores an answer's text against the expected one: normalised match, token F1, BLEU, chrF and ROUGE-L.

BLEU and chrF come from sacrebleu, ROUGE-L from rouge-score, and Chinese words for it from jieba. They are optional
packages (pip install 'minimind-sft[eval]'): scores whose package is missing are left out.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HAS_HAN = re.compile(f"[{HAN}]")
WORD = re.compile(f"[{HAN}]+|[^\\W_{HAN}]+")
"""A run of Chinese characters, or another word."""
TOKEN = re.compile(f"[{HAN}]|[^\\s{HAN}]+")
ARTICLES = re.compile(f"(?<![^\\W{HAN}])(a|an|the)(?![^\\W{HAN}])")

PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge_l": "rouge-score"}
MODULES = {"sacrebleu": "sacrebleu", "rouge-score": "rouge_score", "jieba": "jieba"}


def normalised(text: str) -> str:
    """Returns the text in lower case, without punctuation, English articles and surplus white space.

    That is what SQuAD's evaluation compares (Rajpurkar et al. 2016, arXiv:1606.05250). Full-width characters count as
    the usual ones (NFKC), and punctuation is that of all scripts.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(character for character in text
                   if character not in string.punctuation and not unicodedata.category(character).startswith("P"))
    return " ".join(ARTICLES.sub(" ", text).split())


def tokens(text: str) -> list[str]:
    """Splits the normalised text into words; a Chinese character is a token of its own."""
    return TOKEN.findall(normalised(text))


def token_f1(answer: str, expected: str) -> float:
    """Returns SQuAD's F1 of the answer's tokens, 0 to 1: they count as often as they occur, in any order."""
    given, wanted = tokens(answer), tokens(expected)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def missing_packages(texts: Iterable[str]) -> dict[str, str]:
    """Returns the scores that cannot be computed for these expected texts, each with the package it lacks."""
    missing = {score: package for score, package in PACKAGES.items() if not _is_installed(package)}
    if "rouge_l" not in missing and not _is_installed("jieba") and any(map(HAS_HAN.search, texts)):
        missing["rouge_l"] = "jieba"
    return missing


def _is_installed(package: str) -> bool:
    return find_spec(MODULES[package]) is not None


def bleu(answers: Sequence[str], expected: Sequence[str]) -> tuple[float | None, str]:
    """Returns the BLEU of all answers together (Papineni et al. 2002), 0 to 100, and sacrebleu's signature.

    BLEU counts runs of up to 4 tokens; it is None if no expected text has 4.
    """
    metric = bleu_metric(expected)
    score, signature = _corpus_score(metric, answers, expected)
    has_runs = any(len(metric.tokenizer(text).split()) >= metric.max_ngram_order for text in expected)
    return score if has_runs else None, signature


def chrf(answers: Sequence[str], expected: Sequence[str]) -> tuple[float, str]:
    """Returns the chrF2 of all answers together (Popovic 2015), 0 to 100, and sacrebleu's signature."""
    return _corpus_score(chrf_metric(), answers, expected)


def bleu_metric(expected: Sequence[str]) -> Any:
    """Returns sacrebleu's BLEU.

    If any expected text has Chinese characters, all texts are tokenized by sacrebleu's "zh", which splits these and
    treats other words like its default "13a". So the tokenization does not depend on the answers.
    """
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh" if any(map(HAS_HAN.search, expected)) else "13a")


def chrf_metric() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def corpus_statistics(metric: Any, answers: Sequence[str], expected: Sequence[str]) -> list[list[int]]:
    """Returns what each answer adds to the sums that a score of sacrebleu is computed from, as its own tests do."""
    return metric._extract_corpus_statistics(list(answers), [list(expected)])


def score_of_statistics(metric: Any, sums: Sequence[int]) -> float:
    """Computes the score from the sums of `corpus_statistics`."""
    return metric._compute_score_from_stats(list(sums)).score


def _corpus_score(metric: Any, answers: Sequence[str], expected: Sequence[str]) -> tuple[float, str]:
    return metric.corpus_score(list(answers), [list(expected)]).score, str(metric.get_signature())


def rouge_l(answer: str, expected: str) -> float:
    """Returns the F-measure of ROUGE-L (Lin 2004), 0 to 1, without stemming.

    English is tokenized as rouge-score does by default, Chinese into words by jieba. Words of other scripts count too,
    which rouge-score would drop.
    """
    return _rouge_scorer().score(expected, answer)["rougeL"].fmeasure


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


class Words:
    """Splits text into words, as rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return [word for run in WORD.findall(text.lower())
                for word in (_chinese_words(run) if HAS_HAN.match(run) else [run])]


def _chinese_words(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel("ERROR")  # it reports on stderr that it loads its dictionary
    return jieba.lcut(text)
