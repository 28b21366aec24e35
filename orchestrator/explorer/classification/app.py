"""Routes of the explorer of classifications: arrays and images by number or by a name from a fixed list."""

from __future__ import annotations

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.explorer.app import TRIAL, Pieces, answer_errors, answer_job, answer_picture, build_app, picture
from orchestrator.explorer.attributions import TITLES as ATTRIBUTIONS
from orchestrator.explorer.classification.cases import describe_case
from orchestrator.explorer.guard import Door
from orchestrator.explorer.page import Page
from orchestrator.explorer.study import ExploredStudy

PAGE = Page(
    entry="app.js",
    modules=(
        "case.js", "controls.js", "image-source.js", "lists.js", "looked.js", "model.js", "paint.js", "scatter.js",
        "stage.js", "state.js",
    ),
    stage="Map of the images",
)  # fmt: skip


def build_classification_app(explored: ExploredStudy, door: Door) -> Starlette:
    """Return the application that serves a study of classifications behind a door."""
    routes = _Routes(explored)
    own = [
        Route(TRIAL + "/arrays/{name}", routes.array),
        Route(TRIAL + "/arrays/{name}/{number:int}", routes.array),
        Route(TRIAL + "/ids", routes.ids),
        Route(TRIAL + "/images/{point:int}", routes.image),
        Route(TRIAL + "/attributions/{point:int}/{method}/{target:int}", routes.attribution),
        Route(TRIAL + "/matches/{other:int}", routes.match),
        Route(TRIAL + "/cases/{point:int}", routes.case),
        Route(TRIAL + "/maps/tsne", routes.tsne),
    ]
    about = {"attributions": [{"name": name, "title": title} for name, title in ATTRIBUTIONS.items()]}
    return build_app(explored, door, Pieces(PAGE, about, routes.answer_trial, routes.answer_clusters, own))


#: Names of the arrays that the page may ask for.
ARRAYS = ("labels", "predicted", "pca", "score", "column", "clusters")


class _Routes:
    """Endpoints; each runs in a thread of Starlette's pool."""

    def __init__(self, explored: ExploredStudy) -> None:
        self._explored = explored

    def answer_trial(self, number: int) -> Response:
        explored = self._explored
        return answer_job(explored.prepare(number), lambda: JSONResponse(explored.open(number).index.as_json()))

    def answer_clusters(self, number: int) -> Response:
        def answer() -> Response:
            text = (self._explored.open(number).folder / "clusters.json").read_bytes()
            return Response(text, media_type="application/json")

        return answer_job(self._explored.compute(number, "clusters"), answer)

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
        return answer_job(job, lambda: binary(self._explored.open(number).array("tsne")))

    @answer_errors
    def attribution(self, request: Request) -> Response:
        trial, point, method, target = (request.path_params[key] for key in ("trial", "point", "method", "target"))
        return picture(self._explored.attribute(trial, point, method=method, target=target))

    @answer_errors
    def image(self, request: Request) -> Response:
        trial, point = request.path_params["trial"], request.path_params["point"]
        return answer_picture(request, lambda side: self._explored.paint(trial, point, side))


def binary(array: np.ndarray) -> Response:
    """Return an array as little-endian bytes."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Response(little.tobytes(), media_type="application/octet-stream")
