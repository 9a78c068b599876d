"""Images of the source mixed into each training step, so that it is not forgotten."""

from collections.abc import Callable

from data.batches import Batches
from data.dataset import Dataset
from diffusion.timesteps import Timesteps
from runtime.config_schema import make
from runtime.errors import UserError
from runtime.seeds import derive
from transfer.context import Start


class Replay:
    """A batch of the source's images beside each batch of the target's: weight times the mean of
    its losses is added to the step's loss.

    Args:
        images: transfer.source_images.real or generated.
        timesteps: which t the source's images see.
        share: images of the source for each of the target's.
    Raises:
        UserError: where weight or share is not above 0.
    Source:
        DreamBooth's prior preservation (Ruiz et al. 2023, eq. 2) is weight 1, generated images, t
        uniform and share 1. Diff-Tuning (Zhong et al. 2024) draws the target's t by Power, the
        source's by MirroredPower, with weight 0.1; their code makes one batch of 32 of both, a
        fifth of it the source's, which is share 0.25 beside a batch of 26.
    """

    def __init__(
        self,
        start: Start,
        *,
        weight: float,
        images: Callable[[Start], Dataset],
        timesteps: Callable[[int], Timesteps],
        share: float = 1.0,
    ):
        if not weight > 0 or not share > 0:
            raise UserError(
                f"transfer.replay: weight={weight} and share={share} must be above 0; for none "
                "leave transfer.replay out."
            )
        self.weight, schedule = weight, start.denoiser.schedule
        found = make(timesteps, "transfer.replay.timesteps", schedule.steps)
        self.timesteps = found.to(schedule.alpha_bar.device)
        # as the source saw its images, and not as the target's
        flip = bool(start.trained.config.raw["data"].get("flip", False))
        size = max(1, round(share * start.batch_size))
        self.batches = Batches(images(start), size, flip, derive(start.seed, "replay"))
