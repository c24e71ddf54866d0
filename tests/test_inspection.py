"""The inspector's findings, plan, report, page and exit status."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chats import BUNDLED, TOKENIZER, chat
from programs import PATIENCE, program, questions, write_rows

from minimind_sft.data import workers
from minimind_sft.data.chat_template import ChatTemplate, Supervision
from minimind_sft.data.example import Example, make_example
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import EncodedRow, PretrainEncoder, SFTEncoder
from minimind_sft.data.sources import find_sources
from minimind_sft.errors import UserError
from minimind_sft.inspection.page import render_page
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.shown import first_rows
from minimind_sft.inspection.survey import answer_ends, survey
from minimind_sft.inspection.terminal import as_text
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings, SFTSettings

SCRIPT = "scripts/inspect_data.py"
ROWS = SFTEncoder(BUNDLED, 60)


FINE = chat("2 + 2?", "4")
LONG = chat("Count.", "1 2 3 4 5 6 7 8 9 " * 8)
DEFECTS = [
    json.dumps(FINE),
    "{broken",
    json.dumps({"messages": 5}),
    json.dumps({"instruction": "Count.", "output": "1 2"}),
    json.dumps(LONG),
    json.dumps(chat("Count to a hundred. " * 30, "No.")),
    json.dumps({"messages": FINE["conversations"], "id": 7}),
    "",
    json.dumps(chat("", "Yes?", "", "No?")),
    json.dumps(chat(" ", "Hi", "Hello", roles="sua")),
    json.dumps(chat("a", "b", "c", "d", "e", roles="uuaau")),
    json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
    json.dumps({"text": "Running text."}),
    json.dumps({"text": " \n"}),
]


@pytest.fixture
def defects(tmp_path) -> Path:
    path = tmp_path / "defects.jsonl"
    path.write_text("\n".join(DEFECTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def inspect(monkeypatch, capsys):
    """Runs the program in this process and returns (exit status or error, output)."""
    specification = importlib.util.spec_from_file_location("inspect_data", Path(__file__).parent.parent / SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def run(*arguments: object) -> tuple:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
        try:
            status = module.main()
        except UserError as error:
            status = str(error)
        return status, capsys.readouterr().out

    return run


def places(tally, kind: str) -> list:
    finding = tally.findings[kind]
    assert finding.count == len(finding.places)
    return [(position.line, detail) for position, detail in finding.places]


def reported(rows, train: list[Path], evaluation: tuple[Path, ...] = (), config=None, **options):
    sources = find_sources([str(path) for path in train], "FILE")
    eval_sources = find_sources([str(path) for path in evaluation], "E") if evaluation else []
    tallies = survey([*(path for source in sources for path in source.files), *evaluation], rows, **options)
    return make_report(tallies, sources, eval_sources, config or changed(SFTSettings(), max_seq_len=60), 1, False)


def test_every_defect_is_found_at_its_line(defects):
    tally = reported(ROWS, [defects]).parts[0].tally
    assert [line for line, _ in places(tally, "bad")] == [2, 3]
    assert places(tally, "bad")[1][1] == f"{defects}:3: messages: expected a list of turns, found 5"
    assert [line for line, _ in places(tally, "truncated")] == [5]
    assert places(tally, "dropped") == [(6, "")]
    assert places(tally, "duplicated") == [(7, "as line 1")]
    assert places(tally, "empty") == [(9, "turn 1 (user), turn 3 (user)"), (10, "turn 1 (system)"), (14, "no text")]
    assert places(tally, "not_alternating") == [
        (11, "turn 2: user after user, turn 4: assistant after assistant, ends with a user turn")]
    assert tally.forms == {"conversations (role, content)": 6, "instruction, output": 1, "messages (role, content)": 1,
                           "conversations (from, value)": 1, "text": 2}
    assert tally.counts.rows == 13 and tally.usable == 10
    assert not places(tally, "unended") and not places(tally, "leaked")
    assert (tally.turns, tally.ended) == (10, 9)  # the truncated answer has no end of turn
    assert reported(ROWS, [defects]).parts[0].verdict == (
        "wrong: 2 bad; also 1 cut, 1 dropped, 1 duplicated, 3 empty, 1 not alternating")


def test_several_processes_find_the_same(defects, tmp_path, monkeypatch):
    again = write_rows(tmp_path / "more.jsonl", questions(40))
    report = reported(ROWS, [defects, again], check_prompts=True)
    monkeypatch.setattr(workers, "CHUNK_ROWS", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert reported(ROWS, [defects, again], check_prompts=True).as_json() == report.as_json()


def test_the_counts_equal_those_of_the_trainer(defects, tmp_path, inspect):
    status, printed = inspect(defects, "--json", "--max_seq_len", 60)
    assert status == 1
    counts = prepare([defects], ROWS, tmp_path / "prepared", bad_rows="skip").counts
    (part,) = json.loads(printed)["files"]
    for name in ("rows", "truncated", "tokens", "supervised", "dropped_rows", "bad_rows"):
        assert part[name] == getattr(counts, name), name
    assert [row["detail"] for row in part["findings"]["bad"]["rows"]] == counts.bad
    assert sum(part["lengths"].values()) == part["sequences"] + part["dropped_rows"] == 11


def test_rows_of_an_array_on_one_line_are_distinguished(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f'[{json.dumps(FINE)}, 5, {json.dumps(LONG)}, {{"text": 3}}, {json.dumps(FINE)}]', encoding="utf-8")
    tally = reported(ROWS, [path]).parts[0].tally
    assert [error for _, error in places(tally, "bad")] == [
        f"{path}:1 (row 2): expected one JSON object per row, found 5",
        f"{path}:1 (row 4): text: expected a string, found 3"]
    assert tally.findings["truncated"].places[0][0] == (1, 3) and tally.findings["bad"].places[1][0] == (1, 4)
    assert tally.findings["duplicated"].places == [((1, 5), "as line 1")]
    assert tally.usable == 3


def test_rows_in_both_files_are_wrong_and_repeated_questions_a_hint(tmp_path):
    train = [write_rows(tmp_path / "a.jsonl", questions(3)),
             write_rows(tmp_path / "b.jsonl", [FINE, *questions(1), {"text": "A text."}])]
    held_out = write_rows(tmp_path / "e.jsonl", [chat("New?", "Yes."), chat("Say 1.", "No."), FINE,
                                                 chat("Be short.", "Say 1.", "1", roles="sua"), {"text": "Another."}])
    report = reported(ROWS, train, (held_out,))
    first, second, evaluation = report.parts
    assert places(second.tally, "duplicated") == [(2, f"as {train[0]}:1")]
    assert places(evaluation.tally, "leaked") == [(3, f"as {train[1]}:1")]
    assert places(evaluation.tally, "same_question") == [(2, f"as {train[0]}:2")]
    assert (first.verdict, evaluation.verdict) == ("fine", "wrong: 1 also in the training data")
    assert [part.name for part in report.totals] == ["all 2 files"]
    assert report.totals[0].tally.counts.rows == 6 and report.totals[0].odd == ["1 duplicated"]
    assert not report.is_fine and report.verdict == f"not fine to train on: {held_out}"


def test_calls_that_differ_in_the_order_of_arguments_are_duplicates(tmp_path):
    def row(arguments: dict) -> dict:
        tools = [{"role": "tool", "content": content} for content in ("sunny", "windy")]  # no broken alternation
        return {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [
            {"name": "weather", "arguments": arguments}]}, *tools, {"role": "assistant", "content": "Nice."}]}

    data = write_rows(tmp_path / "a.jsonl", [row({"city": "a", "day": 1}), row({"day": 1, "city": "a"}),
                                             row({"city": "a", "day": 2})])
    (part,) = reported(SFTEncoder(BUNDLED, 200), [data]).parts
    assert part.verdict == "fine, but 1 duplicated"


def test_evaluating_on_the_training_file_is_wrong(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [*questions(3), *questions(1)])
    train, evaluation = reported(ROWS, [data], (data,)).parts
    assert train.verdict == "fine, but 1 duplicated"
    assert evaluation.verdict == "wrong: 4 also in the training data; also 1 duplicated"


def test_the_planned_steps_equal_those_of_the_trainer(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(40))
    config = changed(SFTSettings(), max_seq_len=60, epochs=3, batch_size=8, accumulation_steps=2, eval_share=0.1)
    sources, tallies = find_sources([str(data)], "FILE"), survey([data], ROWS)
    plan = make_report(tallies, sources, [], config, 2, False).plan
    # 4 held out, 36 in steps of 8 * 2 * 2
    assert (plan.held_out, plan.samples, plan.samples_per_step, plan.steps_per_epoch, plan.steps) == (4, 36, 32, 2, 6)
    assert make_report(tallies, sources, sources, config, 2, False).plan.samples == 40
    limited = changed(SFTSettings(), max_seq_len=60, epochs=3, max_steps=4)
    assert make_report(tallies, sources, [], limited, 1, False).plan.steps == 4


def test_text_is_counted_in_pretraining_samples(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{"text": "1" * 25}, {"text": "1 2"}, {"conversations": []}])
    (part,) = reported(PretrainEncoder(TOKENIZER, 10), [data],
                       config=changed(PretrainSettings(), max_seq_len=10, eval_share=0.0)).parts
    assert part.tally.samples == 4 and part.tally.lengths[10] == 2  # 26 tokens: 10, 10 and 8, one shared each
    assert part.tally.forms == {"text": 2} and part.tally.turns == 0
    assert part.tally.supervised_share == 1 and part.tally.ended_share is None


def test_a_missing_end_of_turn_is_wrong_unless_the_row_was_cut(tmp_path):
    class Unended(SFTEncoder):
        def _fit(self, conversation, sequences):
            (sequence,) = sequences
            supervised = sequence.supervised & (sequence.input_ids != BUNDLED.end_of_turn_id)
            if len(sequence.input_ids) <= self.max_seq_len:
                return EncodedRow([[make_example(sequence.input_ids, supervised)]], False, conversation, sequences)
            first = make_example([7, 7, 7], [False, True, True])
            cut = make_example(range(self.max_seq_len), [True] * self.max_seq_len)
            return EncodedRow([[first, cut]], True, conversation, sequences)

    data = write_rows(tmp_path / "a.jsonl", [chat("a", "b", "c", "d"), chat("a", "b"), LONG])
    (part,) = reported(Unended(BUNDLED, 60), [data]).parts
    assert places(part.tally, "unended") == [(1, "2 of its answers"), (2, "1 of its answers"), (3, "1 of its answers")]
    assert part.verdict == "wrong: 3 without an end of turn; also 1 cut"
    assert (part.tally.turns, part.tally.ended) == (6, 1)


def test_answer_ends_are_counted_from_the_labels():
    labels = np.array([IGNORE_INDEX, 7, 2, 2, IGNORE_INDEX, 8, IGNORE_INDEX, 9], np.int32)
    assert answer_ends(Example(labels, labels), 2) == (2, 2, True)
    assert answer_ends(Example(labels[:5], labels[:5]), 2) == (2, 0, False)


@pytest.mark.parametrize(("supervision", "answers"), [
    (Supervision(prompt=True), 3), (Supervision("last"), 2), (Supervision("last", prompt=True), 2)])
def test_answers_are_counted_under_every_supervision(tmp_path, supervision, answers):
    data = write_rows(tmp_path / "a.jsonl", [chat("a", "b", "c", "d"), chat("a", "b")])
    (part,) = reported(SFTEncoder(BUNDLED, 60, supervision=supervision), [data]).parts
    assert (part.tally.turns, part.tally.ended) == (answers, answers) and part.verdict == "fine"


def test_training_prompts_that_differ_from_a_chat_s_are_wrong(tmp_path, monkeypatch, inspect):
    data = write_rows(tmp_path / "a.jsonl", questions(3))
    status, printed = inspect(data, "--check_prompts", 1)
    assert status == 0 and "3 answers compared with a chat: the same ids before all" in printed
    monkeypatch.setattr(ChatTemplate, "prompt_mismatches",
                        lambda self, one: [f"{one.place}: it differs"] if one.place.endswith(":2") else [])
    status, printed = inspect(data, "--check_prompts", 1)
    assert status == 1 and "1 row taught after other ids than a chat shows: line 2 (it differs)" in printed
    assert inspect(data)[0] == 0

    def refuse(self, one):
        raise UserError(f"{one.place}: no room")

    monkeypatch.setattr(ChatTemplate, "prompt_mismatches", refuse)
    status, printed = inspect(data, "--check_prompts", 1)
    assert status == 1 and "a chat shows: lines 1 (no room), 2 (no room), 3 (no room)" in printed


@pytest.mark.slow
def test_the_bundled_data_are_fine(inspect, repository):
    training, held_out = (repository / "dataset" / name for name in ("sft_demo.jsonl", "sft_demo_heldout.jsonl"))
    status, printed = inspect(training, "--eval_data_path", held_out, "--strict", 1)
    assert status == 0 and "\nin all      fine\n" in printed
    assert "steps       1,094: 2 epochs of 547 steps; 16 samples a step, 8,738 samples an epoch\n" in printed
    assert "9,338 supervised, 100% of them with their end of turn" in printed


@pytest.mark.slow
def test_exit_statuses(tmp_path, defects, inspect):
    fine = write_rows(tmp_path / "fine.jsonl", questions(3))
    twice = write_rows(tmp_path / "twice.jsonl", [*questions(2), *questions(1)])
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_bytes(b"")
    binary.write_bytes(bytes(range(255, -1, -1)) * 9)
    assert inspect(fine)[0] == inspect(fine, "--strict", 1)[0] == inspect(twice)[0] == 0
    assert inspect(twice, "--strict", 1)[0] == 1
    assert inspect(fine, "--eval_data_path", fine)[0] == 1
    status, printed = inspect(empty)
    assert status == 1 and "wrong: no rows" in printed and "none: there is nothing to train on" in printed
    status, printed = inspect(binary)
    assert status == 1 and f"{binary}:1: not valid UTF-8" in printed and "nothing to learn" in printed
    assert inspect(fine, "--max_seq_len", 5)[0] == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.jsonl"], "FILE nowhere.jsonl: no such file"),
    (["."], "FILE .: expected a file, found a folder"),
    ([], "the following arguments are required: FILE"),
    ([SCRIPT], "expected a file named *.jsonl"),
    (["dataset/sft_demo.jsonl", "--ranks", "0"], "--ranks is 0, expected at least 1"),
    (["dataset/sft_demo.jsonl", "--rows", "text", "--check_prompts", "1"], "--check_prompts: expected only with"),
    (["dataset/sft_demo.jsonl", "--html", "dataset"], "--html dataset: expected a name that ends in .html"),
    (["dataset/sft_demo.jsonl", "--eval_data_path", "dataset/sft_demo_heldout.jsonl:2"], "expected files without sh"),
])
def test_unusable_flags_are_refused_before_anything_is_read(arguments, message, inspect, monkeypatch, repository):
    monkeypatch.chdir(repository)
    status, printed = inspect(*arguments)
    assert message in status and printed == ""


def test_most_limits_how_many_bad_rows_are_listed(tmp_path, inspect):
    data = write_rows(tmp_path / "a.jsonl", [{"text": number} for number in range(120)])
    assert inspect(data)[1].count(": text: expected a string") == 100
    assert "... and 20 more (--most 0 prints all, --json has them)" in inspect(data)[1]
    assert inspect(data, "--most", 0)[1].count(": text: expected a string") == 120
    (part,) = json.loads(inspect(data, "--json")[1])["files"]
    assert len(part["findings"]["bad"]["rows"]) == part["findings"]["bad"]["count"] == 120


def test_the_first_rows_are_shown_without_colour(tmp_path, inspect):
    data = write_rows(tmp_path / "a.jsonl", [{"text": 1}, chat("龘 a", " b  c\t<|im_end|>\n\x1b[31m\u202e")])
    printed = inspect(data, "--show", 1)[1]
    assert (":2: 35 tokens, 20 supervised\n"
            "‹<|im_start|>›user↵\n龘 a‹<|im_end|>›↵\n‹<|im_start|>›assistant↵\n‹<think>›↵\n↵\n‹</think>›↵\n↵\n"
            "⟦·b··c⇥<|im_end|>↵\n⟨U+001B⟩[31m⟨U+202E⟩‹<|im_end|>›⟧\n") in printed.replace(str(data), "")
    assert "\x1b" not in printed
    assert "supervised⟧" not in inspect(data, "--show", 0)[1]


DROPS_REASONING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_every_sequence_of_a_row_is_shown(tmp_path):
    rows = SFTEncoder(ChatTemplate(TOKENIZER, DROPS_REASONING), 60)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "why"}] * 2
    data = write_rows(tmp_path / "a.jsonl", [{"messages": turns}])
    report = reported(rows, [data])
    (row,) = first_rows({data: report.parts[0].tally}, rows, 3)
    assert len(row.sequences) == 2
    assert ", sequence 2 of 2: " in as_text(report, [row], 0, False)
    assert ", sequence 2 of 2: " in re.sub(r"\s+", " ", render_page(report, [row]))


def test_the_rest_of_a_very_long_row_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("minimind_sft.inspection.shown.MAX_TOKENS", 30)
    data = write_rows(tmp_path / "a.jsonl", [{"text": "1+1+" * 20}])
    rows = SFTEncoder(BUNDLED, 20)
    report = reported(rows, [data])
    (row,) = first_rows({data: report.parts[0].tally}, rows, 3)
    assert sum(len(token.ids) for tokens in row.sequences for token in tokens) == 32  # the last label of each is shown
    assert "... and 50 more tokens\n" in as_text(report, [row], 0, False)
    assert "... and 50 more tokens<" in render_page(report, [row])


def test_colours_need_a_terminal_and_no_no_color(tmp_path, inspect, monkeypatch):
    data = write_rows(tmp_path / "a.jsonl", questions(1))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" not in inspect(data)[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed = inspect(data)[1]
    assert "\x1b[32mIt is 0.\x1b[0m\x1b[30;42m<|im_end|>\x1b[0m" in printed and "⟦" not in printed
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in inspect(data)[1]


def test_the_page_escapes_the_data_and_loads_nothing(tmp_path, inspect):
    evil = "<script>alert(1)</script>"
    data = write_rows(tmp_path / "<b>.jsonl", [chat(evil, f"{evil}\"' onload=x"), {f"<img src=x {evil}>": 1}])
    inspect(data, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "<b>.jsonl" not in page
    assert "&lt;script&gt;" in page and "found a row with &lt;img src=x" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']|url\(|@import|https?:", page)
    assert f'title="{BUNDLED.end_of_turn_id}"&gt;'.replace("&gt;", ">") in page
    assert "prefers-color-scheme: dark" in page and '<div class="bars">' in page


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_exit_status(defects):
    command, options = program(SCRIPT, defects)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE, **options)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_call_that_ends_with_another_token_is_not_wrong(tmp_path):
    """In gpt-oss a call ends with its own token."""
    source = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
              "{{ m.tool_calls|tojson if m.tool_calls }}"
              "{{ '<|object_ref_end|>' if m.tool_calls else '<|im_end|>' }}{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    row = {"messages": [{"role": "user", "content": "q"},
                        {"role": "assistant", "content": "c", "tool_calls": [{"name": "f", "arguments": {}}]},
                        {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"}]}
    data = write_rows(tmp_path / "a.jsonl", [row])
    tally = survey([data], SFTEncoder(ChatTemplate(TOKENIZER, source), 100))[data]
    assert (tally.turns, tally.ended, tally.findings["unended"].count) == (2, 1, 0)


@pytest.mark.slow
def test_the_report_names_the_page_and_json_output_stays_valid(tmp_path, inspect):
    data, page = write_rows(tmp_path / "a.jsonl", [chat("q", "a")]), tmp_path / "page.html"
    assert f"\npage        {page}\n" in inspect(data, "--html", page)[1]
    assert "\npage " not in inspect(data)[1]
    assert json.loads(inspect(data, "--html", page, "--json")[1])


def test_a_folder_as_page_is_refused(inspect, monkeypatch, repository, tmp_path):
    monkeypatch.chdir(repository)
    (tmp_path / "page.html").mkdir()
    refusal = inspect("dataset/sft_demo.jsonl", "--html", tmp_path / "page.html")[0]
    assert refusal == f"--html {tmp_path}/page.html: is a folder, expected a file or nothing"
