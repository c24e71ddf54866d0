"""Batches: rows in, the same rows with answers out, and the same answers after an interruption."""

import json
from pathlib import Path

import pytest
from chats import ALWAYS_THINKS, BUNDLED, TOKENIZER, tiny_model
from programs import locked_by_another

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import parse_question
from minimind_sft.errors import UserError
from minimind_sft.inference import batch as batch_module
from minimind_sft.inference.batch import BatchAnswerer, BatchOutput, read_batch
from minimind_sft.inference.generate import SamplingSettings, generate_stream
from minimind_sft.inference.stopping import chat_stop_ids

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SAMPLED = SamplingSettings(4, temperature=1.0, seed=3)
IDENTITY = {"weights": "abc", "temperature": 1.0}


@pytest.mark.parametrize(("row", "contents"), [
    ({"messages": [USER, ANSWER]}, ["Q"]),
    ({"messages": [USER]}, ["Q"]),
    ({"conversations": [{"from": "human", "value": "Q"}]}, ["Q"]),
    ({"messages": [USER, ANSWER, USER]}, ["Q", "A", "Q"]),
    ({"messages": [{"role": "system", "content": "S"}, USER], "id": 3}, ["S", "Q"]),
    ({"instruction": "Add.", "input": "1 2", "output": ""}, ["Add.\n1 2"]),
    ({"instruction": "Add."}, ["Add."]),
    ({"question": "Q", "kind": "x"}, ["Q"]), ({"prompt": "Q"}, ["Q"]), ({"question": "Q", "answer": "A"}, ["Q"]),
])
def test_rows_that_ask(row, contents):
    assert [message["content"] for message in parse_question(row, "a.jsonl:1").messages] == contents


@pytest.mark.parametrize("row", [{}, {"id": 1}, {"text": "running"}, {"messages": []}, {"messages": [{"role": "x"}]},
                                 {"messages": [{"role": "system", "content": "S"}]}])
def test_rows_that_do_not_ask_are_refused_once_with_their_place(row):
    with pytest.raises(UserError) as error:
        parse_question(row, "a.jsonl:7")
    assert str(error.value).startswith("a.jsonl:7: ") and str(error.value).count("a.jsonl:7") == 1


def write_questions(path: Path, count: int = 7) -> Path:
    path.write_text("".join(json.dumps({"question": f"Question {number}?", "id": number}) + "\n"
                            for number in range(count)), encoding="utf-8")
    return path


def answer(source: Path, output: Path, batch_size: int = 3, settings: SamplingSettings = SAMPLED,
           identity: dict = IDENTITY) -> list[dict]:
    model = tiny_model()
    rows = read_batch(source, BUNDLED, False, model.config.context)
    out = BatchOutput(output)
    out.open(rows, identity, batch_size)
    BatchAnswerer(model, BUNDLED, settings).answer(rows, out, batch_size)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_with_the_answer_of_a_chat(tmp_path):
    greedy = SamplingSettings(4)
    found = answer(write_questions(tmp_path / "q.jsonl"), tmp_path / "a.jsonl", settings=greedy)
    assert [(row["id"], row["question"]) for row in found] == [(n, f"Question {n}?") for n in range(7)]
    for row in found:
        prompt = BUNDLED.generation_prompt_ids([{"role": "user", "content": row["question"]}])
        said = generate_stream(tiny_model(), prompt, greedy, chat_stop_ids(BUNDLED))
        assert row["model_answer"] == TOKENIZER.decode(list(said))


@pytest.mark.parametrize("kept", [0, 1, 150, 300, 10_000])
def test_an_interrupted_batch_goes_on_to_the_same_answers(tmp_path, kept, monkeypatch):
    source, output = write_questions(tmp_path / "q.jsonl"), tmp_path / "a.jsonl"
    expected = answer(source, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:kept])
    calls = []
    monkeypatch.setattr(batch_module, "generate_batch", lambda *given, run=batch_module.generate_batch: (
        calls.append(len(given[1])) or run(*given)))
    assert answer(source, output) == expected and output.read_bytes() == whole
    assert sum(calls) == (0 if kept == 10_000 else 4 if kept == 300 else 7)


def test_answers_of_another_run_and_other_files_are_kept(tmp_path):
    source, output = write_questions(tmp_path / "q.jsonl"), tmp_path / "a.jsonl"
    answer(source, output)
    before = output.read_bytes()
    with pytest.raises(UserError, match="holds answers that were made with other weights; choose another name"):
        answer(source, output, identity=IDENTITY | {"weights": "other"})
    assert output.read_bytes() == before
    other = tmp_path / "notes.jsonl"
    other.write_text("precious")
    with pytest.raises(UserError, match="was not made by --batch_in"):
        answer(source, other)
    assert other.read_text() == "precious"


@pytest.mark.parametrize(("changed", "number"), [
    (lambda lines: ["mine", *lines[1:]], 1), (lambda lines: [*lines, lines[0]], 8), (lambda lines: lines[::-1], 1),
    (lambda lines: [*lines[:3], "[1]", "5"], 4), (lambda lines: [lines[0], '{"question": "Question 1?", "id": 1}'], 2)])
def test_lines_of_somebody_else_are_neither_cut_off_nor_taken_for_answers(tmp_path, changed, number):
    source, output = write_questions(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    answer(source, output)
    text = "\n".join(changed(output.read_text(encoding="utf-8").splitlines())) + "\n"
    output.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"out.jsonl:{number}: not the answer to a row of --batch_in; choose another"):
        answer(source, output)
    assert output.read_text(encoding="utf-8") == text


def test_a_record_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "out.jsonl.run.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(UserError, match=r"out.jsonl.run.json: the file exists and was not made by --batch_in"):
        BatchOutput(tmp_path / "out.jsonl").open([], {"batch_in": "ab"}, 3)
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8") == '{"mine": 1}'


def test_two_processes_do_not_answer_into_one_file(tmp_path):
    source, output = write_questions(tmp_path / "q.jsonl"), tmp_path / "a.jsonl"
    with locked_by_another(tmp_path / ".a.jsonl.lock") as holder:
        with pytest.raises(UserError, match=rf"a.jsonl: another process is writing there \(process {holder} on "):
            answer(source, output)
        assert not output.exists()
    assert len(answer(source, output)) == 7


def test_rows_that_cannot_be_asked_say_why_and_the_others_are_answered(tmp_path):
    source = tmp_path / "q.jsonl"
    source.write_text(json.dumps({"question": "long " * 9000}) + "\n" + json.dumps({"question": "short"}) + "\n")
    long, short = answer(source, tmp_path / "a.jsonl")
    assert long["model_answer"] is None and long["problem"].startswith(f"{source}:1: the prompt has ")
    assert isinstance(short["model_answer"], str) and "problem" not in short


def test_a_row_that_has_an_answer_of_a_model_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Q", "model_answer": "A"}\n')
    with pytest.raises(UserError, match=r"q.jsonl:1: model_answer: the row has this field already"):
        answer(tmp_path / "q.jsonl", tmp_path / "a.jsonl")


@pytest.mark.parametrize(("template", "thinking"), [
    (BUNDLED, True), (ChatTemplate(TOKENIZER, ALWAYS_THINKS), False)])
def test_reasoning_stands_beside_the_answer(template, thinking, tmp_path, monkeypatch):
    ids = [*TOKENIZER.encode_ordinary("hm"), TOKENIZER.token_to_id("</think>"), *TOKENIZER.encode_ordinary("Yes.")]
    monkeypatch.setattr(batch_module, "generate_batch", lambda model, prompts, *_: [ids] * len(prompts))
    rows = read_batch(write_questions(tmp_path / "q.jsonl", 1), template, thinking, 4096)
    output = BatchOutput(tmp_path / "a.jsonl")
    output.open(rows, IDENTITY, 2)
    BatchAnswerer(tiny_model(), template, SAMPLED).answer(rows, output, 2)
    (row,) = map(json.loads, output.path.read_text().splitlines())
    assert (row["model_answer"], row["model_reasoning"]) == ("Yes.", "hm")
