"""The lines that a run prints at its end: a summary, and commands to continue with."""

import shlex
from pathlib import Path
from shlex import quote

import pytest
import torch
from programs import NEW, PRETRAIN, REPOSITORY, questions, succeed, write_rows
from tiny import TINY

from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings, SFTSettings
from minimind_sft.training.progress import Effort
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.summary import closing_lines, describe_model, next_lines, result_lines


def sft(**flags) -> SFTSettings:
    return changed(SFTSettings(), **flags)


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
    ((5.0, 3.0, 3.0, 3.00001), None),
])
def test_a_validation_loss_that_stopped_falling_is_noted(losses, note):
    notes = [line for line in closing_lines(logged(*losses), EFFORT, True) if line.startswith("note")]
    assert [line[:len(f"note        the validation loss has {note}")] for line in notes] == (
        [f"note        the validation loss has {note}"] if note else [])
    assert all("--keep_best" not in line for line in notes)
    assert ("--keep_best 1 would keep those weights" in "".join(closing_lines(logged(*losses), EFFORT, False))) == bool(
        note)


def test_closing_lines_count_the_exact_answers_of_the_first_and_the_last_evaluation():
    metrics = [{"step": 10 * number, "exact_by_kind": by_kind} for number, by_kind in enumerate([
        {"sum": [0, 2], "word": [1, 2]}, {"sum": [1, 2], "word": [2, 2]}, {"sum": [1, 2], "word": [1, 2]}])]
    assert closing_lines(metrics, Effort(0, 0, 0.0, 0.1), True) == [
        "answers     1 of 4 exact at step 0; 2 of 4 exact at step 20"]
    assert closing_lines([{"step": 0, "exact_by_kind": {}}], Effort(0, 0, 0.0, 0.1), True) == []


@pytest.mark.parametrize(("best_by", "best"), [
    ("eval_loss", "(validation loss 2.5000)"), ("exact_match", "(validation loss 2.5000, 75% of the answers exact)")])
def test_the_weights_are_reported_with_what_they_were_chosen_by(best_by, best):
    state = TrainState(step=9, best_eval_loss=2.5, best_exact_match=0.75, settings={"best_by": best_by})
    assert result_lines(state, Path("a.pth")) == [f"wrote       a.pth {best} and a.json"]


def test_closing_lines_without_steps_or_evaluations():
    assert closing_lines([], Effort(0, 0, 0.0, 0.1), True) == []
    assert closing_lines([{"step": 1, "loss": 2.0}], Effort(1, 60, 2.0, 2.1), True) == [
        "time        1 step in 0:02, 30 supervised tokens/s", "loss        2.0000 at step 1"]


def test_suggested_commands_name_the_weights_and_the_flags_they_need(tmp_path):
    weights, metrics = tmp_path / "a b_32.pth", tmp_path / "a b_32_metrics.jsonl"
    for path in (weights, metrics, tmp_path / "eval.jsonl"):
        path.touch()
    config = sft(tokenizer_path=str(tmp_path), chat_template="chatml", eval_data_path=(str(tmp_path / "eval.jsonl"),))
    chat = (f"python eval_llm.py --weight {quote(str(weights))} --tokenizer_path {quote(str(tmp_path))} "
            "--chat_template chatml")
    assert next_lines("full_sft", config, weights, metrics) == [
        f"chat        {chat}",
        f"score       {chat} --score {quote(f'{tmp_path}/eval.jsonl')}",
        f"curves      python scripts/plot_metrics.py {quote(str(metrics))}",
    ]
    plain = next_lines("full_sft", sft(), Path("out/x.pth"), metrics)
    assert plain[:2] == ["chat        python eval_llm.py --weight out/x.pth",
                         "score       python eval_llm.py --weight out/x.pth --score FILE"]
    chat, tune, _ = next_lines("pretrain", PretrainSettings(), weights, metrics)
    assert chat == f"chat        python eval_llm.py --weight {quote(str(weights))} --prompt 'Once upon a time'"
    assert tune == f"fine-tune   python trainer/train_full_sft.py --from_weight {quote(str(weights))}"


def test_suggested_commands_can_be_pasted_in_the_folder_the_run_started_in(tmp_path, monkeypatch):
    weights, metrics = REPOSITORY / "out/pretrain_256.pth", tmp_path / "m.jsonl"
    metrics.touch()
    for folder, up, out in ((REPOSITORY, "", "out"), (REPOSITORY / "trainer", "../", "../out"),
                            (tmp_path, f"{REPOSITORY}/", f"{REPOSITORY}/out")):
        monkeypatch.chdir(folder)
        chat, tune, curves = (line[12:] for line in next_lines("pretrain", PretrainSettings(), weights, metrics))
        assert chat.startswith(
            f"python {quote(f'{up}eval_llm.py')} --weight {quote(f'{out}/pretrain_256.pth')} ")
        assert curves == f"python {quote(f'{up}scripts/plot_metrics.py')} {quote(str(metrics))}"
        assert all(Path(shlex.split(line)[1]).is_file() for line in (chat, tune, curves))


@pytest.mark.slow
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


@pytest.mark.parametrize(("start", "family", "line"), [
    (None, None, "model       new: 16 x 2 layers, 0.0M parameters; float32 on cpu"),
    (Path("/x/SmolLM2"), "llama", "model       /x/SmolLM2: llama, 16 x 2 layers, 0.0M parameters; float32 on cpu"),
])
def test_the_model_is_described_with_its_family(start, family, line):
    assert describe_model(MiniMindForCausalLM(TINY), start, family, "float32", torch.device("cpu")) == line
