"""Refusals that a client gets, in the form of OpenAI's interface."""

from typing import Any

from minimind_sft.terminal import in_one_line

UNSUPPORTED = "unsupported_parameter"


class ApiProblem(Exception):
    """A request that cannot be answered.

    status: the HTTP status.
    message: one line that stands alone: it names the field and says what would be right. Control characters of values
        that it shows are escaped, as clients print it.
    param: the field, such as `messages[2].content`; None if the problem belongs to none.
    code: a word that programs can look for.
    """

    def __init__(self, status: int, message: str, type: str = "invalid_request_error", param: str | None = None,
                 code: str | None = None):
        self.status, self.message, self.type, self.param, self.code = status, in_one_line(message), type, param, code
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """Returns the JSON that the client gets."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiProblem:
    """Returns the refusal of a field's value."""
    return ApiProblem(400, f"{param}: {message}", param=param, code=code)


def unsupported(param: str, message: str) -> ApiProblem:
    """Returns the refusal of a field that this server cannot honour."""
    return invalid(param, message, UNSUPPORTED)
