"""Tests the lines that a run prints before it starts and when it ends."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from programs import NEW, PRETRAIN, REPOSITORY, SFT, questions, succeed, write_rows

from minimind_sft.data.dataset import ExampleDataset, Mixture
from minimind_sft.data.example import make_example
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings, SFTSettings
from minimind_sft.training.advice import describe_length, evaluation_advice, rate_advice, warmup_advice
from minimind_sft.training.experience import Experience, data_advice
from minimind_sft.training.progress import Effort
from minimind_sft.training.summary import closing_lines, next_lines


def sft(**flags) -> SFTSettings:
    return changed(SFTSettings(), **flags)


@pytest.mark.parametrize(("flags", "line"), [
    ({}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs"),
    ({"epochs": 1}, "100 steps of 16 samples, learning rate 0.0005; 1 epoch"),
    ({"max_steps": 50}, "50 steps of 16 samples, learning rate 0.0005; 0.5 epochs: --max_steps 50 ends the run before "
                        "--epochs 2, which would be 200 steps"),
    ({"max_steps": 500}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs, which end the run before "
                         "--max_steps 500"),
    ({"epochs": 300, "max_steps": 12_345}, "12,345 steps of 16 samples, learning rate 0.0005; 123 epochs: --max_steps "
                                           "12345 ends the run before --epochs 300, which would be 30,000 steps"),
    ({"max_steps": 200}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs"),
])
def test_the_length_says_which_of_max_steps_and_epochs_ends_the_run(flags, line):
    assert describe_length(sft(**flags).optimizer, 100, 16) == f"training    {line}"


@pytest.mark.parametrize(("warmup", "line"), [
    (0, None), (30, None),
    (31, "note        --warmup_steps 31 is 31% of the run's 100 steps"),
    (99, "note        --warmup_steps 99 is 99% of the run's 100 steps"),
    (100, "note        --warmup_steps 100 is not less than the run's 100 steps: the learning rate rises to 0.000495 "
          "and never reaches --learning_rate 0.0005"),
    (400, "note        --warmup_steps 400 is not less than the run's 100 steps: the learning rate rises to 0.000125 "
          "and never reaches --learning_rate 0.0005"),
])
def test_a_warmup_that_takes_much_of_the_run_is_noted(warmup, line):
    assert warmup_advice(sft(warmup_steps=warmup).optimizer, 100) == ([line] if line else [])


def test_best_weights_chosen_on_a_handful_of_samples_are_noted():
    (line,) = evaluation_advice(sft(), 10)
    assert line.startswith("note        the best weights are chosen on 10 samples, ")
    assert "a larger --eval_share or an --eval_data_path" in line and "--keep_best 0" in line
    (line,) = evaluation_advice(sft(eval_data_path=("eval.jsonl",)), 1)
    assert "on 1 sample, " in line and "more rows in --eval_data_path" in line
    assert evaluation_advice(sft(), 50) == evaluation_advice(sft(), None) == []
    assert evaluation_advice(sft(keep_best=False), 3) == []


SETTINGS = {"epochs": 1, "max_steps": 0, "learning_rate": 1e-3, "min_lr_ratio": 0.1, "warmup_steps": 0}


@pytest.mark.parametrize(("changed", "was", "now"), [
    ({"epochs": 2}, "0.0001", "0.000546"),  # from the end of one cosine to the middle of the next
    ({"learning_rate": 3e-3}, "0.0001", "0.0003"),
    ({"min_lr_ratio": 0.5}, "0.0001", "0.0005"),
])
def test_a_learning_rate_that_jumps_on_resume_is_noted(changed, was, now):
    (line,) = rate_advice(SETTINGS, {**SETTINGS, **changed}, 100, steps_per_epoch=100)
    assert line == f"note        the learning rate jumps: {was} with the previous settings, {now} with these"


def test_a_learning_rate_that_continues_smoothly_is_not_noted():
    assert rate_advice(SETTINGS, SETTINGS, 50, 100) == []
    assert rate_advice(SETTINGS, {**SETTINGS, "warmup_steps": 5}, 90, 100) == []


def samples(*documents: tuple[list[int], list[bool]]) -> ExampleDataset:
    return ExampleDataset([[make_example(ids, supervised)] for ids, supervised in documents])


def test_experience_records_label_tokens_and_the_longest_document():
    first = samples(([1, 2, 3, 4], [False, False, True, True]), ([1, 5], [False, True]))
    second = samples(([9, 2, 2, 2, 2, 2], [False] * 5 + [True]))
    known = Experience.none(12).after(first)
    assert (np.flatnonzero(known.seen).tolist(), known.longest) == ([3, 4, 5], 3)
    both = Experience.none(12).after(Mixture([first, second], [0.5, 0.5]))
    assert (np.flatnonzero(both.seen).tolist(), both.longest) == ([2, 3, 4, 5], 5)
    assert np.array_equal(both.seen, known.after(second).seen)


def test_experience_round_trips_through_the_sidecar_and_bad_records_are_ignored():
    known = Experience.none(6401).after(samples(([1, 6400, 3], [True] * 3)))
    record = {"training": {"experience": json.loads(json.dumps(known.for_sidecar()))}}
    again = Experience.from_sidecar(record, 6401)
    assert np.array_equal(again.seen, known.seen) and again.longest == known.longest
    for other in ({}, {"training": {}}, {"training": None}, {"training": {"experience": {"tokens": "?", "longest": 1}}},
                  {"training": {"experience": {"tokens": "AAAA", "longest": 1}}}):
        assert Experience.from_sidecar(other, 6401) is None


class Controls:
    """A stub tokenizer with only the control tokens that the advice reads."""

    def __init__(self, *ids: int):
        self.ids = ids

    def control_tokens(self) -> list[str]:
        return list(map(str, self.ids))

    def token_to_id(self, token: str) -> int:
        return int(token)


def test_data_unlike_the_earlier_training_data_are_noted():
    known, none = Experience.none(12).after(samples(([0, 2, 3, 4, 5], [True] * 5))), Controls()
    assert data_advice(known, samples(([0, 2, 3], [True] * 3)), none, "it") == []
    (line,) = data_advice(known, samples(([0, 2, 8, 9, 3], [True] * 5)), none, "it")
    assert "50% of the tokens to learn never occurred in what it was trained on: " in line and "longer" not in line
    assert data_advice(known, samples(([0, 2, 8, 9, 3], [True] * 5)), Controls(8, 9), "it") == []
    (line,) = data_advice(known, samples(([0, 2, 3], [True] * 3), ([2] * 9, [True] * 9)), none, "it")
    assert line.startswith("note        50% of the samples are longer than any that it was trained on (4 tokens): ")


def test_a_new_model_and_weights_of_unknown_origin_get_no_note_about_the_data():
    for known in (Experience.none(12), None):
        assert data_advice(known, samples(([0, 2, 8], [True] * 3)), Controls(), "it") == []


def test_the_bundled_weights_know_the_bundled_conversations_but_not_other_chinese_text(repository, tmp_path):
    common = ["--from_weight", "pretrain", "--max_steps", 1, "--eval_share", 0, "--overwrite", "--save_dir", tmp_path]
    some = (repository / "dataset/sft_demo.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:300]
    (tmp_path / "known.jsonl").write_text("".join(some), encoding="utf-8")
    assert "note " not in succeed(SFT, *common, "--data_path", tmp_path / "known.jsonl")
    answer = "《红楼梦》描写贾宝玉与林黛玉的爱情悲剧，也刻画了封建家族由盛转衰的过程。"
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": answer}]}
            for i in range(20)]
    shown = succeed(SFT, *common, "--data_path", write_rows(tmp_path / "other.jsonl", rows))
    assert "% of the tokens to learn never occurred in what --from_weight pretrain was trained on" in shown


EFFORT = Effort(steps=20, supervised_tokens=12_000, training_seconds=60.0, all_seconds=75.4)


def logged(*losses: float, name: str = "eval_loss", every: int = 10) -> list[dict]:
    return [{"step": every * number, name: loss} for number, loss in enumerate(losses)]


def test_closing_lines_sum_up_the_run():
    metrics = [{"step": 0, "eval_loss": 6.0}, {"step": 5, "loss": 5.0}, {"step": 10, "loss": None, "skipped": "x"},
               {"step": 10, "eval_loss": 4.0}, {"step": 20, "loss": 2.5}, {"step": 20, "eval_loss": 4.5}]
    assert closing_lines(metrics, EFFORT, keep_best=True) == [
        "time        20 steps in 1:15, 200 supervised tokens/s; evaluating and saving took 0:15 of it",
        "loss        5.0000 at step 5; 2.5000 at step 20",
        "validation  6.0000 at step 0; 4.0000 at step 10, the lowest; 4.5000 at step 20",
    ]


@pytest.mark.parametrize(("losses", "note"), [
    ((5.0, 4.0, 3.0), None),
    ((5.0, 3.0, 3.5), None),
    ((5.0, 3.0, 3.5, 3.6), "been rising since step 10: 3.0000 then, 3.6000 at step 30"),
    ((5.0, 3.0, 3.5, 3.2), "been higher since step 10: 3.0000 then, 3.2000 at step 30"),
    ((3.0, 3.5, 3.6), "been rising since step 0: 3.0000 then, 3.6000 at step 20"),
])
def test_a_validation_loss_that_stopped_falling_is_noted(losses, note):
    notes = [line for line in closing_lines(logged(*losses), EFFORT, True) if line.startswith("note")]
    assert [line[:len(f"note        the validation loss has {note}")] for line in notes] == (
        [f"note        the validation loss has {note}"] if note else [])
    assert all("--keep_best" not in line for line in notes)
    assert ("--keep_best 1 would keep those weights" in "".join(closing_lines(logged(*losses), EFFORT, False))) == bool(
        note)


def test_closing_lines_without_steps_or_evaluations():
    assert closing_lines([], Effort(0, 0, 0.0, 0.1), True) == []
    assert closing_lines([{"step": 1, "loss": 2.0}], Effort(1, 60, 2.0, 2.1), True) == [
        "time        1 step in 0:02, 30 supervised tokens/s", "loss        2.0000 at step 1"]


def test_suggested_commands_name_the_weights_and_the_flags_they_need(tmp_path):
    weights, metrics = tmp_path / "a b_32.pth", tmp_path / "a b_32_metrics.jsonl"
    for path in (weights, metrics, tmp_path / "eval.jsonl"):
        path.touch()
    config = sft(tokenizer_path=str(tmp_path), chat_template="chatml", eval_data_path=(str(tmp_path / "eval.jsonl"),))
    chat = f"python eval_llm.py --weight '{weights}' --tokenizer_path {tmp_path} --chat_template chatml"
    assert next_lines("full_sft", config, weights, metrics) == [
        f"chat        {chat}",
        f"score       {chat} --score {tmp_path}/eval.jsonl",
        f"curves      python scripts/plot_metrics.py '{metrics}'",
    ]
    plain = next_lines("full_sft", sft(), Path("out/x.pth"), metrics)
    assert plain[:2] == ["chat        python eval_llm.py --weight out/x.pth",
                         "score       python eval_llm.py --weight out/x.pth --score FILE"]
    chat, tune, _ = next_lines("pretrain", PretrainSettings(), weights, metrics)
    assert chat == f"chat        python eval_llm.py --weight '{weights}' --prompt 'Once upon a time'"
    assert tune == f"fine-tune   python trainer/train_full_sft.py --from_weight '{weights}'"


def test_suggested_commands_can_be_pasted_in_the_folder_the_run_started_in(tmp_path, monkeypatch):
    weights, metrics = REPOSITORY / "out/pretrain_256.pth", tmp_path / "m.jsonl"
    metrics.touch()
    for folder, up, out in ((REPOSITORY, "", "out"), (REPOSITORY / "trainer", "../", "../out"),
                            (tmp_path, f"{REPOSITORY}/", f"{REPOSITORY}/out")):
        monkeypatch.chdir(folder)
        chat, tune, curves = (line[12:] for line in next_lines("pretrain", PretrainSettings(), weights, metrics))
        assert chat.startswith(f"python {up}eval_llm.py --weight {out}/pretrain_256.pth ")
        assert curves == f"python {up}scripts/plot_metrics.py {metrics}"
        assert all(Path(shlex.split(line)[1]).is_file() for line in (chat, tune, curves))


def test_suggested_commands_work(tmp_path):
    rows = write_rows(tmp_path / "text.jsonl", [{"text": f"The number {i} comes before {i + 1}."} for i in range(60)])
    shown = succeed(PRETRAIN, "--data_path", rows, "--save_dir", tmp_path, *NEW, "--max_steps", 2)
    chat, tune, _ = (shlex.split(line[12:])[1:] for line in shown.splitlines()[-3:])
    assert "tokens/s" in succeed(*chat, "--max_new_tokens", 2)
    held = write_rows(tmp_path / "held.jsonl", questions(4))
    shown = succeed(*tune, "--data_path", write_rows(tmp_path / "sft.jsonl", questions(40)), "--save_dir", tmp_path,
                    "--max_steps", 2, "--eval_data_path", held, "--log_interval", 1)
    chat, score, curves = (shlex.split(line[12:])[1:] for line in shown.splitlines()[-3:])
    assert "tokens/s" in succeed(*chat, "--max_new_tokens", 2, "--prompt", "Say 1.")
    assert "(4 questions)" in succeed(*score, "--max_new_tokens", 2)
    pytest.importorskip("matplotlib")
    assert "wrote" in succeed(*curves, "--out", tmp_path / "curves.png")
