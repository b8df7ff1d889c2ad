"""A stand-in for the Hugging Face hub: what its client asks for when a model is uploaded and downloaded."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Keeps files by repository; `log` has method and path of each request, `created` what was asked of new ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def reply(self, content: bytes | dict[str, Any] | list[Any], status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        self.server.log.append(f"{self.command} {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(asked)
            self.server.files.setdefault(repository, {})
            return self.reply({"url": f"{self.server.url}/{repository}", "name": repository, "id": repository})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        files = self.server.files.get(repository)
        if files is None:
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.answer_about(repository, files, path, body)

    def answer_about(self, repository: str, files: dict[str, bytes], path: str, body: bytes) -> None:
        if "/resolve/" in path:
            content = files.get(path.split("/resolve/")[1].partition("/")[2])
            if content is None:
                return self.reply(b"", 404, X_Error_Code="EntryNotFound")
            digest = hashlib.sha256(content).hexdigest()
            return self.reply(content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)
        if "/preupload/" in path:
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply({"files": [{"path": one["path"], **plain} for one in json.loads(body)["files"]]})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return self.reply(
                {"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}", "hookOutput": ""}
            )
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.reply(entries, Content_Type="application/json")
        siblings = [{"rfilename": name} for name in files]
        about = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": True, "tags": []}
        return self.reply(about | {"downloads": 0, "likes": 0}, Content_Type="application/json")

    do_GET = do_POST = do_HEAD = do_PUT = answer
