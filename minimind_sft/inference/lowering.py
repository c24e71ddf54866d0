"""Lowers a model to a faster form for decoding.

Decoding one token of a few sequences takes little arithmetic: the time goes into reading weights and starting
operations. So weights are packed (packed.py), matrices that read the same input become one, and RMSNorm and RoPE take
fewer operations. The result is that of `MiniMindForCausalLM.hidden_states` and `logits`, the plain version.

`FAST_FORMS` has a fast form for each exact type of module. A module of another type stays as it is, and so does one
with a hook, a bias, an adapter, a replaced method or quantised weights: correct, only slower, between lowered
neighbours.

Local letters: A heads of queries and keys together, H + G; P positions; n tokens of one expert.
"""

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.inference.packed import Pack, best_pack
from minimind_sft.model.attention import Attention, Context
from minimind_sft.model.decoder import Decoder, DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels.dispatch import dispatch
from minimind_sft.model.layers import RMSNorm, SwiGLU, apply_rope, rope_cos_sin
from minimind_sft.model.moe import Experts, MixtureOfExperts
from minimind_sft.model.precision import at_least_float32

Lowered = Callable[..., Tensor]
"""Takes a module's arguments and returns its result."""


def ready_to_decode(model: MiniMindForCausalLM) -> "MiniMindForCausalLM | LoweredModel":
    """Returns the fastest form of `model` for `generate_stream` and `generate_batch`, or `model` if there is none.

    A float32 model whose weights float16 can hold may be deleted afterwards: its lowered form takes half the memory.
    Otherwise the packed matrices come on top of the model. They take two bytes per weight for bfloat16 (four once
    several sequences were decoded at once) and four for float32. They do not follow later changes of the model.
    """
    pack = best_pack(model.embed_tokens.weight)
    return model if pack is None else lower_model(model, pack)


def lower_model(model: MiniMindForCausalLM, pack: Pack) -> "MiniMindForCausalLM | LoweredModel":
    """Returns the model's lowered form, or `model` itself if the whole model or its whole decoder was changed."""
    known = (has_only(model, MiniMindForCausalLM, {"model", "lm_head"})
             and has_only(model.model, Decoder, {"embed_tokens", "layers", "norm"})
             and not model.config.rope_follows_length)
    return LoweredModel(model, pack) if known else model


class LoweredModel:
    """A model of lowered modules. It decodes in place of the plain one, with activations in at least float32."""

    @torch.inference_mode()
    def __init__(self, model: MiniMindForCausalLM, pack: Pack):
        assert not model.training, "only a model in evaluation mode is decoded"
        self.config, self.training, self.embed_tokens = model.config, False, model.embed_tokens
        weight = self.embed_tokens.weight
        lower = Lowering(pack, weight.dtype)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing runs in one thread per matrix
            self._layers = list(pool.map(lower, model.model.layers))
        self._norm, self._head = lower(model.model.norm), lower(model.lm_head)
        self._cos_PK = self._sin_PK = at_least_float32(weight.new_empty(0, model.config.head_dim))

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                      read_N: Tensor | None = None) -> Tensor:
        """Returns what the head reads, as the model's method of the same name."""
        x_TD = at_least_float32(self.embed_tokens(input_ids_T))
        rope = self._rope(positions_T)
        *layers, last = self._layers
        for layer in layers:
            x_TD = layer(x_TD, rope, context)
        return self._norm(last(x_TD, rope, context, read_N))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Returns the scores of the next token (N, V)."""
        return self._head(hidden_ND)

    def _rope(self, positions_T: Tensor) -> "_Rope":
        needed = int(positions_T.max()) + 1
        if len(self._cos_PK) < needed:
            positions_P = torch.arange(2 * needed, device=positions_T.device)
            cos_PR, sin_PR = (x_P1R.flatten(1) for x_P1R in rope_cos_sin(self.config, positions_P, self._cos_PK.dtype))
            self._cos_PK, self._sin_PK = torch.cat((cos_PR, cos_PR), -1), torch.cat((-sin_PR, sin_PR), -1)
        return _Rope(self._cos_PK[positions_T, None], self._sin_PK[positions_T, None])


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
        return kind in FAST_FORMS and all(has_only(module, kind, FAST_FORMS[kind].parts) for module in modules)

    def as_it_is(self, module: nn.Module) -> Lowered:
        """Runs the module on what it gets in the plain model: inputs in its own dtype, and each angle once."""
        def run(x: Tensor, *arguments: object) -> Tensor:
            plain = [each.halves() if isinstance(each, _Rope) else each for each in arguments]
            return at_least_float32(module(x.to(self.dtype), *plain))
        return run


def has_only(module: nn.Module, kind: type, parts: set[str]) -> bool:
    """Whether `module` is a `kind` with exactly these parameters and submodules, and computes what its class says."""
    names = {name for group in (module._parameters, module._buffers, module._modules)
             for name, part in group.items() if part is not None}
    hooks = module._forward_hooks or module._forward_pre_hooks
    replaced = any(callable(getattr(kind, name, None)) for name in vars(module))  # a method of this one object
    plain = all(type(parameter) is nn.Parameter for parameter in module.parameters(recurse=False))
    return type(module) is kind and names == parts and not hooks and not replaced and plain


class _Rope(NamedTuple):
    """Cosine and sine of each dimension's angle; the sine is negated in the first half of a head."""

    cos_T1K: Tensor
    sin_T1K: Tensor

    def halves(self) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of each pair's angle (T, 1, R), as in the plain model."""
        pairs = self.cos_T1K.shape[-1] // 2
        return self.cos_T1K[..., :pairs], self.sin_T1K[..., pairs:]


class _Norm:
    """Computes RMSNorm in fewer operations: x * weight * sqrt(D) / sqrt(|x|^2 + D * eps)."""

    def __init__(self, norm: RMSNorm, _: Lowering):
        self._weight_D = at_least_float32(norm.weight.detach()) * math.sqrt(len(norm.weight))
        self._floor = _norm_floor(norm)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return (x_TD * self._weight_D).div_(torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).hypot_(self._floor))


def _norm_floor(norm: RMSNorm) -> Tensor:
    """Returns sqrt(D * eps)."""
    return at_least_float32(norm.weight.new_ones(())) * math.sqrt(len(norm.weight) * norm.eps)


class _DecoderLayer:
    def __init__(self, layer: DecoderLayer, lower: Lowering):
        self._attention_norm, self._attention = lower(layer.input_layernorm), lower(layer.self_attn)
        self._mlp_norm, self._mlp = lower(layer.post_attention_layernorm), lower(layer.mlp)
        self._dropout = lower(layer.dropout)

    def __call__(self, x_TD: Tensor, rope: _Rope, context: Context, read_N: Tensor | None = None) -> Tensor:
        x_TD = x_TD + self._dropout(self._attention(self._attention_norm(x_TD), rope, context))
        x_ND = x_TD if read_N is None else x_TD.index_select(0, read_N)
        return x_ND.add_(self._dropout(self._mlp(self._mlp_norm(x_ND))))


class _Attention:
    def __init__(self, attention: Attention, lower: Lowering):
        self._index, self._window = attention.layer_index, attention.window
        fuses = (attention.rotates and lower.knows(nn.Linear, attention.q_proj, attention.k_proj, attention.v_proj)
                 and lower.knows(RMSNorm, attention.q_norm, attention.k_norm)
                 and attention.q_norm.eps == attention.k_norm.eps)
        self._heads = _FusedHeads(attention, lower.pack) if fuses else _Heads(attention, lower)
        self._out = lower(attention.o_proj)

    def __call__(self, x_TD: Tensor, rope: _Rope, context: Context) -> Tensor:
        q_THK, k_TGK, v_TGK = self._heads(x_TD, rope)
        return self._out(context.attend(self._index, q_THK, k_TGK, v_TGK, self._window).flatten(1))


class _Heads:
    """Computes queries, keys and values with the attention's own projections."""

    def __init__(self, attention: Attention, lower: Lowering):
        self._project, self._dtype, self._rotates = attention.project, lower.dtype, attention.rotates
        self._q_norm, self._k_norm = lower(attention.q_norm), lower(attention.k_norm)

    def __call__(self, x_TD: Tensor, rope: _Rope) -> tuple[Tensor, Tensor, Tensor]:
        q_THK, k_TGK, v_TGK = map(at_least_float32, self._project(x_TD.to(self._dtype)))
        q_THK, k_TGK = self._q_norm(q_THK), self._k_norm(k_TGK)
        if not self._rotates:
            return q_THK, k_TGK, v_TGK
        angles = rope.halves()
        return apply_rope(q_THK, angles), apply_rope(k_TGK, angles), v_TGK


class _FusedHeads:
    """Computes queries, keys and values in one product, and QK-norm and RoPE in one step.

    A head h with the norm's weight w becomes (h * w * cos + roll(h * w) * sin) * sqrt(K) / sqrt(|h|^2 + K * eps).
    `roll` moves by half a head, so that each dimension meets the one that it is rotated with.
    """

    def __init__(self, attention: Attention, pack: Pack):
        assert isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm)
        self._head_dim = attention.head_dim
        self._qkv = pack([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        self._heads, self._kv_heads = (
            proj.out_features // self._head_dim for proj in (attention.q_proj, attention.k_proj))
        weight_AK = torch.cat([
            attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)])
        self._weight_AK = at_least_float32(weight_AK.detach()) * math.sqrt(self._head_dim)
        self._rolled_weight_AK = self._weight_AK.roll(self._head_dim // 2, dims=-1)
        self._floor = _norm_floor(attention.q_norm)

    def __call__(self, x_TD: Tensor, rope: _Rope) -> tuple[Tensor, Tensor, Tensor]:
        cos_T1K, sin_T1K = rope
        qkv_TAK = self._qkv(x_TD).unflatten(-1, (-1, self._head_dim))
        heads_TAK, v_TGK = qkv_TAK.split((self._heads + self._kv_heads, self._kv_heads), dim=1)
        norm_TA1 = torch.linalg.vector_norm(heads_TAK, dim=-1, keepdim=True, dtype=cos_T1K.dtype).hypot_(self._floor)
        rotated_TAK = heads_TAK * (self._weight_AK * cos_T1K)
        rotated_TAK.addcmul_(heads_TAK.roll(self._head_dim // 2, dims=-1), self._rolled_weight_AK * sin_T1K)
        q_THK, k_TGK = rotated_TAK.div_(norm_TA1).split((self._heads, self._kv_heads), dim=1)
        return q_THK, k_TGK, v_TGK


class _SwiGLU:
    """down(silu(gate) * up), where `gate_up(x)` returns both."""

    def __init__(self, gate_up: Callable[[Tensor], tuple[Tensor, Tensor]], down: Lowered):
        self._gate_up, self._down = gate_up, down

    def __call__(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self._gate_up(x_TD)
        return self._down(F.silu(gate_TF).mul_(up_TF))


def _swiglu(mlp: SwiGLU, lower: Lowering) -> _SwiGLU:
    if lower.knows(nn.Linear, mlp.gate_proj, mlp.up_proj):
        return _SwiGLU(_one_product(mlp.gate_proj.weight, mlp.up_proj.weight, lower.pack), lower(mlp.down_proj))
    gate, up = lower(mlp.gate_proj), lower(mlp.up_proj)
    return _SwiGLU(lambda x_TD: (gate(x_TD), up(x_TD)), lower(mlp.down_proj))


def _one_product(gate_FD: Tensor, up_FD: Tensor, pack: Pack) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    product = pack([gate_FD, up_FD])

    def gate_up(x_TD: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = product(x_TD).chunk(2, dim=-1)
        return gate_TF, up_TF
    return gate_up


class _MixtureOfExperts:
    def __init__(self, mlp: MixtureOfExperts, lower: Lowering):
        router = copy.copy(mlp)
        router._modules = {"gate": mlp.gate}  # does not keep the experts' weights
        self._route, self._experts = router.route, lower(mlp.experts)
        self._shared = [lower(expert) for expert in mlp.shared_experts]

    def __call__(self, x_TD: Tensor) -> Tensor:
        y_TD = self._experts(x_TD, *self._route(x_TD))
        for expert in self._shared:
            y_TD = y_TD + expert(x_TD)
        return y_TD


class _Experts:
    """The experts' networks, each packed on its own, so that experts without a token are not read."""

    def __init__(self, experts: Experts, lower: Lowering):
        weights = zip(experts.gate_proj.unbind(), experts.up_proj.unbind(), experts.down_proj.unbind(), strict=True)
        self._networks = [_SwiGLU(_one_product(gate_FD, up_FD, lower.pack), lower.pack([down_DF]))
                          for gate_FD, up_FD, down_DF in weights]

    def __call__(self, x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor) -> Tensor:
        return dispatch(x_TD, weight_TC, chosen_TC, len(self._networks), self._run)

    def _run(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        rows = x_ND.tensor_split(ends_E[:-1].tolist())
        return torch.cat([network(x_nD) for x_nD, network in zip(rows, self._networks, strict=True) if len(x_nD)])


def _same(x: Tensor) -> Tensor:
    """Dropout, in evaluation mode."""
    return x


class FastForm(NamedTuple):
    """How to lower a type of module.

    parts: the parameters and submodules that the fast form knows. A module with others, or without one of them, stays
        as it is.
    """

    lower: Callable[[Any, Lowering], Lowered]
    parts: set[str]


FAST_FORMS: dict[type, FastForm] = {
    nn.Linear: FastForm(lambda linear, lower: lower.pack([linear.weight]), {"weight"}),
    nn.Dropout: FastForm(lambda dropout, lower: _same, set()),
    RMSNorm: FastForm(_Norm, {"weight"}),
    Attention: FastForm(_Attention, {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}),
    SwiGLU: FastForm(_swiglu, {"gate_proj", "up_proj", "down_proj"}),
    Experts: FastForm(_Experts, {"gate_proj", "up_proj", "down_proj"}),
    MixtureOfExperts: FastForm(_MixtureOfExperts, {"gate", "experts", "shared_experts"}),
    DecoderLayer: FastForm(_DecoderLayer, {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp",
                                           "dropout"}),
}
