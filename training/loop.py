"""The training loop. Its state is the weights, their average, the optimizer's moments and the
number of steps done; all else is a function of (seed, step), so that a run that was killed ends
with the same bits as one that was not."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from config.run_config import RunConfig
from config.sections import TransferSettings
from data.batches import Batch, Batches
from data.dataset import Dataset
from data.pixels import to_picture, to_uint8
from diffusion.denoiser import Denoiser
from diffusion.generate import generate
from diffusion.guidance import drop_labels
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
from runtime.image_grid import captioned_grid, grid
from runtime.log import RunLog
from runtime.seeds import derive, generator
from runtime.signals import Preempted, StopRequest
from runtime.time_limit import TimeLimit
from training.best_checkpoint import rank_checkpoints
from training.ema import Ema, share_of_start
from training.learning_rate import warm_up
from training.online_kid import LightSet
from training.optimizer import set_rates
from training.power_average import PowerAverages
from training.prune_checkpoints import prune_checkpoints
from training.result import RESULT
from training.snapshots import drop_later, prune_snapshots, write_snapshot
from transfer.adapters import parameters
from transfer.context import Penalty, Start
from transfer.freezing_and_rates import ParameterPlan

log = logging.getLogger(__name__)


class Stream(NamedTuple):
    """Batches of which every step takes one.

    Args:
        timesteps: which t the images see; told each image's loss.
        loss: of an image.
        weight: times the mean of these.
        penalties: added to that.
    """

    batches: Batches
    timesteps: Timesteps
    loss: Loss
    weight: float = 1.0
    penalties: Sequence[Penalty] = ()


def streams_of(strategy: TransferSettings, start: Start | None, plain: Stream) -> dict[str, Stream]:
    """The target's images with what a strategy adds to their loss, and beside them those that it
    replays, by what a checkpoint calls the state of their timesteps.

    Args:
        start: None for a strategy that asks nothing of its source.
        plain: the target's images and the config's own loss.
    """
    penalties = [penalty(start) for penalty in strategy.penalties]
    replay = strategy.replay and strategy.replay(start)
    loss = strategy.loss(start) if strategy.loss else plain.loss
    streams = {"timesteps": plain._replace(loss=loss, penalties=penalties)}
    if replay:
        streams["replay"] = Stream(replay.batches, replay.timesteps, plain.loss, replay.weight)
    return streams


@dataclass
class Trainer:
    """One run. Build the parts, call train().

    Args:
        streams: see streams_of.
        autocast: what forward passes run under.
        facts: what result.json says besides what is measured.
    """

    denoiser: Denoiser
    optimizer: torch.optim.Optimizer
    plan: ParameterPlan
    dataset: Dataset
    streams: dict[str, Stream]
    config: RunConfig
    directory: Path
    autocast: Callable[[], contextlib.AbstractContextManager]
    facts: dict[str, Any]
    steps_done: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self.run = self.config.run
        self.device = self.denoiser.schedule.alpha_bar.device
        self.ema = Ema(self.denoiser.network, self.config.train.ema_decay)
        self.averaged = self.denoiser.around(self.ema.network).eval()
        trains = self.plan.trains()
        own = {n: p for n, p in parameters(self.denoiser.network).items() if n in trains}
        self.averages = PowerAverages(own, self.config.train.ema_lengths if own else ())
        # summed loss since the last row of the log
        self.window = torch.zeros((), device=self.device)
        self.window_steps = 0
        # step of the first loss or gradient that is not finite
        self.first_bad = torch.full((), -1, device=self.device)
        self.begun = Progress()  # of the checkpoint that the run goes on from
        self.limit = TimeLimit(self.run.hours)
        self.stop = StopRequest(self.limit)
        self.light = None
        if count := self.run.kid_images:
            batch_size = self.config.train.batch_size
            self.light = LightSet(
                self.dataset,
                count,
                batch_size,
                self.device,
                on_batch=self.stop.check,
                shown=self.config.shown,
            )

    # one step

    def step(self, k: int, *batches: Batch) -> Tensor:
        """Step k. Nothing here waits for the device.

        Args:
            k: counted from 0.
            batches: one of each stream.
        Returns:
            The gradient's norm, a scalar.
        """
        if self.plan.at_change(k):
            self.plan.apply(k)
        factor = warm_up(k, self.config.train.warmup) * self.config.learning_rate(k)
        set_rates(self.optimizer, self.plan.rates(k), factor)
        total = torch.zeros((), device=self.device)
        for stream, batch in zip(self.streams.values(), batches, strict=True):
            total += self._backward(k, stream, batch)
        norm = torch.nn.utils.clip_grad_norm_(
            self.denoiser.network.parameters(), self.config.train.clip or math.inf
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(k)
        self.averages.update(k + 1)
        self.window += total
        self.window_steps += 1
        finite = total.isfinite() & norm.isfinite()
        self.first_bad = torch.where((self.first_bad < 0) & ~finite, k, self.first_bad)
        return norm

    def _backward(self, k: int, stream: Stream, batch: Batch) -> Tensor:
        """The gradient of what a stream adds to the loss of step k.

        What the step is taken on is drawn for the whole batch, so that accumulation, micro-batch
        by micro-batch, does not change it.

        Returns:
            The loss, a scalar.
        """
        seed, device = stream.batches.seed, self.device
        batch = Batch(*(x.to(device, non_blocking=True) for x in batch))
        x0, told = stream.batches.as_trained_on(batch)
        t, weight = stream.timesteps.draw(len(x0), generator(seed, "t", k, device=device))
        random = generator(seed, "noise", k, device=device)
        noise = torch.randn(batch.images.shape, generator=random, device=device)
        noise, label = noise.permute(0, 3, 1, 2), batch.label
        if classes := self.denoiser.network.classes:
            random = generator(seed, "label", k, device=device)
            label = drop_labels(label, classes, self.config.train.label_dropout, random)
        micro = -(-len(x0) // self.config.train.accumulation)
        # a loss with a method noise_of chooses the noise that the network is given
        choose = getattr(stream.loss, "noise_of", lambda denoiser, x0, t, noise, condition: noise)
        total, losses = torch.zeros((), device=device), []
        for m, first in enumerate(range(0, len(x0), micro)):
            part = slice(first, first + micro)
            torch.manual_seed(derive(seed, "dropout", k, m))
            with self.autocast():
                condition = {name: v[part] for name, v in {"label": label, **told}.items()}
                chosen = choose(self.denoiser, x0[part], t[part], noise[part], condition)
                step = self.denoiser.forward_pass(x0[part], t[part], chosen, condition)
                loss = stream.loss(step)
                added = sum(penalty(step) for penalty in stream.penalties)
            losses.append(loss.detach())
            loss = (stream.weight * (loss * weight[part]).mean() + added) / (len(x0) / len(loss))
            loss.backward()
            total += loss.detach()
        stream.timesteps.update(t, torch.cat(losses))
        return total

    # all steps

    def train(self) -> None:
        """Runs to train.steps.

        Raises:
            Preempted: after saving, where it was asked to stop.
            UserError: where the loss or a gradient is not finite.
        """
        steps, config = self.config.train.steps, self.config
        # before the first result: from then on a folder that is not there was removed
        (self.directory / "checkpoints").mkdir(exist_ok=True)
        drop_later(self.directory, self.steps_done)
        run_log = RunLog(self.directory, self.begun.rows, config.wandb, config.raw)
        with (
            contextlib.closing(run_log) as self.log,
            self.stop,
            tqdm(
                total=steps,
                initial=self.steps_done,
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30,
                desc=self.directory.parent.name,
            ) as self.bar,
            contextlib.ExitStack() as around,
        ):
            self._clock = self._reported = time.monotonic()
            self._aside = 0.0  # seconds since that report in which nothing was trained
            if self.begun.pending or steps == 0:
                self._finish_step()
            streams = []
            for stream in self.streams.values():
                ahead = stream.batches.prefetched(
                    self.steps_done, steps, self.device.type == "cuda"
                )
                streams.append(around.enter_context(contextlib.closing(ahead)))
            for batches in zip(*streams, strict=True):
                norm = self.step(self.steps_done, *batches)
                self.steps_done += 1
                self.bar.update()
                if self._is_due(self.run.log_every):
                    self._report(norm)
                if self._evaluation_is_due():
                    self._finish_step()
                    self.stop.check()
                elif asked := self.stop.asked():
                    self._save(self._reached({}))
                    raise asked

    def _is_due(self, every: int) -> bool:
        return self.steps_done % every == 0 or self.steps_done == self.config.train.steps

    def _evaluation_is_due(self) -> bool:
        at = self.run.checkpoint_at
        if at is None:
            return self._is_due(self.run.checkpoint_every)
        return self.steps_done in at or self.steps_done == self.config.train.steps

    def _picture_is_due(self) -> bool:
        """At an evaluation. Steps of a list are hardly ever multiples of sample_every."""
        every, at = self.run.sample_every, self.run.checkpoint_at
        before = max((step for step in at or () if step < self.steps_done), default=0)
        passed = at is not None and before // every < self.steps_done // every
        return passed or self._is_due(every)

    def _report(self, norm: Tensor) -> None:
        self._check_finite()
        loss, now = self.window.item() / self.window_steps, time.monotonic()
        trained = now - self._reported - self._aside
        speed = self.window_steps * self.config.train.batch_size / trained
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
        self._reported, self._aside = now, 0.0

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
        begun = time.monotonic()
        self._check_finite()
        try:
            self.stop.check("evaluation", *["snapshot"] * bool(self.averages.by_length))
            with self.limit.measured("evaluation"):
                with self._said("validating"):
                    values = self._evaluate()
                picture = None
                if self._picture_is_due():
                    with self._said("sampling"):
                        picture = self._sample()
        except Preempted:
            self._save(self._reached({}, pending=True))
            raise
        row = {f"validation/{name}": value for name, value in values.items()}
        self.log.metrics(self.steps_done, row)
        if picture is not None:
            self.log.samples(self.steps_done, picture)
        reached = self._reached(values)
        write_sealed(self.directory / RESULT, self._result(reached), indent=1)
        self._keep_averages(reached)
        self._save(reached)
        self._aside += time.monotonic() - begun

    @contextlib.contextmanager
    def _said(self, doing: str) -> Iterator[None]:
        """In the bar, which stands still meanwhile."""
        before = str(self.bar.postfix or "")
        self.bar.set_postfix_str(doing)
        yield
        self.bar.set_postfix_str(before)

    def _result(self, reached: Checkpoint) -> dict[str, Any]:
        """What the run came to so far, for report.py.

        Args:
            reached: the checkpoint that is written next, and that find_best_checkpoint will know.
        """
        written = checkpoint.all_checkpoints(reached.path.parent)
        before = [c for c in written if c.step < reached.step]
        best = [*rank_checkpoints([*before, reached]), reached][0]
        return {
            "step": reached.step,
            "held_out_loss": reached.progress.validation_loss,
            "held_out_grid": GRID,
            "best_step": best.step,
            "best_by": self.run.best_by,
            "ema_share_of_start": share_of_start(self.config.train.ema_decay, reached.step),
            "hours": reached.progress.seconds / 3600,
            "device": device_name(self.device),
            "peak_memory_bytes": peak_memory(self.device),
            **self.facts,
        }

    def _evaluate(self) -> dict[str, float]:
        data = self.dataset
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
        H, W, C = self.dataset.images.shape[1:]
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
        """A grid [H, W, 1 or 3] uint8 from noise that is the same at every step and in every run;
        classes in turn, with their names."""
        n, classes = self.run.samples, self.denoiser.network.classes
        label = torch.arange(n, device=self.device) % (classes or 1)
        x0 = self._generate([derive("grid", k) for k in range(n)], label)
        pictures = to_picture(to_uint8(x0).cpu().numpy(), self.config.shown)
        names = [self.dataset.classes[k] for k in label.tolist()] if classes else []
        return captioned_grid(pictures, names) if names else grid(pictures)

    # keeping

    def _reached(self, values: dict[str, float], pending: bool = False) -> Checkpoint:
        """The checkpoint of this moment, not written yet.

        Args:
            values: what the evaluation came to, {} where there was none.
            pending: there was to be one.
        """
        progress = Progress(
            pending,
            values.get("loss"),
            values.get("kid"),
            GRID,
            self._elapsed(),
            self.log.rows,
            (self.window.item(), self.window_steps),
        )
        path = self.directory / "checkpoints" / f"step_{self.steps_done}"
        classes = list(self.dataset.classes)
        return Checkpoint(path, self.steps_done, self.config.raw, classes, {}, progress)

    def _keep_averages(self, reached: Checkpoint) -> None:
        """A snapshot, before the checkpoint that says that all of this step is done."""
        if self.averages.by_length and reached.step:
            with self.limit.measured("snapshot"), self._said("saving"):
                write_snapshot(self.directory, reached, self.averages)
                prune_snapshots(self.directory)

    def _save(self, reached: Checkpoint) -> None:
        self._check_finite()
        self.log.sync()
        with self.limit.measured("saving"), self._said("saving"):
            checkpoint.save(
                reached,
                dict(parameters(self.denoiser.network)),
                dict(parameters(self.ema.network)),
                {name: part.state_dict() for name, part in self.stateful().items()},
            )
        prune_checkpoints(reached.path.parent, self.run.keep_last)

    def stateful(self) -> dict[str, Any]:
        """What remembers gradients, losses by t, or weights."""
        by_t = {name: stream.timesteps for name, stream in self.streams.items()}
        kept = {"averages": self.averages} if self.averages.by_length else {}
        return {"optimizer": self.optimizer, **by_t, **kept}
