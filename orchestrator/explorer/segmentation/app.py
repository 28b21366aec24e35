"""Routes of the explorer of segmentations: cases by number, pictures by a name from a fixed list."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.analysis.segmentation.panels import FOUND, INVENTED, MISSED, PANELS
from orchestrator.explorer.app import POLICY, answer_errors, picture, progress, read_side, render_page, serve_static
from orchestrator.explorer.guard import Door, Guard
from orchestrator.explorer.study import ExploredStudy
from trainables.errors import StudyError

#: Modules and styles of the page, which the browser loads by these names.
FILES = (
    "colours.js", "dom.js", "explorer.css", "scatter.js", "segmentation.css", "segmentation.js", "segmentation-case.js",
    "segmentation-plot.js", "source.js",
)  # fmt: skip


def build_segmentation_app(explored: ExploredStudy, door: Door) -> Starlette:
    """Return the application that serves a study of segmentations behind a door."""
    routes = _Routes(explored)
    trial = "/api/trials/{trial:int}"
    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.static),
            Route("/api/study", routes.study),
            Route(trial, routes.trial),
            Route(trial + "/cases/{case:int}/{panel}", routes.picture),
        ],
        middleware=[Middleware(Guard, door=door, policy=POLICY)],
    )


class _Routes:
    """Endpoints; each runs in a thread of Starlette's pool."""

    def __init__(self, explored: ExploredStudy) -> None:
        self._explored = explored

    def page(self, request: Request) -> Response:
        return Response(render_page("segmentation.html"), media_type="text/html; charset=utf-8")

    def static(self, request: Request) -> Response:
        return serve_static(request.path_params["name"], FILES)

    def study(self, request: Request) -> Response:
        explored = self._explored
        return JSONResponse(
            {
                "study": explored.ledger.study,
                "question": explored.plan["question"],
                "trials": [vars(trial) for trial in explored.trials],
                "first": explored.first,
                "colours": {"found": FOUND, "missed": MISSED, "invented": INVENTED},
            }
        )

    @answer_errors
    def trial(self, request: Request) -> Response:
        job = self._explored.list_cases(request.path_params["trial"])
        if not job.is_done or job.error is not None:
            return progress(job)
        return JSONResponse(job.result)

    @answer_errors
    def picture(self, request: Request) -> Response:
        trial, number, panel = (request.path_params[key] for key in ("trial", "case", "panel"))
        side = read_side(request)
        if side is None:
            return JSONResponse({"error": "expected a number of pixels as side"}, status_code=400)
        case = self._find_case(trial, number)
        if panel not in PANELS:
            return Response("not found", status_code=404)
        return picture(self._explored.paint_case(trial, case["set_name"], case["row"], panel, side))

    def _find_case(self, trial: int, number: int) -> dict[str, Any]:
        job = self._explored.list_cases(trial)
        if not job.is_done or job.error is not None:
            raise StudyError(job.error or f"the cases of trial {trial} are not listed yet")
        cases = job.result["cases"]
        if number >= len(cases):
            raise StudyError(f"asked for case {number}; trial {trial} has {len(cases)}")
        found: dict[str, Any] = cases[number]
        return found | {"set_name": job.result["sets"][found["set"]]["name"]}
