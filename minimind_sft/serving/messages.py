"""Messages and tools of a chat request, as OpenAI's interface has them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from minimind_sft.errors import describe
from minimind_sft.serving.problems import invalid

MAX_MESSAGES = 512
"""A template renders the conversation anew for each answer in it: twice as many take four times as long."""
MAX_PARTS = 256
MAX_TOOLS = 128
"""As OpenAI's."""
FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """An object whose values have exactly their types, and that has no other fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """A part of a message. Models here read only text."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]


class SystemMessage(Body):
    """Instructions for the whole conversation. A `developer` message is the same. Only the first message can be one."""

    role: Literal["system", "developer"]
    content: Content
    name: None = None


class UserMessage(Body):
    """Words of the user."""

    role: Literal["user"]
    content: Content
    name: None = None


class CalledFunction(Body):
    """A function's name and its arguments: a JSON object, or its text."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any]


class ToolCall(Body):
    """An earlier call of a function by the model."""

    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    """An earlier answer of the model."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="vLLM's name of reasoning_content")
    tool_calls: list[ToolCall] | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


class FunctionDescription(Body):
    """A function that the model may call. `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDescription


def _as_given(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Checks an object and returns it as the request has it: templates write its fields in their order."""
    check(value)
    return value


if TYPE_CHECKING:
    GivenMessage = dict[str, Any]
    GivenTool = dict[str, Any]
else:
    GivenMessage = Annotated[
        Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")],
        WrapValidator(_as_given)]
    GivenTool = Annotated[Tool, WrapValidator(_as_given)]


def check_results(messages: Sequence[dict[str, Any]]) -> None:
    """Checks that the results of calls name calls that were made.

    Raises:
        ApiProblem: naming the field.
    """
    made: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            made = {call["id"] for call in message.get("tool_calls") or () if call.get("id")}
        called = message.get("tool_call_id")
        if called and made and called not in made:
            raise invalid(f"messages[{index}].tool_call_id", f"expected the id of one of the calls before it, found "
                                                             f"{describe(called)}")
