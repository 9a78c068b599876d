"""How a run goes on from its newest checkpoint: not at all where it is finished, which the same
command and the same cell of a sweep then skip; else from the state that was saved."""

from runtime.checkpoint import EMA, MODEL, Checkpoint
from training.loop import Trainer
from transfer.adapters import load


def is_finished(saved: Checkpoint, steps: int) -> bool:
    """So many steps are done, and what is due after the last."""
    return saved.step >= steps and not saved.progress.pending


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """The state of a trainer as it was saved. All random numbers are functions of the seed and the
    step (runtime.seeds), so that nothing of them is restored."""
    load(trainer.denoiser.network, saved.weights(MODEL))
    load(trainer.ema.network, saved.weights(EMA))
    states = saved.optimizer()
    for name, part in trainer.stateful().items():
        part.load_state_dict(states[name])
    trainer.begun, trainer.steps_done = saved.progress, saved.step
    trainer.seconds = saved.progress.seconds
    window, trainer.window_steps = saved.progress.window
    trainer.window.fill_(window)
