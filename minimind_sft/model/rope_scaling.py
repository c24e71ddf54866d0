"""RoPE's frequencies, and how they change for contexts longer than the model was first trained on."""

import math

import torch
from torch import Tensor

from minimind_sft.model.config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, dtype: torch.dtype, device: torch.device,
                     length_T: Tensor | None = None) -> Tensor:
    """Returns the radians per position of each pair of dimensions, (1, R) or, if they differ by token, (T, R).

    Without scaling they are theta^(-2i/K) (Su et al. 2021, arXiv:2104.09864).

    Args:
        length_T: the length of each token's document, for dynamic scaling only.
    """
    scaling, theta_T1 = config.rope_scaling, torch.tensor([[config.rope_theta]], dtype=dtype, device=device)
    if scaling and scaling.rope_type == "dynamic":
        assert length_T is not None, "dynamic scaling goes by each document's length"
        theta_T1 = _dynamic_theta(config, scaling, length_T[:, None].to(dtype))
    exponent_R = 2 * torch.arange(config.head_dim // 2, dtype=dtype, device=device) / config.head_dim
    frequency_TR = 1.0 / theta_T1**exponent_R
    if scaling is None:
        return frequency_TR
    match scaling.rope_type:
        case "linear":
            return frequency_TR / scaling.factor
        case "yarn":
            return _yarn(config, scaling, frequency_TR)
        case "llama3":
            return _llama3(scaling, frequency_TR)
    return frequency_TR


def _dynamic_theta(config: ModelConfig, scaling: RopeScaling, length_T1: Tensor) -> Tensor:
    """Raises theta so that the slowest pair fits the document; within the original context, theta stays.

    NTK-aware scaling, as transformers computes it for one sequence of that length.
    """
    stretch_T1 = (length_T1 / scaling.original_max_position_embeddings).clamp(min=1)
    exponent = config.head_dim / (config.head_dim - 2)
    return config.rope_theta * (scaling.factor * stretch_T1 - (scaling.factor - 1)) ** exponent


def _yarn(config: ModelConfig, scaling: RopeScaling, frequency_TR: Tensor) -> Tensor:
    """Divides the frequencies of slow pairs by `factor` (YaRN, Peng et al. 2023, arXiv:2309.00071, section 3.2).

    Pairs that turn at least `beta_fast` times within the original context keep their frequency; those that turn at most
    `beta_slow` times are divided; between them it blends linearly over the pairs.
    """
    def pair_that_turns(times: float) -> float:
        """Returns the (fractional) pair that makes this many full turns within the original context."""
        wavelength = scaling.original_max_position_embeddings / times
        return config.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    pair_R = torch.arange(frequency_TR.shape[-1], dtype=frequency_TR.dtype, device=frequency_TR.device)
    divided_R = ((pair_R - first) / ((last - first) or 0.001)).clamp(0, 1)
    return frequency_TR * (1 - divided_R + divided_R / scaling.factor)


def _llama3(scaling: RopeScaling, frequency_TR: Tensor) -> Tensor:
    """Divides the frequencies of slow pairs by `factor` (Grattafiori et al. 2024, arXiv:2407.21783).

    Pairs that turn at least `high_freq_factor` times within the original context keep their frequency; those that turn
    at most `low_freq_factor` times are divided; between them it blends linearly over the turns.
    """
    turns_TR = scaling.original_max_position_embeddings * frequency_TR / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_TR = ((turns_TR - low) / (high - low)).clamp(0, 1)
    return frequency_TR * (kept_TR + (1 - kept_TR) / scaling.factor)
