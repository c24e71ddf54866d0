"""Warnings: each is given by a run with that fault, once, and by a resumed run as by a whole one."""

import json
import random
import re

import numpy as np
import pytest
import torch
from kill_and_resume import repeatable_lines
from programs import NEW, SFT, write_rows
from tiny import random_documents
from tiny_training import Training

from minimind_sft.data.batching import BatchLayout, EvaluationBatches
from minimind_sft.data.dataset import ExampleDataset, Mixture
from minimind_sft.data.example import make_example
from minimind_sft.data.overlap import count_shared
from minimind_sft.evaluation.during_training import Evaluation
from minimind_sft.evaluation.losses import ValidationLoss
from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.training.watch import LoggedStep, RunWarning, Watcher


def warnings_of(folder) -> list[tuple[int, str]]:
    return [(line["step"], line["name"]) for line in repeatable_lines(folder / "metrics.jsonl") if "warning" in line]


def with_evaluation(training: Training, data: ExampleDataset) -> Training:
    """Evaluates a run on `data`."""
    def evaluate() -> Evaluation:
        training.model.eval()
        loss_sum = tokens = 0.0
        with torch.no_grad():
            for batch in EvaluationBatches(data, BatchLayout(64)):
                loss_sum += float(training.model(batch.input_ids, batch.labels, batch.cu_seqlens).loss_sum)
                tokens += batch.supervised
        return Evaluation(ValidationLoss(loss_sum / tokens, token_accuracy=0.0, tokens=int(tokens)))

    training.evaluate = evaluate
    return training


def test_a_run_that_learns_its_rows_by_heart(tmp_path, capsys):
    """Twelve random documents say nothing about others."""
    def train(folder, resume: bool = False) -> Training:
        return with_evaluation(Training(folder, resume, data=random_documents(12), epochs=6, eval_interval=4,
                                        learning_rate=2e-2), random_documents(20, seed=9))

    assert train(tmp_path / "whole").run() == 0
    shown = capsys.readouterr().out
    (step, name), = warnings_of(tmp_path / "whole")
    assert name == "validation_rises" and step <= 12
    assert re.search(r"^warning     the validation loss has risen since step 0, from 4\.\d+ to 4\.\d+, while the "
                     r"training loss fell from [\d.]+ to [\d.]+: the model learns its rows by heart; ", shown, re.M)
    assert train(tmp_path / "cut").run(interrupt_at=step + 2) == 130
    capsys.readouterr()
    assert train(tmp_path / "cut", resume=True).run() == 0
    assert "warning" not in capsys.readouterr().out
    assert repeatable_lines(tmp_path / "cut/metrics.jsonl") == repeatable_lines(tmp_path / "whole/metrics.jsonl")


def with_odd_rows(places: tuple[int, ...]) -> ExampleDataset:
    """Returns 320 samples that are all alike except for those that `Training` takes at these places."""
    usual = make_example(list(range(1, 17)), [True] * 16)
    odd = make_example([60, 3, 50, 7, 44, 9, 31, 12, 55, 2, 61, 8, 30, 5, 40, 33], [True] * 16)
    samples, order = [[usual]] * 320, np.random.default_rng([1, 0]).permutation(320)
    for place in places:
        samples[int(order[place])] = [odd]
    return ExampleDataset(samples)


def test_a_spike_in_loss_and_gradient_norm(tmp_path, capsys):
    """The odd rows come in steps 73, which would not be logged otherwise, and 76, soon after."""
    settings = {"data": with_odd_rows((290, 300)), "epochs": 1, "learning_rate": 2e-2, "dropout": 0.0,
                "log_interval": 2, "save_interval": 50}
    assert Training(tmp_path / "whole", **settings).run() == 0
    assert warnings_of(tmp_path / "whole") == [(73, "loss_spike"), (73, "grad_norm_spike")]
    shown = capsys.readouterr().out
    assert re.search(r"^warning     the loss jumped to [2-4]\.\d+ at step 73, from about 0\.0\d+ in the", shown, re.M)
    assert re.search(r"^warning     the gradient norm jumped to \d\.\d+ at step 73 \(clipped to 1\), from about 0\.\d+",
                     shown, re.M)
    assert Training(tmp_path / "cut", **settings).run(interrupt_at=62) == 130
    assert Training(tmp_path / "cut", resume=True, **settings).run() == 0
    assert repeatable_lines(tmp_path / "cut/metrics.jsonl") == repeatable_lines(tmp_path / "whole/metrics.jsonl")


@pytest.mark.parametrize("evaluates", [True, False], ids=["with evaluations", "without"])
def test_a_run_that_learns_nothing(tmp_path, capsys, evaluates):
    training = Training(tmp_path, learning_rate=1e-9, epochs=5 if evaluates else 6)
    if evaluates:
        with_evaluation(training, random_documents(5, seed=9))
    training.run()
    assert warnings_of(tmp_path) == [(20 if evaluates else 40, "nothing_learned")]
    kind = "validation" if evaluates else "training"
    assert f"warning     nothing is being learned: the {kind} loss was 4.1" in capsys.readouterr().out


def conversation(question: str, answer: str) -> dict:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_what_is_wrong_before_the_first_step(run_here, tmp_path):
    rows = [conversation(f"Say {number}. {'Please think about it. ' * 60}", "No.") for number in range(12)]
    held = [*rows[:2], conversation("Why?", "So.")]
    flags = [*NEW, "--data_path", write_rows(tmp_path / "rows.jsonl", rows), "--save_dir", tmp_path,
             "--eval_data_path", write_rows(tmp_path / "held.jsonl", held), "--batch_size", 4, "--max_seq_len", 768,
             "--log_interval", 1, "--warmup_steps", 400]
    shown = run_here(SFT, *flags, "--epochs", 1)
    assert [line for line in shown.splitlines() if line.startswith("warning")] == [
        "warning     --warmup_steps 400 is not less than the run's 3 steps: the learning rate rises to 3.74e-06 and "
        "never reaches --learning_rate 0.0005",
        "warning     only 0.79% of the training tokens are supervised, so a step reads 127 tokens for each one it "
        "learns; scripts/inspect_data.py shows which",
        "warning     the run also trains on 2 of the 3 evaluation samples, so the validation loss looks better than it "
        "would on new ones; scripts/convert_data.py --drop_in FILES drops them"]
    metrics = tmp_path / "full_sft_32_metrics.jsonl"
    named = [line["name"] for line in map(json.loads, metrics.read_text().splitlines()) if "warning" in line]
    assert named == ["long_warmup", "supervised_share", "leaked_rows"]

    shown = run_here(SFT, *flags, "--epochs", 2, "--from_resume", 1)  # the sentence about the warmup has changed
    assert shown.count("\nwarning ") == 3
    named = [line["name"] for line in map(json.loads, metrics.read_text().splitlines()) if "warning" in line]
    assert named == ["long_warmup", "supervised_share", "leaked_rows", "long_warmup"]


def test_rows_are_found_in_every_source_by_all_of_their_tokens():
    documents = list(random_documents(40, longest=60))
    one, other = ExampleDataset(documents[:20]), ExampleDataset(documents[10:40])
    assert count_shared(one, other) == count_shared(other, one) == 10
    assert count_shared(Mixture([one, other.select([25, 26])], [0.5, 0.5]), other) == 12
    assert count_shared(one.select(range(10)), other) == 0
    long = make_example(list(range(1, 61)), [True] * 60)
    for place in range(59):  # some of these tokens are looked at first, the others only then
        ids = long.input_ids.copy()
        ids[place] = 63
        assert count_shared(ExampleDataset([[long]]), ExampleDataset([[long._replace(input_ids=ids)]])) == 0


@pytest.mark.parametrize("noise", [0.02, 0.3, 1.0])
def test_an_ordinary_run_gives_no_warning(noise):
    """The loss falls with noise of both kinds: around its mean, and now and then far above it."""
    dice = random.Random(7)
    watcher = Watcher(OptimizerSettings(), 3000)
    for step in range(0, 3001, 5):
        mean = 0.5 + 3.5 * 0.998**step
        if step % 300 == 0:
            assert watcher.see({"step": step, "eval_loss": mean + dice.gauss(0.0, 0.003)}) == []
        loss = mean * (1 + noise * abs(dice.gauss(0.0, 0.3)) + noise * (dice.random() < 0.1) * dice.random())
        assert watcher.see({"step": step, "loss": loss, "grad_norm": dice.lognormvariate(0.0, 0.5)}) == [], step


def after_thirty_steps() -> Watcher:
    watcher = Watcher(OptimizerSettings(), 1000)
    for step in range(1, 30):
        assert watcher.see({"step": step, "loss": 1.0, "grad_norm": 1.0, "step_supervised_tokens": 100}) == []
    return watcher


def test_a_norm_that_varies_widely_anyway_is_no_spike():
    """Near its end, a fine run's gradient norms spread over a factor of 20; 15 times their median is no accident."""
    watcher = Watcher(OptimizerSettings(), 1000)
    for step, norm in enumerate((0.11, 0.14, 0.15, 0.21, 0.26, 0.27, 0.29, 0.34, 0.35, 0.38, 0.41, 0.5, 0.51, 0.52,
                                 0.67, 0.68, 0.73, 0.73, 0.74, 0.99, 1.17, 1.48, 1.56, 1.91, 2.15), start=1):
        watcher.see({"step": step, "loss": 1.0, "grad_norm": norm})
    assert watcher.see({"step": 26, "loss": 1.0, "grad_norm": 7.66}) == []


def test_a_step_of_few_tokens_at_the_end_of_an_epoch_is_no_spike():
    watcher = after_thirty_steps()
    assert watcher.spikes(LoggedStep(30, 9.0, 99.0, 49)) == []
    assert watcher.see({"step": 30, "loss": 9.0, "grad_norm": 99.0, "step_supervised_tokens": 49}) == []
    assert [one.name for one in after_thirty_steps().spikes(LoggedStep(30, 9.0, 99.0, 50))] == [
        "loss_spike", "grad_norm_spike"]


def test_losses_that_are_not_finite_and_skipped_steps_are_left_out():
    watcher = after_thirty_steps()
    for line in ({"loss": None, "grad_norm": None}, {"loss": 9.0, "grad_norm": 99.0, "skipped": "gradient"},
                 {"end": "interrupted"}, {"run": {}}):
        assert watcher.see({"step": 30, **line}) == []
    assert watcher.spikes(LoggedStep(31, float("nan"), float("nan"), 100)) == []
    assert [one.name for one in watcher.spikes(LoggedStep(31, 9.0, 99.0, 0))] == ["loss_spike", "grad_norm_spike"]
    assert not watcher.has_given(RunWarning("x", "text"))
    watcher.see({"step": 31, "warning": "text", "name": "x"})
    assert watcher.has_given(RunWarning("x", "text"))
