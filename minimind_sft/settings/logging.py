"""Settings of what a run reports."""

from dataclasses import dataclass
from importlib.util import find_spec

from minimind_sft.settings.spec import setting

LOGGERS = ("wandb", "swanlab", "tensorboard")


@dataclass(frozen=True)
class LoggingSettings:
    """Metrics: how often they are reported, and where to."""

    log_interval: int = setting(
        10, "steps between lines of the metrics file, and of the output if that is not a terminal", min=1)
    loggers: tuple[str, ...] = setting((), "programs that also show the metrics", choices=LOGGERS)
    use_wandb: bool = setting(False, "the same as --loggers wandb")
    wandb_project: str = setting("MiniMind-SFT", "project at Weights & Biases and SwanLab")

    @property
    def programs(self) -> list[str]:
        """The loggers asked for, each once."""
        return [name for name in LOGGERS if name in self.loggers or (name == "wandb" and self.use_wandb)]

    def problems(self) -> list[str]:
        return [f"{flag} needs the package {name}: pip install {name}, or leave {flag} out" for name in self.programs
                if find_spec(name) is None
                for flag in ["--use_wandb" if name not in self.loggers else f"--loggers {name}"]]
