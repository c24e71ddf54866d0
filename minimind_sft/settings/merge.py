"""Settings of scripts/merge_lora.py."""

from dataclasses import dataclass

from minimind_sft.settings.convert import ChosenWeights
from minimind_sft.settings.saving import WeightSavingSettings
from minimind_sft.settings.spec import same_setting, setting


@dataclass(frozen=True)
class AdapterSettings:
    """The adapters to merge into the weights."""

    lora_weight: tuple[str, ...] = setting(
        (), "adapters to merge, by NAME (reads <save_dir>/lora_NAME_*.safetensors) or path; give each a weight to mix "
            "them, as in style:0.5 calls", required=True)


@dataclass(frozen=True)
class MergedWeightsSettings:
    """The weights to write."""

    save_weight: str = same_setting(WeightSavingSettings, "save_weight", default="merged")
    save_dtype: str = same_setting(WeightSavingSettings, "save_dtype")
    overwrite: bool = setting(
        False, "replace weights of that name; they move to <name>.previous, which keeps one generation")


@dataclass(frozen=True)
class MergeSettings:
    """Settings of scripts/merge_lora.py."""

    weights: ChosenWeights = ChosenWeights()
    adapters: AdapterSettings = AdapterSettings()
    output: MergedWeightsSettings = MergedWeightsSettings()
