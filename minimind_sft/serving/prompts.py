"""Requests -> what the engine is asked: the prompt's ids, exactly those of training, and how to choose tokens."""

import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate, NotRendered
from minimind_sft.data.conversation import Conversation, parse_conversation
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.inference.chat import opens_reasoning
from minimind_sft.inference.engine import Request
from minimind_sft.inference.loading import Loaded
from minimind_sft.inference.stopping import chat_stop_ids, document_end_ids, document_ids
from minimind_sft.serving.grammars import Grammar, Reasoning
from minimind_sft.serving.problems import ApiProblem, invalid, unsupported
from minimind_sft.serving.requests import ChatRequest, CompletionRequest, GenerationRequest
from minimind_sft.serving.validation import shown_key
from minimind_sft.settings.chat import SamplingSettings

SMALLEST_TOP_P = 1e-6
"""Stands for a `top_p` of 0: the most likely token alone."""
ALL_TOKENS = -1
"""vLLM's `top_k` for all tokens, which is 0 here."""
SEEDS = 2**64
"""The number of seeds: the one after the last is the first."""
FIELD = re.compile(r"((?:messages|tools)(?:\[\d+\])?(?:\.\w+|\[\d+\])*): ")
"""The field that a message about a conversation begins with."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the engine's requests for answers to it.

    ids: all that the model sees before its answers.
    starts_thinking: whether it ends inside reasoning, which the answer goes on with.
    requests: one for each answer to it.
    """

    ids: list[int]
    starts_thinking: bool
    requests: list[Request]


def chat_prompt(request: ChatRequest, loaded: Loaded, sampling: SamplingSettings,
                find_grammar: Callable[[Reasoning], Grammar | None] | None = None) -> Prompt:
    """Makes the prompt of a chat.

    Args:
        sampling: how to choose tokens where the request leaves it open.
        find_grammar: returns what answers follow, if the request wants that.

    Raises:
        ApiProblem: if the template refuses a message or does not show it to the model, or if the prompt is too long.
    """
    template = loaded.template
    if template is None:
        raise ApiProblem(400, f"the model {request.model} has no chat template, so it only continues text: ask it at "
                              "/v1/completions, or fine-tune it to chat", param="model", code="unsupported_model")
    conversation = _conversation(request)
    shown = _with_variables(template, request) if request.variables else template
    try:
        ids = shown.prompt_ids(conversation, request.thinks)
        starts_thinking = opens_reasoning(shown, conversation.messages, conversation.tools, request.thinks)
    except UserError as error:
        raise _problem(error) from error
    _check_thinking(request, template, starts_thinking)
    stop_ids = chat_stop_ids(template, loaded.stop_ids)
    reasoning: Reasoning = "open" if starts_thinking else "possible" if request.thinks else "none"
    grammar = find_grammar(reasoning) if find_grammar else None
    return Prompt(ids, starts_thinking, _requests(request, ids, loaded, sampling, stop_ids, grammar))


def completion_prompts(request: CompletionRequest, loaded: Loaded, sampling: SamplingSettings) -> list[Prompt]:
    """Makes the prompts of texts to continue, framed as in pretraining; ids are taken as they are.

    Raises:
        ApiProblem: if an id is no token, or if a prompt is empty or too long.
    """
    tokenizer, framed, prompts = loaded.tokenizer, loaded.frames_documents, []
    stop_ids = {*document_end_ids(tokenizer, framed), *loaded.stop_ids}
    if loaded.template is not None:
        stop_ids |= chat_stop_ids(loaded.template)
    for given in request.prompts:
        if isinstance(given, str):
            ids = document_ids(tokenizer, given, framed)
        else:
            ids = given
            if wrong := next((token for token in ids if token >= tokenizer.vocab_size), None):
                raise invalid("prompt", f"expected ids below {tokenizer.vocab_size}, found {wrong}")
        if not ids:
            raise invalid("prompt", "expected some text, found none")
        prompts.append(Prompt(ids, False, _requests(request, ids, loaded, sampling, stop_ids)))
    return prompts


def _conversation(request: ChatRequest) -> Conversation:
    """Returns the conversation as training reads it."""
    # Data have an answer to each question, and an empty one only if it is not learned.
    waiting = {"role": "assistant", "content": "ANSWER"}
    messages = [{**message, "train": False} if message["role"] == "assistant" else message
                for message in request.messages]
    try:
        conversation = parse_conversation({"messages": [*messages, waiting], "tools": request.offered}, "")
    except UserError as error:
        raise _problem(error) from error
    count = len(conversation.messages) - 1
    return replace(conversation, messages=conversation.messages[:count], names=conversation.names[:count])


def _with_variables(template: ChatTemplate, request: ChatRequest) -> ChatTemplate:
    """Returns the template with a request's variables.

    Raises:
        ApiProblem: for a variable that the template does not read.
    """
    read, values = template.variables, request.variables
    if request.asks_for_effort and "reasoning_effort" not in read:
        raise unsupported("reasoning_effort", "expected 'none', as the model's chat template knows no degrees, found "
                                              f'"{request.reasoning_effort}"; open_thinking true lets the model think')
    for name in values:
        if name not in read:
            raise unsupported(f"chat_template_kwargs.{shown_key(name)}", "the model's chat template reads no such "
                                                                         "variable")
    return template.with_variables(values)


def _check_thinking(request: ChatRequest, template: ChatTemplate, starts_thinking: bool) -> None:
    """Checks that the template thinks, or does not, as the request says.

    Raises:
        ApiProblem: if the request says whether to think, and the template does not follow it.
    """
    for name, thinks in request.thinking.items():
        if thinks and not _knows_reasoning(template):
            raise unsupported(name, "expected false, as the model's chat template has no reasoning, found true")
        if not thinks and starts_thinking:
            raise unsupported(name, "expected true, as the model's chat template always opens the reasoning, found "
                                    "false")


@lru_cache(maxsize=64)
def _knows_reasoning(template: ChatTemplate) -> bool:
    thought = {"role": "assistant", "content": "ANSWER", "reasoning_content": "REASONING"}
    try:
        template.encode(Conversation(({"role": "user", "content": "QUESTION"}, thought), None, "an answer"))
    except UserError:
        return False
    return True


def _requests(request: GenerationRequest, ids: list[int], loaded: Loaded, sampling: SamplingSettings,
              stop_ids: Collection[int], grammar: Grammar | None = None) -> list[Request]:
    """Returns a request for each answer."""
    context = loaded.model.config.context
    if len(ids) >= context:
        raise ApiProblem(400, f"the prompt has {len(ids):,} tokens, the model's context is {context:,}",
                         param="messages" if isinstance(request, ChatRequest) else "prompt",
                         code="context_length_exceeded")
    sampling, biases = _sampling(request, sampling), _logit_bias(request, loaded.tokenizer)
    return [Request(ids, replace(sampling, seed=seed), frozenset(stop_ids),
                    frequency_penalty=request.frequency_penalty or 0.0,
                    presence_penalty=request.presence_penalty or 0.0,
                    logit_bias=biases, logprobs=request.best_logprobs,
                    constraint=grammar.constraint() if grammar else None)
            for seed in _seeds(request)]


def _seeds(request: GenerationRequest) -> list[int]:
    """Returns the seed of each answer: that of the request and those after it; random ones if it has none."""
    first = secrets.randbits(64) if request.seed is None else request.seed + SEEDS // 2
    return [(first + index) % SEEDS - SEEDS // 2 for index in range(request.choices)]


def _sampling(request: GenerationRequest, defaults: SamplingSettings) -> SamplingSettings:
    given: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "temperature": request.temperature,
                             "top_k": 0 if request.top_k == ALL_TOKENS else request.top_k,
                             "top_p": request.top_p if request.top_p != 0 else SMALLEST_TOP_P,
                             "repetition_penalty": request.repetition_penalty}
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _logit_bias(request: GenerationRequest, tokenizer: Tokenizer) -> dict[int, float]:
    biases = {}
    for name, bias in (request.logit_bias or {}).items():
        if int(name) >= tokenizer.vocab_size:
            raise invalid(f"logit_bias.{name}", f"expected a token's id below {tokenizer.vocab_size}, found {name}")
        biases[int(name)] = bias
    return biases


def _problem(error: UserError) -> ApiProblem:
    """Returns the refusal of a conversation that training would refuse."""
    if isinstance(error, NotRendered):
        return unsupported(error.name, f"the model would not see {error.label}: its chat template does not write "
                                       "them")
    message = str(error).removeprefix(": ")
    found = FIELD.match(message)
    return invalid(found[1] if found else "messages", message[found.end():] if found else message)
