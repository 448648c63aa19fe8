"""A Hugging Face hub on loopback: the few routes by which huggingface_hub lists a repository and fetches its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a-token-that-nobody-may-see"


@dataclass
class FakeHub:
    """An ASGI application. `asked`: every request that came, as method and path."""

    files: dict[str, bytes]
    name: str = "maker/tiny"
    gated: bool = False
    private: bool = False  # shown only to who has TOKEN
    broken: int | None = None  # the status of every answer
    asked: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path) -> FakeHub:
        return cls({path.name: path.read_bytes() for path in directory.iterdir()})

    @property
    def fetched(self) -> set[str]:
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET ") and "/resolve/" in line}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.asked.append(f"{request.method} {request.url.path}")
        await self.answer(request)(scope, receive, send)

    def answer(self, request: Request) -> Response:
        path, is_known = request.url.path, request.headers.get("authorization") == f"Bearer {TOKEN}"
        if self.broken is not None:
            return Response(status_code=self.broken)
        if self.private and not is_known:
            wrong = {"x-error-message": "Invalid credentials in Authorization header"}
            return Response(
                status_code=401,
                headers=wrong if "authorization" in request.headers else {"x-error-code": "RepoNotFound"},
            )
        api, files = f"/api/models/{self.name}/", f"/{self.name}/resolve/"
        if path in (api + "revision/main", api + "revision/v1", api + "revision/" + COMMIT):
            return JSONResponse({"id": self.name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]})
        if path == f"{api}tree/{COMMIT}":
            entries = [(name, len(data), self.tag(data)) for name, data in self.files.items()]
            return JSONResponse([{"type": "file", "path": n, "size": size, "oid": tag} for n, size, tag in entries])
        if path.startswith(api):
            return Response(status_code=404, headers={"x-error-code": "RevisionNotFound"})
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            if self.gated and not is_known:
                return Response(status_code=403, headers={"x-error-code": "GatedRepo"})
            if revision == COMMIT and name in self.files:
                data = self.files[name]
                return Response(data, headers={"etag": f'"{self.tag(data)}"', "x-repo-commit": COMMIT})
            return Response(status_code=404, headers={"x-error-code": "EntryNotFound"})
        return Response(status_code=404, headers={"x-error-code": "RepoNotFound"})

    @staticmethod
    def tag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()
