"""Wrapping lines for terminals of 40 and 80 columns."""

import io
import os
import pty
import re
import termios

import pytest

from minimind_sft.terminal import aligned, columns, fitted, progress_bar, wrap


@pytest.mark.parametrize(("text", "expected"), [
    ("step", 4), ("你好", 4), ("a，b", 4), ("e\u0301", 1), ("\x1b[1;31mwrong\x1b[0m", 5), ("\uff21", 2), ("한글", 4),
])
def test_columns_count_wide_and_invisible_characters(text, expected):
    assert columns(text) == expected


def test_a_line_that_fits_is_unchanged():
    line = "model       new: 32 x 2 layers, 0.2M par"
    assert columns(line) == 40 and wrap(line, 40) == line


def test_further_lines_are_indented_under_the_text():
    line = "wrote       out/full_sft_256.pth (validation loss 0.1234) and out/full_sft_256.json"
    assert wrap(line, 40) == ("wrote       out/full_sft_256.pth\n"
                              "            (validation loss 0.1234) and\n"
                              "            out/full_sft_256.json")
    assert wrap(line, 80) == ("wrote       out/full_sft_256.pth (validation loss 0.1234) and\n"
                              "            out/full_sft_256.json")


def test_an_error_is_indented_under_its_message():
    line = "error: /a/b/c.jsonl:2: conversations[0].role: expected system, user, assistant or tool"
    assert wrap(line, 40) == ("error: /a/b/c.jsonl:2:\n"
                              "       conversations[0].role: expected\n"
                              "       system, user, assistant or tool")
    assert wrap(f"[rank 1] {line}", 50).split("\n")[1].startswith(" " * 16 + "conversations[0]")


def test_chinese_is_not_broken_before_closing_punctuation():
    assert wrap("data        一二三四五六七八九十一二三四，五六", 40) == (
        "data        一二三四五六七八九十一二三\n"
        "            四，五六")
    assert wrap("data        一二三四 mixed 五六七八九十一二三", 40) == (
        "data        一二三四 mixed 五六七八九十\n"
        "            一二三")


def test_a_path_longer_than_a_line_is_not_broken():
    path = "/data/" + "x" * 60 + "/weights.pth"
    assert wrap(f"wrote       {path} and more", 40) == f"wrote       {path}\n            and more"


def test_a_command_can_be_pasted_after_wrapping():
    line = "chat        python eval_llm.py --weight full_sft --save_dir my_weights --hidden_size 32"
    for width in (40, 80):
        wrapped = wrap(line, width)
        assert all(columns(one) <= width for one in wrapped.split("\n"))
        assert " ".join(wrapped.replace("\\\n", "").split()) == " ".join(line.split())
    assert wrap(line, 40) == ("chat        python eval_llm.py \\\n"
                              "            --weight full_sft \\\n"
                              "            --save_dir my_weights \\\n"
                              "            --hidden_size 32")


def test_a_path_that_does_not_fit_under_the_text_is_moved_left():
    assert wrap("wrote       /data/models/full_sft_256.safetensors and its sidecar", 40) == (
        "wrote\n"
        "  /data/models/full_sft_256.safetensors\n"
        "            and its sidecar")
    assert wrap("wrote       now /data/models/full_sft_256.safetensors and its sidecar", 40) == (
        "wrote       now\n"
        "  /data/models/full_sft_256.safetensors\n"
        "            and its sidecar")


def test_lines_of_a_step_are_indented_equally():
    for step, total in ((9, 18), (12, 18)):
        line = f"step {step:>6}/{total}: validation loss 8.7848, perplexity 6533.91"
        assert wrap(line, 40).split("\n")[1] == " " * 16 + "perplexity 6533.91"


def test_a_command_is_not_broken_inside_quotes_or_between_flag_and_value():
    line = "chat        python eval_llm.py --weight 'my weights' --prompt 'Once upon a time' --show_speed 0"
    assert wrap(line, 46) == ("chat        python eval_llm.py \\\n"
                              "            --weight 'my weights' \\\n"
                              "            --prompt 'Once upon a time' \\\n"
                              "            --show_speed 0")


def test_a_coloured_command_after_a_label_of_two_words_is_wrapped_as_a_command():
    assert wrap("to train    \x1b[32mpython trainer/train_full_sft.py --data_path a.jsonl\x1b[0m", 50) == (
        "to train    \x1b[32mpython trainer/train_full_sft.py \\\n"
        "            --data_path a.jsonl\x1b[0m")


def test_only_a_terminal_gets_wrapped_lines(tmp_path):
    line = "model       " + "word " * 20
    leader, follower = pty.openpty()
    try:
        termios.tcsetwinsize(follower, (24, 40))
        with os.fdopen(os.dup(follower), "w") as terminal:
            assert max(map(columns, fitted(line, terminal).split("\n"))) <= 40
    finally:
        os.close(leader)
        os.close(follower)
    with (tmp_path / "log").open("w") as file:
        assert fitted(line, file) == line
    assert fitted(line, io.StringIO()) == line


def test_tables_are_aligned_by_columns_of_the_terminal():
    rows = [("run", "loss", "end"), ("模型_a", "2.5", "finished"), ("b", "10.25", "")]
    assert aligned(rows, numbers=[1]) == ["run      loss  end", "模型_a    2.5  finished", "b       10.25"]
    assert aligned([]) == []


def test_a_slow_bar_shows_its_rate_by_the_second():
    stream = io.StringIO()
    with progress_bar(label="answers", total=4, unit=" questions", disable=False, mininterval=0, file=stream) as bar:
        bar.start_t -= 100
        bar.last_print_t -= 100
        bar.update(2)
    assert re.search(r"\| 2/4 \[\d+:\d\d<\d+:\d\d, +0\.\d\d questions/s\]", stream.getvalue())
