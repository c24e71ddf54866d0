"""Lists the architectures of GGUF files, by `general.architecture`, in the order in which a model is written."""

from minimind_sft.model.families.family import Family
from minimind_sft.model.families.gguf_gpt2 import GPT2
from minimind_sft.model.families.gguf_llama import LLAMA, SMOLLM3
from minimind_sft.model.families.gguf_qwen import QWEN2, QWEN3, QWEN3_MOE

GGUF_FAMILIES: dict[str, Family] = {
    family.name: family for family in (QWEN3, QWEN3_MOE, QWEN2, LLAMA, SMOLLM3, GPT2)}
