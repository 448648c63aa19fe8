"""Answers other than 200 that a request can come to, whoever serves it, in the form of the API."""

from __future__ import annotations

from typing import Any

from gnomon.reference.body.shown import shown


class RequestError(Exception):
    """An answer other than 200, in the form of the API: `status` and the four members of its `error` object."""

    status = 500
    type = "server_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def to_json(self) -> dict[str, Any]:
        param = self.param
        if param is not None and len(param) > 256:  # the user's own key; an error is no place for megabytes of it
            param = param[:256] + "…"
        if param is not None:
            param = param.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no JSON for many
        return {"error": {"message": self.message, "type": self.type, "param": param, "code": self.code}}


class InvalidRequest(RequestError):
    """400: the request is at fault, in the field `param`."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__(message, param, code)


class ModelNotFound(InvalidRequest):
    """404: no such model is served here."""

    status = 404

    def __init__(self, model: str, served: str) -> None:
        super().__init__("model", f"model: {shown(model)} is not served here; use {served!r}", "model_not_found")


class ContextExceeded(InvalidRequest):
    """400: prompt and max_tokens together are more than the model's context. Its code, and the words around its
    numbers, are those by which clients know that a shorter prompt would do."""

    def __init__(self, prompt: str, prompt_tokens: int, max_tokens: int, context: int, at_least: bool = False) -> None:
        """prompt: how the message calls it · at_least: it was not encoded to its end, since it cannot fit."""
        param, cure, least = "prompt", "", "at least " if at_least else ""
        if prompt_tokens <= context:
            param, cure = "max_tokens", f", or give max_tokens of at most {context - prompt_tokens}"
        message = (
            f"{param}: This model's maximum context length is {context} tokens. However, you requested "
            f"{least}{shown(prompt_tokens + max_tokens)} tokens ({least}{prompt_tokens} in {prompt}, "
            f"{shown(max_tokens)} in the completion). Please reduce the length of the prompt{cure}."
        )
        super().__init__(param, message, "context_length_exceeded")
