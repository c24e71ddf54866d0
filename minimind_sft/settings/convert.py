"""Settings of scripts/convert_model.py."""

from dataclasses import dataclass
from pathlib import Path

from minimind_sft.settings.chat import WeightSettings
from minimind_sft.settings.spec import same_setting, setting

FORMATS = ("huggingface", "gguf", "minimind", "peft")
ADAPTER_FORMATS = ("peft", "minimind")
ENDINGS = {"gguf": ".gguf", "minimind": ".pth"}
"""How the name of an output file ends; a Hugging Face folder has no ending."""
WEIGHT_ENDINGS = (".gguf", ".pth", ".pt", ".safetensors", ".bin", ".json")
DTYPES = {"huggingface": ("float32", "float16", "bfloat16"), "gguf": ("float32", "float16", "bfloat16", "q8_0"),
          "minimind": ("float16", "bfloat16", "float32"), "peft": ("float32", "float16", "bfloat16")}


@dataclass(frozen=True)
class ChosenWeights:
    """The weights to use, and what belongs to them."""

    weight: str = same_setting(
        WeightSettings, "weight", help="weights: a NAME (reads <save_dir>/NAME_*.pth or .safetensors), a file, a "
                                       "Hugging Face folder or a GGUF file")
    save_dir: str = same_setting(WeightSettings, "save_dir")
    tokenizer_path: str | None = same_setting(WeightSettings, "tokenizer_path")
    chat_template: str | None = same_setting(WeightSettings, "chat_template")
    end_of_turn: str | None = same_setting(WeightSettings, "end_of_turn")
    hidden_size: int | None = same_setting(WeightSettings, "hidden_size")
    num_hidden_layers: int | None = same_setting(WeightSettings, "num_hidden_layers")
    use_moe: bool | None = same_setting(WeightSettings, "use_moe")


@dataclass(frozen=True)
class ConvertedWeights(ChosenWeights):
    """The weights or the adapter to convert, and their tokenizer and template."""

    lora_weight: str | None = setting(
        None, "adapter of those weights to convert instead of them, by NAME or path, --to peft or minimind",
        kind="path")


@dataclass(frozen=True)
class OutputSettings:
    """The output: its format, its place and its dtype."""

    to: str = setting(
        "huggingface", "format: a folder for transformers and vLLM, a GGUF file for llama.cpp and Ollama, "
                       "MiniMind's .pth, or for an adapter a folder for PEFT", choices=FORMATS, required=True)
    output: str = setting("", "the folder or file to write", kind="path", required=True)
    dtype: str | None = setting(
        None, "dtype of the matrices; q8_0 only for gguf (default: that of the weights; minimind: float16)",
        choices=("float32", "float16", "bfloat16", "q8_0"))
    overwrite: bool = setting(False, "replace --output if it exists; the old one becomes <output>.previous")

    def problems(self) -> list[str]:
        found = []
        ending = ENDINGS.get(self.to)
        if self.output and ending and Path(self.output).suffix != ending:
            found.append(f"--output {self.output}: expected a name that ends in {ending} for --to {self.to}")
        if not ending and self.output.endswith(WEIGHT_ENDINGS):
            found.append(f"--output {self.output}: expected the name of a folder for --to {self.to}, not of a file")
        if self.dtype not in (None, *DTYPES[self.to]):
            found.append(f"--dtype {self.dtype}: --to {self.to} has {', '.join(DTYPES[self.to])}")
        return found


@dataclass(frozen=True)
class ConvertModelSettings:
    """Settings of scripts/convert_model.py."""

    weights: ConvertedWeights = ConvertedWeights()
    output: OutputSettings = OutputSettings()

    def problems(self) -> list[str]:
        has_adapter, to = self.weights.lora_weight is not None, self.output.to
        if to == "peft" and not has_adapter:
            return ["--to peft is a format of adapters: name one with --lora_weight, and the weights that it belongs "
                    "to with --weight"]
        if has_adapter and to not in ADAPTER_FORMATS:
            return [f"--to {to} is a format of whole models: merge the adapter first (scripts/merge_lora.py), then "
                    "convert the result"]
        return []
