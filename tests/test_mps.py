"""Support for Apple GPUs, as far as it can be tested without one."""

import pytest
import torch
from tiny import TINY, TINY_MOE, random_documents
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimind_sft.data.batching import BatchLayout, EvaluationBatches, TrainingSteps
from minimind_sft.device import described_dtype, resolve_device, resolve_dtype
from minimind_sft.errors import UserError
from minimind_sft.evaluation.losses import validation_loss
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels.selection import can_be_grouped
from minimind_sft.training.distributed import Ranks, join_ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer

pytestmark = pytest.mark.slow

MPS = torch.device("mps")
CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_prefers_cuda_to_mps(apple, monkeypatch):
    assert resolve_device("auto") == resolve_device("mps") == resolve_device("mps:0") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda", 0)


def test_mps_is_refused_without_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device mps: PyTorch finds no Apple GPU here; --device cpu"):
        resolve_device("mps")


def test_a_second_apple_gpu_is_refused(apple):
    with pytest.raises(UserError, match=r"--device mps:1: expected mps, the only Apple GPU$"):
        resolve_device("mps:1")


def test_mps_computes_only_in_float32():
    assert resolve_dtype("auto", MPS) == resolve_dtype("float32", MPS) == torch.float32
    assert described_dtype("auto", MPS) == "float32 (--dtype auto: mps is not trusted with bfloat16)"
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(UserError, match=rf"--dtype {dtype}: expected auto or float32 on mps"):
            resolve_dtype(dtype, MPS)


def test_several_ranks_cannot_share_mps_and_auto_takes_the_cpu(apple, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--device mps: several ranks cannot share it; start one"):
        join_ranks("mps", 1.0).__enter__()
    chosen = []
    monkeypatch.setattr("minimind_sft.training.distributed.resolve_device",
                        lambda name, rank: chosen.append(name) or torch.device("cpu"))
    monkeypatch.setattr("minimind_sft.training.distributed._meet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        join_ranks("auto", 1.0).__enter__()
    assert chosen == ["cpu"]


def test_experts_are_not_grouped_on_mps():
    for device, grouped in (("cpu", True), ("mps", False)):
        x_TD, weight_TC, chosen_TC, gate_EFD = (Shaped(one, device) for one in ((5, 16), (5, 1), (5, 1), (2, 8, 16)))
        assert can_be_grouped(x_TD, weight_TC, chosen_TC, gate_EFD) is grouped


class Shaped:
    """Has the properties of a float32 tensor on a device that may be absent."""

    def __init__(self, shape: tuple[int, ...], device: str):
        self.shape, self.device = shape, torch.device(device)
        self.dtype, self.itemsize = torch.float32, 4

    def __len__(self) -> int:
        return self.shape[0]


class NoFloat64(TorchDispatchMode):
    """Fails at every operation that returns float64, which Apple GPUs lack."""

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        out = operation(*arguments, **(keywords or {}))
        assert torch.float64 not in {getattr(one, "dtype", None) for one in tree_leaves(out)}, operation
        return out


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_nothing_needs_float64(config):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    optimizer, scaler = build_optimizer(model, 0.01, 0.1), torch.amp.GradScaler("mps", enabled=False)
    documents = random_documents(8)
    with NoFloat64():
        steps = TrainingSteps(documents, BatchLayout(40), epochs=1, samples_per_step=4, seed=1)
        assert train_step(Learner(model, model, optimizer, scaler, CPU, torch.float32), steps[0], 1.0).skipped is None
        batches = EvaluationBatches(documents, BatchLayout(40))
        assert validation_loss(model, batches, CPU.device, torch.float32).tokens > 0
        settings = SamplingSettings(3, temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.1)
        assert len(generate_batch(model, [[1, 2], [3]], settings, ())) == 2


def test_copying_a_batch_to_mps_waits_for_the_copy(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: waits.append(not non_blocking) or self)
    steps = TrainingSteps(random_documents(4), BatchLayout(768), epochs=1, samples_per_step=4, seed=1)
    (batch,) = steps[0].micro_batches
    batch.to(MPS)
    assert waits == [True] * 3
