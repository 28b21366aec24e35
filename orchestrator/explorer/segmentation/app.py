"""Routes of the explorer of segmentations: cases by number, pictures by a name from a fixed list."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.analysis.segmentation.panels import FOUND, INVENTED, MISSED, PANELS
from orchestrator.explorer.app import TRIAL, Pieces, answer_errors, answer_job, answer_picture, build_app
from orchestrator.explorer.guard import Door
from orchestrator.explorer.page import Page
from orchestrator.explorer.study import ExploredStudy

PAGE = Page(
    entry="segmentation.js",
    modules=("segmentation-case.js", "segmentation-lists.js", "segmentation-plot.js", "segmentation-source.js"),
    stage="Plot of the cases",
    style="segmentation.css",
)
#: What the page knows of a study beside its trials.
ABOUT = {"colours": {"found": FOUND, "missed": MISSED, "invented": INVENTED}}


def build_segmentation_app(explored: ExploredStudy, door: Door) -> Starlette:
    """Return the application that serves a study of segmentations behind a door."""
    routes = _Routes(explored)
    own = [Route(TRIAL + "/cases/{case:int}/{panel}", routes.picture)]
    return build_app(explored, door, Pieces(PAGE, ABOUT, routes.answer_trial, routes.answer_clusters, own))


class _Routes:
    """Endpoints; each runs in a thread of Starlette's pool."""

    def __init__(self, explored: ExploredStudy) -> None:
        self._explored = explored

    def answer_trial(self, number: int) -> Response:
        job = self._explored.list_cases(number)
        return answer_job(job, lambda: JSONResponse(job.result))

    def answer_clusters(self, number: int) -> Response:
        job = self._explored.cluster_cases(number)
        return answer_job(job, lambda: JSONResponse(job.result))

    @answer_errors
    def picture(self, request: Request) -> Response:
        trial, number, panel = (request.path_params[key] for key in ("trial", "case", "panel"))
        if panel not in PANELS:
            return Response("not found", status_code=404)
        return answer_picture(request, lambda side: self._explored.paint_case(trial, number, panel, side))
