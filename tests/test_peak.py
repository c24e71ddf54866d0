"""The FLOPs of a step, compared with PyTorch's own counter, and the measured peak."""

import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY, TINY_MOE, random_documents
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.data.batching import BatchLayout, StepBatch, TrainingSteps
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, add_adapters
from minimind_sft.training import peak
from minimind_sft.training.freezing import freeze
from minimind_sft.training.peak import StepCost, matmul_peak, peak_memory

CPU = torch.device("cpu")
UNTIED = replace(TINY, tie_word_embeddings=False)
ROWS = 64
"""The head and the last feed-forward network run on a multiple of so many positions (selection.fill_up)."""


def steps_of(count: int) -> StepBatch:
    return TrainingSteps(random_documents(count), BatchLayout(64), epochs=1, samples_per_step=count, seed=1)[0]


def matrix_products(model: MiniMindForCausalLM, step: StepBatch) -> int:
    """Returns PyTorch's count of the FLOPs of a step of one document, forward and backward, without attention's."""
    (batch,) = step.micro_batches
    with FlopCounterMode(display=False) as counter:
        model(batch.input_ids, batch.labels, batch.cu_seqlens, batch.supervised_positions).loss_sum.backward()
    return sum(flops for product, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(product))


@pytest.mark.parametrize("frozen", [(), ("layers.0", "embed_tokens"), ("layers.1", "norm")])
def test_the_flops_of_the_matrices_are_those_that_pytorch_counts(frozen):
    torch.manual_seed(0)
    model, step = MiniMindForCausalLM(UNTIED), steps_of(1)
    freeze(model, frozen)
    cost = StepCost.of(model, CPU)
    assert cost.per_token * step.real_tokens + cost.per_supervised * ROWS == matrix_products(model, step)


def test_adapters_need_no_gradient_of_the_base():
    torch.manual_seed(0)
    model, step = MiniMindForCausalLM(UNTIED), steps_of(1)
    add_adapters(model, [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"],
                 LoraShape(rank=2))
    cost = StepCost.of(model, CPU)
    mine = cost.per_token * step.real_tokens + cost.per_supervised * ROWS
    assert mine == pytest.approx(matrix_products(model, step), rel=0.03)  # the first layer's input needs no gradient


def test_attention_counts_each_token_with_those_before_it():
    model, step = MiniMindForCausalLM(UNTIED), steps_of(5)
    cost = StepCost.of(model, CPU)
    lengths = [length for sample in step.sample_ids for length in random_documents(5).lengths(sample)]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    per_pair = 3 * 4 * 16  # three passes of q k and of weights times v; all heads
    assert cost.per_pair == {None: 2 * per_pair}
    without = cost.per_token * sum(lengths) + cost.per_supervised * step.supervised_tokens
    assert cost.flops(step) == pytest.approx(without + 2 * per_pair * pairs)

    one_slides = replace(UNTIED, sliding_window=3, full_attention_layers=(1,))
    in_window = sum(min(position, 3) for length in lengths for position in range(1, length + 1))
    assert StepCost.of(MiniMindForCausalLM(one_slides), CPU).flops(step) == pytest.approx(
        without + per_pair * (pairs + in_window))


def test_of_experts_only_the_chosen_ones_count():
    dense, mixture = (StepCost.of(MiniMindForCausalLM(config), CPU) for config in (TINY, TINY_MOE))
    router = 6 * 16 * 4
    assert mixture.per_token == dense.per_token + router
    assert mixture.per_supervised == dense.per_supervised + router


@pytest.mark.parametrize(("speed", "sizes"), [(2e9, [256]), (1e11, [256, 512]), (1e12, [256, 512, 1024])])
def test_the_peak_is_measured_with_few_products_and_no_random_number(monkeypatch, speed, sizes):
    """No product takes 0.02 s, on a slow device either."""
    now, multiplied = 0.0, []

    def multiply(one: torch.Tensor, other: torch.Tensor) -> None:
        nonlocal now
        now += 2 * len(one) ** 3 / speed
        multiplied.append(len(one))

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(peak.time, "perf_counter", lambda: now)
    before = torch.get_rng_state()
    assert matmul_peak(CPU, torch.float32) == pytest.approx(speed)
    assert Counter(multiplied) == dict.fromkeys(sizes, 4)  # the first of each size sets up the kernel
    assert torch.equal(torch.get_rng_state(), before)


def test_a_real_product_has_a_peak():
    assert matmul_peak(CPU, torch.float32) > 0


@pytest.mark.parametrize(("platform", "mebibytes"), [("linux", 3072.0), ("darwin", 3.0)])
def test_the_peak_of_memory_is_in_mebibytes(monkeypatch, platform, mebibytes):
    """Linux counts it in KiB, macOS in bytes."""
    resource = pytest.importorskip("resource")
    assert peak_memory(CPU) > 0
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory(CPU) == mebibytes
