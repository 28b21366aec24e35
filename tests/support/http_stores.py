"""Small imitations of Azure's and Google's object stores over HTTP, with conditional writes. Tests only.

Each answers what adlfs and gcsfs ask for in the tests of ``trainables.storage``, as the vendors' references of their
APIs describe it, without authentication and without pages. They are no substitute for the real stores.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_LOCK = threading.Lock()
_TIME = "2026-11-30T12:00:00.000Z"


class _Handler(BaseHTTPRequestHandler):
    """Name → content, its number of writes."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, int]]

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if not name.startswith("do_"):
            raise AttributeError(name)
        return self._serve

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with _LOCK:
            self.answer(parts.path)

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def put(self, name: str, content: bytes) -> None:
        self.objects[name] = (content, self.objects.get(name, (b"", 0))[1] + 1)


@contextmanager
def _serve(handler: type[_Handler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"objects": {}}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# ------------------------------------------------------------------ Azure


class _Azure(_Handler):
    """Blobs of any container below /account."""

    def answer(self, path: str) -> None:
        name = unquote(path).removeprefix("/account/")
        if self.asked.get("comp") == "list":
            self._list(name)
        elif self.command == "PUT":
            self._put(name)
        elif name not in self.objects:
            error = b"<Error><Code>BlobNotFound</Code><Message>no such blob</Message></Error>"
            self.say(404, error, x_ms_error_code="BlobNotFound", Content_Type="application/xml")
        elif self.command == "DELETE":
            del self.objects[name]
            self.say(202)
        else:
            content = self.objects[name][0]
            known = self._describe(name) | {"x_ms_blob_type": "BlockBlob", "Content_Type": "application/octet-stream"}
            known["Content_Length"] = str(len(content))
            status = 206 if "x-ms-range" in self.headers and content else 200
            if status == 206:
                known["Content_Range"] = f"bytes 0-{len(content) - 1}/{len(content)}"
            self.send_response(status)
            for key, value in known.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    def _describe(self, name: str) -> dict[str, str]:
        return {"ETag": f'"0x{self.objects[name][1]}{len(name)}"', "Last_Modified": formatdate(0, usegmt=True)}

    def _put(self, name: str) -> None:
        source = self.headers.get("x-ms-copy-source")
        if source is not None:
            source = unquote(urlsplit(source).path).removeprefix("/account/")
            if source not in self.objects:
                self.say(404, x_ms_error_code="BlobNotFound")
                return
            self.body = self.objects[source][0]
        current = self._describe(name)["ETag"] if name in self.objects else None
        if self.headers.get("If-None-Match") == "*" and current is not None:
            self.say(409, x_ms_error_code="BlobAlreadyExists")
        elif self.headers.get("If-Match", current) != current:
            self.say(412, x_ms_error_code="ConditionNotMet")
        else:
            self.put(name, self.body)
            done = {"x_ms_copy_status": "success", "x_ms_copy_id": "1"} if source else {}
            self.say(202 if source else 201, **self._describe(name), **done)

    def _list(self, container: str) -> None:
        start, delimiter = self.asked.get("prefix", ""), self.asked.get("delimiter")
        entries, folders = [], set()
        for name in sorted(self.objects):
            blob = name.removeprefix(f"{container}/")
            if not blob.startswith(start):
                continue
            rest = blob[len(start) :]
            if delimiter and delimiter in rest:
                folders.add(start + rest.partition(delimiter)[0] + delimiter)
                continue
            known, size = self._describe(name), len(self.objects[name][0])
            entries.append(
                f"<Blob><Name>{blob}</Name><Properties><Etag>{known['ETag']}</Etag><Last-Modified>"
                f"{known['Last_Modified']}</Last-Modified><Content-Length>{size}</Content-Length>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            )
        entries += [f"<BlobPrefix><Name>{folder}</Name></BlobPrefix>" for folder in sorted(folders)]
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{container}">'
        text += f"<Blobs>{''.join(entries)}</Blobs><NextMarker /></EnumerationResults>"
        self.say(200, text.encode(), Content_Type="application/xml")


@contextmanager
def serve_azure() -> Iterator[dict[str, str]]:
    """Run an empty store; yield the environment in which adlfs finds it."""
    with _serve(_Azure) as address:
        key = base64.b64encode(b"no secret").decode()
        said = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={key};BlobEndpoint={address}/account;"
        yield {"AZURE_STORAGE_CONNECTION_STRING": said}


# ------------------------------------------------------------------ Google


class _Google(_Handler):
    """The JSON API for objects of any bucket."""

    def answer(self, path: str) -> None:
        if path.startswith("/upload/"):
            self._upload(unquote(path.split("/")[5]))
            return
        _, _, rest = path.partition("/b/")
        bucket, _, rest = rest.partition("/o")
        name = f"{bucket}/{unquote(rest.strip('/').partition('/rewriteTo')[0])}"
        if not rest.strip("/"):
            self._list(bucket)
        elif name not in self.objects:
            self.say(404, b'{"error": {"code": 404, "message": "No such object"}}', Content_Type="application/json")
        elif self.command == "DELETE":
            del self.objects[name]
            self.say(204)
        elif "/rewriteTo/" in rest:
            target = unquote(rest.partition("/rewriteTo/b/")[2]).replace("/o/", "/", 1)
            self.put(target, self.objects[name][0])
            self._tell({"done": True, "resource": self._describe(target)})
        elif self.asked.get("alt") == "media":
            self.say(200, self.objects[name][0], Content_Type="application/octet-stream")
        else:
            self._tell(self._describe(name))

    def _tell(self, value: object) -> None:
        self.say(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe(self, name: str) -> dict[str, str]:
        content, number = self.objects[name]
        bucket, _, key = name.partition("/")
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        said = {"name": key, "bucket": bucket, "size": str(len(content)), "md5Hash": digest, "updated": _TIME}
        return said | {"generation": str(number), "etag": f"e{number}", "timeCreated": _TIME}

    def _upload(self, bucket: str) -> None:
        head, _, rest = self.body.partition(b"\n\n")[2].partition(b"\n--==0==")
        content = rest.partition(b"\n\n")[2].removesuffix(b"\n--==0==--")
        name = f"{bucket}/{json.loads(head)['name']}"
        if self.asked.get("ifGenerationMatch") == "0" and name in self.objects:
            self.say(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}', Content_Type="application/json")
            return
        self.put(name, content)
        self._tell(self._describe(name))

    def _list(self, bucket: str) -> None:
        start, delimiter = self.asked.get("prefix", ""), self.asked.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.objects):
            key = name.removeprefix(f"{bucket}/")
            if not name.startswith(f"{bucket}/{start}"):
                continue
            rest = key[len(start) :]
            if delimiter and delimiter in rest:
                folders.add(start + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(name))
        self._tell({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})


@contextmanager
def serve_google() -> Iterator[dict[str, str]]:
    """Run an empty store; yield the environment in which gcsfs finds it."""
    with _serve(_Google) as address:
        yield {"STORAGE_EMULATOR_HOST": address}
