"""A service on loopback that speaks as much of Google's storage API (JSON) as the clients of a run folder use.

It serves gcsfs (small files, listings), google-cloud-storage (what kind of bucket it is) and TensorStore (arrays).
Objects are kept in memory, so they outlive the processes of a run, and tests can read, damage and refuse them.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIME = "2026-01-01T00:00:00.000Z"


@dataclass
class Storage:
    """Buckets, and what a test wants of them.

    Attributes:
        buckets: bucket -> object's name -> (content, generation).
        refuse: asked of every request (method, bucket, object) first; an HTTP status is the answer, None lets it pass.
        requests: method, bucket and object of every request so far.
        url: where it listens.
    """

    buckets: dict[str, dict[str, tuple[bytes, int]]]
    refuse: Callable[[str, str, str], int | None] = lambda method, bucket, name: None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""
    uploads: dict[str, tuple[str, str, dict, bytes]] = field(default_factory=dict)
    generation: int = 1000
    lock: threading.RLock = field(default_factory=threading.RLock)

    def environment(self) -> dict[str, str]:
        """Variables that point all clients here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asked over gRPC, which is not spoken here
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def names(self, bucket: str) -> list[str]:
        """Names of all objects of a bucket."""
        with self.lock:
            return sorted(self.buckets[bucket])

    def change(self, bucket: str, name: str, how: Callable[[bytes], bytes]) -> None:
        """Changes the content of an object behind the back of all clients."""
        with self.lock:
            content, _ = self.buckets[bucket][name]
            self.generation += 1
            self.buckets[bucket][name] = (how(content), self.generation)


@contextlib.contextmanager
def storage_service(*buckets: str) -> Iterator[Storage]:
    """A storage service with empty buckets, which stops at the end."""
    storage = Storage({bucket: {} for bucket in buckets})
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": storage}))
    storage.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that went away before the answer, as all of them do sometimes."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    storage: Storage

    def log_message(self, *_):
        pass

    def _serve(self) -> None:
        length = self.headers.get("Content-Length")
        if length is None and "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(length or 0))
        parts = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(parts.query).items()}
        found = re.fullmatch(r"(/upload|/download)?/(?:storage/v1/)?b/([^/]+)(?:/o(?:/([^/]+))?(/.*)?)?/?", parts.path)
        if not found:
            return self._say(404, {"error": {"code": 404, "message": f"no such method: {parts.path}"}})
        kind, bucket, name, rest = found.groups()
        name = urllib.parse.unquote(name or query.get("name", ""))
        if kind == "/upload" and not name and (told := re.search(rb'"name":\s*("[^"]*")', body[:2000])):
            name = json.loads(told[1])  # a new object may be named beside its content
        with self.storage.lock:
            self.storage.requests.append((self.command, bucket, name))
            if status := self.storage.refuse(self.command, bucket, name):
                return self._fail(status, f"{self.command} of {bucket}/{name} refused")
            if bucket not in self.storage.buckets:
                return self._fail(404, "The specified bucket does not exist.")
            objects = self.storage.buckets[bucket]
            if kind == "/upload":
                return self._upload(bucket, objects, name, query, body)
            if "/o" not in parts.path:
                return self._say(200, {"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "HERE"})
            if rest:
                return self._copy(objects, name, rest, query)
            if not found[3]:
                return self._list(bucket, objects, query)
            return self._object(bucket, objects, name, query)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

    def _upload(self, bucket, objects, name, query, body):
        kind = query.get("uploadType")
        if kind == "media":
            return self._store(bucket, objects, name, query, body)
        if kind == "multipart":
            # Cut at the boundary by hand: a parser of mail would rewrite what looks like line ends in the content.
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            part = re.split(rb"\r?\n?--" + re.escape(boundary), body)[2].lstrip(b"\r\n")
            return self._store(bucket, objects, name, query, re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1])
        if "upload_id" not in query:
            key = str(len(self.storage.uploads))
            self.storage.uploads[key] = (bucket, name, query, b"")
            where = f"{self.storage.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return self._say(200, {}, {"Location": where})
        key = query["upload_id"]
        bucket, name, first, before = self.storage.uploads[key]
        content = before + body
        self.storage.uploads[key] = (bucket, name, first, content)
        total = self.headers.get("Content-Range", "bytes */*").rpartition("/")[2]
        if total == "*" or int(total) > len(content):
            return self._say(308, None, {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        return self._store(bucket, objects, name, first, content)

    def _store(self, bucket, objects, name, query, content):
        if self._unmet(objects, name, query):
            return None
        self.storage.generation += 1
        objects[name] = (content, self.storage.generation)
        return self._say(200, self._about(bucket, objects, name))

    def _copy(self, objects, name, rest, query):
        to_bucket, to_name = re.fullmatch(r"/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", rest).groups()
        to_name = urllib.parse.unquote(to_name)
        if name not in objects:
            return self._fail(404, f"No such object: {name}")
        self.storage.generation += 1
        self.storage.buckets[to_bucket][to_name] = (objects[name][0], self.storage.generation)
        about = self._about(to_bucket, self.storage.buckets[to_bucket], to_name)
        return self._say(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about})

    def _list(self, bucket, objects, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], []
        for name in sorted(objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            inner = name[len(prefix) :].find(delimiter) if delimiter else -1
            if inner >= 0:
                folder = name[: len(prefix) + inner + len(delimiter)]
                if folder not in prefixes:
                    prefixes.append(folder)
                if not (query.get("includeTrailingDelimiter") == "true" and folder == name):
                    continue
            items.append(name)
        start, most = int(query.get("pageToken") or 0), int(query.get("maxResults", 1000))
        answer = {"kind": "storage#objects", "prefixes": prefixes if not start else []}
        answer["items"] = [self._about(bucket, objects, name) for name in items[start : start + most]]
        if start + most < len(items):
            answer["nextPageToken"] = str(start + most)
        return self._say(200, answer)

    def _object(self, bucket, objects, name, query):
        if self.command == "DELETE":
            if self._unmet(objects, name, query):
                return None
            if objects.pop(name, None) is None:
                return self._fail(404, f"No such object: {bucket}/{name}")
            return self._say(204, None)
        if name not in objects:
            return self._fail(404, f"No such object: {bucket}/{name}")
        if self._unmet(objects, name, query):
            return None
        if query.get("alt") != "media" and not self.path.startswith("/download"):
            return self._say(200, self._about(bucket, objects, name))
        content, generation = objects[name]
        about = self._about(bucket, objects, name)
        headers = {"x-goog-generation": str(generation), "x-goog-hash": f"md5={about['md5Hash']}"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._say(200, content, headers)
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = int(last) if first and last else len(content) - 1
        if start >= len(content):
            return self._fail(416, "range past the end")
        piece = content[start : end + 1]
        headers = {
            "x-goog-generation": str(generation),
            "Content-Range": f"bytes {start}-{start + len(piece) - 1}/{len(content)}",
        }
        return self._say(206, piece, headers)

    def _unmet(self, objects, name, query) -> bool:
        """Whether a precondition on the object's generation fails, which is then the answer."""
        generation = objects[name][1] if name in objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            self._fail(412, "conditionNotMet")
            return True
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            self._say(304, None)
            return True
        return False

    def _about(self, bucket, objects, name):
        content, generation = objects[name]
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": TIME,
            "updated": TIME,
            "storageClass": "STANDARD",
            "mediaLink": f"{self.storage.url}/download/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}",
        }

    def _fail(self, status, message):
        error = {"code": status, "message": message, "errors": [{"message": message, "reason": "test"}]}
        self._say(status, {"error": error})

    def _say(self, status, answer, headers=None):
        content = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json; charset=UTF-8"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            if status not in (204, 304) or key != "Content-Length":
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(content)
