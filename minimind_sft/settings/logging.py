"""Settings of what a run reports."""

from dataclasses import dataclass
from importlib.util import find_spec

from minimind_sft.settings.spec import setting


@dataclass(frozen=True)
class LoggingSettings:
    """Metrics and evaluations, and how often they are reported."""

    log_interval: int = setting(
        10, "steps between lines of the metrics file, and of the output if that is not a terminal", min=1)
    eval_interval: int = setting(0, "steps between evaluations; 0: ten over the whole run", min=0)
    use_wandb: bool = setting(False, "log to Weights & Biases")
    wandb_project: str = setting("MiniMind-SFT", "Weights & Biases project")

    def problems(self) -> list[str]:
        if self.use_wandb and find_spec("wandb") is None:
            return ["--use_wandb: wandb is not installed; pip install wandb, or leave --use_wandb out"]
        return []
