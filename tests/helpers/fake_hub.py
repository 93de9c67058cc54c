"""A Hugging Face hub with one repository, on localhost: the requests of `datasets` and `transformers`, and no more."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lora.files import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def called(
    code: str, arguments: Sequence, repository: str, folder: Path, home: Path, kind: str = "datasets"
) -> list[Any]:
    """What code prints, as JSON in each line, in a process of its own that knows only this hub.

    The endpoint is read once, when huggingface_hub is imported.
    """
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "OFFLINE" not in name}
    with serve(repository, folder, kind) as endpoint:
        environment = kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


@contextlib.contextmanager
def serve(repository: str, folder: Path, kind: str = "datasets") -> Iterator[str]:
    """Serve a folder's files as the only commit of `repository`, also called `main`. Yields the endpoint's address.

    Args:
        kind: `datasets`, `models` or `spaces`.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(repository, folder, kind))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def handler(repository: str, folder: Path, kind: str) -> type[http.server.BaseHTTPRequestHandler]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    def entry(name: str) -> dict:
        data = files[name].read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def folders() -> list[dict]:
        names = sorted({name.rpartition("/")[0] for name in files} - {""})
        return [
            {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name in names
        ]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api = f"/api/{kind}/{repository}"
            for revision in ("main", COMMIT):
                raw = f"{'' if kind == 'models' else f'/{kind}'}/{repository}/resolve/{revision}/"
                if path.startswith(raw) and path.removeprefix(raw) in files:
                    return self.answer(files[path.removeprefix(raw)].read_bytes(), "application/octet-stream")
                if path in (f"{api}/revision/{revision}", api):
                    siblings = [{"rfilename": name} for name in sorted(files)]
                    info = {"id": repository, "sha": COMMIT, "private": False, "disabled": False, "gated": False}
                    return self.answer_json(info | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})
                if path.startswith(f"{api}/tree/{revision}"):
                    below = path.removeprefix(f"{api}/tree/{revision}").strip("/")
                    everything = [*map(entry, sorted(files)), *folders()]
                    deep = "recursive=true" in self.path.lower()
                    inside = [e for e in everything if not below or e["path"].startswith(f"{below}/")]
                    depth = below.count("/") + 1 if below else 0
                    return self.answer_json([e for e in inside if deep or e["path"].count("/") == depth])
            return self.absent("EntryNotFound" if "/resolve/" in path else "RevisionNotFound")

        do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

        def answer_json(self, value: object) -> None:
            self.answer(json.dumps(value).encode(), "application/json")

        def answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def absent(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
