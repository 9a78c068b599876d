"""The columns of the table: where each number comes from, how it is written, and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from metrics.estimate import GRID
from reporting.numbers import count, number, rate
from reporting.runs import Run, Value, value_of
from training.result import percent, size

EVALUATE = "not evaluated: python evaluate.py checkpoint="


@dataclass(frozen=True)
class Column:
    """better: "lower" or "higher" where less or more of it is better, whatever the generator; ""
    for what has a right value, as rho, and for what noise is best in, as recall. band: its interval
    stands in the table."""

    key: str
    heading: str
    group: str
    read: Callable[[Run], Value | None]
    means: str
    better: str = ""
    text: Callable[[float], str] | None = None
    band: bool = False
    signed: bool = False
    percent: bool = False

    def why(self, run: Run) -> str:
        """Why this run has no such number."""
        if self.group in ("training", "cost"):
            return "the run has not told it yet"
        if run.evaluation is None:
            return EVALUATE + str(run.result.directory)
        return "; ".join(run.at("notes") or ()) or "the evaluation does not say"


def from_evaluation(path: str) -> Callable[[Run], Value | None]:
    return lambda run: value_of(run.at(path))


def from_result(key: str) -> Callable[[Run], Value | None]:
    """Of result.json."""
    return lambda run: value_of(run.result.values.get(key))


def learning_rate(run: Run) -> Value | None:
    return value_of(run.result.config.get("optimizer", {}).get("lr"))


def best_step(run: Run) -> Value | None:
    return value_of(run.result.values.get("best_step", run.at("checkpoint.step")))


def evaluated_loss(run: Run) -> Value | None:
    """Of the validation images at the evaluated checkpoint; where metrics.jsonl does not say it, at
    the run's last look. None of a run of an earlier version, whose loss was of other images."""
    if run.result.values.get("held_out_grid") != GRID:
        return None
    step, last = run.at("checkpoint.step"), run.result.values.get("held_out_loss")
    step = run.result.values.get("best_step") if step is None else step
    return value_of(dict(run.curve("validation/loss")).get(step, last))


def memory(count: float) -> str:
    return size(round(count))


KID = Column(
    "kid_test",
    "KID test",
    "quality",
    from_evaluation("quality.test.kid"),
    better="lower",
    band=True,
    means=(
        "Kernel Inception Distance to test images (Binkowski et al. 2018), unbiased, in the "
        "features that the head of the page names: 0 is the same distribution, a little below 0 "
        "is chance"
    ),
)
RHO = Column(
    "rho",
    "rho",
    "copying",
    from_evaluation("memorization.features.rho"),
    band=True,
    means=(
        "median distance of generated images to their nearest training image over the same of "
        "test images: about 1 is as far as new images are, below 0.5 is copying, 0 the training "
        "set itself, far above 1 away from the data, as noise is"
    ),
)
COPIES = Column(
    "copy_share",
    "copies",
    "copying",
    from_evaluation("memorization.pixels.copy_share"),
    band=True,
    percent=True,
    means=(
        "share of generated images three times closer to one training image than to the next, "
        "in pixels (Yoon et al. 2023)"
    ),
)
COPIES_TEST = Column(
    "copy_share_test",
    "copies of test",
    "copying",
    from_evaluation("memorization.pixels.copy_share_test"),
    percent=True,
    means="the same of the test images, which copy nothing",
)
FORGOT = Column(
    "source_change",
    "source loss change",
    "losses",
    from_evaluation("loss.source_change"),
    better="lower",
    band=True,
    signed=True,
    means="how much the loss on images of the source rose, on a fixed grid of images, t and noise: "
    "what was forgotten",
)
TEST_LOSS = Column(
    "test_loss",
    "test loss",
    "losses",
    from_evaluation("loss.target.loss"),
    better="lower",
    band=True,
    means="loss of the predicted noise on test images, t drawn evenly (Ho et al. 2020, eq. 14)",
)
HELD_OUT = Column(
    "judged_loss",
    "held-out loss",
    "losses",
    evaluated_loss,
    better="lower",
    band=True,
    means="the same on validation images, of the evaluated checkpoint: what settings are chosen by",
)
TRAINED = Column(
    "trained_share",
    "trained",
    "training",
    from_result("trained_share"),
    text=percent,
    means="share of the parameters that train",
)
BEST = Column(
    "best_step",
    "best step",
    "training",
    best_step,
    text=count,
    means="of the checkpoint that the run's rule calls best",
)
HOURS = Column(
    "hours",
    "GPU-hours",
    "cost",
    from_result("hours"),
    text=lambda v: number(v) if v < 1 else f"{v:.2f}",
    better="lower",
    means="hours of training on the device that the head of the page names",
)
STORE = Column(
    "bytes_to_store",
    "to store",
    "cost",
    from_result("bytes_to_store"),
    text=memory,
    better="lower",
    means="what the target costs beside its source",
)
PRECISION = Column(
    "precision",
    "precision",
    "quality",
    from_evaluation("quality.test.precision"),
    better="higher",
    means="share of generated images among the test images (Kynkaanniemi et al. 2019, k 5): "
    "fidelity",
)
RATE = Column(
    "lr",
    "learning rate",
    "training",
    learning_rate,
    text=rate,
    means="optimizer.lr; a strategy may scale it by layer",
)
COLUMNS = (
    TEST_LOSS,
    FORGOT,
    KID,
    RHO,
    COPIES,
    HELD_OUT,
    PRECISION,
    Column(
        "density",
        "density",
        "quality",
        from_evaluation("quality.test.density"),
        better="higher",
        means="precision that outliers of the test set do not flatter (Naeem et al. 2020); 1 is "
        "real data, more is possible",
    ),
    Column(
        "coverage",
        "coverage",
        "quality",
        from_evaluation("quality.test.coverage"),
        better="higher",
        means="share of test images with a generated one nearby (Naeem et al. 2020): falls where "
        "modes are dropped; noise has none",
    ),
    TRAINED,
    RATE,
    BEST,
    HOURS,
    STORE,
)


# Of the second table. {frechet}: what the distance is called in these features.
FURTHER = (
    Column(
        "frechet_test",
        "{frechet} test",
        "quality",
        from_evaluation("quality.test.frechet"),
        better="lower",
        means="Fréchet distance of Gaussians fitted to the features (Heusel et al. 2017); with "
        "few images far too high",
    ),
    Column(
        "frechet_train",
        "{frechet} train",
        "quality",
        from_evaluation("quality.train.frechet"),
        means="the same to the training images: the memoriser has 0",
    ),
    Column(
        "frechet_infinity",
        "{frechet} test, extrapolated",
        "quality",
        from_evaluation("quality.test.frechet_infinity"),
        better="lower",
        means="the same extrapolated to endless samples (Chong and Forsyth 2020): may fall "
        "below 0, and the bias of few test images stays",
    ),
    Column(
        "inception_score",
        "Inception score",
        "quality",
        from_evaluation("quality.inception_score.mean"),
        better="higher",
        means="Salimans et al. 2016; of photographs of ImageNet's classes, so of little "
        "meaning elsewhere",
    ),
    Column(
        "recall",
        "recall",
        "quality",
        from_evaluation("quality.test.recall"),
        means=(
            "share of test images among the generated (Kynkaanniemi et al. 2019, k 5): "
            "variety of what has a good precision; noise, whose images are far from one "
            "another, has 0.95 to 1, so that coverage is the number to look at"
        ),
    ),
    Column(
        "intra",
        "intra distance",
        "quality",
        from_evaluation("quality.intra.mean"),
        means=(
            "mean distance of samples that share a nearest training image (Ojha et al. 2021): "
            "variety about what it was shown; noise has most"
        ),
    ),
    Column(
        "occupied",
        "clusters",
        "quality",
        from_evaluation("quality.intra.occupied"),
        text=count,
        means="training images with two samples or more about them: the mean before is over "
        "these alone",
    ),
    Column(
        "c_t",
        "C_T",
        "copying",
        from_evaluation("memorization.features.c_t"),
        means=(
            "whether generated images are nearer to the training set than test images are, as "
            "a z statistic (Meehan, Chaudhuri and Dasgupta 2020): about 0 as new images, far "
            "above away from the data. Far below 0 are copies, and images that are a little "
            "bland too: it grows with their number, and is no sign of copying by itself"
        ),
    ),
    Column(
        "authentic_share",
        "authentic",
        "copying",
        from_evaluation("memorization.features.authentic_share"),
        text=percent,
        means="share of samples farther from their training image than that is from the next "
        "(Alaa et al. 2022); noise: all",
    ),
    Column(
        "bits",
        "bits/dim",
        "losses",
        from_evaluation("bound.bits"),
        better="lower",
        means="the variational bound in bits per value (Ho et al. 2020, eq. 5), on test images",
    ),
    Column(
        "kid_source",
        "KID source",
        "losses",
        from_evaluation("forgetting.kid_source"),
        means="KID to images of the source: how far its samples have left the source",
    ),
    Column(
        "peak_memory_bytes",
        "memory",
        "cost",
        from_result("peak_memory_bytes"),
        text=memory,
        better="lower",
        means="the most that training took of the device's memory, or of the machine's on a CPU",
    ),
    Column(
        "ema_share_of_start",
        "EMA on start",
        "training",
        from_result("ema_share_of_start"),
        text=percent,
        better="lower",
        means="share of the EMA weights that still is the start",
    ),
)


def hours_of(devices: Iterable[str]) -> Column:
    """HOURS under the name of what it counts."""
    kinds = {"CPU" if device.startswith("cpu") else "GPU" for device in devices}
    one = f"{min(kinds, default='GPU')}-hours"
    return replace(HOURS, heading="hours, GPU or CPU" if len(kinds) > 1 else one)


def further(frechet: str) -> list[Column]:
    """FURTHER. frechet: what the distance is called in these features, FID in Inception's alone."""
    return [replace(c, heading=c.heading.format(frechet=frechet)) for c in FURTHER]


BASELINES = {
    "train against test": (
        "training images in place of generated ones: what a perfect model of so few images gets"
    ),
    "half of test against the other half": (
        "real images against real images: nothing can be expected to do better"
    ),
    "memoriser": "the training set emitted again: rho 0 and all copies give it away",
    "untouched source": "the source network as it was: what the transfer must beat",
    "noise": "images of pure noise: the other end",
}
