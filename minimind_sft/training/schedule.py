"""The learning rate of each update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Schedule:
    """The learning rates of updates 0, 1, ..., updates - 1: linear warmup to `peak`, then as `name` says.

    cosine: half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts).
    linear: a straight line (Defazio et al. 2023, arXiv:2310.07833).
    constant: the peak.
    wsd: the peak, then a decay of 1 - sqrt(x) over the last `decay_share` of the updates. Warmup-stable-decay is from
        MiniCPM (Hu et al. 2024, arXiv:2404.06395), this form of the decay from Hägele et al. 2024 (arXiv:2405.18392).

    All but the constant one reach `min_ratio` of the peak at the last update and stay there.

    The rate is a pure function of the update, so resuming does not change it.
    """

    name: str
    updates: int
    peak: float
    min_ratio: float = 0.1
    warmup: int = 0
    decay_share: float = 0.2

    @classmethod
    def of(cls, settings: Mapping[str, Any], updates: int) -> Self:
        """Makes the schedule of settings by the names of their flags."""
        return cls(settings["schedule"], updates, settings["learning_rate"], settings["min_lr_ratio"],
                   settings["warmup_steps"], settings["decay_share"])

    @property
    def falls_from(self) -> int:
        """The last update at the peak."""
        decay = max(round(self.decay_share * self.updates), 1) if self.name == "wsd" else self.updates
        return max(self.updates - 1 - decay, self.warmup)

    def rate(self, update: int) -> float:
        """Returns the learning rate of an update."""
        if update < self.warmup:
            return self.peak * (update + 1) / (self.warmup + 1)
        first = self.falls_from
        fallen = max(update - first, 0) / max(self.updates - 1 - first, 1)
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * self._left(min(fallen, 1.0)))

    def _left(self, fallen: float) -> float:
        """Returns the share of the way down that is left when the share `fallen` of its updates is done."""
        match self.name:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * fallen))
            case "linear":
                return 1 - fallen
            case "wsd":
                return 1 - math.sqrt(fallen)
        assert self.name == "constant", self.name
        return 1.0
