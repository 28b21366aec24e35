"""Routes of the explorer's server: those of every study, and those of its kind. Files are asked for by a known name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.explorer.guard import Door, Guard
from orchestrator.explorer.jobs import Job
from orchestrator.explorer.page import POLICY, Page, read_static, render_page
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import MAX_NOTE, Annotation, read_annotations
from trainables.errors import RobustSweepError

#: Longest body of a request, in bytes.
MAX_BODY = 8 * MAX_NOTE
#: Path of one trial.
TRIAL = "/api/trials/{trial:int}"
_TYPES = {"js": "text/javascript", "css": "text/css"}


@dataclass(frozen=True)
class Pieces:
    """Parts of a server that belong to one kind of study."""

    page: Page
    #: What the page knows of the study beside its trials.
    about: Mapping[str, Any]
    #: Number of a trial → what the page shows of it, or the progress of the job that makes that.
    answer_trial: Callable[[int], Response]
    #: Number of a trial → its clusters, or the progress of the job that finds them.
    answer_clusters: Callable[[int], Response]
    #: Its other routes.
    routes: Sequence[Route]


def build_app(explored: ExploredStudy, door: Door, pieces: Pieces) -> Starlette:
    """Return the application that serves a study behind a door."""
    routes = _Routes(explored, pieces)
    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.static),
            Route("/api/study", routes.study),
            Route(TRIAL, routes.trial),
            Route(TRIAL + "/clusters", routes.clusters),
            Route("/api/notes", routes.notes, methods=["GET"]),
            Route("/api/notes", routes.annotate, methods=["POST"]),
            *pieces.routes,
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


class _Routes:
    """Endpoints; each runs in a thread of Starlette's pool."""

    def __init__(self, explored: ExploredStudy, pieces: Pieces) -> None:
        self._explored, self._pieces = explored, pieces

    def page(self, request: Request) -> Response:
        return Response(render_page(self._pieces.page), media_type="text/html; charset=utf-8")

    def static(self, request: Request) -> Response:
        name, page = request.path_params["name"], self._pieces.page
        if name not in (*page.all_modules, *page.styles):
            return Response("not found", status_code=404)
        return Response(read_static(name), media_type=f"{_TYPES[name.rsplit('.', 1)[1]]}; charset=utf-8")

    def study(self, request: Request) -> Response:
        return JSONResponse(describe_study(self._explored) | dict(self._pieces.about))

    @answer_errors
    def trial(self, request: Request) -> Response:
        return self._pieces.answer_trial(request.path_params["trial"])

    @answer_errors
    def clusters(self, request: Request) -> Response:
        return self._pieces.answer_clusters(request.path_params["trial"])

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


def describe_study(explored: ExploredStudy) -> dict[str, Any]:
    """Return what the page knows of a study of any kind."""
    return {
        "study": explored.ledger.study,
        "question": explored.plan["question"],
        "trials": [vars(trial) for trial in explored.trials],
        "first": explored.first,
    }


def read_side(request: Request) -> int | None:
    """Return the asked side of a picture, px, in [16, 1024]; None if it is no number."""
    asked = request.query_params.get("side", "96")
    return min(1_024, max(16, int(asked[:5]))) if asked.isascii() and asked.isdigit() else None


def answer_picture(request: Request, paint: Callable[[int], bytes]) -> Response:
    """Return a PNG of the asked side, which the browser keeps for a day; 400 if the side is no number."""
    side = read_side(request)
    if side is None:
        return JSONResponse({"error": "expected a number of pixels as side"}, status_code=400)
    return picture(paint(side))


def picture(png: bytes) -> Response:
    """Return a PNG, which the browser keeps for a day."""
    return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=86400"})


def _describe_notes(notes: Sequence[Annotation]) -> Response:
    return JSONResponse({"notes": [each.as_json() for each in notes]})


def answer_job(job: Job, make: Callable[[], Response]) -> Response:
    """Return the answer that a finished job allows; before, how far it is (202), or why it failed (409)."""
    if job.error is not None:
        return JSONResponse({"error": job.error}, status_code=409)
    if not job.is_done:
        return JSONResponse({"share": job.share}, status_code=202)
    return make()
