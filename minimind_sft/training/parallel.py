"""How a model is spread over the ranks: a copy on each (DDP), or a shard (FSDP2).

Both make the backward pass average gradients over the ranks, in the last micro-batch of a step only.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks


def parallelize(model: MiniMindForCausalLM, ranks: Ranks, parallel: str, dtype: torch.dtype) -> nn.Module:
    """The module to call in training. Must come before the optimizer: "fsdp" replaces the parameters by shards.

    Args:
        parallel: "ddp" or "fsdp"; with one rank both are the model itself.
        dtype: what the matrices are multiplied in; FSDP sends them over the wire in it.
    """
    if ranks.world_size == 1:
        return model
    if parallel == "fsdp":
        return _shard(model, ranks, dtype)
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    _settle_buckets(wrapped, ranks.device)
    return wrapped


def _settle_buckets(wrapped: DistributedDataParallel, device: torch.device) -> None:
    """A backward pass over an empty batch, after which DDP lays out its buckets anew.

    Gradients are summed bucket by bucket: without this, the first step of a resumed run would sum in another order
    than the same step of the run that was not interrupted.
    """
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    losses = wrapped(nothing, nothing, (0,))
    (losses.loss_sum + losses.aux_loss_sum).backward()
    wrapped.zero_grad(set_to_none=True)


def _shard(model: MiniMindForCausalLM, ranks: Ranks, dtype: torch.dtype) -> MiniMindForCausalLM:
    """Shards each layer's parameters, and the rest (embedding, head, last norm), over the ranks.

    Of a layer, the matrices are one group, gathered in `dtype`: autocast would convert them to it anyway, so that
    nothing is rounded that DDP does not round. Norms and routers are gathered as they are.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    multiplied = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        multiplied = replace(multiplied, param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer.matrices(), mesh=mesh, mp_policy=multiplied)
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradient_sync(model: nn.Module, wanted: bool) -> AbstractContextManager:
    """The context of a backward pass in which ranks exchange gradients, or keep them to themselves."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    elif isinstance(model, DistributedDataParallel) and not wanted:
        return model.no_sync()
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """To be called after a forward pass without a backward: FSDP keeps the outermost parameters whole until then."""
    if isinstance(model, FSDPModule):
        model.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns all rows of a sharded tensor, if every rank calls it; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place(tensor: Tensor, like: nn.Parameter, ranks: Ranks) -> Tensor:
    """The main rank's `tensor` on every rank: sharded as `like` is, or a copy.

    On the other ranks only the shape and dtype of `tensor` count. A scalar is always a copy.
    """
    tensor = tensor.to(ranks.device)
    if isinstance(like, DTensor) and tensor.dim():
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    if ranks.world_size > 1:
        dist.broadcast(tensor, 0)
    return tensor


def gather(model: MiniMindForCausalLM, ranks: Ranks) -> MiniMindForCausalLM:
    """The whole model on the main rank: itself, or if it is sharded a copy on the CPU. Every rank must call it."""
    if not is_sharded(model):
        return model
    copy = MiniMindForCausalLM(model.config) if ranks.is_main else None
    for name, parameter in model.named_parameters():
        tensor = full_tensor(parameter.detach())
        if copy is not None:
            copy.get_parameter(name).data.copy_(tensor)
    return copy
