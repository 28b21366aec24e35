"""Monte-Carlo dropout of a segmentation: uncertainty of every pixel over draws of the network."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from trainables.evaluation.segmentation.annotated import restrict
from trainables.evaluation.segmentation.windows import predict_windows
from trainables.evaluation.segmentation_ood.pixel_scores import Maps, compute_uncertainties_of_passes
from trainables.models.mc_dropout import DropoutMasks, RunningScores, find_dropout
from trainables.models.segmenter import Segmenter
from trainables.task_config import SegmentationTask


class SegmentationDropout:
    """Draws of a segmentation network with dropout; a draw has the same masks for all images and windows.

    Where all dropout is in the head, encoder and decoder see an image once for all draws.

    Args:
        model: network in evaluation mode.
        task: windows and their overlap.
        draws: number M of draws.
        seed: seed of the masks.
        precision: dtype of the forward pass.

    Raises:
        ConfigError: if the network has no dropout layer.
    """

    def __init__(
        self, model: Segmenter, task: SegmentationTask, *, draws: int, seed: int, precision: torch.dtype
    ) -> None:
        self._model, self._task, self._draws, self._precision = model, task, draws, precision
        self._is_in_head_only = all(name.startswith(f"{model.head_name}.") for name in find_dropout(model))
        self._masks = DropoutMasks(model, seed=seed, keeps=self._is_in_head_only)

    def compute_uncertainties(
        self,
        images: UInt8[Tensor, "n c *space"],
        sources: Int64[Tensor, " n"],
        annotated: Bool[Tensor, "sources classes"] | None,
    ) -> dict[str, Maps]:
        """Return the uncertainty maps over the draws: ``mc_dropout_<score>``.

        Logits of all draws are held at a time, so images are predicted in parts of one M-th of the batch.

        Args:
            images: images as the network sees them, before normalisation.
            sources: index of each image's data set.
            annotated: source × class (``tabulate_annotated``); None if all classes are told apart.
        """
        parts: list[dict[str, Maps]] = []
        size = max(1, len(images) // self._draws)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            running = RunningScores(torch.float32)
            for logits in self._predict(images[rows]).chunk(self._draws, dim=1):
                running.add(restrict(logits.float(), sources[rows], annotated))
            parts.append(compute_uncertainties_of_passes(running, "mc_dropout"))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _predict(self, images: UInt8[Tensor, "n c *space"]) -> Float[Tensor, "n channels *space"]:
        """Return the logits of all draws, one after another in the channels; windows are blended for each of them."""
        is_reduced = self._precision != torch.float32
        with torch.autocast(images.device.type, self._precision, enabled=is_reduced):
            return predict_windows(
                self._draw, self._model.normalise(images), size=self._task.window_size, overlap=self._task.overlap
            )

    def _draw(self, images: Float[Tensor, "n c *space"]) -> Float[Tensor, "n channels *space"]:
        decoded = self._model.decode(images) if self._is_in_head_only else None
        found: list[Tensor] = []
        for draw in range(self._draws):
            with self._masks.applied(draw):
                own = self._model.decode(images) if decoded is None else decoded
                found.append(self._model.classify(own, *images.shape[2:]))
        return torch.cat(found, dim=1)
