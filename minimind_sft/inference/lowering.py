"""Lowers a model to a faster form for decoding, module by module (fast_forms.py).

The result is that of `MiniMindForCausalLM.hidden_states` and `logits`, the plain version.

Local letter: P positions.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from minimind_sft.inference.fast_forms import Lowering, Rope, has_only
from minimind_sft.inference.packed import Pack, best_pack, multiplies_bfloat16, pack_for_few_rows
from minimind_sft.inference.sharing import SharedMatrices
from minimind_sft.model.attention import Context
from minimind_sft.model.decoder import Decoder, MiniMindForCausalLM
from minimind_sft.model.layers import rope_cos_sin
from minimind_sft.model.precision import at_least_float32

TABLE_BLOCK = 512
"""How many positions of the table of RoPE's angles are computed at once."""


def ready_to_decode(model: MiniMindForCausalLM,
                    shared: SharedMatrices | None = None) -> "MiniMindForCausalLM | LoweredModel":
    """Returns the fastest form of `model` for `generate_stream` and `generate_batch`, or `model` if there is none.

    A float32 model whose weights float16 can hold may be deleted afterwards: its lowered form takes half the memory.
    Otherwise the packed matrices come on top of the model, at four bytes per weight: float32 as it is, bfloat16 twice,
    once for newest tokens and once for prompts. They do not follow later changes of the model.

    Args:
        shared: the matrices of other models, which this one uses where they are equal.
    """
    weight = model.embed_tokens.weight
    pack = best_pack(weight)
    if shared is not None and pack is not None:
        model.model.embed_tokens = shared.embedding(model.embed_tokens)
    share = shared.pack_with if shared is not None else lambda pack: pack
    lowered = model if pack is None else lower_model(model, share(pack))
    if isinstance(lowered, LoweredModel) and multiplies_bfloat16(weight):
        return LoweredModel(model, share(pack_for_few_rows), lowered)
    return lowered


def prompt_form(model: "MiniMindForCausalLM | LoweredModel") -> "MiniMindForCausalLM | LoweredModel":
    """Returns the form of a model that computes prompts, and whatever else has many rows, fastest."""
    return model.prompt_form if isinstance(model, LoweredModel) else model


def lower_model(model: MiniMindForCausalLM, pack: Pack) -> "MiniMindForCausalLM | LoweredModel":
    """Returns the model's lowered form, or `model` itself if the whole model or its whole decoder was changed."""
    known = (has_only(model, MiniMindForCausalLM, {"model", "lm_head"})
             and has_only(model.model, Decoder, {"embed_tokens", "layers", "norm"}, frozenset({"embed_positions"})))
    return LoweredModel(model, pack) if known else model


class LoweredModel:
    """A model of lowered modules. It decodes in place of the plain one, with activations in at least float32.

    Args:
        prompt_form: the same model, lowered for many rows; None: this one.
    """

    @torch.inference_mode()
    def __init__(self, model: MiniMindForCausalLM, pack: Pack, prompt_form: "LoweredModel | None" = None):
        assert not model.training, "only a model in evaluation mode is decoded"
        self._prompt_form = prompt_form
        self.config, self.training, self.embed_tokens = model.config, False, model.embed_tokens
        self._embed_positions = model.model.embed_positions if model.config.positions == "learned" else None
        weight = self.embed_tokens.weight
        lower = Lowering(pack, weight.dtype)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing runs in one thread per matrix
            self._layers = list(pool.map(lower, model.model.layers))
        self._norm, self._head = lower(model.model.norm), lower(model.lm_head)
        empty_P1K = at_least_float32(weight.new_empty(0, 1, model.config.head_dim))
        self._table = Rope(empty_P1K, empty_P1K)

    @property
    def prompt_form(self) -> "LoweredModel":
        """The form that computes prompts."""
        return self._prompt_form or self

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                      read_N: Tensor | None = None) -> Tensor:
        """Returns what the head reads, as the model's method of the same name."""
        x_TD, rope = at_least_float32(self.embed_tokens(input_ids_T)), None
        if self._embed_positions is not None:
            x_TD = x_TD + self._embed_positions(positions_T)
        else:
            rope = self._rope(positions_T, context)
        *layers, last = self._layers
        for layer in layers:
            x_TD = layer(x_TD, rope, context)
        return self._norm(last(x_TD, rope, context, read_N))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Returns the scores of the next token (N, V)."""
        return self._head(hidden_ND)

    def _rope(self, positions_T: Tensor, context: Context) -> Rope:
        cos_P1K, sin_P1K = self._table
        if self.config.rope_follows_length:
            return Rope.of(*rope_cos_sin(self.config, positions_T, cos_P1K.dtype, context.length_T))
        while len(cos_P1K) <= int(positions_T.max()):  # in blocks of one size, so that no angle depends on the others
            positions_P = torch.arange(len(cos_P1K), len(cos_P1K) + TABLE_BLOCK, device=positions_T.device)
            block = Rope.of(*rope_cos_sin(self.config, positions_P, cos_P1K.dtype))
            cos_P1K, sin_P1K = self._table = Rope(*map(torch.cat, zip(self._table, block, strict=True)))
        return Rope(cos_P1K[positions_T], sin_P1K[positions_T])


LanguageModel = MiniMindForCausalLM | LoweredModel
