"""A model whose weights do not change any more, made ready to decode.

One token of a few sequences needs little arithmetic: its time goes into reading the weights and into starting
operations. So the weights are packed (packed.py), matrices that read the same input become one, and what can be
computed once per token or once per model is not computed in every layer. The result is that of
`MiniMindForCausalLM.hidden_states`, which stands beside it as its plain version.

Shapes: S sequences with one token each, T tokens of prompts in one row, D hidden size, A query and key heads together,
W head dim, M layers, P positions, E experts, n tokens of one expert, N copies of tokens, V vocabulary.
"""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.inference.packed import Pack, best_pack
from minimind_sft.model.decoder import Context, DecoderLayer, MiniMindForCausalLM, RMSNorm, rope_turns
from minimind_sft.model.kv_cache import KVCache
from minimind_sft.model.moe import Experts, MixtureOfExperts
from minimind_sft.model.precision import at_least_float32


def ready_to_decode(model: MiniMindForCausalLM) -> "MiniMindForCausalLM | FrozenModel":
    """The fastest form of `model` for `generate_stream` and `generate_batch`; the model itself where there is none.

    The packed weights take as much memory again as the matrices do in half precision (twice that where float16 cannot
    hold them; in bfloat16 twice that once a batch of more than a few sequences was decoded). Later changes of the
    model's weights do not reach them.
    """
    pack = best_pack(model.lm_head.weight)
    return model if pack is None else FrozenModel(model, pack)


class FrozenModel:
    """Reads prompts with the model itself, and then decodes token by token with its packed weights."""

    @torch.inference_mode()
    def __init__(self, model: MiniMindForCausalLM, pack: Pack):
        assert not model.training, "only a model in evaluation mode is decoded"
        self.config, self.training, self.lm_head = model.config, False, model.lm_head
        self._model = model
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing runs in one thread per matrix
            self._layers = list(pool.map(partial(_Layer, pack=pack), model.model.layers))
        self._norm = _Norm(model.model.norm)
        self._head = pack([model.lm_head.weight])
        self._turned = _TurnedHeads(model)

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """What the head reads (T, D); one token per sequence where the context is the cache itself."""
        if not isinstance(context, KVCache):
            return self._model.hidden_states(input_ids_T, positions_T, context)
        x_SD = at_least_float32(self._model.model.embed_tokens(input_ids_T))
        turns = self._turned.at(positions_T, max(context.lengths))
        for index, layer in enumerate(self._layers):
            x_SD = layer(x_SD, [turn_MSAW[index] for turn_MSAW in turns], context)
        return self._norm(x_SD)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Scores of the next token (S, V)."""
        return self._head(at_least_float32(hidden_SD))


class _Norm:
    """RMSNorm in fewer operations: x * weight * sqrt(D) / sqrt(|x|^2 + D * eps)."""

    def __init__(self, norm: RMSNorm):
        weight_D = at_least_float32(norm.weight)
        self._weight_D = weight_D * math.sqrt(len(weight_D))
        self._floor = _norm_floor(norm, weight_D)

    def __call__(self, x_SD: Tensor) -> Tensor:
        return (x_SD * self._weight_D).div_(torch.linalg.vector_norm(x_SD, dim=-1, keepdim=True).hypot_(self._floor))


def _norm_floor(norm: RMSNorm, weight: Tensor) -> Tensor:
    """sqrt(D * eps)."""
    return weight.new_tensor(math.sqrt(len(weight) * norm.eps))


class _TurnedHeads:
    """RoPE with the QK-norm's weight multiplied in: a head h becomes (h * cos + roll(h) * sin) / sqrt(|h|^2 + W * eps).

    `roll` moves a head by half its size, so that each dimension meets the one that it is turned with.
    """

    def __init__(self, model: MiniMindForCausalLM):
        config, layers = model.config, model.model.layers
        self._config = config
        heads = (config.num_attention_heads, config.num_key_value_heads)
        self._weight_M1AW = math.sqrt(config.head_dim) * torch.stack([
            torch.cat([at_least_float32(norm.weight).expand(count, -1)
                       for count, norm in zip(heads, (layer.self_attn.q_norm, layer.self_attn.k_norm), strict=True)])
            for layer in layers
        ])[:, None]
        self._rolled_M1AW = self._weight_M1AW.roll(config.head_dim // 2, dims=-1)
        self._cos_PW = self._sin_PW = self._weight_M1AW.new_empty(0, config.head_dim)

    def at(self, positions_S: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin (M, S, A, W) of all layers; every position is below `longest`."""
        if len(self._cos_PW) < longest:
            self._reserve(2 * longest)
        cos_S1W, sin_S1W = self._cos_PW[positions_S][:, None], self._sin_PW[positions_S][:, None]
        return self._weight_M1AW * cos_S1W, self._rolled_M1AW * sin_S1W

    def _reserve(self, positions: int) -> None:
        device, dtype = self._weight_M1AW.device, self._weight_M1AW.dtype
        cos_PR, sin_PR = (x.flatten(1) for x in rope_turns(self._config, torch.arange(positions, device=device), dtype))
        self._cos_PW, self._sin_PW = torch.cat((cos_PR, cos_PR), -1), torch.cat((-sin_PR, sin_PR), -1)


class _Layer:
    """One decoder layer for one token of each sequence."""

    def __init__(self, layer: DecoderLayer, pack: Pack):
        attention, mlp = layer.self_attn, layer.mlp
        self._index, self._head_dim = attention.layer_index, attention.head_dim
        self._heads = attention.q_proj.out_features // self._head_dim
        self._kv_heads = attention.k_proj.out_features // self._head_dim
        self._attention_norm, self._mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._head_floor = _norm_floor(attention.q_norm, at_least_float32(attention.q_norm.weight))
        self._qkv = pack([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        self._out = pack([attention.o_proj.weight])
        if isinstance(mlp, MixtureOfExperts):
            self._mlp = _with_experts(mlp, _Experts(mlp.experts, pack))
        else:
            self._mlp = _SwiGLU(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, pack)

    def __call__(self, x_SD: Tensor, turns: Sequence[Tensor], cache: KVCache) -> Tensor:
        x_SD = x_SD + self._attend(self._attention_norm(x_SD), turns, cache)
        return x_SD.add_(self._mlp(self._mlp_norm(x_SD)))

    def _attend(self, x_SD: Tensor, turns: Sequence[Tensor], cache: KVCache) -> Tensor:
        cos_SAW, sin_SAW = turns
        qkv_SHW = self._qkv(x_SD).unflatten(-1, (-1, self._head_dim))
        heads_SAW, v_SGW = qkv_SHW.split((self._heads + self._kv_heads, self._kv_heads), dim=1)
        length_SA1 = torch.linalg.vector_norm(heads_SAW, dim=-1, keepdim=True, dtype=cos_SAW.dtype)
        turned_SAW = heads_SAW * cos_SAW
        turned_SAW.addcmul_(heads_SAW.roll(self._head_dim // 2, dims=-1), sin_SAW)
        turned_SAW.div_(length_SA1.hypot_(self._head_floor))
        q_SHW, k_SGW = turned_SAW.split((self._heads, self._kv_heads), dim=1)
        return self._out(cache.attend(self._index, q_SHW, k_SGW, v_SGW).flatten(1))


class _SwiGLU:
    """SwiGLU with gate and up as one product."""

    def __init__(self, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, pack: Pack):
        self._gate_up, self._down = pack([gate_FD, up_FD]), pack([down_DF])

    def __call__(self, x_SD: Tensor) -> Tensor:
        gate_SF, up_SF = self._gate_up(x_SD).chunk(2, dim=-1)
        return self._down(F.silu(gate_SF).mul_(up_SF))


class _Experts(nn.Module):
    """The experts' networks, each packed on its own: those without a token are not read."""

    def __init__(self, experts: Experts, pack: Pack):
        super().__init__()
        weights = zip(experts.gate_proj.unbind(), experts.up_proj.unbind(), experts.down_proj.unbind(), strict=True)
        self._networks = [_SwiGLU(*matrices, pack) for matrices in weights]

    def forward(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        rows = x_ND.tensor_split(ends_E[:-1].tolist())
        return torch.cat([network(x_nD) for x_nD, network in zip(rows, self._networks, strict=True) if len(x_nD)])


def _with_experts(mlp: MixtureOfExperts, experts: _Experts) -> MixtureOfExperts:
    """The same router before other experts; the model's own module stays as it is."""
    routed = copy.copy(mlp)
    routed._modules = {**mlp._modules, "experts": experts}
    return routed
