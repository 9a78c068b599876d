"""The maths of diffusion, for any network: schedule, parameterization, denoiser, losses,
samplers."""
