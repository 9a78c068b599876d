"""A training step of our UNet against diffusers' UNet2DModel of the same config, on the same batch, optimizer and EMA:

    python -m benchmarks.training_step --model cifar10 --batch 8 --pairs 12

Both are called as their own documentation does: ours in channels_last, as train.py puts it, theirs as built.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from benchmarks.common import arguments, interleaved, median_ratio, report
from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictNoise
from diffusion.schedule import linear
from models.unet import UNet
from training.ema import Ema

CONFIGS = {  # name: (size, widths, level of attention)
    "cifar10": (32, (128, 256, 256, 256), 1),
    "celeba64": (64, (128, 256, 256, 256, 512), 2),
    "demo": (24, (32, 64, 128), 2),
}


def ours(size: int, widths: tuple[int, ...], attention: int, dropout: float, device: torch.device):
    network = UNet(widths[0], [w // widths[0] for w in widths], 2, [attention], dropout=dropout, groups=min(32, widths[0] // 4))
    denoiser = Denoiser(network, linear(), PredictNoise()).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)
    ema = Ema(network, 0.9999)

    def step(x0, t, noise):
        loss = simple_loss(denoiser, x0.contiguous(memory_format=torch.channels_last), t, noise).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(10**6)

    return network, step


def theirs(size: int, widths: tuple[int, ...], attention: int, dropout: float, device: torch.device):
    down = ["AttnDownBlock2D" if k == attention else "DownBlock2D" for k in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    network = UNet2DModel(sample_size=size, block_out_channels=widths, layers_per_block=2, down_block_types=down, up_block_types=up,
                          attention_head_dim=None, norm_eps=1e-6, norm_num_groups=min(32, widths[0] // 4), downsample_padding=0,
                          flip_sin_to_cos=False, freq_shift=1, dropout=dropout).to(device).train()
    scheduler = DDPMScheduler()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)
    ema = EMAModel(network.parameters(), decay=0.9999)

    def step(x0, t, noise):
        output = network(scheduler.add_noise(x0, noise, t - 1), t - 1).sample
        torch.nn.functional.mse_loss(output, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(network.parameters())

    return network, step


def main() -> None:
    chosen = arguments("training step against diffusers", model="cifar10", batch=8, pairs=12)
    size, widths, attention = CONFIGS[chosen.model]
    torch.manual_seed(0)
    ours_network, ours_step = ours(size, widths, attention, 0.1, chosen.device)
    theirs_network, theirs_step = theirs(size, widths, attention, 0.1, chosen.device)
    counts = [sum(p.numel() for p in n.parameters()) for n in (ours_network, theirs_network)]
    if counts[0] != counts[1]:
        raise SystemExit(f"not the same network: {counts[0]} and {counts[1]} parameters")
    batch = (torch.rand(chosen.batch, 3, size, size, device=chosen.device) * 2 - 1,
             torch.randint(1, 1001, (chosen.batch,), device=chosen.device),
             torch.randn(chosen.batch, 3, size, size, device=chosen.device))
    seconds = interleaved({"ours": lambda: ours_step(*batch), "diffusers": lambda: theirs_step(*batch)}, chosen.pairs, chosen.device)
    middle, least, most = median_ratio(seconds["diffusers"], seconds["ours"])
    rows = [["model", "parameters", "batch", "implementation", "median s/step", "images/s", "speed over diffusers (median, min, max)"]]
    for name, values in seconds.items():
        median = sorted(values)[len(values) // 2]
        ratio = f"{middle:.3f} ({least:.3f} - {most:.3f}), {chosen.pairs} pairs" if name == "ours" else "1"
        rows.append([chosen.model, counts[0], chosen.batch, name, f"{median:.4f}", f"{chosen.batch / median:.1f}", ratio])
    report(rows, chosen.csv, chosen.device)


if __name__ == "__main__":
    main()
