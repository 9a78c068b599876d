"""The training loop. Its state is the weights, their average, the optimizer's moments and the
number of steps done; all else is a function of (seed, step), so that a run that was killed ends
with the same bits as one that was not."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from config.run_config import RunConfig
from data.batches import Batch, Batches, to_uint8, to_x0
from diffusion.denoiser import Denoiser, ForwardPass
from diffusion.generate import generate
from diffusion.losses import Loss
from diffusion.timesteps import Timesteps
from metrics.estimate import GRID
from metrics.held_out_loss import held_out_errors
from runtime import checkpoint
from runtime.checkpoint import Checkpoint, Progress
from runtime.device import peak_memory
from runtime.environment import device_name
from runtime.errors import UserError
from runtime.files import write_sealed
from runtime.log import RunLog
from runtime.pictures import grid
from runtime.seeds import derive, generator
from runtime.signals import Preempted, StopRequest
from training.best_checkpoint import prune_checkpoints, rank_checkpoints
from training.ema import Ema, share_of_start
from training.online_kid import LightSet
from training.result import RESULT
from transfer.adapters import load, parameters
from transfer.context import Penalty
from transfer.replay import Replay
from transfer.rules import ParameterPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What a strategy adds to the loss of a step.

    Args:
        loss: in place of the plain one, on the target's images.
    """

    penalties: Sequence[Penalty] = ()
    replay: Replay | None = None
    loss: Loss | None = None


@dataclass
class Trainer:
    """One run. Build the parts, call train().

    Args:
        loss: of an image, where the strategy has none of its own.
        batches: the training images; those of a replay are in terms.
        autocast: what forward passes run under.
        facts: what result.json says besides what is measured.
    """

    denoiser: Denoiser
    loss: Loss
    timesteps: Timesteps
    optimizer: torch.optim.Optimizer
    plan: ParameterPlan
    batches: Batches
    config: RunConfig
    directory: Path
    log: RunLog
    autocast: Callable[[], contextlib.AbstractContextManager]
    terms: Terms
    facts: dict[str, Any]
    steps_done: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        d, self.run = self.denoiser, self.config.run
        self.device = d.schedule.alpha_bar.device
        self.ema = Ema(d.network, self.config.train.ema_decay)
        self.averaged = d.around(self.ema.network).eval()
        # summed loss since the last row of the log
        self.window = torch.zeros((), device=self.device)
        self.window_steps = 0
        # step of the first loss or gradient that is not finite
        self.first_bad = torch.full((), -1, device=self.device)
        self.pending = False  # stopped between the step and its evaluation
        self.light = None
        if count := self.run.kid_images:
            self.light = LightSet(
                self.batches.dataset,
                count,
                self.config.train.batch_size,
                self.device,
                on_batch=lambda: self.stop.check(),
            )

    # one step

    def step(self, k: int, batch: Batch, replayed: Batch | None = None) -> Tensor:
        """Step k. Nothing here waits for the device.

        Args:
            k: counted from 0.
            replayed: images of the source, where the strategy wants them.
        Returns:
            The gradient's norm, a scalar.
        """
        if self.plan.at_change(k):
            self.plan.apply(k)
        warmup = min(1.0, (k + 1) / max(1, self.config.train.warmup))
        for group, scale in zip(self.optimizer.param_groups, self.plan.rates(k), strict=True):
            group["lr"] = self.optimizer.defaults["lr"] * scale * warmup
        loss, penalties = self.terms.loss or self.loss, self.terms.penalties
        total = self._backward(k, batch, self.batches, self.timesteps, loss, penalties=penalties)
        if (replay := self.terms.replay) and replayed:
            total = total + self._backward(
                k, replayed, replay.batches, replay.timesteps, self.loss, replay.weight
            )
        norm = torch.nn.utils.clip_grad_norm_(
            self.denoiser.network.parameters(), self.config.train.clip or math.inf
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(k)
        self.window += total
        self.window_steps += 1
        finite = total.isfinite() & norm.isfinite()
        self.first_bad = torch.where((self.first_bad < 0) & ~finite, k, self.first_bad)
        return norm

    def _backward(
        self,
        k: int,
        batch: Batch,
        batches: Batches,
        timesteps: Timesteps,
        loss_of: Loss,
        scale: float = 1.0,
        penalties: Sequence[Penalty] = (),
    ) -> Tensor:
        """The gradient of scale x the mean loss of step k, and of the penalties.

        What the step is taken on is drawn for the whole batch, so that accumulation, micro-batch
        by micro-batch, does not change it.

        Args:
            batches: which the batch is of: its seed, and whether it flips.
            timesteps: which t the images see; told each image's loss.
        Returns:
            The loss, a scalar.
        """
        seed, device = batches.seed, self.device
        images, label, flip = (x.to(device, non_blocking=True) for x in batch)
        x0 = to_x0(images, flip if batches.flip else None)
        t, weight = timesteps.draw(len(x0), generator(seed, "t", k, device=device))
        random = generator(seed, "noise", k, device=device)
        noise = torch.randn(images.shape, generator=random, device=device).permute(0, 3, 1, 2)
        if classes := self.denoiser.network.classes:
            random = generator(seed, "label", k, device=device)
            drop = torch.rand(len(label), generator=random, device=device)
            label = torch.where(drop < self.config.train.label_dropout, classes, label)
        micro = -(-len(x0) // self.config.train.accumulation)
        total, losses = torch.zeros((), device=device), []
        for m, first in enumerate(range(0, len(x0), micro)):
            part = slice(first, first + micro)
            torch.manual_seed(derive(seed, "dropout", k, m))
            with self.autocast():
                step = self._forward_pass(loss_of, x0[part], t[part], noise[part], label[part])
                loss, added = loss_of(step), sum(penalty(step) for penalty in penalties)
            losses.append(loss.detach())
            loss = (scale * (loss * weight[part]).mean() + added) / (len(x0) / len(loss))
            loss.backward()
            total += loss.detach()
        timesteps.update(t, torch.cat(losses))
        return total

    def _forward_pass(
        self, loss_of: Loss, x0: Tensor, t: Tensor, noise: Tensor, label: Tensor
    ) -> ForwardPass:
        """A loss with a method noise_of chooses the noise that the network is given."""
        condition = {"label": label}
        if choose := getattr(loss_of, "noise_of", None):
            noise = choose(self.denoiser, x0, t, noise, condition)
        return self.denoiser.forward_pass(x0, t, noise, condition)

    # all steps

    def train(self) -> None:
        """Runs to train.steps.

        Raises:
            Preempted: after saving, where a signal asked to stop.
            UserError: where the loss or a gradient is not finite.
        """
        steps = self.config.train.steps
        with (
            StopRequest() as self.stop,
            tqdm(
                total=steps,
                initial=self.steps_done,
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30,
                desc=self.directory.parent.name,
            ) as self.bar,
        ):
            self._clock = time.monotonic()
            if self.pending or steps == 0:
                self._finish_step()
            replay = self.terms.replay
            with contextlib.ExitStack() as stack:
                streams = []
                for batches in [self.batches, *([replay.batches] if replay else [])]:
                    stream = batches.prefetched(self.steps_done, steps, self.device.type == "cuda")
                    streams.append(stack.enter_context(contextlib.closing(stream)))
                for batch in zip(*streams, strict=True):
                    norm = self.step(self.steps_done, *batch)
                    self.steps_done += 1
                    self.bar.update()
                    if self._is_due(self.run.log_every):
                        self._report(norm)
                    if self._is_due(self.run.checkpoint_every):
                        self._finish_step()
                    elif self.stop.received:
                        self._save()
                    self.stop.check()

    def _is_due(self, every: int) -> bool:
        return self.steps_done % every == 0 or self.steps_done == self.config.train.steps

    def _report(self, norm: Tensor) -> None:
        self._check_finite()
        loss, now = self.window.item() / self.window_steps, time.monotonic()
        speed = self.window_steps * self.config.train.batch_size / (now - self._clock)
        self.log.metrics(
            self.steps_done,
            {
                "loss": loss,
                "grad_norm": norm.item(),
                "learning_rate": max(g["lr"] for g in self.optimizer.param_groups),
                "images_per_second": speed,
                "seconds": self._elapsed(),
            },
        )
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
        self.window.zero_()
        self.window_steps = 0

    def _elapsed(self) -> float:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        return self.seconds

    def _check_finite(self, held_out_loss: float = 0.0) -> None:
        if (bad := self.first_bad.item()) >= 0 or not math.isfinite(held_out_loss):
            what = (
                f"the loss or the gradient of step {bad}"
                if bad >= 0
                else f"the held-out loss after {self.steps_done} steps"
            )
            kept = "No checkpoint was written before it"
            if last := checkpoint.latest(self.directory / "checkpoints"):
                kept = f"The last good checkpoint is {last.path}"
            raise UserError(
                f"{what} is not finite, so training stopped there. {kept}. Usual cures: a lower "
                "optimizer.lr, a longer train.warmup, train.clip=1, train.precision=fp32."
            )

    def _finish_step(self) -> None:
        """Evaluation, samples, and then the checkpoint that says that they are done."""
        self._check_finite()
        try:
            values = self._evaluate()
            picture = self._sample() if self._is_due(self.run.sample_every) else None
        except Preempted:
            self.pending = True
            self._save()
            raise
        self.pending = False
        row = {f"validation/{name}": value for name, value in values.items()}
        self.log.metrics(self.steps_done, row)
        if picture is not None:
            self.log.picture("samples", self.steps_done, picture)
        write_sealed(self.directory / RESULT, self._result(values), indent=1)
        self._save(values)

    def _result(self, values: dict[str, float]) -> dict[str, Any]:
        """What the run came to so far, for report.py."""
        return {
            "step": self.steps_done,
            "held_out_loss": values.get("loss"),
            "held_out_grid": GRID,
            "best_step": self._best_step(values),
            "best_by": self.run.best_by,
            "ema_share_of_start": share_of_start(self.config.train.ema_decay, self.steps_done),
            "hours": self._elapsed() / 3600,
            "device": device_name(self.device),
            "peak_memory_bytes": peak_memory(self.device),
            **self.facts,
        }

    def _best_step(self, values: dict[str, float]) -> int:
        """The step of the checkpoint that find_best_checkpoint finds once that of this evaluation
        is written."""
        directory = self.directory / "checkpoints"
        progress = self._progress(values)
        now = Checkpoint(directory, self.steps_done, self.config.raw, [], {}, progress)
        before = [c for c in checkpoint.all_checkpoints(directory) if c.step < now.step]
        return [*rank_checkpoints([*before, now]), now][0].step

    def _evaluate(self) -> dict[str, float]:
        data = self.batches.dataset
        rows = data.splits["validation"]
        if not len(rows):
            return {}
        with self.autocast():
            values = held_out_errors(
                self.averaged,
                data.images,
                data.labels,
                rows,
                self.run.held_out_draws,
                lambda drawn: self.stop.check(),
            ).values()
        self._check_finite(values["loss"])
        values["ema_share_of_start"] = share_of_start(self.config.train.ema_decay, self.steps_done)
        ends = {"loss_t0": "lowest", "loss_t9": "highest"}
        told = [f"{ends[key]} noise {values[key]:.4f}" for key in ends if key in values]
        of_ends = f" ({', '.join(told)})" if told else ""
        log.info(f"step {self.steps_done}: held-out loss {values['loss']:.5f}{of_ends}")
        if self.light:
            light = self.light(self._generate)
            of_light = ", ".join(f"{name} {value:.5f}" for name, value in light.items())
            log.info(f"step {self.steps_done}: {of_light} (random features)")
            values |= light
        return values

    def _generate(self, seeds: Sequence[int], label: Tensor) -> Tensor:
        """Images of the averaged model, one for each seed and label [B] -> [B, C, H, W] in about
        [-1, 1]."""
        condition = {"label": label} if self.denoiser.network.classes else {}
        H, W, C = self.batches.dataset.images.shape[1:]
        with self.autocast():
            return generate(
                lambda x, t: self.averaged(x, t, condition),
                self.denoiser.schedule,
                self.config.sampler,
                (C, H, W),
                seeds,
                lambda *_: self.stop.check(),
            )

    def _sample(self):
        """A grid [H, W, C] uint8 from noise that is the same at every step and in every run;
        classes in turn."""
        n = self.run.samples
        label = torch.arange(n, device=self.device) % (self.denoiser.network.classes or 1)
        x0 = self._generate([derive("grid", k) for k in range(n)], label)
        return grid(to_uint8(x0).cpu().numpy(), columns=math.ceil(n**0.5))

    # keeping and restoring

    def _save(self, values: dict[str, float] | None = None) -> None:
        """values: what the evaluation came to, where there was one."""
        self._check_finite()
        self.log.sync()
        directory = self.directory / "checkpoints"
        checkpoint.save(
            directory,
            dict(parameters(self.denoiser.network)),
            dict(parameters(self.ema.network)),
            {name: part.state_dict() for name, part in self._stateful().items()},
            self.steps_done,
            self.config.raw,
            list(self.batches.dataset.classes),
            self._progress(values or {}),
        )
        prune_checkpoints(directory, self.run.keep_last)

    def _progress(self, values: dict[str, float]) -> Progress:
        return Progress(
            self.pending,
            values.get("loss"),
            values.get("kid"),
            GRID,
            self._elapsed(),
            self.log.rows,
            (self.window.item(), self.window_steps),
        )

    def _stateful(self) -> dict[str, Any]:
        """What remembers gradients, or losses by t."""
        found = {"optimizer": self.optimizer, "timesteps": self.timesteps}
        if replay := self.terms.replay:
            found["replay"] = replay.timesteps
        return found

    def restore(self, saved: Checkpoint) -> None:
        load(self.denoiser.network, saved.weights(checkpoint.MODEL))
        load(self.ema.network, saved.weights(checkpoint.EMA))
        states = saved.optimizer()
        for name, part in self._stateful().items():
            part.load_state_dict(states[name])
        progress, self.steps_done = saved.progress, saved.step
        self.pending, self.seconds = progress.pending, progress.seconds
        window, self.window_steps = progress.window
        self.window.fill_(window)
