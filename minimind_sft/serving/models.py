"""The models that a server offers, by name."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from minimind_sft.errors import UserError
from minimind_sft.inference.engine import Engine
from minimind_sft.inference.loading import Loaded, load
from minimind_sft.inference.sampling_defaults import chat_sampling
from minimind_sft.inference.sharing import SharedMatrices
from minimind_sft.serving.grammars import Grammars
from minimind_sft.serving.problems import unsupported
from minimind_sft.serving.tool_formats import ToolFormat
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.serve import ServedWeights, ServeSettings


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model, the engine that answers with it, and how it answers what a request leaves open.

    created: when it was loaded, in seconds since 1970.
    """

    name: str
    loaded: Loaded
    engine: Engine
    sampling: SamplingSettings
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chats(self) -> bool:
        """Whether the model can be asked to chat; others only continue text."""
        return self.loaded.template is not None

    @cached_property
    def grammars(self) -> Grammars:
        """Makes the grammars that answers of this model can follow."""
        return Grammars(self.loaded)

    def tool_format(self) -> ToolFormat:
        """Returns how the model writes calls.

        Raises:
            ApiProblem: if its template writes none that can be read.
        """
        try:
            return self._tool_format
        except UserError as error:
            raise unsupported("tools", str(error)) from error

    @cached_property
    def _tool_format(self) -> ToolFormat:
        if self.loaded.template is None:
            raise UserError("a model that only continues text calls no tools")
        return ToolFormat.of(self.loaded.template)


class ServedModels:
    """Finds models by name."""

    def __init__(self, models: Iterable[ServedModel]):
        self._by_name = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """All names, the one of the first model first."""
        return list(self._by_name)

    def find(self, name: str) -> ServedModel | None:
        """Returns the model of that name, or None if there is none."""
        return self._by_name.get(name)


def load_models(settings: ServeSettings, say: Callable[[str], None]) -> ServedModels:
    """Loads every model that the settings name; passes on notices, a line each. They share what is equal in them.

    Raises:
        UserError: if files are missing or do not belong together; names the flag.
    """
    every = list(settings.served())
    shared = SharedMatrices() if len(every) > 1 else None  # comparing takes a moment
    return ServedModels([_load(served, settings, say, shared) for served in every])


def _load(served: ServedWeights, settings: ServeSettings, say: Callable[[str], None],
          shared: SharedMatrices | None) -> ServedModel:
    chosen = replace(settings.weights, weight=served.weight, lora_weight=served.adapters)
    loaded = load(chosen, settings.runtime, say, flags=served.flags, shared=shared)
    sampling, notices = chat_sampling(settings.sampling.typed(), loaded.path)
    for notice in notices:
        say(f"{'sampling':<12}{notice}")
    limits = settings.limits
    engine = Engine(loaded.model, limits.max_running, limits.cache_tokens)
    return ServedModel(served.name, loaded, engine, sampling)
