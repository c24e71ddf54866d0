"""Puts our weights into transformers' model, for comparison with TRL and `generate`."""

import torch

from minimind_sft.model.decoder import MiniMindForCausalLM

SHARED_FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


def qwen3_twin(model: MiniMindForCausalLM, dtype: torch.dtype = torch.float32, attention: str = "sdpa"):
    """Returns transformers' Qwen3ForCausalLM with a copy of a dense model's weights.

    Raises:
        SystemExit: if transformers is not installed.
    """
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError as error:
        raise SystemExit("transformers is not installed: pip install -e '.[bench]'") from error
    assert not model.config.use_moe and model.config.rope_scaling is None
    config = Qwen3Config(**{name: getattr(model.config, name) for name in SHARED_FIELDS},
                         rope_parameters={"rope_type": "default", "rope_theta": model.config.rope_theta},
                         bos_token_id=None, eos_token_id=None, pad_token_id=0, use_cache=False)
    config._attn_implementation = attention
    twin = Qwen3ForCausalLM(config).to(dtype)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin
