"""Spreads a model over the ranks: a copy on each (DDP), or a shard (FSDP2).

With both, the backward pass averages gradients over the ranks, in the last micro-batch of a step only.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.loaded import Uninitialised
from minimind_sft.model.lora import own_parameters
from minimind_sft.training.distributed import Ranks


def parallelize(model: MiniMindForCausalLM, ranks: Ranks, parallel: str, dtype: torch.dtype) -> nn.Module:
    """Returns the module to call in training. Build the optimizer afterwards: "fsdp" replaces parameters by shards.

    Args:
        parallel: "ddp" or "fsdp"; with a single rank both return the model itself.
        dtype: the precision of matrix products, in which FSDP also sends the matrices.
    """
    if ranks.world_size == 1:
        return model
    if parallel == "fsdp":
        return _shard(model, ranks, dtype)
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    # The only buffers are matrices in 4 bits, alike on all ranks; DDP would send them in every forward pass.
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, buffers)
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    _settle_buckets(wrapped, ranks.device, dtype)
    return wrapped


def _settle_buckets(wrapped: DistributedDataParallel, device: torch.device, dtype: torch.dtype) -> None:
    """Runs a backward pass over an empty batch, after which DDP arranges its buckets for good.

    Gradients are summed bucket by bucket. Without this, the first step of a resumed run would sum in another order than
    the same step of an uninterrupted run.
    """
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        losses = wrapped(nothing, nothing, (0,))
    (losses.loss_sum + losses.aux_loss_sum).backward()
    wrapped.zero_grad(set_to_none=True)


def _shard(model: MiniMindForCausalLM, ranks: Ranks, dtype: torch.dtype) -> MiniMindForCausalLM:
    """Shards each layer, and the rest (embedding, head, last norm), over the ranks.

    The matrices of a layer are gathered together, in `dtype`. Autocast would convert them anyway, so nothing is rounded
    that DDP does not round. Norms and routers keep their precision.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    multiplied = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        multiplied = replace(multiplied, param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        fully_shard(layer.matrices(), mesh=mesh, mp_policy=multiplied)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("token_losses", "hidden_states", "logits"):  # for evaluation; like forward, they gather the weights
        register_fsdp_forward_method(model, method)
    return model


def gradient_sync(model: nn.Module, wanted: bool) -> AbstractContextManager:
    """Returns the context for a backward pass after which ranks exchange gradients, or keep them to themselves."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    elif isinstance(model, DistributedDataParallel) and not wanted:
        return model.no_sync()
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Shards the outermost parameters again, which FSDP leaves gathered after a forward pass without a backward."""
    if isinstance(model, FSDPModule):
        model.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """Returns this rank's rows of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns all rows of a sharded tensor, which every rank must call for; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place(tensor: Tensor, like: nn.Parameter, ranks: Ranks) -> Tensor:
    """Returns the main rank's `tensor` on every rank: sharded like `like`, or a copy.

    On other ranks only the shape and dtype of `tensor` matter. Scalars are always copied.
    """
    tensor = tensor.to(ranks.device)
    if isinstance(like, DTensor) and tensor.dim():
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    if ranks.world_size > 1:
        dist.broadcast(tensor, 0)
    return tensor


def gather(model: MiniMindForCausalLM, ranks: Ranks) -> MiniMindForCausalLM | None:
    """Returns the unsharded model on the main rank: itself, or a copy of a sharded one on the CPU.

    Every rank must call it; of a sharded model, the others get None.
    """
    if not is_sharded(model):
        return model
    with Uninitialised():
        copy = MiniMindForCausalLM(model.config) if ranks.is_main else None
    for name, parameter in model.named_parameters():
        unsharded = full_tensor(parameter.detach())
        if copy is not None:
            copy.get_parameter(name).data.copy_(unsharded)
    return copy


def gather_own(model: MiniMindForCausalLM, ranks: Ranks) -> dict[str, Tensor]:
    """Returns the parameters that a run with adapters keeps, unsharded and on the CPU, on the main rank.

    Every rank must call it; the others get none.
    """
    gathered = {}
    for name, parameter in own_parameters(model).items():
        unsharded = full_tensor(parameter.detach())  # one at a time: a rank never holds all of them
        if ranks.is_main:
            gathered[name] = unsharded.cpu()
    return gathered
