"""The bodies of requests: every field is honoured, or refused by name.

The models here are also the server's OpenAPI description.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from minimind_sft.errors import UserError, describe
from minimind_sft.serving.messages import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Body,
    FunctionName,
    GivenMessage,
    GivenTool,
    check_results,
)
from minimind_sft.serving.problems import ApiProblem, invalid, unsupported
from minimind_sft.serving.validation import problem_of
from minimind_sft.strict_json import parse_json
from minimind_sft.terminal import counted

MAX_CHOICES = 16
MAX_STOPS = 32
"""Code completion in editors sends more than the 4 that OpenAI allows."""
MAX_STOP = 256
"""Characters of a stop string: as many may have to wait before they can be sent."""
MAX_BIASES = 1024
MAX_TOP_LOGPROBS, MAX_COMPLETION_LOGPROBS = 20, 5
MAX_PROMPTS = 64
MAX_VALUES = 200_000
"""Values in the JSON of a body."""
MAX_COUNT = 10**9
MAX_LABEL = 512
"""Characters of a field that only labels a request."""

Label = Annotated[str, Field(max_length=MAX_LABEL)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(min_length=1)]

UNSUPPORTED_IN_CHAT = {
    "audio": "models here write only text",
    "function_call": "give tool_choice, which replaced it",
    "functions": "give tools, which replaced it",
    "moderation": "nothing is moderated here",
    "prediction": "predicted outputs are not supported",
    "prompt_cache_options": "prompts that begin alike are shared in any case",
    "web_search_options": "models here do not search the web",
}
UNSUPPORTED_IN_COMPLETIONS = {
    "suffix": "models here only continue text",
}
"""Fields of OpenAI's interface that are refused unless they are null, and why."""

AnyBody = TypeVar("AnyBody", bound="GenerationRequest")


class StreamOptions(Body):
    """Asks for more than the answer in a stream."""

    include_usage: bool | None = Field(None, description="a last chunk tells how many tokens the request took")
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(Body):
    """The fields of chats and completions alike. Sampling that a request leaves open is that of the model's makers."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(1, description="answers to the same prompt")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = Field(
        None, description="0: all tokens; so does -1, for clients of vLLM")
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_BIASES, description="added to the scores of these tokens, by id")
    seed: Annotated[int, Field(ge=-2**63, le=2**63 - 1)] | None = Field(
        None, description="the same seed gives the same answer; without one, each request draws anew")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="texts that end the answer; they are not part of it")
    user: Label | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def max_new_tokens(self) -> int | None:
        """The limit of the answer's tokens, if the request has one."""
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk about the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    @abstractmethod
    def best_logprobs(self) -> int | None:
        """How many of the best tokens to report with each; None: no logprobs at all."""

    def check(self) -> None:
        """Checks that the fields go together.

        Raises:
            ApiProblem: if they do not.
        """
        if self.stream_options and not self.stream:
            raise invalid("stream_options", "expected only with stream true, found without")


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON Schema that the answer follows."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    """Makes the model call this function."""

    type: Literal["function"]
    function: NamedFunction


class TemplateVariables(Body):
    """Variables that chat templates read: three names for thinking, and whatever else the model's template has."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    enable_thinking: bool | None = None
    open_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(GenerationRequest):
    """A conversation that waits for an answer."""

    messages: Annotated[list[GivenMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="the newer name of max_tokens")
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[GivenTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    open_thinking: bool | None = Field(None, description="let the model think before it answers")
    chat_template_kwargs: TemplateVariables | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="none: the model does not think; the others go to a chat template that reads them")
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    verbosity: Literal["medium"] | None = None
    store: Literal[False] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(None, max_length=16)
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def best_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thinking(self) -> dict[str, bool]:
        """The fields that say whether the model thinks before it answers, with what they say."""
        names = TemplateVariables.model_fields if self.chat_template_kwargs else ()
        said = {"open_thinking": self.open_thinking,
                **{f"chat_template_kwargs.{name}": getattr(self.chat_template_kwargs, name) for name in names},
                "reasoning_effort": False if self.reasoning_effort == "none" else None}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def variables(self) -> dict[str, Any]:
        """Further variables for the chat template."""
        return self._extra | ({"reasoning_effort": self.reasoning_effort} if self.asks_for_effort else {})

    @property
    def _extra(self) -> dict[str, Any]:
        return dict(self.chat_template_kwargs.model_extra or {}) if self.chat_template_kwargs else {}

    @property
    def asks_for_effort(self) -> bool:
        """Whether `reasoning_effort` is one of the degrees that only some chat templates know."""
        return self.reasoning_effort not in (None, "none")

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before it answers."""
        return any(self.thinking.values())

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the model sees; none if it must not call any."""
        return (self.tools or None) if self.tool_choice != "none" else None

    @property
    def forced(self) -> str | Literal[True] | None:
        """The function that the model has to call; True for any of them, None if it may answer in words."""
        if isinstance(self.tool_choice, NamedTool):
            return self.tool_choice.function.name
        return True if self.tool_choice == "required" else None

    @property
    def answers_in_json(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    def check(self) -> None:
        super().check()
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens", f"expected the same as max_completion_tokens ({self.max_completion_tokens}), "
                                        f"found {self.max_tokens}")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "expected only with logprobs true, found without")
        for name, value in self.thinking.items():
            if value != self.thinks:
                other = next(other for other, thinks in self.thinking.items() if thinks)
                raise invalid(name, f"expected the same as {other}, found false")
        effort = self._extra.get("reasoning_effort", self.reasoning_effort)
        if self.asks_for_effort and effort != self.reasoning_effort:
            raise invalid("chat_template_kwargs.reasoning_effort",
                          f"expected the same as reasoning_effort ({self.reasoning_effort}), found {describe(effort)}")
        if all(message["role"] != "user" for message in self.messages):
            raise invalid("messages", "expected a user message, found none")
        check_results(self.messages)
        self._check_tools()

    def _check_tools(self) -> None:
        names = [tool["function"]["name"] for tool in self.tools or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid(f"tools[{index}].function.name", f"expected another name, found {name} twice")
        if self.forced and not names:
            raise invalid("tool_choice", "expected only with tools, found without")
        if isinstance(self.forced, str) and self.forced not in names:
            raise invalid("tool_choice.function.name", f"expected one of the tools, found {describe(self.forced)}")


class CompletionRequest(GenerationRequest):
    """Text that the model continues. Token ids may be control tokens; text is only text."""

    prompt: str | Ids | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)] | Annotated[
        list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="must equal n")
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each as text or ids."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]

    @property
    def best_logprobs(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.choices:
            raise unsupported("best_of", f"expected the same as n ({self.choices}), as all answers are returned, "
                                         f"found {self.best_of}")
        if len(self.prompts) * self.choices > MAX_PROMPTS:
            raise invalid("prompt", f"expected at most {MAX_PROMPTS} answers in all, found "
                                    f"{counted(len(self.prompts), 'prompt')} with {self.choices} each")


UNSUPPORTED_FIELDS: Mapping[type[GenerationRequest], Mapping[str, str]] = {
    ChatRequest: UNSUPPORTED_IN_CHAT, CompletionRequest: UNSUPPORTED_IN_COMPLETIONS}


def parse_body(kind: type[AnyBody], body: bytes) -> AnyBody:
    """Parses the body of a request.

    Raises:
        ApiProblem: a 400 that names the field.
    """
    try:
        values = parse_json(body.decode(), "the body", "a JSON object", MAX_VALUES)
    except UnicodeDecodeError as error:
        raise ApiProblem(400, f"the body: expected UTF-8, found byte 0x{body[error.start]:02x} at position "
                              f"{error.start}", code="invalid_json") from error
    except UserError as error:
        raise ApiProblem(400, str(error), code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiProblem(400, f"the body: expected a JSON object, found {describe(values)}", code="invalid_json")
    for name, reason in UNSUPPORTED_FIELDS[kind].items():
        if values.pop(name, None) is not None:
            raise unsupported(name, reason)
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        raise problem_of(error, values, kind.model_fields) from error
    request.check()
    return request
