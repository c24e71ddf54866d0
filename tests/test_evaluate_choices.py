"""scripts/evaluate.py on multiple-choice questions and plain text, called in this process."""

import json
import runpy
import sys

import pytest
from programs import REPOSITORY
from tiny_adapters import write_base

from minimind_sft.errors import UserError
from minimind_sft.evaluation import choices
from minimind_sft.model.config import ModelConfig

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo"}


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Runs the program on small weights and returns what it prints."""
    write_base(tmp_path, SMALL)

    def call(*flags) -> str:
        monkeypatch.setattr(sys, "argv", ["scripts/evaluate.py", *map(str, flags), "--save_dir", str(tmp_path),
                                          "--device", "cpu", "--dtype", "float32"])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / "scripts/evaluate.py"))["main"]()
        return capsys.readouterr().out

    return call


@pytest.fixture
def questions(tmp_path):
    """Writes MMLU's files of one subject, and a text; returns their flags."""
    options = ",".join(CAPITALS.values())
    lines = [f"What is the capital of {country}?,{options},{letter}\n" for country, letter in zip(CAPITALS, "ABCD",
                                                                                                 strict=True)]
    for split, kept in (("test", lines), ("dev", lines[1:3])):
        (tmp_path / f"global_facts_{split}.csv").write_text("".join(kept))
    (tmp_path / "book.txt").write_text("Rome is old.\n" * 40)
    return ["--choices", tmp_path / "global_facts_test.csv", "--text_path", tmp_path / "book.txt"]


def test_results_are_printed_written_and_resumed(evaluate, questions, tmp_path, monkeypatch):
    out, answers = tmp_path / "r.json", tmp_path / "r.answers.jsonl"
    monkeypatch.setattr(choices, "QUESTIONS_AT_ONCE", 3)
    flags = [*questions, "--few_shot", 1, "--few_shot_path", tmp_path / "global_facts_dev.csv", "--out", out]
    shown = evaluate(*flags)
    assert "global_facts          4" in shown and "(4 questions, 1 subject" in shown and "all texts" in shown
    found = json.loads(out.read_text())
    asked, texts = found["choices"], found["texts"]
    assert (asked["questions"], asked["few_shot"], asked["scored_options"], asked["problems"]) == (4, 1, "letters", [])
    assert asked["acc"] == asked["by_subject"]["global_facts"]["acc"] and asked["guessing"] == 0.25
    assert [one["path"].endswith("_dev.csv") for one in asked["examples"]] == [True]
    assert texts["all"]["bytes"] == 520 and (texts["context"], texts["stride"]) == (1024, 512)

    lines = answers.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert [row["expected"] for row in rows if row.get("task") == "choices"] == ["A", "B", "C", "D"]
    answers.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote the third question
    assert "2 finished items" in evaluate(*flags)
    again = json.loads(out.read_text())
    for task in ("choices", "texts"):
        assert again[task] == found[task]
    with pytest.raises(UserError, match="holds choices with another few_shot: 1, now 0"):
        evaluate(*questions, "--out", out)


@pytest.mark.parametrize("flags, problem", [
    ([], "expected files to evaluate on: --data_path, --choices or --text_path"),
    (["--choices", "no.csv"], r"--choices no\.csv: no such file"),
    (["--choices", "pyproject.toml"], r"--choices pyproject\.toml: expected a file named"),
    (["--few_shot", "2"], "--few_shot and --few_shot_path go together"),
    (["--text_path", "README.md"], r"--text_path README\.md: expected a file named"),
    (["--text_stride", "2"], "--text_context and --text_stride need --text_path"),
])
def test_what_cannot_be_evaluated_is_refused_before_weights_are_read(evaluate, flags, problem, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError, match=problem):
        evaluate(*flags, "--weight", "no_such_weights")
