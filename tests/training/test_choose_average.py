"""The average that is chosen for a run, and what takes it: sample.py, evaluate.py, export.py and
source.weights, by weights=average."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from config.run_config import RunConfig
from data.dataset import open_dataset
from evaluation.evaluator import evaluate_run
from metrics.held_out_loss import held_out_errors
from runtime.checkpoint import EMA, MODEL, all_checkpoints, find
from runtime.errors import UserError
from runtime.signals import Preempted
from sampling import load
from tests.helpers import runs
from tests.helpers.evaluations import few_evaluated
from tests.helpers.folder_runs import TINY, images
from tests.helpers.folder_runs import run as run_folder
from training import choose_average as choosing
from training.choose_average import choose_average, main
from training.power_average import gamma_of
from training.run_directory import IDENTITY
from training.snapshots import all_snapshots
from transfer.merge_adapters import merged, without_adapters
from transfer.trained_weights import load_weights, of_checkpoint, open_weights, source_of

KEPT = [
    "train.ema_lengths=[0.05,0.1]",
    "run.checkpoint_every=1",
    "run.keep_last=99",
    "run.sample_every=99",
    "optimizer.lr=5e-3",
]
LORA = ["transfer=lora", "transfer.inject.0.rank=2", "transfer.inject.1.rank=2"]
STEPS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    images(root / "images")
    return run_folder(root)


@pytest.fixture(scope="module")
def adapted(source) -> Path:
    """A run with adapters that kept averages, and all of its checkpoints."""
    return run_folder(source.parents[2], f"source.from={source}", *LORA, *KEPT, steps=STEPS)


@pytest.fixture(scope="module")
def chosen(adapted) -> Path:
    """The same after the choice."""
    choose_average(adapted, device="cpu")
    return adapted


def choice(run: Path) -> dict:
    return json.loads((run / "averages/chosen.json").read_text())


def copied(run: Path, root: Path) -> Path:
    """With a cache of its own, as a run of another place."""
    shutil.copytree(run.parents[2], root, dirs_exist_ok=True)
    return root / run.relative_to(run.parents[2])


def explicit(run: Path, step: int, length: float) -> dict[str, torch.Tensor]:
    """The average by the weights that were saved after each step, in float64."""
    exponent, total = gamma_of(length) + 1, {}
    for c in all_checkpoints(run / "checkpoints")[:step]:
        share = (c.step / step) ** exponent - ((c.step - 1) / step) ** exponent
        for name, w in c.weights(MODEL).items():
            total[name] = total.get(name, 0) + share * w.double()
    return total


def validation_loss(run: Path, tensors: dict[str, torch.Tensor], draws: int) -> float:
    config = RunConfig(find(run).config)
    weights = merged(config, {name: w.float() for name, w in tensors.items()})
    denoiser = without_adapters(config).frozen_denoiser(weights, torch.device("cpu"))
    cache = Path(config.run.cache)
    data = open_dataset(config.data, config.data.open_reader(cache), config.seed, cache)
    rows = data.splits["validation"]
    return held_out_errors(denoiser, data.images, data.labels, rows, draws).values()["loss"]


# The choice


def test_the_length_of_lowest_validation_loss_at_the_best_step_is_chosen(chosen):
    said, losses = choice(chosen), {s.step: s.loss for s in all_snapshots(chosen)}
    assert said["step"] == min(losses, key=losses.get) > 3, "another run is needed"
    assert said["ema_loss"] == losses[said["step"]] and said["draws"] == 8
    for length in (0.05, 0.1):  # by another route
        expected = validation_loss(chosen, explicit(chosen, said["step"], length), 8)
        assert said["losses"][str(length)] == pytest.approx(expected, rel=1e-5)
        assert said["residuals"][str(length)] < 1e-6
    assert len(set(said["losses"].values())) == len(said["losses"]) > 3
    assert said["losses"][str(said["length"])] == min(said["losses"].values())
    assert {float(length) for length in said["residuals"]} == {0.02, 0.05, 0.1, 0.15, 0.2, 0.25}
    refused = said["residuals"].keys() - said["losses"].keys()
    assert refused == {length for length, r in said["residuals"].items() if r > 0.25}


def test_the_chosen_has_all_parameters_near_the_average_over_all_steps(chosen):
    """And those that never train are the source's, to the bit."""
    said, found = choice(chosen), load_file(chosen / "averages/chosen.safetensors")
    expected = explicit(chosen, said["step"], said["length"])
    started = find(chosen).weights(EMA)
    trains = all_snapshots(chosen)[0].read(0.1).keys()
    assert found.keys() == started.keys() and trains < found.keys()
    assert any(".lora." in name for name in found)
    moved = 0.0
    for name, w in found.items():
        if name not in trains:
            assert torch.equal(w, started[name])
            continue
        error = (w.double() - expected[name]).norm()
        moved += (started[name] - w).norm().item()
        assert error < 0.1 * (started[name] - w).norm() + 1e-5, name
    assert moved > 0.01


def test_a_second_choice_of_the_same_is_skipped(chosen, monkeypatch, caplog):
    before = runs.snapshot(chosen / "averages")
    monkeypatch.setattr(choosing, "_losses", lambda *_: pytest.fail("it is there"))
    choose_average(chosen, device="cpu")
    assert runs.snapshot(chosen / "averages") == before


def test_more_draws_are_another_choice(chosen, tmp_path):
    run = copied(chosen, tmp_path)
    choose_average(run, draws=16, device="cpu")
    assert choice(run)["draws"] == 16 and choice(run)["losses"] != choice(chosen)["losses"]


def test_a_choice_that_was_stopped_goes_on(chosen, tmp_path, monkeypatch):
    """A signal is acted on between two lengths, and no length is measured twice."""
    run, measured = copied(chosen, tmp_path), []
    for name in ("chosen.json", "chosen.safetensors"):
        (run / "averages" / name).unlink()
    judge_of = choosing.held_out_judge

    def watched(*given):
        judge = judge_of(*given)

        def measure(tensors):
            if len(measured) == 1:
                signal.raise_signal(signal.SIGTERM)
            measured.append(judge(tensors))
            return measured[-1]

        return measure

    monkeypatch.setattr(choosing, "held_out_judge", watched)
    with pytest.raises(Preempted):
        choose_average(run, device="cpu")
    assert len(measured) == 2 and not (run / "averages/chosen.json").exists()
    choose_average(run, device="cpu")
    assert measured == list(choice(run)["losses"].values())
    names = ("chosen.json", "chosen.safetensors")
    for name in names:
        assert (run / "averages" / name).read_bytes() == (chosen / "averages" / name).read_bytes()
    assert not (run / "averages/losses.json").exists()


def test_a_damaged_snapshot_has_no_part_in_the_choice(chosen, tmp_path, caplog):
    """The choice is that of a run which never kept it."""
    run, without = (copied(chosen, tmp_path / name) for name in ("damaged", "without"))
    step = choice(run)["step"]
    file = run / f"averages/step_{step - 1}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    (without / f"averages/step_{step - 1}.safetensors").unlink()
    for each in (run, without):
        choose_average(each, device="cpu")
    assert str(file) in caplog.text and str(step - 1) not in choice(run)["snapshots"]
    assert choice(run)["step"] == step and choice(run)["losses"] == choice(without)["losses"]
    made, other = (load_file(r / "averages/chosen.safetensors") for r in (run, without))
    assert all(torch.equal(made[name], other[name]) for name in made | other)


def test_where_there_is_nothing_to_choose_from_the_cure_is_told(source, adapted, tmp_path):
    with pytest.raises(UserError, match=r"kept no averages.*train\.ema_lengths=\[0\.05,0\.1\]"):
        choose_average(source, device="cpu")
    with pytest.raises(UserError, match="is no run of this project"):
        choose_average(tmp_path, device="cpu")
    run = copied(adapted, tmp_path)
    shutil.rmtree(run / f"checkpoints/step_{STEPS}")
    with pytest.raises(UserError, match=f"at step {STEPS - 1} of {STEPS}: finish it"):
        choose_average(run, device="cpu")


def test_images_that_were_changed_are_refused(adapted, tmp_path):
    run = copied(adapted, tmp_path)
    said = json.loads((run / IDENTITY).read_text())
    said["data"]["images"] = "other"
    (run / IDENTITY).write_text(json.dumps(said))
    (run / "averages/chosen.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="not those that it was trained on"):
        choose_average(run, device="cpu")


def test_of_one_average_and_no_validation_images_there_is_nothing_to_choose(source, tmp_path):
    """As the run that which_layers advises, which trains on all images: train.py ends with it."""
    images(tmp_path / "images")
    own = [
        "data=folder",
        f"data.path={tmp_path}/images",
        "data.validation=0",
        f"train.steps={STEPS}",
    ]
    kept = [setting.replace("[0.05,0.1]", "[0.13]") for setting in KEPT]
    command = [*own, f"source.from={source}", *LORA, *kept]
    code, text = runs.train(tmp_path, command, tiny=TINY)
    assert code == 0, text
    run = runs.directory_of(tmp_path, "custom")
    assert choice(run)["step"] == STEPS and choice(run)["length"] == 0.13
    assert all(s.loss is None for s in all_snapshots(run))
    found = load_file(run / "averages/chosen.safetensors")
    expected, trains = explicit(run, STEPS, 0.13), all_snapshots(run)[0].read(0.13)
    for name in trains:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-6, atol=1e-7)
    assert found.keys() == find(run).weights(EMA).keys()


def test_what_nothing_trains_in_is_its_own_average(source):
    run = run_folder(source.parents[2], f"source.from={source}", "transfer=zero_shot", *KEPT)
    assert not (run / "averages").exists()
    choose_average(run, device="cpu")
    start = find(run).weights(EMA)
    ours = open_weights(str(run), "average").load("average")
    assert all(torch.equal(w, start[name]) for name, w in ours.items())
    assert choice(run)["length"] is None


def test_the_command_takes_an_experiment(chosen, source, capsys, own_log):
    main([str(chosen.parent), "--device", "cpu"])
    said = capsys.readouterr().out
    assert f"chosen before: {chosen / 'averages/chosen.json'}" in said
    assert str(source) not in said  # it kept none
    with pytest.raises(SystemExit) as ended:
        main([str(source)])
    assert ended.value.code == 2


# What takes it


def test_evaluate_takes_it(chosen, source):
    root, node = chosen.parents[2], {"function": "ddim", "steps": 2}
    asked = {"checkpoint": str(chosen), "metrics": ["quality", "loss"]}
    given = few_evaluated(root, weights="average", **asked)
    found = json.loads((evaluate_run(chosen, given, node) / "evaluation.json").read_text())
    assert found["protocol"]["weights"] == "average" and found["protocol"]["select"] == "chosen"
    assert found["checkpoint"] == {
        "path": str(chosen / "averages/chosen.safetensors"),
        "step": choice(chosen)["step"],
        "sha256": runs.sha256(chosen / "averages/chosen.safetensors"),
    }
    assert evaluate_run(chosen, given, node).name.startswith("chosen_n12")
    by_ema = few_evaluated(root, **asked)
    other = json.loads((evaluate_run(chosen, by_ema, node) / "evaluation.json").read_text())
    value = found["loss"]["target"]["loss"]["value"]
    assert value != other["loss"]["target"]["loss"]["value"]
    with pytest.raises(UserError, match="is one checkpoint: give checkpoint="):
        evaluate_run(chosen / f"checkpoints/step_{STEPS}", given, node)


def test_sample_takes_it(chosen, tmp_path):
    done = runs.command(
        "sample.py",
        f"checkpoint={chosen}",
        "weights=average",
        "n=2",
        "sampler.steps=2",
        "device=cpu",
    )
    assert done.returncode == 0, done.stderr
    step = choice(chosen)["step"]
    folder = chosen / f"generated/step_{step}_seed0_average_ddim-2"
    assert len(list(folder.glob("0*.png"))) == 2, list((chosen / "generated").iterdir())
    # the same function as the network with its adapters, unmerged
    ours, ema = load(str(chosen), "cpu", "average"), load(str(chosen), "cpu")
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 9])
    assert not torch.equal(ours.denoiser(x, t).x0, ema.denoiser(x, t).x0)
    expected = merged(
        RunConfig(find(chosen).config), load_file(chosen / "averages/chosen.safetensors")
    )
    assert all(torch.equal(w, expected[n]) for n, w in ours.denoiser.network.state_dict().items())


def test_export_takes_it(chosen, tmp_path):
    done = runs.command(
        "export.py", f"checkpoint={chosen}", "weights=average", f"out={tmp_path}/out"
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = open_weights(str(chosen), "average"), load_weights(str(tmp_path / "out"))
    assert all(torch.equal(w, theirs.load("ema")[n]) for n, w in ours.load("average").items())
    done = runs.command(
        "export.py", f"checkpoint={chosen}", "weights=average", f"out={tmp_path}/x.safetensors"
    )
    assert done.returncode == 2 and "a small file has the EMA of a run" in done.stderr


def test_a_source_gives_it(chosen):
    """And it is found again as what the target started from, also where the source was moved."""
    target = run_folder(
        chosen.parents[2], f"source.from={chosen}", "source.weights=average", "train.warmup=9"
    )
    origin = json.loads((target / "source.json").read_text())
    assert origin["weights"] == "chosen.safetensors" and origin["step"] == choice(chosen)["step"]
    expected = open_weights(str(chosen), "average").load("average")
    config = RunConfig(find(target).config)
    for elsewhere in (None, str(chosen)):
        found = source_of(origin, config, elsewhere)
        assert all(torch.equal(w, expected[n]) for n, w in found.load("ema").items())
    with pytest.raises(UserError, match="is not the source of this run"):
        source_of(origin | {"sha256": "another"}, config, None)


def test_without_a_choice_the_command_is_told(source, chosen, tmp_path):
    choose = r"choose one by\n  python -m training\.choose_average"
    with pytest.raises(UserError, match=rf"none was chosen yet; {choose} {source}"):
        load(str(source), "cpu", "average")
    for wrong in (chosen / f"checkpoints/step_{STEPS}", "owner/name"):
        with pytest.raises(UserError, match="is no run of this project"):
            load(str(wrong), "cpu", "average")
    run = copied(chosen, tmp_path)
    file = run / "averages/chosen.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    with pytest.raises(UserError, match=rf"chosen\.safetensors is missing or damaged; {choose}"):
        load(str(run), "cpu", "average")
    choose_average(run, device="cpu")  # mends it
    assert file.read_bytes() == whole
    (run / "averages/chosen.json").write_text("{}")
    with pytest.raises(UserError, match=rf"chosen\.json is damaged(.|\n)*{choose}"):
        load(str(run), "cpu", "average")


def test_a_run_that_was_trained_further_is_chosen_for_anew(source):
    settings = ["seed=7", *KEPT]
    run = run_folder(source.parents[2], *settings, steps=3)
    choose_average(run, device="cpu")
    assert run_folder(source.parents[2], *settings, steps=5) == run
    with pytest.raises(UserError, match=r"chosen when .* was at step 3, and that is at step 5 now"):
        load(str(run), "cpu", "average")
    choose_average(run, device="cpu")
    assert load(str(run), "cpu", "average").weights.step == choice(run)["step"]
    assert of_checkpoint(find(run)).step == 5
