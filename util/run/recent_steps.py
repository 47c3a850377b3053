"""Ends a training whose losses or gradients are not finite, and names the step and its images."""

from __future__ import annotations

from collections import deque

from util.errors import UserError
from util.run.progress import Progress

REMEMBERED = 1000  # steps whose images are known; on CUDA the guard reports a failure some steps late


class RecentSteps:
    """Remembers the images of recent steps and turns the guard's report into an error."""

    def __init__(self, model, progress: Progress):
        self.model, self.progress = model, progress
        self.first_step = progress.steps + 1
        self.recent: deque[tuple[int, int, list[str]]] = deque(maxlen=REMEMBERED)  # step, images, paths

    def check(self, wait: bool = False) -> None:
        """UserError where a step was not finite; `wait` for the device, or find it some steps later on CUDA.

        Only a call that does not wait adds the current step to those remembered.
        """
        if not wait:
            self.recent.append((self.progress.steps, self.progress.images, self.model.image_paths))
        failure = self.model.guard.failure(wait)
        if failure is None:
            return
        step = self.first_step + failure.step
        images, paths = next((entry[1:] for entry in self.recent if entry[0] == step), (0, []))
        raise UserError(
            f"training stopped: {', '.join(failure.names)} not finite in step {step} (image {images}, epoch "
            f"{self.progress.epoch}) on {', '.join(map(repr, paths)) or 'images no longer known'}. No "
            "weight was updated with it. Look at the images or lower --lr, and give --continue_train"
        )
