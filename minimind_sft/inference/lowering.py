"""A model whose weights do not change any more, made ready to decode.

One token of a few sequences needs little arithmetic: its time goes into reading the weights and into starting
operations. So the weights are packed (packed.py), matrices that read the same input become one, and RMSNorm and RoPE
take fewer operations. The result is that of `MiniMindForCausalLM.hidden_states`, which is its plain version.

Shapes: T tokens of all sequences in one row, D hidden size, H query heads, G key/value heads, A = H + G heads that are
turned, W head dim, R = W / 2, P positions, F width of the feed-forward network, E experts, n tokens of one expert,
N copies of tokens, or positions that are wanted, V vocabulary.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.inference.packed import Pack, best_pack
from minimind_sft.model.attention import Attention, Context
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels.dispatch import dispatch
from minimind_sft.model.layers import RMSNorm, rope_cos_sin
from minimind_sft.model.moe import Experts, MixtureOfExperts
from minimind_sft.model.precision import at_least_float32


def ready_to_decode(model: MiniMindForCausalLM) -> "MiniMindForCausalLM | FrozenModel":
    """The fastest form of `model` for `generate_stream` and `generate_batch`; the model itself where there is none.

    A model in float32 whose weights float16 can hold is not needed any more: what is given back takes half its memory.
    Otherwise the packed matrices lie beside the model: in two bytes per weight for bfloat16 (four once several
    sequences were decoded at once), in four for float32. Later changes of the model do not reach them.
    """
    pack = best_pack(model.lm_head.weight)
    return model if pack is None else FrozenModel(model, pack)


class FrozenModel:
    """Packed weights in the place of a model; its activations are in at least float32."""

    @torch.inference_mode()
    def __init__(self, model: MiniMindForCausalLM, pack: Pack):
        assert not model.training, "only a model in evaluation mode is decoded"
        self.config, self.training, self.lm_head = model.config, False, model.lm_head
        self._embed_tokens = model.model.embed_tokens
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing runs in one thread per matrix
            self._layers = list(pool.map(partial(_Layer, pack=pack), model.model.layers))
        self._norm = _Norm(model.model.norm)
        self._head = pack([model.lm_head.weight])
        self._cos_PW = self._sin_PW = at_least_float32(model.lm_head.weight.new_empty(0, model.config.head_dim))

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                      read_N: Tensor | None = None) -> Tensor:
        """What the head reads, (T, D), or (N, D) of the positions `read_N`, as the model's method of that name."""
        x_TD = at_least_float32(self._embed_tokens(input_ids_T))
        rope = self._rope(positions_T)
        *layers, last = self._layers
        for layer in layers:
            x_TD = layer(x_TD, rope, context)
        return self._norm(last(x_TD, rope, context, read_N))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Scores of the next token (N, V)."""
        return self._head(hidden_ND)

    def _rope(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, W), looked up; the sine is negative for the first half of a head."""
        needed = int(positions_T.max()) + 1
        if len(self._cos_PW) < needed:
            positions_P = torch.arange(2 * needed, device=positions_T.device)
            cos_PR, sin_PR = (x_P1R.flatten(1) for x_P1R in rope_cos_sin(self.config, positions_P, self._cos_PW.dtype))
            self._cos_PW, self._sin_PW = torch.cat((cos_PR, cos_PR), -1), torch.cat((-sin_PR, sin_PR), -1)
        return self._cos_PW[positions_T, None], self._sin_PW[positions_T, None]


class _Norm:
    """RMSNorm in fewer operations: x * weight * sqrt(D) / sqrt(|x|^2 + D * eps)."""

    def __init__(self, norm: RMSNorm):
        self._weight_D = at_least_float32(norm.weight.detach()) * math.sqrt(len(norm.weight))
        self._floor = _norm_floor(norm)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return (x_TD * self._weight_D).div_(torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).hypot_(self._floor))


def _norm_floor(norm: RMSNorm) -> Tensor:
    """sqrt(D * eps)."""
    return at_least_float32(norm.weight.new_ones(())) * math.sqrt(len(norm.weight) * norm.eps)


class _Layer:
    """A decoder layer."""

    def __init__(self, layer: DecoderLayer, pack: Pack):
        self._attention_norm, self._mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._attention = _Attention(layer.self_attn, pack)
        mlp = layer.mlp
        if isinstance(mlp, MixtureOfExperts):
            self._mlp = _with_experts(mlp, _Experts(mlp.experts, pack))
        else:
            self._mlp = _SwiGLU(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, pack)

    def __call__(self, x_TD: Tensor, rope: tuple[Tensor, Tensor], context: Context,
                 read_N: Tensor | None = None) -> Tensor:
        x_ND = x_TD + self._attention(self._attention_norm(x_TD), rope, context)
        if read_N is not None:
            x_ND = x_ND.index_select(0, read_N)
        return x_ND.add_(self._mlp(self._mlp_norm(x_ND)))


class _Attention:
    """Attention with one product for queries, keys and values, and QK-norm and RoPE in one:

    a head h with the norm's weight w becomes (h * w * cos + roll(h * w) * sin) * sqrt(W) / sqrt(|h|^2 + W * eps), where
    `roll` moves by half a head, so that each dimension meets the one that it is turned with.
    """

    def __init__(self, attention: Attention, pack: Pack):
        self._index, self._head_dim = attention.layer_index, attention.head_dim
        self._qkv = pack([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        self._out = pack([attention.o_proj.weight])
        self._heads, self._kv_heads = (
            proj.out_features // self._head_dim for proj in (attention.q_proj, attention.k_proj))
        weight_AW = torch.cat([
            attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)])
        self._weight_AW = at_least_float32(weight_AW.detach()) * math.sqrt(self._head_dim)
        self._rolled_weight_AW = self._weight_AW.roll(self._head_dim // 2, dims=-1)
        self._floor = _norm_floor(attention.q_norm)

    def __call__(self, x_TD: Tensor, rope: tuple[Tensor, Tensor], context: Context) -> Tensor:
        cos_T1W, sin_T1W = rope
        qkv_THW = self._qkv(x_TD).unflatten(-1, (-1, self._head_dim))
        heads_TAW, v_TGW = qkv_THW.split((self._heads + self._kv_heads, self._kv_heads), dim=1)
        norm_TA1 = torch.linalg.vector_norm(heads_TAW, dim=-1, keepdim=True, dtype=cos_T1W.dtype).hypot_(self._floor)
        turned_TAW = heads_TAW * (self._weight_AW * cos_T1W)
        turned_TAW.addcmul_(heads_TAW.roll(self._head_dim // 2, dims=-1), self._rolled_weight_AW * sin_T1W)
        q_THW, k_TGW = turned_TAW.div_(norm_TA1).split((self._heads, self._kv_heads), dim=1)
        return self._out(context.attend(self._index, q_THW, k_TGW, v_TGW).flatten(1))


class _SwiGLU:
    """SwiGLU with gate and up as one product."""

    def __init__(self, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, pack: Pack):
        self._gate_up, self._down = pack([gate_FD, up_FD]), pack([down_DF])

    def __call__(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self._gate_up(x_TD).chunk(2, dim=-1)
        return self._down(F.silu(gate_TF).mul_(up_TF))


class _Experts(nn.Module):
    """The experts' networks, each packed on its own: those without a token are not read."""

    def __init__(self, experts: Experts, pack: Pack):
        super().__init__()
        weights = zip(experts.gate_proj.unbind(), experts.up_proj.unbind(), experts.down_proj.unbind(), strict=True)
        self._networks = [_SwiGLU(*matrices, pack) for matrices in weights]

    def forward(self, x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor) -> Tensor:
        return dispatch(x_TD, weight_TC, chosen_TC, len(self._networks), self._run)

    def _run(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        rows = x_ND.tensor_split(ends_E[:-1].tolist())
        return torch.cat([network(x_nD) for x_nD, network in zip(rows, self._networks, strict=True) if len(x_nD)])


def _with_experts(mlp: MixtureOfExperts, experts: _Experts) -> MixtureOfExperts:
    """The same router before other experts; the model's own module stays as it is."""
    routed = copy.copy(mlp)
    routed._modules = {**mlp._modules, "experts": experts}
    return routed
