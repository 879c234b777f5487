"""A small hub on this machine that speaks as much of the Hugging Face hub's HTTP interface as a
download takes.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"


class Hub(BaseHTTPRequestHandler):
    """Serves `models` {name: folder or status}; `seen` gathers (method, path, range). The first
    `cuts` file bodies break off halfway.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *text):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.seen.append((self.command, path, self.headers.get("Range")))
        name = next((n for n in hub.models if f"/{n}/" in path + "/"), None)
        found = hub.models.get(name)
        if not isinstance(found, (str, Path)):
            code = {403: "GatedRepo", None: "RepoNotFound"}[found]
            return self.send(
                found or 404, b'{"error":"no"}', X_Error_Code=code, X_Error_Message="no"
            )
        files = {f.relative_to(found).as_posix(): f for f in Path(found).rglob("*") if f.is_file()}
        if path.startswith("/api/models/") and "/tree/" in path:
            listed = [
                {
                    "type": "file",
                    "path": k,
                    "size": f.stat().st_size,
                    "oid": hashlib.sha1(k.encode()).hexdigest(),
                }
                for k, f in files.items()
            ]
            return self.send(200, json.dumps(listed).encode(), Content_Type="application/json")
        if path.startswith("/api/models/"):
            about = {
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "cardData": {"license": "creativeml-openrail-m"},
                "siblings": [{"rfilename": k, "size": f.stat().st_size} for k, f in files.items()],
            }
            return self.send(200, json.dumps(about).encode(), Content_Type="application/json")
        inside = path.split("/resolve/", 1)[1].split("/", 1)[1]
        if inside not in files:
            return self.send(404, b"", X_Error_Code="EntryNotFound")
        body, start = files[inside].read_bytes(), 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
        known = {
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
            "Accept_Ranges": "bytes",
        }
        if self.command == "HEAD":
            self.send_response(200)
            for header, value in (known | {"Content-Length": len(body)}).items():
                self.send_header(header.replace("_", "-"), str(value))
            return self.end_headers()
        if hub.cuts and len(body) > 100_000:
            hub.cuts -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        if start:
            known["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send(206 if start else 200, body[start:], **known)

    do_HEAD = do_GET


@contextmanager
def fake_hub(monkeypatch, cache, models, cuts=0):
    """The hub at work: huggingface_hub talks to it and caches in `cache`. Yields the list of
    requests seen.
    """
    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.models, server.seen, server.cuts = models, [], cuts
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 10_000
    )  # what came before a break is kept by the chunk
    try:
        yield server.seen
    finally:
        server.shutdown()
        server.server_close()
