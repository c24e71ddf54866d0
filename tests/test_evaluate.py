"""scripts/evaluate.py: its results file, interruptions, and what it refuses."""

import json
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote

import pytest
from chats import chat
from programs import CHAT, REPOSITORY, program, wait_for, write_rows
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.evaluation import conversations
from minimind_sft.files import sha256_of_file
from minimind_sft.model.config import ModelConfig

EVALUATE = "scripts/evaluate.py"
SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a program in this process and returns what it prints."""

    def call(*flags, program: str = EVALUATE) -> str:
        monkeypatch.setattr(sys, "argv", [program, *map(str, flags)])
        capsys.readouterr()
        assert not runpy.run_path(str(REPOSITORY / program))["main"]()
        return capsys.readouterr().out

    return call


@pytest.fixture
def flags(tmp_path) -> list:
    """Returns the flags of a short evaluation of random weights."""
    rows = [chat(f"Say {n}.", f"It is {n}.") | {"kind": "odd" if n % 2 else "even"} for n in range(7)]
    return ["--weight", write_base(tmp_path, SMALL), "--data_path", write_rows(tmp_path / "a.jsonl", rows),
            "--max_new_tokens", 5, "--device", "cpu", "--out", tmp_path / "r.json"]


def results(path: Path) -> dict:
    """Returns the results without what differs from run to run."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in ("started", "seconds", "command", "settings")}


def answers(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [line for line in lines if line.get("task") == "answers"]


def test_results_say_what_was_evaluated_and_how(run_here, flags, tmp_path):
    lora = write_lora(tmp_path, flags[1], "style")
    shown = run_here(*flags, "--lora_weight", lora, "--batch_size", 3)
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["model"]["weights"] == sha256_of_file(flags[1])
    assert found["model"]["adapters"] == [{"weight": 1.0, "sha256": sha256_of_file(lora)}]
    assert found["model"]["names"] == {"weights": str(flags[1]), "adapters": [str(lora)]}
    assert found["conversations"]["data"] == [{"path": str(flags[3]), "sha256": sha256_of_file(flags[3])}]
    assert found["command"].startswith("python ") and f"--weight {quote(str(flags[1]))}" in found["command"]
    assert found["settings"]["batch_size"] == 3 and found["machine"]["torch"]
    assert {kind: scores["questions"] for kind, scores in found["conversations"]["by_kind"].items()} == {
        "even": 4, "odd": 3}
    assert shown.splitlines()[-1] == f"results: {tmp_path / 'r.json'}, answers: {tmp_path / 'r.answers.jsonl'}"
    given = answers(tmp_path / "r.answers.jsonl")
    assert [(line["item"], line["question"], line["expected"]) for line in given] == [
        (str(n), f"Say {n}.", f"It is {n}.") for n in range(7)]


def test_it_continues_after_an_interruption_with_the_same_results(run_here, flags, tmp_path, monkeypatch, capsys):
    run_here(*flags[:-1], tmp_path / "whole.json")
    answer, asked = conversations.answer, []

    def interrupted(model, template, questions, *more):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(questions)
        return answer(model, template, questions, *more)

    monkeypatch.setattr(conversations, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(*flags, "--batch_size", 2)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"11 finished items in {tmp_path / 'r.answers.jsonl'}; the same command continues from there")
    assert not (tmp_path / "r.json").exists()
    asked.clear()
    shown = run_here(*flags, "--batch_size", 3)  # another batch size gives the same answers
    assert [question.place.rpartition(":")[2] for question in asked] == ["5", "6", "7"]
    assert shown.startswith("resumed     11 finished items in ")
    assert results(tmp_path / "r.json") == results(tmp_path / "whole.json")
    assert answers(tmp_path / "r.answers.jsonl") == answers(tmp_path / "whole.answers.jsonl")


@pytest.mark.parametrize("name", ["mine.answers.jsonl", "mine.json"])
def test_the_data_are_not_moved_away_for_the_results(run_here, flags, tmp_path, name):
    data = write_rows(tmp_path / name, [chat("Q", "A")])
    with pytest.raises(UserError, match=rf"--out .*mine.json: .*{name} of --data_path is where the results or answers"):
        run_here(*flags[:3], data, "--out", tmp_path / "mine.json", "--overwrite", 1)
    assert data.exists() and not (tmp_path / f"{name}.previous").exists()


def test_items_that_somebody_changed_are_refused_in_every_task(run_here, flags, tmp_path):
    choices, text = tmp_path / "a_test.csv", tmp_path / "a.txt"
    choices.write_text("q,1,2,3,4,A\nq,1,2,3,4,B\n", encoding="utf-8")
    text.write_text("some text", encoding="utf-8")
    flags = [*flags, "--choices", choices, "--text_path", text]
    run_here(*flags)
    path = tmp_path / "r.answers.jsonl"
    whole = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for task in ("losses", "answers", "choices", "texts"):
        for value in (None, "x", []):
            lines = [{name: value if line.get("task") == task and name not in ("task", "item") else kept
                      for name, kept in line.items()} for line in whole]
            if task == "answers" and value == "x":
                continue  # an answer like any other
            write_rows(path, lines)
            with pytest.raises(UserError, match=rf"r.answers.jsonl: {task}: item 0(.0)?: not a line of an evaluation"):
                run_here(*flags)


def test_answers_are_used_again_but_not_for_something_else(run_here, flags, tmp_path, monkeypatch):
    first = run_here(*flags)
    monkeypatch.setattr(conversations, "answer", None)
    again = run_here(*flags)
    assert again.splitlines()[1:] == first.splitlines()
    before = (tmp_path / "r.answers.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"holds answers with another max_new_tokens: 5, now 6; choose another --out"):
        run_here(*flags, "--max_new_tokens", 6)
    write_base(tmp_path, SMALL, scale=1.01)
    with pytest.raises(UserError, match=r"holds losses with another weights: "):
        run_here(*flags)
    assert (tmp_path / "r.answers.jsonl").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [EVALUATE, *map(str, flags), "--overwrite"])
    runpy.run_path(str(REPOSITORY / EVALUATE))["main"]()
    assert (tmp_path / "r.answers.jsonl.previous").read_bytes() == before


def test_without_answers_only_losses_are_measured(run_here, flags, monkeypatch):
    monkeypatch.setattr(conversations, "answer", None)
    shown = run_here(*flags[:-2], "--answers", 0)
    assert shown.splitlines()[0].split() == ["rows", "tokens", "loss", "perplexity", "bits/byte", "token", "accuracy"]
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["all", "even", "odd"]


def test_eval_llm_gives_the_same_answers(run_here, flags, tmp_path):
    run_here(*flags)
    run_here("--weight", flags[1], "--score", flags[3], "--score_out", tmp_path / "s.jsonl", "--max_new_tokens", 5,
             "--device", "cpu", "--batch_size", 4, program=CHAT)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    given = answers(tmp_path / "r.answers.jsonl")
    assert [(row["expected"], row["answer"], row["exact"]) for row in rows] == [
        (line["expected"], line["answer"], line["exact"]) for line in given]


def test_nothing_is_written_when_every_row_is_left_out(run_here, flags, tmp_path):
    weights = write_base(tmp_path, replace(SMALL, max_position_embeddings=8))
    with pytest.raises(UserError, match=rf"^--data_path: every row is left out, starting with {flags[3]}:1: the prompt "
                                        r"has \d+ tokens, the model's context is 8$"):
        run_here("--weight", weights, *flags[2:])
    assert not list(tmp_path.glob("r.*"))


@pytest.mark.parametrize(("change", "message"), [
    (["--out", "r.txt"], r"--out r.txt: expected a name that ends in .json"),
    (["--batch_size", 0], "--batch_size is 0, expected at least 1"),
    (["--weight", "nothing"], "--weight nothing"),
])
def test_refused(run_here, flags, change, message):
    with pytest.raises(UserError, match=message):
        run_here(*flags, *change)


def test_something_to_evaluate_on_is_needed(run_here):
    with pytest.raises(UserError, match="--data_path"):
        run_here()
    with pytest.raises(UserError, match=r"--data_path missing.jsonl: no such file"):
        run_here("--data_path", "missing.jsonl")


SLOW = """
import runpy, sys, time
from minimind_sft.evaluation import conversations
answer, calls = conversations.answer, []
def slow(*arguments):
    calls.append(0)
    if len(calls) == 4:
        print("three answered", flush=True)
        time.sleep(1e6)
    return answer(*arguments)
conversations.answer = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_evaluation_continues(run_here, flags, tmp_path):
    command, options = program(EVALUATE, *flags, "--batch_size", 1)
    kept = tmp_path / "r.answers.jsonl"
    with subprocess.Popen([sys.executable, "-c", SLOW, *command[1:]], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, **options) as process:
        wait_for(lambda: "three answered" in process.stdout.readline(), process)
        process.kill()
    before = kept.read_bytes()
    assert before.count(b'"task": "answers"') == 3
    kept.write_bytes(before[:-5])  # as if it had been killed in the middle of a line
    shown = run_here(*flags, "--batch_size", 64)
    assert "resumed     9 finished items" in shown
    assert kept.read_bytes().startswith(before[:before.rfind(b"\n", 0, -1) + 1])
    assert [line["item"] for line in answers(kept)] == [str(n) for n in range(7)]
