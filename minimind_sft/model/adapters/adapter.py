"""An adapter as it was read: low-rank changes by the names of our projections, whatever file they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Change(NamedTuple):
    """The change scale * B A of a projection.

    a: (r, I), or (E, r, I) for stacked experts.
    b: (O, r), or (E, O, r).
    """

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter, whatever file or folder it comes from.

    path: the file or folder.
    changes: by the names of the projections that they change (lora_targets.projections).
    saved: the parameters that were trained in full beside it, by our names.
    base: the fingerprint of the weights that it was trained on; None if nothing says so.
    sidecar: None for a foreign adapter.
    notices: lines for the user about how it was read.
    """

    path: Path
    changes: Mapping[str, Change]
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    base: str | None = None
    sidecar: dict[str, Any] | None = None
    notices: tuple[str, ...] = ()
