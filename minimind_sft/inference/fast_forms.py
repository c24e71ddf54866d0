"""The fast form of each type of module, for decoding.

Decoding one token of a few sequences takes little arithmetic: the time goes into reading weights and starting
operations. So weights are packed (packed.py), matrices that read the same input become one, and norms and RoPE take
fewer operations.

`FAST_FORMS` has a fast form for each exact type of module. A module of another type stays as it is, and so does one
with a hook, a replaced method or quantised weights: correct, only slower, between lowered neighbours. The base of an
adapter is packed like any other projection, and the change is added to its product (low_rank.py).

Local letters: A heads of queries and keys together, H + G; n tokens of one expert.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.inference.low_rank import ChangedProduct
from minimind_sft.inference.packed import Pack, Product
from minimind_sft.model.adapters.adapter import Change
from minimind_sft.model.attention import Attention, Context
from minimind_sft.model.decoder import DecoderLayer
from minimind_sft.model.kernels.dispatch import dispatch
from minimind_sft.model.layers import GELUNetwork, LayerNorm, RMSNorm, SwiGLU, apply_rope
from minimind_sft.model.lora import STACKED, LoRAExperts, LoRALinear, LowRank
from minimind_sft.model.moe import Experts, MixtureOfExperts, Router
from minimind_sft.model.precision import at_least_float32

Lowered = Callable[..., Tensor]
"""Takes a module's arguments and returns its result."""

VECTOR = 64
"""A multiple of the numbers that a kernel computes at once, on any processor."""

ONE_THREAD = 32768
"""Up to so many numbers PyTorch computes in one thread (at::internal::GRAIN_SIZE)."""


@dataclass(frozen=True)
class Lowering:
    """Lowers the modules of one model, whose weights have `dtype`."""

    pack: Pack
    dtype: torch.dtype

    def __call__(self, module: nn.Module) -> Lowered:
        """Returns the fast form of `module`, or the module itself if it has none."""
        if self.knows(type(module), module):
            return FAST_FORMS[type(module)].lower(module, self)
        return self.as_it_is(module)

    def knows(self, kind: type, *modules: nn.Module) -> bool:
        """Whether all `modules` have the fast form of `kind`."""
        form = FAST_FORMS.get(kind)
        return form is not None and all(has_only(module, kind, form.parts, form.optional) for module in modules)

    def as_it_is(self, module: nn.Module) -> Lowered:
        """Runs the module on what it gets in the plain model: inputs in its own dtype, and each angle once."""
        def run(x: Tensor, *arguments: object) -> Tensor:
            plain = [each.halves() if isinstance(each, Rope) else each for each in arguments]
            return at_least_float32(module(x.to(self.dtype), *plain))
        return run

    def can_pack(self, *projections: nn.Module) -> bool:
        """Whether all are known projections, or known adapters around one."""
        bases: list[nn.Module] = [cast(LoRALinear, projection).base if self.knows(LoRALinear, projection)
                                  else projection for projection in projections]
        return self.knows(nn.Linear, *bases)

    def packed(self, *projections: nn.Linear | LoRALinear) -> Product:
        """Returns one product with the weights of all, which read the same input, and with the adapters' changes."""
        linears, bias_O = [_linear(projection) for projection in projections], None
        if any(linear.bias is not None for linear in linears):
            bias_O = torch.cat([linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
                                for linear in linears])
        changes = [_change(projection) if isinstance(projection, LowRank) else None for projection in projections]
        return self.packed_matrices([linear.weight for linear in linears], changes, bias_O)

    def packed_matrices(self, weights: Sequence[Tensor], changes: Sequence[Change | None],
                        bias_O: Tensor | None = None) -> Product:
        """Returns one product with all matrices (O, I) and their changes."""
        product = self.pack(weights, bias_O)
        if all(change is None for change in changes):
            return product
        return ChangedProduct(product, [len(weight_OI) for weight_OI in weights], changes, self.pack)


def _linear(projection: nn.Linear | LoRALinear) -> nn.Linear:
    """Returns the projection itself, or the one that its adapter changes."""
    return projection.base if isinstance(projection, LoRALinear) else projection


def _change(adapter: LowRank) -> Change:
    return Change(adapter.lora_A, adapter.lora_B, adapter.scale)


def has_only(module: nn.Module, kind: type, parts: set[str], optional: frozenset[str] = frozenset()) -> bool:
    """Whether `module` is a `kind` with exactly these parameters and submodules, and computes what its class says."""
    names = {name for group in (module._parameters, module._buffers, module._modules)
             for name, part in group.items() if part is not None}
    hooks = module._forward_hooks or module._forward_pre_hooks
    replaced = any(callable(getattr(kind, name, None)) for name in vars(module))  # a method of this one object
    plain = all(type(parameter) is nn.Parameter for parameter in module.parameters(recurse=False))
    return type(module) is kind and parts <= names <= parts | optional and not hooks and not replaced and plain


class Rope(NamedTuple):
    """Cosine and sine of each dimension's angle; the sine is negated in the first half of a head."""

    cos_T1K: Tensor
    sin_T1K: Tensor

    @classmethod
    def of(cls, cos_T1R: Tensor, sin_T1R: Tensor) -> "Rope":
        return cls(torch.cat((cos_T1R, cos_T1R), -1), torch.cat((-sin_T1R, sin_T1R), -1))

    def halves(self) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of each pair's angle (T, 1, R), as in the plain model."""
        pairs = self.cos_T1K.shape[-1] // 2
        return self.cos_T1K[..., :pairs], self.sin_T1K[..., pairs:]


class _Norm:
    """Computes RMSNorm in fewer operations: x * weight * sqrt(D) / sqrt(|x|^2 + D * eps).

    weight: the norm's weight times sqrt(D).
    """

    def __init__(self, weight_D: Tensor, eps: float):
        size = weight_D.shape[-1]
        self.weight = at_least_float32(weight_D.detach()) * math.sqrt(size)
        self._floor = self.weight.new_ones(()) * math.sqrt(size * eps)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return (x_TD * self.weight).div_(self.scale(x_TD))

    def scale(self, x_TD: Tensor) -> Tensor:
        """Returns sqrt(|x|^2 + D * eps)."""
        return torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=self._floor.dtype).hypot_(self._floor)


def _layer_norm(norm: LayerNorm, _: Lowering) -> Lowered:
    weight_D, bias_D = (at_least_float32(part.detach()) for part in (norm.weight, norm.bias))
    return lambda x_TD: F.layer_norm(x_TD, weight_D.shape, weight_D, bias_D, norm.eps)


class _DecoderLayer:
    def __init__(self, layer: DecoderLayer, lower: Lowering):
        self._attention_norm, self._attention = lower(layer.input_layernorm), lower(layer.self_attn)
        self._mlp_norm, self._mlp = lower(layer.post_attention_layernorm), lower(layer.mlp)
        self._dropout = lower(layer.dropout)

    def __call__(self, x_TD: Tensor, rope: Rope | None, context: Context, read_N: Tensor | None = None) -> Tensor:
        x_TD = x_TD + self._dropout(self._attention(self._attention_norm(x_TD), rope, context))
        x_ND = x_TD if read_N is None else x_TD.index_select(0, read_N)
        return x_ND.add_(self._dropout(self._mlp(self._mlp_norm(x_ND))))


class _Attention:
    def __init__(self, attention: Attention, lower: Lowering):
        self._index, self._window = attention.layer_index, attention.window
        self._heads = _fused_heads(attention, lower) or _Heads(attention, lower)
        self._out = lower(attention.o_proj)

    def __call__(self, x_TD: Tensor, rope: Rope | None, context: Context) -> Tensor:
        q_THK, k_TGK, v_TGK = self._heads(x_TD, rope)
        return self._out(context.attend(self._index, q_THK, k_TGK, v_TGK, self._window).flatten(1))


class _Heads:
    """Computes queries, keys and values with the attention's own projections."""

    def __init__(self, attention: Attention, lower: Lowering):
        self._project, self._dtype, self._rotates = attention.project, lower.dtype, attention.rotates
        self._q_norm, self._k_norm = lower(attention.q_norm), lower(attention.k_norm)

    def __call__(self, x_TD: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        q_THK, k_TGK, v_TGK = map(at_least_float32, self._project(x_TD.to(self._dtype)))
        q_THK, k_TGK = self._q_norm(q_THK), self._k_norm(k_TGK)
        if self._rotates and rope is not None:
            angles = rope.halves()
            q_THK, k_TGK = apply_rope(q_THK, angles), apply_rope(k_TGK, angles)
        return q_THK, k_TGK, v_TGK


class _FusedHeads:
    """Computes queries, keys and values in one product, and whatever happens to queries and keys in one step.

    Args:
        turn: turn(heads_TAK, rope) applies QK-norm and RoPE, as far as the layer has them.
    """

    def __init__(self, attention: Attention, qkv: Product, turn: Lowered):
        self._qkv, self._turn, self._head_dim = qkv, turn, attention.head_dim
        self._heads, self._kv_heads = (
            _linear(proj).out_features // self._head_dim for proj in (attention.q_proj, attention.k_proj))

    def __call__(self, x_TD: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        qkv_TAK = self._qkv(x_TD).unflatten(-1, (-1, self._head_dim))
        heads_TAK, v_TGK = qkv_TAK.split_with_sizes((self._heads + self._kv_heads, self._kv_heads), dim=1)
        q_THK, k_TGK = self._turn(heads_TAK, rope).split_with_sizes((self._heads, self._kv_heads), dim=1)
        return q_THK, k_TGK, v_TGK


def _fused_heads(attention: Attention, lower: Lowering) -> _FusedHeads | None:
    """Returns the fused form, or None if a projection or norm has no fast form."""
    turn: Lowered
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    q_norm, k_norm = cast(RMSNorm, attention.q_norm), cast(RMSNorm, attention.k_norm)
    if not lower.can_pack(*projections):
        return None
    if lower.knows(nn.Identity, q_norm, k_norm):
        turn = _rotated if attention.rotates else _unchanged
    elif lower.knows(RMSNorm, q_norm, k_norm) and q_norm.eps == k_norm.eps:
        heads, kv_heads = (_linear(projection).out_features // attention.head_dim for projection in projections[:2])
        weight_AK = torch.cat([q_norm.weight.expand(heads, -1), k_norm.weight.expand(kv_heads, -1)])
        head_norm = _Norm(weight_AK, q_norm.eps)
        turn = _NormAndRope(head_norm) if attention.rotates else lambda heads_TAK, _: head_norm(heads_TAK)
    else:
        return None
    return _FusedHeads(attention, lower.packed(*projections), turn)


def _unchanged(heads_TAK: Tensor, _: Rope | None) -> Tensor:
    return heads_TAK


def _rotated(heads_TAK: Tensor, rope: Rope) -> Tensor:
    return (heads_TAK * rope.cos_T1K).addcmul_(_rolled(heads_TAK), rope.sin_T1K)


def _rolled(heads_TAK: Tensor) -> Tensor:
    """Moves by half a head, so that each dimension meets the one that it is rotated with."""
    return heads_TAK.roll(heads_TAK.shape[-1] // 2, dims=-1)


class _NormAndRope:
    """Computes QK-norm and RoPE in one step.

    A head h with the norm's weight w becomes (h * w * cos + rolled(h * w) * sin) * sqrt(K) / sqrt(|h|^2 + K * eps).
    """

    def __init__(self, norm: _Norm):
        self._norm = norm

    def __call__(self, heads_TAK: Tensor, rope: Rope) -> Tensor:
        return _rotated(heads_TAK * self._norm.weight, rope).div_(self._norm.scale(heads_TAK))


class _SwiGLU:
    """down(silu(gate) * up), where `gate_up(x)` returns both."""

    def __init__(self, gate_up: Callable[[Tensor], Sequence[Tensor]], down: Lowered):
        self._gate_up, self._down = gate_up, down

    def __call__(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self._gate_up(x_TD)
        return self._down(by_rows(F.silu, gate_TF).mul_(up_TF))


def _swiglu(mlp: SwiGLU, lower: Lowering) -> _SwiGLU:
    if lower.can_pack(mlp.gate_proj, mlp.up_proj):
        return _SwiGLU(_halves(lower.packed(mlp.gate_proj, mlp.up_proj)), lower(mlp.down_proj))
    gate, up = lower(mlp.gate_proj), lower(mlp.up_proj)
    return _SwiGLU(lambda x_TD: (gate(x_TD), up(x_TD)), lower(mlp.down_proj))


def _halves(product: Product) -> Callable[[Tensor], Sequence[Tensor]]:
    return lambda x_TD: product(x_TD).chunk(2, dim=-1)


def by_rows(elementwise: Callable[[Tensor], Tensor], x_TF: Tensor) -> Tensor:
    """Applies a function of single numbers, so that each row gets the same bits whichever rows are beside it.

    Kernels compute most of a stretch of memory with vector instructions and what is left at its end one number at a
    time, which may round otherwise. So no row ends, and no thread begins, within a vector.
    """
    width = x_TF.shape[-1]
    if width % VECTOR:
        return by_rows(elementwise, F.pad(x_TF, (0, -width % VECTOR)))[:, :width]
    if x_TF.numel() <= ONE_THREAD or torch.get_num_threads() == 1:
        return elementwise(x_TF)
    return torch.cat([elementwise(x_nF) for x_nF in x_TF.split(max(ONE_THREAD // width, 1))])


def _gelu_network(mlp: GELUNetwork, lower: Lowering) -> Lowered:
    up, down = lower(mlp.up_proj), lower(mlp.down_proj)
    return lambda x_TD: down(by_rows(partial(F.gelu, approximate="tanh"), up(x_TD)))


class _MixtureOfExperts:
    def __init__(self, mlp: MixtureOfExperts, lower: Lowering):
        router = copy.copy(mlp)
        router._modules = {}  # does not keep the experts' weights
        vars(router)["gate"] = lower(mlp.gate)
        self._route, self._experts = router.route, lower(mlp.experts)
        self._shared_experts = [lower(expert) for expert in mlp.shared_experts]

    def __call__(self, x_TD: Tensor) -> Tensor:
        y_TD = self._experts(x_TD, *self._route(x_TD))
        for expert in self._shared_experts:
            y_TD = y_TD + expert(x_TD)
        return y_TD


class _Experts:
    """The experts' networks, each packed on its own, so that experts without a token are not read."""

    def __init__(self, experts: Experts, lower: Lowering, adapters: Mapping[str, LowRank] | None = None):
        stacks = {name: experts.get_parameter(name).unbind() for name in STACKED}
        changes = {name: _changes((adapters or {}).get(name), len(stacks[name])) for name in STACKED}

        def product(expert: int, *names: str) -> Product:
            return lower.packed_matrices([stacks[name][expert] for name in names],
                                         [changes[name][expert] for name in names])

        self._networks = [_SwiGLU(_halves(product(expert, "gate_proj", "up_proj")), product(expert, "down_proj"))
                          for expert in range(len(stacks["gate_proj"]))]

    def __call__(self, x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor) -> Tensor:
        return dispatch(x_TD, weight_TC, chosen_TC, len(self._networks), self._run)

    def _run(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        rows = x_ND.tensor_split(ends_E[:-1].tolist())
        return torch.cat([network(x_nD) for x_nD, network in zip(rows, self._networks, strict=True) if len(x_nD)])


def _router(gate: Router, lower: Lowering) -> Product:
    bias_E = None if gate.bias is None else at_least_float32(gate.bias)
    return lower.packed_matrices([at_least_float32(gate.weight)], [None], bias_E)


def _changes(adapter: LowRank | None, experts: int) -> Sequence[Change | None]:
    """Returns the change of each expert's matrix."""
    if adapter is None:
        return [None] * experts
    return [Change(a_rI, b_Or, adapter.scale)
            for a_rI, b_Or in zip(adapter.lora_A.unbind(), adapter.lora_B.unbind(), strict=True)]


def _lora_linear(adapter: LoRALinear, lower: Lowering) -> Lowered:
    return lower.packed(adapter) if lower.can_pack(adapter) else lower.as_it_is(adapter)


def _lora_experts(adapter: LoRAExperts, lower: Lowering) -> Lowered:
    changes = {name: getattr(adapter, name) for name in STACKED if getattr(adapter, name) is not None}
    if lower.knows(Experts, adapter.base) and all(has_only(change, LowRank, {"lora_A", "lora_B"})
                                                  for change in changes.values()):
        return _Experts(adapter.base, lower, changes)
    return lower.as_it_is(adapter)


def _same(x: Tensor) -> Tensor:
    """Computes nn.Identity, and dropout in evaluation mode."""
    return x


class FastForm(NamedTuple):
    """How to lower a type of module.

    parts: the parameters and submodules that the fast form knows. A module with others, or without one of them, stays
        as it is.
    optional: those that may be missing.
    """

    lower: Callable[[Any, Lowering], Lowered]
    parts: set[str]
    optional: frozenset[str] = frozenset()


FAST_FORMS: dict[type, FastForm] = {
    nn.Linear: FastForm(lambda linear, lower: lower.packed(linear), {"weight"}, frozenset({"bias"})),
    nn.Dropout: FastForm(lambda dropout, lower: _same, set()),
    nn.Identity: FastForm(lambda identity, lower: _same, set()),
    RMSNorm: FastForm(lambda norm, lower: _Norm(norm.weight, norm.eps), {"weight"}),
    LayerNorm: FastForm(_layer_norm, {"weight", "bias"}),
    Attention: FastForm(_Attention, {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}),
    SwiGLU: FastForm(_swiglu, {"gate_proj", "up_proj", "down_proj"}),
    GELUNetwork: FastForm(_gelu_network, {"up_proj", "down_proj"}),
    Router: FastForm(_router, {"weight"}, frozenset({"bias"})),
    Experts: FastForm(_Experts, {"gate_proj", "up_proj", "down_proj"}),
    LoRALinear: FastForm(_lora_linear, {"base", "lora_A", "lora_B", "dropout"}),
    LoRAExperts: FastForm(_lora_experts, {"base"}, frozenset({*STACKED, "dropout"})),
    MixtureOfExperts: FastForm(_MixtureOfExperts, {"gate", "experts", "shared_experts"}),
    DecoderLayer: FastForm(_DecoderLayer, {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp",
                                           "dropout"}),
}
