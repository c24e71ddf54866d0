"""Makes our models usable in EleutherAI's lm-evaluation-harness, as its model `minimind`.

Log-likelihoods, rolling log-likelihoods and generated text are those of the harness's own backend for transformers on
the exported model (proofs/harness_parity.py). Text is encoded as there: a control token that it spells out becomes one.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from minimind_sft.errors import UserError, describe
from minimind_sft.evaluation.continuations import Continuation, Likelihood, likelihoods
from minimind_sft.evaluation.plain_text import Window
from minimind_sft.inference.generate import generate_batch, generate_greedily
from minimind_sft.inference.loading import Loaded, load
from minimind_sft.inference.stopping import chat_stop_ids, document_end_ids
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.harness import HarnessBatchSettings, HarnessSettings
from minimind_sft.settings.spec import flags_of
from minimind_sft.terminal import progress_bar, say

NAME = "minimind"
MAX_NEW_TOKENS = 256
"""Tokens that the harness lets a model generate if a task does not say."""
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks use for the most tokens to generate; the first given counts."""
CONTINUED = "CONTINUED_HERE"
"""Text that marks the end of a message while it is rendered."""
CHOICE = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")


class HarnessModel:
    """Answers the harness's requests, given as text.

    context: tokens that the model reads at most.
    """

    def __init__(self, loaded: Loaded, batches: HarnessBatchSettings):
        self.loaded, self._batch_size = loaded, batches.batch_size
        self._tokenizer = loaded.tokenizer
        self.context = min(loaded.model.config.context, batches.max_length or loaded.model.config.context)
        added = [token["content"] for token in loaded.tokenizer.state["added_tokens"] if token["special"]]
        self._special_ids = {loaded.tokenizer.token_to_id(token) for token in (*added,
                                                                               *loaded.tokenizer.special.values())}

    @property
    def eos_id(self) -> int:
        eos = self._tokenizer.eos_id
        return self._tokenizer.end_of_document_id if eos is None else eos

    @property
    def first_id(self) -> int:
        """The token before a text that has none before it: bos, or eos without bos."""
        return self.eos_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    def encode(self, text: str, adds_bos: bool | None = None) -> list[int]:
        """Returns the ids of a text; with bos before it if the model's texts begin with it, and this one does not."""
        if adds_bos is None:
            adds_bos = self._tokenizer.adds_bos and not text.startswith(self._tokenizer.decode([self.first_id]))
        return [*(self._tokenizer.before_text if adds_bos else ()), *self._tokenizer.encode(text)]

    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], quiet: bool) -> list[Likelihood]:
        """Scores (context, continuation) in tokens; what does not fit loses its beginning."""
        cut = [Continuation([*context, *ids][-self.context - 1:-len(ids)], ids) for context, ids in pairs]
        found: dict[int, Likelihood] = {}
        with progress_bar(label="scoring", total=len(cut), unit=" continuations", disable=quiet or None) as bar:
            for index, one in likelihoods(self.loaded.model, cut):
                found[index] = one
                bar.update()
        return [found[index] for index in range(len(cut))]

    def rolling(self, texts: Sequence[str], quiet: bool) -> list[float]:
        """Returns the log-likelihood of each text, every token of it predicted once from as much as fits."""
        window = Window(self.context, self.context)
        cut = [list(window.continuations(self.encode(text), self.first_id)) for text in texts]
        scores = iter(self.likelihoods([one for windows in cut for one in windows], quiet))
        return [sum(next(scores).log_likelihood for _ in windows) for windows in cut]

    def generate(self, requests: Sequence[tuple[str, dict[str, Any]]], quiet: bool) -> Iterator[tuple[int, str]]:
        """Yields (index of the request, its answer) for prompts with the harness's arguments of generation.

        Raises:
            UserError: for an argument that we do not have, or if it leaves no room for the prompt.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, (_, arguments) in enumerate(requests):
            groups[repr(sorted(arguments.items()))].append(index)
        with progress_bar(label="answering", total=len(requests), unit=" prompts", disable=quiet or None) as bar:
            for indices in groups.values():
                until, sampling = _generation(requests[indices[0]][1])
                prompts = {index: self._prompt(requests[index][0], sampling) for index in indices}
                order = sorted(indices, key=lambda index: len(prompts[index]), reverse=True)
                for start in range(0, len(order), self._batch_size):
                    batch = order[start:start + self._batch_size]
                    yield from zip(batch, self._answers([prompts[index] for index in batch], until, sampling),
                                   strict=True)
                    bar.update(len(batch))

    def _prompt(self, text: str, sampling: SamplingSettings) -> list[int]:
        room = self.context - sampling.max_new_tokens
        if room <= 0:
            raise UserError(f"the task wants {sampling.max_new_tokens:,} new tokens, which leaves no room for a prompt "
                            f"in the context of {self.context:,}")
        return self.encode(text)[-room:]

    def _answers(self, prompts: list[list[int]], until: Sequence[str], sampling: SamplingSettings) -> Iterator[str]:
        spelled = [self._tokenizer.encode(text) for text in until]
        control = {ids[0] for ids in spelled if len(ids) == 1 and ids[0] in self._special_ids}

        def is_complete(ids: list[int]) -> bool:
            text = self._text(ids)
            return any(end in text for end in until)

        generate = generate_batch if sampling.temperature else generate_greedily
        for ids in generate(self.loaded.model, prompts, sampling, self._stop_ids() | control, is_complete):
            text = self._text(ids)
            for end in until:
                text = text.partition(end)[0]
            yield text

    def _text(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([token for token in ids if token not in self._special_ids])

    def _stop_ids(self) -> set[int]:
        loaded = self.loaded
        named = {self.eos_id, *loaded.stop_ids}
        if loaded.template is None:
            return named | document_end_ids(self._tokenizer)
        return chat_stop_ids(loaded.template, named)

    def render(self, messages: Sequence[dict], add_generation_prompt: bool) -> str:
        """Renders a chat as the model's template does; without generation prompt, up to the end of the last message.

        Raises:
            UserError: if the weights have no chat template, or it refuses the messages or changes the last one.
        """
        if self.loaded.template is None:
            raise UserError(f"{self.loaded.path}: the weights have only been pretrained and have no chat template; "
                            "--apply_chat_template needs one")
        if add_generation_prompt:
            return self.loaded.template.render(messages, add_generation_prompt=True)
        *earlier, last = messages  # the model continues the last message
        marked = {**last, "content": f"{last['content']}{CONTINUED} "}
        text, found, rest = self.loaded.template.render([*earlier, marked]).rpartition(CONTINUED)
        if not found or last["content"].strip() not in text:
            raise UserError(f"{self.loaded.path}: the chat template does not write the last message as it is, so that "
                            f"the model cannot continue it: {describe(last['content'])}")
        return text if rest.startswith(" ") else text.rstrip()  # some templates trim messages


def _generation(arguments: dict[str, Any]) -> tuple[list[str], SamplingSettings]:
    """Returns where an answer ends, and how its tokens are chosen.

    Raises:
        UserError: for an argument that we do not have.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    limits = [given.pop(name) for name in TOKEN_LIMITS if name in given]
    until, samples = given.pop("until", []), given.pop("do_sample", None)
    chosen = {name: given.pop(name) for name in CHOICE if name in given}
    if given:
        name, value = next(iter(given.items()))
        raise UserError(f"the task's generation_kwargs have {name}: {describe(value)}, which {NAME} does not have; "
                        "--gen_kwargs replaces them")
    sampling = SamplingSettings(max_new_tokens=int(limits[0] if limits else MAX_NEW_TOKENS))
    if samples is False or (samples is None and not chosen.get("temperature")):
        chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
    elif samples:
        chosen = {"temperature": 1.0, **chosen}
    return [until] if isinstance(until, str) else [end for end in until if end], replace(sampling, **chosen)


def settings_from(arguments: dict[str, Any]) -> HarnessSettings:
    """Returns the settings that the harness's --model_args, --batch_size and --device name.

    Raises:
        UserError: for an unknown name, or a value out of range.
    """
    many = {flag.name for flag in flags_of(HarnessSettings) if flag.many}
    if str(arguments.get("batch_size", "")).startswith("auto"):
        arguments = {name: value for name, value in arguments.items() if name != "batch_size"}
    argv: list[str] = []
    for name, value in arguments.items():
        if value is not None:
            value = int(value) if isinstance(value, bool) else value
            argv += [f"--{name}", *(str(value).split() if name in many else [str(value)])]
    return parse_flags(HarnessSettings, __doc__ or "", argv)


def harness_class() -> type:
    """Returns the class that the harness works with; it takes the arguments of `settings_from`, or `loaded`.

    Raises:
        UserError: if the harness is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise UserError("lm-evaluation-harness is not installed: pip install 'minimind-sft[harness]'") from error

    class MiniMindLM(TemplateLM):
        """Hands the harness's requests to a `HarnessModel`."""

        def __init__(self, loaded: Loaded | None = None, max_batch_size: object = None, **arguments: Any):
            super().__init__()  # max_batch_size is for batch_size "auto", which we do not have
            settings = settings_from(arguments)
            self.inner = HarnessModel(loaded or load(settings.weights, settings.runtime, say), settings.batches)

        @property
        def eot_token_id(self) -> int:
            return self.inner.eos_id

        @property
        def prefix_token_id(self) -> int:
            return self.inner.first_id

        @property
        def tokenizer_name(self) -> str:
            return f"{self.inner.loaded.path.name}-{self.inner.loaded.tokenizer.fingerprint[:16]}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            return self.inner.encode(string, add_special_tokens)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            template = self.inner.loaded.template
            return template.source if chat_template and template else None

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
            return self.inner.render(chat_history, add_generation_prompt)

        def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **more: Any) -> list:
            found = self.inner.likelihoods([request[1:] for request in requests], disable_tqdm)
            for (text, *_), one in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", text, tuple(one))
            return [tuple(one) for one in found]

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
            found = self.inner.rolling([request.args[0] for request in requests], disable_tqdm)
            for request, one in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, one)
            return found

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            found: dict[int, str] = {}
            for index, answer in self.inner.generate([request.args for request in requests], disable_tqdm):
                found[index] = answer
                self.cache_hook.add_partial("generate_until", requests[index].args, answer)
            return [found[index] for index in range(len(requests))]

        def get_model_info(self) -> dict[str, Any]:
            """Returns what the harness writes into its results."""
            loaded = self.inner.loaded
            return {"model_path": str(loaded.path), "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
                    "model_dtype": str(loaded.model.embed_tokens.weight.dtype)}

    return MiniMindLM


def register() -> None:
    """Makes the harness know the model `minimind`.

    Raises:
        UserError: if the harness is not installed.
    """
    model = harness_class()
    from lm_eval.api.registry import model_registry, register_model

    if NAME not in model_registry:
        register_model(NAME)(model)
