"""A denoiser whose x0 is clipped to the range of images."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.parameterization import noise_of
from diffusion.schedule import NoiseSchedule, Time


def clip_x0(denoise: Denoise, schedule: NoiseSchedule) -> Denoise:
    """x0 kept in [-1, 1], and the noise made to agree with it."""

    def clipped(x_t: Tensor, t: Time) -> Prediction:
        prediction = denoise(x_t, t)
        x0 = prediction.x0.clamp(-1, 1)
        return prediction._replace(x0=x0, noise=noise_of(schedule, x0, x_t, t))

    return clipped
