"""Compares what an export wrote, read back by our own readers, with the weights it came from.

Three comparisons: the configuration, field by field; every tensor, with the values that rounding may leave; and the
logits on fixed text, which show what the rounding means.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.export.choice import differing_fields
from minimind_sft.export.model import Export
from minimind_sft.export.progress import with_bar
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights

TEXTS = (
    "The capital of France is Paris, and the Seine runs through it. How many bridges cross the river?",
    "中国的首都是北京。请用一句话介绍长城，并说明它是什么时候修建的。",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 4]))\n",
)
MAX_TOKENS = 128
Q8_0_BLOCK = 32
Q8_0_LEVELS = 127
HALF_EPSILON, HALF_TINY = 2.0**-11, 2.0**-25
"""The largest error of float16, relative, and for numbers near 0 absolute."""
UNCHANGED_LOGITS = 1e-4
"""The largest difference of logits, relative to the largest logit, if every tensor is the same."""


@dataclass(frozen=True)
class Differences:
    """The changes that rounding made.

    tensors, rounded: how many there are, and in how many of them some value changed.
    weight: the largest change of a value.
    logit: the largest difference of a logit; `deviation` is the standard deviation of all logits.
    same_choice: the share of positions where the most likely next token is the same.
    """

    tensors: int
    rounded: int
    weight: float
    logit: float
    deviation: float
    same_choice: float

    def __str__(self) -> str:
        if not self.rounded:
            return (f"all {self.tensors} tensors are equal; logits differ by at most {self.logit:.1e}")
        return (f"{self.rounded} of {self.tensors} tensors are rounded, by at most {self.weight:.1e}; logits differ by "
                f"at most {self.logit:.1e} (their standard deviation is {self.deviation:.2g}), and the most likely "
                f"next token is the same at {self.same_choice:.1%} of the positions")


def compare(export: Export, written: Weights, tokenizer: Tokenizer) -> Differences:
    """Compares the weights and tokenizer that were read back with the exported ones.

    Raises:
        UserError: if they differ by more than rounding to the export's dtype.
    """
    weights, path = export.weights, written.path
    if found := differing_fields(weights.config, written.config):
        name = found[0]
        raise _wrong(path, f"{name} is {getattr(written.config, name)!r}, but was {getattr(weights.config, name)!r}")
    _check_tokenizer(export, tokenizer, path)
    rounded, largest = _compare_tensors(weights, written, export.dtype)
    ids = documents(export.tokenizer)
    before, after = (_logits(one, ids) for one in (weights, written))
    difference = float((before - after).abs().max())
    if not rounded and not difference <= UNCHANGED_LOGITS * float(before.abs().max()):
        raise _wrong(path, f"the tensors are the same, but the logits differ by {difference:.1e}")
    return Differences(len(tensor_shapes(weights.config)), rounded, largest, difference, float(before.std()),
                       float((before.argmax(-1) == after.argmax(-1)).float().mean()))


def documents(tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the token ids of the fixed texts on which logits are compared."""
    return [ids for text in TEXTS if (ids := tokenizer.encode_ordinary(text)[:MAX_TOKENS])]


def _check_tokenizer(export: Export, tokenizer: Tokenizer, path: Path) -> None:
    for text in TEXTS:
        if tokenizer.encode_ordinary(text) != export.tokenizer.encode_ordinary(text):
            raise _wrong(path, f"its tokenizer encodes {text[:20]!r}... differently")


def _compare_tensors(weights: Weights, written: Weights, dtype: str) -> tuple[int, float]:
    """Returns in how many tensors rounding changed a value, and the largest change.

    Raises:
        UserError: for a value that is not what rounding leaves of the original; names the tensor.
    """
    changed, largest = 0, 0.0
    for name in with_bar(tensor_shapes(weights.config), "comparing"):
        before, after = (one.tensors[name].to(torch.float32) for one in (weights, written))
        if before.shape != after.shape:
            raise _wrong(written.path, f"{name} has the shape {list(after.shape)}, but had {list(before.shape)}")
        difference = (before - after).abs()
        if not (difference <= rounding_error(before, dtype)).all():
            raise _wrong(written.path, f"{name} differs by {float(difference.max()):.1e}, more than rounding to "
                                       f"{dtype} explains")
        changed += bool(difference.any())
        largest = max(largest, float(difference.max()))
    return changed, largest


def rounding_error(tensor: Tensor, dtype: str) -> Tensor:
    """Returns the largest error (float32, of the tensor's shape) that rounding a float32 tensor to `dtype` may leave.

    q8_0: blocks of 32 values along a row share a scale, the largest value / 127 in float16, and each value is a whole
    number of scales (llama.cpp, ggml-quants.c, `quantize_row_q8_0_ref`). Tensors without such blocks are float16 or
    better.
    """
    if dtype != "q8_0":
        return (tensor - tensor.to(getattr(torch, dtype)).to(torch.float32)).abs()
    if tensor.dim() < 2 or tensor.shape[-1] % Q8_0_BLOCK:
        return rounding_error(tensor, "float16")
    blocks = tensor.unflatten(-1, (-1, Q8_0_BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / Q8_0_LEVELS
    # Half a scale for the whole number, and up to 127 times the error of the scale itself.
    error = scale * (0.5 + 1e-3) + Q8_0_LEVELS * torch.clamp(scale * HALF_EPSILON, min=HALF_TINY)
    return error.expand_as(blocks).flatten(-2)


@torch.inference_mode()
def _logits(weights: Weights, documents: list[list[int]]) -> Tensor:
    """Returns the logits (T, V) of all documents, end to end."""
    model = weights.build_model().eval()
    ends = [0]
    for ids in documents:
        ends.append(ends[-1] + len(ids))
    return model.document_logits(torch.tensor([one for ids in documents for one in ids]), ends)


def _wrong(path: Path, what: str) -> UserError:
    return UserError(f"{path}: reading back what was written: {what}; nothing was kept. This is a mistake in the "
                     "program: please report it with the command")
