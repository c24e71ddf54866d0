"""One optimizer step means the same however its batch is divided; a run can stop anywhere and resume."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from gradient_invariance import GradientKeeper
from kill_and_resume import repeatable_lines
from tiny import TINY, TINY_MOE, random_documents
from tiny_training import CPU, NO_SCALER, Training

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.example import make_example
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import NOT_FINITE, NOTHING_SUPERVISED, train_step
from minimind_sft.training.optim import build_optimizer


def gradients_of_step(config, micro_batch_tokens: int, ranks: int = 1) -> list[torch.Tensor]:
    """Returns the gradients of one step of 16 documents, summed over ranks, in float64."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).double().train()
    dataset = random_documents(16)
    total = None
    for rank in range(ranks):
        steps = TrainingSteps(dataset, BatchLayout(micro_batch_tokens, rank=rank, world_size=ranks), epochs=1,
                              samples_per_step=16, seed=1)
        keeper = GradientKeeper(model.parameters(), lr=0.0)
        train_step(Learner(model, model, keeper, NO_SCALER, CPU, torch.float32), steps[0], grad_clip=0.0)
        own = [torch.from_numpy(gradient) for gradient in keeper.gradients]
        total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
    return total


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(("micro_batch_tokens", "ranks"), [(40, 1), (19, 1), (512, 2), (40, 4), (512, 20)])
def test_the_gradient_does_not_depend_on_micro_batches_or_ranks(config, micro_batch_tokens, ranks):
    whole = gradients_of_step(config, 512)
    cut = gradients_of_step(config, micro_batch_tokens, ranks)
    for one, other in zip(whole, cut, strict=True):
        assert (one - other).norm() <= 1e-10 * one.norm()


def test_the_gradient_is_that_of_the_mean_over_supervised_tokens():
    """Compared with plain cross-entropy on one document at a time."""
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
    steps = TrainingSteps(random_documents(16), BatchLayout(40), epochs=1, samples_per_step=16, seed=1)
    batch = steps[0]
    keeper = GradientKeeper(model.parameters())
    results = train_step(Learner(model, model, keeper, NO_SCALER, CPU, torch.float32), batch, 1.0)
    with torch.no_grad():
        losses = [model(one.input_ids, one.labels, one.cu_seqlens) for one in batch.micro_batches]
    assert len(losses) > 2
    assert results.loss == pytest.approx(sum(float(x.loss_sum) for x in losses) / batch.supervised_tokens, rel=1e-5)
    assert results.aux_loss == pytest.approx(sum(float(x.aux_loss_sum) for x in losses) / batch.real_tokens, rel=1e-5)


def test_a_non_finite_gradient_changes_nothing():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    batch = TrainingSteps(random_documents(4), BatchLayout(64), epochs=1, samples_per_step=4, seed=1)[0]
    optimizer = build_optimizer(model, 0.1, 0.1)
    result = train_step(Learner(model, model, optimizer, NO_SCALER, CPU, torch.float32), batch, 1.0)
    assert result.skipped == NOT_FINITE
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state


def test_float16_scales_the_loss_and_skips_an_overflow():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    before = [p.clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    batch = TrainingSteps(random_documents(4), BatchLayout(64), epochs=1, samples_per_step=4, seed=1)[0]
    optimizer = build_optimizer(model, 0.01, 0.1)
    learner = Learner(model, model, optimizer, scaler, CPU, torch.float16)
    first = train_step(learner, batch, 1.0)
    assert first.skipped == NOT_FINITE
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    second = train_step(learner, batch, 1.0)
    assert second.skipped is None and scaler.get_scale() == 2.0**10
    assert second.loss == pytest.approx(first.loss, rel=1e-2)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("interrupt_at", [2, 8, 13])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_weights(tmp_path, interrupt_at, workers):
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
    assert repeatable_lines(tmp_path / "a/metrics.jsonl") == repeatable_lines(tmp_path / "b/metrics.jsonl")


class NanOnce(torch.autograd.Function):
    """The identity, with a gradient of NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@pytest.mark.parametrize("fault", ["loss is NaN", "loss is infinite", "gradient is NaN"])
def test_steps_that_are_not_finite_change_nothing_and_too_many_end_the_run(tmp_path, capsys, fault):
    training = Training(tmp_path, max_bad_steps=3)
    forward = training.model.forward

    def faulty(*batch):
        losses = forward(*batch)
        if training.state.step >= 5:
            wrong = {"loss is NaN": lambda: losses.loss_sum + float("nan"),
                     "loss is infinite": lambda: losses.loss_sum + float("inf"),  # its gradient is finite
                     "gradient is NaN": lambda: NanOnce.apply(losses.loss_sum)}[fault]()
            return losses._replace(loss_sum=wrong)
        return losses

    training.model.forward = faulty
    with pytest.raises(UserError, match="3 steps in a row without a finite loss and gradient"):
        training.run()
    assert (training.state.step, training.state.updates, training.state.bad_steps) == (8, 5, 3)
    _, state, _ = Checkpoints(tmp_path / "resume", keep=2, ranks=CPU, fresh=False).newest()
    assert state.step == 8 and state.bad_steps == 3
    # The state on disk has the weights of five good steps, before the faults.
    good = Training(tmp_path / "good")
    good.run(interrupt_at=5)
    for one, other in zip(training.model.parameters(), good.model.parameters(), strict=True):
        assert torch.equal(one, other)
    skipped = [line for line in repeatable_lines(tmp_path / "metrics.jsonl") if "skipped" in line]
    assert [line["step"] for line in skipped] == [6, 7, 8]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_too_many_bad_steps_are_the_reported_cause_even_if_the_weights_cannot_be_saved(tmp_path):
    training = Training(tmp_path, max_bad_steps=2)
    forward = training.model.forward
    training.model.forward = lambda *batch: (losses := forward(*batch))._replace(
        loss_sum=losses.loss_sum * float("nan"))
    training.weights = Mock(update=Mock(side_effect=UserError("w.pth: norm.weight is not finite in float16")))
    with pytest.raises(UserError) as error:
        training.run()
    assert str(error.value) == (
        "2 steps in a row without a finite loss and gradient (--max_bad_steps 2); the weights from before cannot be "
        "saved (w.pth: norm.weight is not finite in float16). A lower --learning_rate or --dtype float32 may help")


def test_a_single_bad_step_is_counted_and_the_run_continues(tmp_path):
    training = Training(tmp_path, max_bad_steps=2)
    forward = training.model.forward
    training.model.forward = lambda *batch: (losses := forward(*batch))._replace(
        loss_sum=losses.loss_sum * (float("nan") if training.state.step in (3, 5, 7) else 1.0))
    assert training.run() == 0
    assert (training.state.step, training.state.updates, training.state.bad_steps) == (16, 13, 3)
    assert training.state.bad_steps_in_a_row == 0


def test_a_step_without_a_supervised_token_changes_nothing():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY_MOE)
    optimizer = build_optimizer(model, 0.1, 0.1)
    silent = ExampleDataset([[make_example([1, 2, 3], [False] * 3)], [make_example([4, 5], [False] * 2)]])
    before = [p.clone() for p in model.parameters()]
    batch = TrainingSteps(silent, BatchLayout(8), epochs=1, samples_per_step=2, seed=1)[0]
    result = train_step(Learner(model, model, optimizer, NO_SCALER, CPU, torch.float32), batch, 1.0)
    assert result.skipped == NOTHING_SUPERVISED
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state and all(p.grad is None for p in model.parameters())


def test_max_steps_ends_early(tmp_path):
    training = Training(tmp_path, max_steps=5)
    training.run()
    assert training.state.step == 5 and training.state.finished


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_on_cuda_nothing_waits_for_the_device_before_the_end_of_a_step(config):
    device = torch.device("cuda")
    model = MiniMindForCausalLM(config).to(device).train()
    steps = TrainingSteps(random_documents(8), BatchLayout(64, multiple=16), epochs=1, samples_per_step=4, seed=1)
    for step in range(2):  # libraries are loaded in the first one
        for batch in steps[step].pin_memory().micro_batches:
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            try:
                batch = batch.to(device)
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    losses = model(batch.input_ids, batch.labels, batch.cu_seqlens, batch.supervised_positions)
                sum(losses).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
