"""Mistakes in a transfer's settings: each is one message that names the thing, the place and the
cure, before any data is looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from config.overrides import check_overrides, composed
from runtime.errors import Misfit, UserError, together
from tests.helpers import runs
from training import run as training_run

# (settings, what the message says); SOURCE and FILE stand for a run and for bare weights of its
# network
MISTAKES = {
    "a typo": (
        ["transfer=frezze_encoder"],
        ["transfer=frezze_encoder", "did you mean freeze_encoder"],
    ),
    "a pattern of rules": (
        ["transfer.rules=[{pattern: 'dwon.*'}]"],
        ["transfer.rules: dwon.* matches no parameter", "did you mean down"],
    ),
    "nothing trains": (
        ["transfer.rules=[{pattern: '*', learning_rate_scale: 0}]"],
        ["transfer.rules", "train nothing", "zero_shot"],
    ),
    "a rank": (
        ["transfer=lora", "transfer.inject.0.rank=64"],
        ["transfer.inject: LoRA on", ".qkv.weight: rank=64 must be 1 to 16"],
    ),
    "another network": (
        ["source.from=SOURCE", "model.channels=16"],
        ["source.from: no weight of the source fits", "model.channels=16 -> 8"],
    ),
    "no source": (["transfer=l2_sp"], ["transfer=l2_sp", "source.from="]),
    "nothing to judge": (["transfer=zero_shot"], ["transfer=zero_shot", "source.from="]),
    "weight decay": (
        ["transfer=ewc", "source.from=SOURCE", "optimizer=adamw", "optimizer.weight_decay=0.1"],
        ["optimizer.weight_decay=0.1", "transfer=ewc", "set optimizer.weight_decay=0"],
    ),
    "a setting that lacks": (
        [
            "transfer=l2_sp",
            "source.from=SOURCE",
            "transfer.penalties=[{_target_: transfer.penalties.L2SP, _partial_: true}]",
        ],
        ["transfer.penalties[0]", "'weight'"],
    ),
    "a base that trains": (
        ["transfer=svdiff", "transfer.rules=[{pattern: '*'}]"],
        ["transfer.rules", "weight trains, and so does", "learning_rate_scale: 0"],
    ),
    "a depth": (
        ["source.from=SOURCE", "source.depth=99"],
        ["source.depth=99", "to 6 (norm_out, conv_out)", "null"],
    ),
    "a pattern of include": (
        ["source.from=SOURCE", "source.include=[dwon.*]"],
        ["source.include: dwon.*", "did you mean down"],
    ),
    "no class table": (
        ["transfer=textual_inversion", "source.from=SOURCE", "model.classes=0"],
        ["transfer.inject: class_embedding.weight matches no parameter"],
    ),
    "unknown images": (
        [
            "transfer=dreambooth",
            "source.from=FILE",
            "transfer.replay.images._target_=transfer.source_images.real",
            "~transfer.replay.images.steps",
            "~transfer.replay.images.batch_size",
        ],
        ["bare.safetensors: published weights", "transfer.source_images.generated"],
    ),
    "images to compare": (
        [
            "transfer=pairwise_similarity",
            "source.from=SOURCE",
            "train.batch_size=4",
            "train.accumulation=2",
        ],
        ["PairwiseSimilarity", "which has 2", "Raise train.batch_size or lower train.accumulation"],
    ),
}


NOWHERE = ["data=folder", "data.path=/nowhere", "data.channels=1"]


def check(text: str, words: list[str], root: Path) -> None:
    for word in words:
        assert word in text
    assert "/nowhere" not in text  # the folder of the data was not asked for
    assert not (root / "runs").exists() and not (root / "cache").exists()


@pytest.mark.parametrize("name", MISTAKES)
def test_one_message_before_any_data(undisturbed, tmp_path, name):
    settings, words = MISTAKES[name]
    shutil.copy(
        undisturbed() / "checkpoints/step_12/model.safetensors", tmp_path / "bare.safetensors"
    )
    settings = [
        s.replace("SOURCE", str(undisturbed())).replace("FILE", f"{tmp_path}/bare.safetensors")
        for s in settings
    ]
    command = [
        *runs.TINY,
        *NOWHERE,
        f"run.root={tmp_path}/runs",
        f"run.cache={tmp_path}/cache",
        *settings,
    ]
    with pytest.raises(UserError) as error:
        check_overrides("train", command)
        training_run.train(composed("train", command))
    check(str(error.value), words, tmp_path)


def test_the_command_ends_with_2_and_no_traceback(undisturbed, tmp_path):
    code, text = runs.train(
        tmp_path, [*NOWHERE, f"source.from={undisturbed()}", "model.channels=16"]
    )
    assert code == 2 and text.count("error: ") == 1 and "Traceback" not in text, text
    check(text, MISTAKES["another network"][1], tmp_path)


def test_another_network_than_that_of_an_experiment(tmp_path):
    """Before the source's images are looked for, which are missing too, or the source is
    trained."""
    with pytest.raises(
        UserError, match="no weight of the source fits(.|\n)*model.channels=8 -> 128"
    ) as error:
        training_run.train(
            composed(
                "train",
                [
                    *runs.TINY,
                    *NOWHERE,
                    "source.from=pretrain_celeba",
                    f"run.cache={tmp_path}/cache",
                ],
            )
        )
    check(str(error.value), [], tmp_path)
    assert "needs its images" not in str(error.value)


def test_a_misfit_is_told_alone_and_what_is_missing_together():
    def fails(error):
        def step():
            raise error

        return step

    with pytest.raises(UserError, match="first(\n|.)*and second"):
        together(fails(UserError("first")), fails(UserError("second")))
    with pytest.raises(Misfit, match="^first$"):
        together(fails(Misfit("first")), lambda: pytest.fail("looked further"))
