"""One optimizer step means the same however its batch was cut up; a training can stop anywhere and go on."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, TINY_MOE, random_documents

from minimind_sft.config import SFTConfig
from minimind_sft.data.batching import TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import TrainState, find_resume_state, load_resume_state, read_train_state
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.loop import Fit, stop_on_signals, train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.progress import Progress

CPU = Ranks(0, 1, torch.device("cpu"))
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


class GradientKeeper(torch.optim.SGD):
    """Keeps the gradients that it is asked to step with."""

    def step(self, closure=None):
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def gradients_of_step(config, micro_batch_tokens: int, ranks: int = 1) -> list[torch.Tensor]:
    """The summed gradients of all ranks in one step of 16 documents, in float64."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).double().train()
    dataset = random_documents(16)
    total = None
    for rank in range(ranks):
        steps = TrainingSteps(dataset, epochs=1, samples_per_step=16, micro_batch_tokens=micro_batch_tokens, seed=1,
                              rank=rank, ranks=ranks)
        keeper = GradientKeeper(model.parameters(), lr=0.0)
        train_step(model, steps[0], keeper, NO_SCALER, CPU, torch.float32, grad_clip=0.0)
        total = keeper.gradients if total is None else [a + b for a, b in zip(total, keeper.gradients, strict=True)]
    return total


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(("micro_batch_tokens", "ranks"), [(40, 1), (19, 1), (512, 2), (40, 4), (512, 20)])
def test_a_step_has_one_gradient_however_it_is_cut(config, micro_batch_tokens, ranks):
    whole = gradients_of_step(config, 512)
    cut = gradients_of_step(config, micro_batch_tokens, ranks)
    for one, other in zip(whole, cut, strict=True):
        assert (one - other).norm() <= 1e-10 * one.norm()


def test_the_gradient_is_that_of_the_mean_over_the_steps_supervised_tokens():
    """Against one document at a time through plain cross-entropy."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY).double()
    dataset = random_documents(16)
    losses, tokens = 0.0, 0
    for sample in range(16):
        input_ids, labels = (torch.from_numpy(x.astype("int64")) for x in dataset[sample][0])
        logits = model.document_logits(input_ids, (0, len(input_ids)))
        losses = losses + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        tokens += int((labels != -100).sum())
    (losses / tokens).backward()
    for mine, parameter in zip(gradients_of_step(TINY, 40), model.parameters(), strict=True):
        assert (mine - parameter.grad).norm() <= 1e-10 * parameter.grad.norm()


def test_the_reported_losses_are_the_steps_means():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY_MOE).train()
    steps = TrainingSteps(random_documents(16), epochs=1, samples_per_step=16, micro_batch_tokens=40, seed=1)
    batch = steps[0]
    results = train_step(model, batch, GradientKeeper(model.parameters()), NO_SCALER, CPU, torch.float32, 1.0)
    with torch.no_grad():
        losses = [model(one.input_ids, one.labels, one.cu_seqlens) for one in batch.micro_batches]
    assert len(losses) > 2
    assert results.loss == pytest.approx(sum(float(x.loss_sum) for x in losses) / batch.supervised_tokens, rel=1e-5)
    assert results.aux_loss == pytest.approx(sum(float(x.aux_loss_sum) for x in losses) / batch.real_tokens, rel=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    batch = TrainingSteps(random_documents(4), epochs=1, samples_per_step=4, micro_batch_tokens=64, seed=1)[0]
    optimizer = build_optimizer(model, 0.1, 0.1)
    result = train_step(model, batch, optimizer, NO_SCALER, CPU, torch.float32, 1.0)
    assert not result.updated
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state


def test_float16_scales_the_loss_and_skips_an_overflow():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    before = [p.clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    batch = TrainingSteps(random_documents(4), epochs=1, samples_per_step=4, micro_batch_tokens=64, seed=1)[0]
    optimizer = build_optimizer(model, 0.01, 0.1)
    first = train_step(model, batch, optimizer, scaler, CPU, torch.float16, 1.0)
    assert not first.updated
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    second = train_step(model, batch, optimizer, scaler, CPU, torch.float16, 1.0)
    assert second.updated and scaler.get_scale() == 2.0**10
    assert second.loss == pytest.approx(first.loss, rel=1e-2)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Training:
    """A whole Fit over tiny data in a folder; `weights` holds the
    validation loss that write_weights was called with, by step."""

    def __init__(self, folder, resume: bool = False, evaluations=None, **changes):
        config = replace(SFTConfig(), batch_size=4, epochs=2, micro_batch_tokens=768, save_interval=3, eval_interval=4,
                         log_interval=1, learning_rate=1e-2, dropout=0.2, **changes)
        torch.manual_seed(0)
        self.model = MiniMindForCausalLM(replace(TINY, dropout=0.2))
        self.optimizer = build_optimizer(self.model, config.learning_rate, config.weight_decay)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.state = TrainState(samples_per_step=4)
        if resume:
            path, _ = find_resume_state(folder / "resume")
            self.state = read_train_state(path)
            load_resume_state(path, self.model, self.optimizer, self.scaler)
        self.weights = {}
        steps = TrainingSteps(random_documents(30), epochs=2, samples_per_step=4, micro_batch_tokens=64, seed=1)
        self.progress = Progress(folder / "metrics.jsonl", total_steps=16, step=self.state.step, is_main=True)
        evaluate = None
        if evaluations is not None:
            losses = iter(evaluations)
            evaluate = lambda: SimpleNamespace(loss=next(losses), perplexity=1.0)  # noqa: E731
        def write_weights(state: TrainState) -> None:
            self.weights[state.step] = state.eval_loss

        self.fit = Fit(config, self.model, steps, ranks=CPU, dtype=torch.float32, optimizer=self.optimizer,
                       scaler=self.scaler, state=self.state, progress=self.progress, checkpoints=folder / "resume",
                       evaluate=evaluate, write_weights=write_weights)

    def run(self, interrupt_at: int | None = None) -> int:
        if interrupt_at is not None:
            step = self.fit.step

            def interrupted(batch):
                step(batch)
                if self.state.step == interrupt_at:
                    os.kill(os.getpid(), signal.SIGINT)

            self.fit.step = interrupted
        with self.progress:
            return self.fit.run()


def lines(path):
    timed = "supervised_tokens_per_second"
    return [{k: v for k, v in json.loads(line).items() if k != timed} for line in path.read_text().splitlines()]


@pytest.mark.parametrize("interrupt_at", [2, 8, 13])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_ctrl_c_goes_on_to_the_same_weights(tmp_path, interrupt_at, workers):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = Training(tmp_path / "a")
    assert whole.run() == 0

    assert Training(tmp_path / "b", num_workers=workers).run(interrupt_at) == 130
    rest = Training(tmp_path / "b", resume=True, num_workers=workers)
    assert rest.state.step == interrupt_at
    assert rest.run() == 0
    for one, other in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, other)
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(whole.optimizer.state[one][kind], rest.optimizer.state[other][kind])
    assert lines(tmp_path / "a/metrics.jsonl") == lines(tmp_path / "b/metrics.jsonl")


def test_the_best_weights_are_kept_and_the_last_where_nothing_is_better(tmp_path):
    # Evaluated at steps 0, 4, 8, 12 and 16; what was there before training does not count. The resume state of step 3
    # comes before the first evaluation: the weights are written with it, so that there are some.
    training = Training(tmp_path, evaluations=[1.0, 3.0, 2.0, 2.5, 2.2])
    training.run()
    assert training.weights == {3: None, 4: 3.0, 8: 2.0}
    assert training.state.best_eval_loss == 2.0


def test_without_keep_best_the_weights_are_the_last(tmp_path):
    training = Training(tmp_path, evaluations=[1.0, 3.0, 2.0, 2.5, 2.2], keep_best=0)
    training.run()
    assert training.weights == {3: None, 6: None, 9: None, 12: 2.5, 15: None, 16: 2.2}


def test_too_many_bad_steps_end_the_training_with_the_weights_before_them(tmp_path):
    training = Training(tmp_path, max_bad_steps=3)
    with torch.no_grad():
        training.model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="3 steps in a row without a finite gradient"):
        training.run()
    assert training.state.updates == 0


def test_max_steps_ends_early(tmp_path):
    training = Training(tmp_path, max_steps=5)
    training.run()
    assert training.state.step == 5 and training.state.finished


def test_a_second_signal_ends_the_process_at_once():
    child = os.fork()
    if child == 0:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
