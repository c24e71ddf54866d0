"""Settings of our model in lm-evaluation-harness: what its --model_args may say."""

from dataclasses import dataclass

from minimind_sft.settings.chat import ChatRuntimeSettings, WeightSettings
from minimind_sft.settings.spec import setting


@dataclass(frozen=True)
class HarnessBatchSettings:
    """Batch size and context length."""

    batch_size: int = setting(32, "prompts that are answered at once", min=1)
    max_length: int | None = setting(None, "tokens that the model reads at most, if less than its context", min=2)


@dataclass(frozen=True)
class HarnessSettings:
    """Arguments of our model in lm-evaluation-harness."""

    weights: WeightSettings = WeightSettings()
    runtime: ChatRuntimeSettings = ChatRuntimeSettings()
    batches: HarnessBatchSettings = HarnessBatchSettings()
