"""Routes of the explorer's server. Files and images are asked for by number or by a name from a fixed list."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.explorer.attributions import TITLES as ATTRIBUTIONS
from orchestrator.explorer.cases import describe_case
from orchestrator.explorer.guard import Door, Guard
from orchestrator.explorer.jobs import Job
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import MAX_NOTE, Annotation, read_annotations
from trainables.errors import RobustSweepError

#: Modules of the page, which the browser loads by these names.
MODULES = (
    "app.js", "case.js", "colours.js", "controls.js", "dom.js", "keys.js", "looked.js", "model.js", "paint.js",
    "panel.js", "scatter.js", "source.js", "stage.js", "state.js",
)  # fmt: skip
#: Longest body of a request, in bytes.
MAX_BODY = 8 * MAX_NOTE
IMPORT_MAP = '{"imports":{"explorer/":"./static/"}}'
_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@cache
def read_static(name: str) -> str:
    """Return a file of the page by its name in the package."""
    return (resources.files("orchestrator.explorer") / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{_hash(IMPORT_MAP)}'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build_app(explored: ExploredStudy, door: Door) -> Starlette:
    """Return the application that serves a study behind a door."""
    routes = _Routes(explored)
    trial = "/api/trials/{trial:int}"
    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.static),
            Route("/api/study", routes.study),
            Route(trial, routes.trial),
            Route(trial + "/arrays/{name}", routes.array),
            Route(trial + "/arrays/{name}/{number:int}", routes.array),
            Route(trial + "/ids", routes.ids),
            Route(trial + "/images/{point:int}", routes.image),
            Route(trial + "/attributions/{point:int}/{method}/{target:int}", routes.attribution),
            Route(trial + "/matches/{other:int}", routes.match),
            Route(trial + "/cases/{point:int}", routes.case),
            Route(trial + "/maps/tsne", routes.tsne),
            Route(trial + "/clusters", routes.clusters),
            Route("/api/notes", routes.notes, methods=["GET"]),
            Route("/api/notes", routes.annotate, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, door=door, policy=POLICY)],
    )


def answer_errors(endpoint: Callable[..., Response]) -> Callable[..., Response]:
    """Return the endpoint with errors of RobustSweep as answers of status 404."""

    @wraps(endpoint)
    def answer(self: Any, request: Request) -> Response:
        try:
            return endpoint(self, request)
        except RobustSweepError as error:
            return JSONResponse({"error": str(error)}, status_code=404)

    return answer


#: Names of the arrays that the page may ask for.
ARRAYS = ("labels", "predicted", "pca", "score", "column", "clusters")


class _Routes:
    """Endpoints; each runs in a thread of Starlette's pool."""

    def __init__(self, explored: ExploredStudy) -> None:
        self._explored = explored

    def page(self, request: Request) -> Response:
        return Response(render_page(), media_type="text/html; charset=utf-8")

    def static(self, request: Request) -> Response:
        return serve_static(request.path_params["name"], (*MODULES, "explorer.css"))

    def study(self, request: Request) -> Response:
        explored = self._explored
        return JSONResponse(
            {
                "study": explored.ledger.study,
                "question": explored.plan["question"],
                "trials": [vars(trial) for trial in explored.trials],
                "first": explored.first,
                "attributions": [{"name": name, "title": title} for name, title in ATTRIBUTIONS.items()],
            }
        )

    @answer_errors
    def trial(self, request: Request) -> Response:
        number = request.path_params["trial"]
        job = self._explored.prepare(number)
        if not job.is_done or job.error is not None:
            return progress(job)
        return JSONResponse(self._explored.open(number).index.as_json())

    @answer_errors
    def array(self, request: Request) -> Response:
        prepared = self._explored.open(request.path_params["trial"])
        name, number = request.path_params["name"], request.path_params.get("number")
        known = {"score": len(prepared.index.scores), "column": len(prepared.index.columns)}
        if (
            name not in ARRAYS
            or (number is None) != (name not in known)
            or (number or 0) >= known.get(name, 1)
            or not (prepared.has(name if number is None else f"{name}-{number}"))
        ):
            return Response("not found", status_code=404)
        array = prepared.array(name if number is None else f"{name}-{number}")
        return binary(array)

    @answer_errors
    def ids(self, request: Request) -> Response:
        return JSONResponse(list(self._explored.open(request.path_params["trial"]).ids))

    @answer_errors
    def match(self, request: Request) -> Response:
        return binary(self._explored.match(request.path_params["trial"], request.path_params["other"]))

    @answer_errors
    def case(self, request: Request) -> Response:
        prepared = self._explored.open(request.path_params["trial"])
        return JSONResponse(describe_case(prepared, request.path_params["point"]))

    @answer_errors
    def tsne(self, request: Request) -> Response:
        number = request.path_params["trial"]
        job = self._explored.compute(number, "tsne")
        if not job.is_done or job.error is not None:
            return progress(job)
        return binary(self._explored.open(number).array("tsne"))

    @answer_errors
    def clusters(self, request: Request) -> Response:
        number = request.path_params["trial"]
        job = self._explored.compute(number, "clusters")
        if not job.is_done or job.error is not None:
            return progress(job)
        text = (self._explored.open(number).folder / "clusters.json").read_bytes()
        return Response(text, media_type="application/json")

    @answer_errors
    def notes(self, request: Request) -> Response:
        return _describe_notes(read_annotations(self._explored.ledger.root))

    async def annotate(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return JSONResponse({"error": "the note is too long"}, status_code=413)
        return await run_in_threadpool(self._annotate, body)

    def _annotate(self, body: bytes) -> Response:
        try:
            asked = json.loads(body)
            point, trial, note, is_wrong = (asked[key] for key in ("point", "trial", "note", "label_is_wrong"))
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "expected trial, point, note and label_is_wrong"}, status_code=400)
        if not (type(point) is int and type(trial) is int and type(note) is str and type(is_wrong) is bool):
            return JSONResponse({"error": "expected two numbers, a text and true or false"}, status_code=400)
        try:
            return _describe_notes(self._explored.annotate(trial, point, note=note, label_is_wrong=is_wrong))
        except RobustSweepError as error:
            return JSONResponse({"error": str(error)}, status_code=404)

    @answer_errors
    def attribution(self, request: Request) -> Response:
        trial, point, method, target = (request.path_params[key] for key in ("trial", "point", "method", "target"))
        return picture(self._explored.attribute(trial, point, method=method, target=target))

    @answer_errors
    def image(self, request: Request) -> Response:
        side = read_side(request)
        if side is None:
            return JSONResponse({"error": "expected a number of pixels as side"}, status_code=400)
        return picture(self._explored.paint(request.path_params["trial"], request.path_params["point"], side))


def serve_static(name: str, known: Sequence[str]) -> Response:
    """Return a file of the page if its name is one of ``known``."""
    if name not in known:
        return Response("not found", status_code=404)
    return Response(read_static(name), media_type=f"{_TYPES[name.rsplit('.', 1)[1]]}; charset=utf-8")


def read_side(request: Request) -> int | None:
    """Return the asked side of a picture, px, in [16, 1024]; None if it is no number."""
    asked = request.query_params.get("side", "96")
    return min(1_024, max(16, int(asked[:5]))) if asked.isascii() and asked.isdigit() else None


def picture(png: bytes) -> Response:
    """Return a PNG, which the browser keeps for a day."""
    return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=86400"})


def _describe_notes(notes: Sequence[Annotation]) -> Response:
    return JSONResponse({"notes": [each.as_json() for each in notes]})


def progress(job: Job) -> Response:
    """Return how far a job is (202), or why it failed (409)."""
    if job.error is not None:
        return JSONResponse({"error": job.error}, status_code=409)
    return JSONResponse({"share": job.share}, status_code=202)


def binary(array: np.ndarray) -> Response:
    """Return an array as little-endian bytes."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Response(little.tobytes(), media_type="application/octet-stream")


def render_page(name: str = "index.html") -> str:
    """Return the page of a file, which asks its server."""
    return read_static(name).replace("IMPORT_MAP", IMPORT_MAP)
