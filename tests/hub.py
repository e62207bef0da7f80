"""A small hub on loopback: what huggingface_hub asks of the real one, and its faults.

Listing of a commit in pages, HEAD and GET of files by commit, large files behind a redirect, ranges, gates, tokens,
rate limits and branches. Uploads: a repository made, large files to storage, and one commit of all.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

LARGE = (".safetensors", ".parquet")  # kept in large-file storage, named by sha256
PAGE = 2  # files in a page of a listing


@dataclass
class Hub:
    """What lies on the hub, and what is wrong with it. files: (kind, repo, commit) -> path -> bytes."""

    files: dict[tuple[str, str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # repo -> branch -> commit
    github: dict[str, bytes] = field(default_factory=dict)  # <repo>/<commit>/<path> -> bytes
    gated: dict[str, str] = field(default_factory=dict)  # repo -> the token that opens it
    breaks: dict[str, int] = field(default_factory=dict)  # path -> bytes after which the connection is cut, once
    wrong: dict[str, bytes] = field(default_factory=dict)  # path -> what is sent in its place, once
    refusals: int = 0  # answers 429 so many times
    writers: set[str] = field(default_factory=set)  # tokens that may write
    stored: dict[str, bytes] = field(default_factory=dict)  # large files that were sent, by sha256
    made: dict[str, dict] = field(default_factory=dict)  # repo -> what it was made with
    commits: list[dict] = field(default_factory=list)  # repo, summary, files
    asked: list[tuple[str, str, dict]] = field(default_factory=list)  # method, path, headers
    url: str = ""
    storage: str = ""  # of large files: another host, as the real one's

    def __enter__(self) -> Hub:
        handler = type("Answers", (Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage = f"http://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fetched(self, path: str) -> list[dict]:
        """Headers of each download of a file."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked.endswith(f"/{path}")]


def names(content: bytes) -> tuple[str, str]:
    """(git blob id, sha256) of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, where = self.hub, urlsplit(self.path)
        hub.asked.append((self.command, where.path, {name.title(): value for name, value in self.headers.items()}))
        if hub.refusals:
            hub.refusals -= 1
            return self.answer(429, b"{}", {"Retry-After": "0"})
        parts = where.path.strip("/").split("/")
        if parts[0] == "api" and len(parts) < 5:  # whether there is such a repository
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            kind, repo, what, *rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), *parts[4:]
            if what == "refs":
                listed = [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in hub.branches[repo].items()
                ]
                return self.json({"branches": listed, "tags": [], "converts": []})
            return self.tree(kind, repo, rest[0], int(parse_qs(where.query).get("page", ["0"])[0]))
        if "/".join(parts) in hub.github:
            return self.content("/".join(parts), hub.github["/".join(parts)])
        if parts[0] == "large":
            return self.content("/".join(parts[3:]), self.of_large(parts[1], parts[3:]))
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if len(parts) < 5:
            return self.answer(404, b"", {})
        return self.file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    # ------------------------------------------------------------ uploads

    def do_PUT(self) -> None:
        """A large file, to storage, which is another host and is told no token."""
        content = self.body()
        self.hub.asked.append(("PUT", urlsplit(self.path).path, {n.title(): v for n, v in self.headers.items()}))
        self.hub.stored[names(content)[1]] = content
        self.answer(200, b"", {})

    def do_POST(self) -> None:
        hub, path, body = self.hub, urlsplit(self.path).path, self.body()
        hub.asked.append(("POST", path, {name.title(): value for name, value in self.headers.items()}))
        if hub.refusals:
            hub.refusals -= 1
            return self.answer(429, b"{}", {"Retry-After": "0"})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.writers:
            return self.answer(403, b"{}", {})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            hub.made.setdefault(repo, asked)
            return self.json({"url": f"{hub.url}/{repo}"})
        if path.endswith("/info/lfs/objects/batch"):
            return self.json(
                {"transfer": "basic", "objects": [self.to_storage(o) for o in json.loads(body)["objects"]]}
            )
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(LARGE) else "regular" for file in files]
            told = [
                {"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes, strict=True)
            ]
            return self.json({"files": told})
        self.commit("/".join(path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])

    def to_storage(self, asked: dict) -> dict:
        upload = {"href": f"{self.hub.storage}/store/{asked['oid']}", "header": {}}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def commit(self, repo: str, lines: list[dict]) -> None:
        """The lines of a commit: its header, small files whole, large ones by sha256."""
        files, summary = {}, ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.stored[value["oid"]]
        self.hub.commits.append({"repo": repo, "summary": summary, "files": files})
        self.json({"commitUrl": f"{self.hub.url}/{repo}/commit/{'c' * 40}", "commitOid": "c" * 40})

    def body(self) -> bytes:
        """Of a request, sent at once or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # ------------------------------------------------------------ downloads

    def known(self, kind: str, repo: str, commit: str) -> dict[str, bytes] | None:
        """The files of a commit; None after an answer that says why not."""
        if not any(k == kind and r == repo for k, r, _ in self.hub.files):
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if (kind, repo, commit) not in self.hub.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self.hub.files[kind, repo, commit]

    def tree(self, kind: str, repo: str, commit: str, page: int) -> None:
        files = self.known(kind, repo, commit)
        if files is None:
            return
        listed = []
        for path, content in sorted(files.items())[page * PAGE : (page + 1) * PAGE]:
            blob, sha256 = names(content)
            entry = {"type": "file", "oid": blob, "size": len(content), "path": path}
            if path.endswith(LARGE):
                pointer = b"oid sha256:%s\nsize %d\n" % (sha256.encode(), len(content))
                entry |= {"oid": names(pointer)[0], "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
            listed.append(entry)
        following = f'<{self.hub.url}{urlsplit(self.path).path}?recursive=true&page={page + 1}>; rel="next"'
        self.json(listed, {"Link": following} if (page + 1) * PAGE < len(files) else {})

    def file(self, kind: str, repo: str, commit: str, path: str) -> None:
        files = self.known(kind, repo, commit)
        if files is None:
            return
        if repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.gated[repo]}":
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        blob, sha256 = names(files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob}"'}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(files[path]))}
            return self.answer(302, b"", headers | {"Location": f"{self.hub.storage}/large/{sha256}/of/{path}"})
        return self.content(path, files[path], headers)

    def of_large(self, sha256: str, path: list[str]) -> bytes:
        found = [files["/".join(path)] for files in self.hub.files.values() if "/".join(path) in files]
        return next(content for content in found if names(content)[1] == sha256)

    def content(self, path: str, content: bytes, headers: dict | None = None) -> None:
        """A file, or the rest of it from where a Range asks."""
        if self.command == "GET" and path in self.hub.wrong:
            content = self.hub.wrong.pop(path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        end = self.hub.breaks.pop(path, None) if self.command == "GET" else None
        self.answer(206 if start else 200, content[start:], (headers or {}) | more, end)

    def json(self, content, headers: dict | None = None) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def answer(self, status: int, body: bytes, headers: dict, end: int | None = None) -> None:
        """end: bytes after which the connection is cut."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:end])
            self.wfile.flush()
        if end is not None:
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass
