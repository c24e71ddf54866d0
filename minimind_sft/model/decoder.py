"""The decoder and the language model around it.

The architecture and the names of its weights are those of Qwen3 / Qwen3-MoE and MiniMind-3.

Local letters: P supervised positions, W of them at a time.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.attention import Attention, Context, Documents
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels import grouped_experts, selection
from minimind_sft.model.layers import FEED_FORWARDS, NORMS, cross_entropy_sum, rope_cos_sin
from minimind_sft.model.moe import MixtureOfExperts, balance_loss_sum
from minimind_sft.model.precision import at_least_float32
from minimind_sft.model.recompute import recomputed

SCORED_AT_ONCE = 256
"""Positions whose logits `token_losses` holds at the same time."""


class Losses(NamedTuple):
    """Sums over a flat batch. A step divides them by its own totals, however it was cut into micro-batches.

    loss_sum: cross-entropy in nats, summed over supervised positions.
    aux_loss_sum: the experts' auxiliary loss times router_aux_loss_coef, summed over documents and weighted by
        their tokens; 0 for a dense model and in evaluation mode.
    """

    loss_sum: Tensor
    aux_loss_sum: Tensor


class TokenLosses(NamedTuple):
    """A value for each supervised position of a flat batch, in their order.

    loss_P: cross-entropy in nats.
    is_first_P: whether the label is the token with the highest score.
    """

    loss_P: Tensor
    is_first_P: Tensor


class DecoderLayer(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward network, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        norm, feed_forward = NORMS[config.norm], FEED_FORWARDS[config.mlp]
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_index)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (MixtureOfExperts(config) if config.use_moe
                    else feed_forward(config.hidden_size, config.intermediate_size, config.mlp_bias))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TD: Tensor, rope: tuple[Tensor, Tensor] | None, context: Context,
                read_N: Tensor | None = None) -> Tensor:
        """Returns the next layer's input (T, D), or only its rows `read_N` (N, D), see `_feed_forward_at`."""
        x_TD = x_TD + self.dropout(self.self_attn(self.input_layernorm(x_TD), rope, context))
        if read_N is not None:
            return self._feed_forward_at(x_TD, read_N)
        return x_TD + self.dropout(self.mlp(self.post_attention_layernorm(x_TD)))

    def _feed_forward_at(self, x_TD: Tensor, read_N: Tensor) -> Tensor:
        """Computes the second residual line at the positions `read_N` only.

        On a CPU the last layer skips the positions that the head does not read: 2% of a training step
        (benchmarks/results/train_variants.json).
        """
        normed_TD = self.post_attention_layernorm(x_TD)
        y_ND = self.mlp(normed_TD.index_select(0, read_N))
        if self.training and isinstance(self.mlp, MixtureOfExperts):
            self.mlp.route(normed_TD)  # the auxiliary loss is about all tokens
        return x_TD.index_select(0, read_N) + self.dropout(y_ND)

    def compile(self, *args: object, **options: object) -> None:
        """Compiles the layer, except attention and the loop over experts: their shapes differ in every batch.

        They are marked here, because a decorator would load the compiler (a second) in programs that never compile.
        """
        for owner, name in ((Attention, "attend"), (grouped_experts, "looped_mm")):
            function = getattr(owner, name)
            if not hasattr(function, "_torchdynamo_disable"):
                setattr(owner, name, torch.compiler.disable(function))
        super().compile(*args, **options)

    def matrices(self) -> list[nn.Module]:
        """Returns the modules whose weights are multiplied in autocast's dtype: all but norms and the router."""
        attention, mlp = self.self_attn, self.mlp
        networks = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else [mlp]
        feed_forward = [matrix for network in networks for matrix in network.children()]
        experts = [mlp.experts] if isinstance(mlp, MixtureOfExperts) else []
        return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *experts, *feed_forward]


class Decoder(nn.Module):
    """Computes the hidden states that the head reads.

    With `gradient_checkpointing` the backward pass recomputes the activations of one layer at a time.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                read_N: Tensor | None = None) -> Tensor:
        """Returns hidden states (T, D), or those of the positions `read_N` (N, D)."""
        x_TD, rope = self.embed_tokens(input_ids_T), None
        if self.config.positions == "learned":
            x_TD = x_TD + self.embed_positions(positions_T)
        else:
            length_T = context.length_T if self.config.rope_follows_length else None
            dtype = torch.promote_types(x_TD.dtype, torch.float32)
            rope = rope_cos_sin(self.config, positions_T, dtype, length_T)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        all_layers = cast(Iterable[DecoderLayer], self.layers)
        *layers, last = [partial(recomputed, layer) if recompute else layer for layer in all_layers]
        for layer in layers:
            x_TD = layer(x_TD, rope, context)
        if read_N is None:
            x_ND = last(x_TD, rope, context)
        elif selection.skips_unread_positions(x_TD.device):
            x_ND = last(x_TD, rope, context, read_N)
        else:
            x_ND = last(x_TD, rope, context).index_select(0, read_N)
        return self.norm(x_ND)


class MiniMindForCausalLM(nn.Module):
    """The language model. Calling it computes training losses; `hidden_states` and `logits` are for inference."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
            self.register_load_state_dict_pre_hook(_complete_tied_head)
        self._initialize()

    def forward(self, input_ids_T: Tensor, labels_T: Tensor, cu_seqlens: Sequence[int],
                supervised_P: Tensor | None = None) -> Losses:
        """Returns the losses of a flat batch; T may be 0. Tokens after the last document do not change them.

        Args:
            input_ids_T: int64 token ids, document after document.
            labels_T: int64, already shifted: the token after each position, or IGNORE_INDEX where unsupervised.
            cu_seqlens: document boundaries [0, ...], the last at most T.
            supervised_P: int64, the positions whose label is not IGNORE_INDEX. None: found from the labels,
                which on a GPU waits for the device.
        """
        hidden_ND, labels_P, documents = self._supervised(input_ids_T, labels_T, cu_seqlens, supervised_P)
        loss_sum = self._loss_sum(hidden_ND, labels_P)
        has_router = self.config.use_moe and self.training
        return Losses(loss_sum, self._aux_loss_sum(documents) if has_router else torch.zeros_like(loss_sum))

    def token_losses(self, input_ids_T: Tensor, labels_T: Tensor, cu_seqlens: Sequence[int],
                     supervised_P: Tensor | None = None) -> TokenLosses:
        """Returns the losses of the single tokens of a flat batch, for evaluation; arguments as for training losses."""
        hidden_ND, labels_P, _ = self._supervised(input_ids_T, labels_T, cu_seqlens, supervised_P)
        losses, firsts = [], []
        for hidden_WD, labels_W in zip(hidden_ND.split(SCORED_AT_ONCE), labels_P.split(SCORED_AT_ONCE), strict=True):
            logits_WV = at_least_float32(self.logits(hidden_WD)[:len(labels_W)])
            losses.append(F.cross_entropy(logits_WV, labels_W, reduction="none"))
            firsts.append(logits_WV.argmax(-1) == labels_W)
        return TokenLosses(torch.cat(losses), torch.cat(firsts))

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.model.embed_tokens

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                      read_N: Tensor | None = None) -> Tensor:
        """Returns what the head reads (T, D), or its rows `read_N` (N, D).

        `positions_T` counts from the start of each token's own document.
        """
        return self.model(input_ids_T, positions_T, context, read_N)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Returns the scores of the next token (N, V)."""
        return self.lm_head(hidden_ND)

    def document_logits(self, input_ids_T: Tensor, cu_seqlens: Sequence[int]) -> Tensor:
        """Returns the scores of the next token after each position of each document (T, V)."""
        documents = self._documents(input_ids_T, cu_seqlens)
        return self.logits(self.hidden_states(input_ids_T, documents.positions_T, documents))

    def _supervised(self, input_ids_T: Tensor, labels_T: Tensor, cu_seqlens: Sequence[int],
                    supervised_P: Tensor | None) -> tuple[Tensor, Tensor, Documents]:
        """Returns what the head reads (N, D), the labels of its first P rows, and the documents.

        The other rows fill N up to a number that the kernel computes fast.
        """
        documents = self._documents(input_ids_T, cu_seqlens)
        if supervised_P is None:
            supervised_P = (labels_T != IGNORE_INDEX).nonzero().squeeze(1)
        hidden_ND = self.model(input_ids_T, documents.positions_T, documents, selection.fill_up(supervised_P))
        return hidden_ND, labels_T.index_select(0, supervised_P), documents

    def _loss_sum(self, hidden_ND: Tensor, labels_P: Tensor) -> Tensor:
        head = self.lm_head
        if type(head) is nn.Linear and head.bias is None and not (head._forward_hooks or head._forward_pre_hooks):
            return cross_entropy_sum(hidden_ND, head.weight, labels_P)
        # A head with a bias, an adapter or a hook computes its own logits, all of them at once.
        logits_PV = at_least_float32(self.logits(hidden_ND[: len(labels_P)]))
        return F.cross_entropy(logits_PV, labels_P, reduction="sum")

    def _documents(self, input_ids_T: Tensor, cu_seqlens: Sequence[int]) -> Documents:
        dropout = self.config.dropout if self.training else 0.0
        return Documents(cu_seqlens, input_ids_T.device, dropout, filled_to=len(input_ids_T))

    def _aux_loss_sum(self, documents: Documents) -> Tensor:
        real = slice(sum(documents.lengths))
        document_T, count = documents.document_T[real], len(documents.lengths)
        if self.config.aux_loss_scope == "batch":
            document_T, count = torch.zeros_like(document_T), 1
        losses = []
        for experts in (module for module in self.model.modules() if isinstance(module, MixtureOfExperts)):
            assert experts.routing is not None, "every forward pass in training mode leaves one"
            probs_TE, chosen_TC = experts.routing
            losses.append(balance_loss_sum(probs_TE[real], chosen_TC[real], document_T, count))
        return torch.stack(losses).sum() * self.config.router_aux_loss_coef

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draws weights with standard deviation 0.02, less where a layer adds to the residual stream.

        As in GPT-2 (Radford et al. 2019): there are two additions per layer. Biases start at 0, norms at 1.
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, residual_std if "o_proj" in name or "down_proj" in name else 0.02)
            elif name.endswith(".bias"):
                parameter.zero_()


def _complete_tied_head(module: MiniMindForCausalLM, state_dict: dict, prefix: str, *_: object) -> None:
    """Fills in a tied head that a file leaves out; refuses one that differs from the embedding."""
    embedding = state_dict.get(f"{prefix}model.embed_tokens.weight")
    if embedding is None:
        return
    head = state_dict.setdefault(f"{prefix}lm_head.weight", embedding)
    if head is not embedding and not torch.equal(head, embedding):
        raise UserError("lm_head.weight differs from model.embed_tokens.weight, but the model ties them "
                        "(tie_word_embeddings is true)")
