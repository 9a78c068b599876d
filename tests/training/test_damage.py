"""What was replaced, flipped or cut between two starts: the bits of a run that nothing disturbed,
or one message that names the file. Never a traceback, and never other numbers."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import data.memory_map
from data.file_cache import FileCache
from data.sources.folder import Folder
from runtime.checkpoint import EMA, MODEL, OPTIMIZER
from runtime.environment import kept_precision
from runtime.errors import UserError
from runtime.files import Damaged
from runtime.log import read_metrics
from tests.helpers import runs
from tests.helpers.folder_runs import STEPS, TINY, bits, copied, images, ramp, run
from training import run as training_run
from training.result import read_result


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """The root of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("expected")
    images(root / "images")
    run(root)
    return root


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """The same, left after half of its steps."""
    root = tmp_path_factory.mktemp("halfway")
    images(root / "images")
    run(root, steps=STEPS // 2)
    return root


# Ways to spoil a file


def flipped(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00 no such thing {" * 9)


def other_json(path: Path) -> None:
    path.write_text("[1, 2]\n")


def zeros(path: Path) -> None:
    """As after a crash of the machine: the length is right."""
    path.write_bytes(bytes(path.stat().st_size))


Spoil = Callable[[Path], None]


def each(*what: list, quick: Sequence[tuple]) -> list:
    """Every combination; all but the quick ones are slow tests."""
    return [
        pytest.param(*values, marks=[] if values in quick else pytest.mark.slow)
        for values in itertools.product(*what)
    ]


# The caches


@pytest.fixture
def fresh(expected, tmp_path, monkeypatch) -> Path:
    """The root of the same images with all caches made, and no run."""
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)  # the images are as old as users' are
    data.memory_map._checksums.cache_clear()  # as in another process
    root = copied(expected, tmp_path)
    shutil.rmtree(root / "runs")
    shutil.rmtree(root / "cache/memory")  # of the images elsewhere
    Folder(FileCache(root / "cache/memory"), str(root / "images"))
    return root


ARRAY, ABOUT, MEMORY = "cache/*.npy", "cache/*.json", "cache/memory/*.json"


@pytest.mark.parametrize(
    "pattern, spoil",
    each(
        [ARRAY, ABOUT, MEMORY],
        [flipped, cut, emptied, garbage, zeros],
        quick=[(ARRAY, flipped), (ARRAY, cut), (ABOUT, garbage), (MEMORY, flipped)],
    ),
)
def test_a_damaged_cache_is_put_aside_and_made_anew(expected, fresh, caplog, pattern, spoil):
    path = min(fresh.glob(pattern))  # of files: their sha256 and their ranges
    if pattern == ABOUT:  # names the folder of the images, which is another one here
        shutil.rmtree(fresh / "cache")
        run(fresh, f"run.root={fresh}/first", steps=1)
    whole = path.read_bytes()
    spoil(path)
    assert bits(run(fresh)) == bits(runs.directory_of(expected))
    assert (
        str(path) in caplog.text
        and f"put aside as {path.name}.damaged and made anew" in caplog.text
    )
    assert (
        path.read_bytes() == whole and path.with_name(f"{path.name}.damaged").read_bytes() != whole
    )


def test_a_cache_of_an_earlier_version_is_made_anew(expected, fresh, caplog):
    """It has no checksum, so nothing tells whether it is whole."""
    (record,), (array,) = fresh.glob("cache/*.json"), fresh.glob("cache/*.npy")
    about = json.loads(record.read_text())
    record.write_text(
        json.dumps({key: about[key] for key in ("source", "shape", "broken", "said")})
    )
    array.write_bytes(array.read_bytes()[:-9] + b"trusted?!")
    assert bits(run(fresh)) == bits(runs.directory_of(expected))
    assert f"{record} is damaged (or of an earlier version" in caplog.text


def test_a_whole_cache_is_read_as_it_is(expected, fresh, caplog, monkeypatch):
    monkeypatch.setattr(data.memory_map, "_decode", lambda *_: pytest.fail("it is there"))
    assert bits(run(fresh)) == bits(runs.directory_of(expected))
    assert "damaged" not in caplog.text and not list(fresh.glob("cache/**/*.damaged"))


# Images that are replaced between being hashed and being decoded


def test_images_replaced_after_they_were_hashed_end_the_run(expected, tmp_path, monkeypatch):
    """By another picture of the same size, and by none; with skip_broken, too, which leaves out
    what is broken and no more. The next start is that of the new images, and that of the old ones
    again where they are put back."""
    root = tmp_path
    images(root / "images")
    file, opened = root / "images/dark/3.png", training_run.open_dataset
    for spoil, more in (
        (another, []),
        (garbage, ["data.skip_broken=true"]),
        (Path.unlink, ["data.skip_broken=true"]),
    ):
        images_again(root / "images")
        monkeypatch.setattr(
            training_run,
            "open_dataset",
            lambda *given, spoil=spoil: (spoil(file), opened(*given))[1],
        )
        with pytest.raises(
            UserError,
            match=rf"{file} (changed|cannot be opened any more).*run the same command again",
        ):
            run(root, *more)
        assert {path.suffix for path in (root / "cache").iterdir() if path.is_file()} <= {".lock"}
    monkeypatch.setattr(training_run, "open_dataset", opened)
    images_again(root / "images")
    assert bits(run(root)) == bits(runs.directory_of(expected))
    another(file)
    assert bits(run(root, f"run.root={root}/others")) != bits(runs.directory_of(expected))


def another(path: Path) -> None:
    ramp(3, 200).save(path)


def images_again(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    images(root)


# The directory of a run


@pytest.mark.parametrize(
    "name, spoil",
    each(
        ["environment.json", "result.json", "config.yaml", "metrics.jsonl"],
        [cut, emptied, garbage, zeros, other_json],
        quick=[
            ("environment.json", cut),
            ("result.json", cut),
            ("config.yaml", garbage),
            ("metrics.jsonl", garbage),
        ],
    ),
)
def test_a_run_goes_on_past_a_damaged_file_that_can_be_made_anew(
    expected, halfway, tmp_path, caplog, name, spoil
):
    root = copied(halfway, tmp_path)
    path = runs.directory_of(root) / name
    spoil(path)
    directory = run(root)
    undisturbed = runs.directory_of(expected)
    assert bits(directory) == bits(undisturbed)
    if name in ("environment.json", "metrics.jsonl"):
        assert str(path) in caplog.text and f"put aside as {name}.damaged" in caplog.text
    assert read_result(directory).loss == read_result(undisturbed).loss
    assert read_result(directory).config["train"] == read_result(undisturbed).config["train"]
    if name == "environment.json":
        assert json.loads(path.read_text())["precision"] == "fp32"


@pytest.mark.parametrize("spoil", [flipped, cut])
def test_a_result_with_another_number_is_not_shown(expected, tmp_path, spoil):
    path = runs.directory_of(copied(expected, tmp_path)) / "result.json"
    loss = str(json.loads(path.read_text())["held_out_loss"])
    if spoil is flipped:
        path.write_text(
            path.read_text().replace(loss, loss.replace(loss[-1], str((int(loss[-1]) + 1) % 10)))
        )
    else:
        spoil(path)
    with pytest.raises(
        Damaged,
        match=rf"{path} is damaged .*: delete it; the next evaluation of the run writes it anew",
    ):
        read_result(path.parent)


def test_a_missing_environment_is_made_anew(expected, halfway, tmp_path):
    root = copied(halfway, tmp_path)
    (runs.directory_of(root) / "environment.json").unlink()
    assert bits(run(root)) == bits(runs.directory_of(expected))


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"precision": "bf17"}', b'{"precision": "bf']
)
def test_an_automatic_precision_on_a_gpu_is_not_guessed(tmp_path, content):
    """The run may have begun on another one."""
    path, gpu = tmp_path / "environment.json", torch.device("cuda")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} is (damaged|missing).*write .* into the file"):
        kept_precision(tmp_path, "auto", gpu)
    assert kept_precision(tmp_path, "tf32", gpu) == "tf32"
    path.write_text('{"precision": "bf16"}')
    assert kept_precision(tmp_path, "auto", gpu) == "bf16"


def test_rows_that_are_damaged_are_told_and_the_others_stay(expected, halfway, tmp_path, caplog):
    """In the middle and at the end; the rows after them are those of the run that nothing
    disturbed, and stay so however often it is started."""
    root = copied(halfway, tmp_path)
    path = runs.directory_of(root) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3  # steps 1 and 2, and what was held out
    path.write_bytes(lines[0] + b'{"step": 2, "lo\x00ss": 0.\n' + lines[2])
    directory = run(root, steps=3)
    run(root)
    kept, all_rows = rows_of(directory), rows_of(runs.directory_of(expected))
    # 3 was a last step
    assert [row for row in kept if row["step"] != 3 or "loss" in row] == all_rows[:1] + all_rows[2:]
    assert f"{path}: 1 of the 3 rows that the checkpoint counts are damaged" in caplog.text
    assert (
        path.with_name("metrics.jsonl.damaged")
        .read_bytes()
        .startswith(lines[0] + b'{"step": 2, "lo\x00')
    )


def rows_of(directory: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in runs.TIMES}
        for row in read_metrics(directory / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    "name, spoil",
    each(
        ["state.json", MODEL, EMA, OPTIMIZER],
        [flipped, cut, emptied, garbage, zeros],
        quick=[("state.json", cut), (MODEL, flipped)],
    ),
)
def test_a_damaged_checkpoint_is_named_and_its_steps_are_made_again(
    expected, tmp_path, caplog, name, spoil
):
    root = copied(expected, tmp_path)
    path = runs.directory_of(root) / f"checkpoints/step_{STEPS}" / name
    spoil(path)
    assert bits(run(root)) == bits(runs.directory_of(expected))
    assert str(path) in caplog.text


@pytest.mark.parametrize("spoil", each([cut, emptied, garbage, zeros, other_json], quick=[(cut,)]))
def test_a_damaged_identity_is_one_message(halfway, tmp_path, spoil):
    """Whose the checkpoints are is unknown then."""
    root = copied(halfway, tmp_path)
    path = runs.directory_of(root) / "identity.json"
    spoil(path)
    with pytest.raises(UserError, match=rf"{path} is damaged .*move {path.parent} away"):
        run(root)
    shutil.rmtree(path.parent / "checkpoints")
    assert run(root, steps=1) == path.parent and json.loads(path.read_text())["seed"] == 0


def test_train_py_ends_with_2_and_one_message(halfway, tmp_path):
    root = copied(halfway, tmp_path)
    path = runs.directory_of(root) / "identity.json"
    cut(path)
    places = ["data=folder", f"data.path={root}/images"]
    code, text = runs.train(root, [*places, f"train.steps={STEPS}"], tiny=TINY)
    assert (
        code == 2
        and "Traceback" not in text
        and text.count("error: ") == 1
        and f"error: {path} is damaged" in text
    )


# What a transfer keeps


def transfer(expected: Path, strategy: str = "l2_sp") -> list[str]:
    few = {
        "ewc": [
            "transfer.penalties.0.n=4",
            "transfer.penalties.0.images.n=4",
            "transfer.penalties.0.images.steps=2",
        ],
        "ant": [
            "transfer.loss.images.n=4",
            "transfer.loss.images.steps=2",
            "transfer.loss.classifier_steps=2",
            "transfer.loss.ascent_steps=1",
            "transfer.inject.0.rank=2",
        ],
    }
    return [
        f"transfer={strategy}",
        f"source.from={runs.directory_of(expected)}",
        "seed=1",
        *few.get(strategy, []),
    ]


@pytest.mark.parametrize(
    "strategy, spoil", each(["full", "l2_sp"], [cut, garbage, flipped], quick=[("full", flipped)])
)
def test_what_became_of_the_sources_tensors_is_told_anew(
    expected, tmp_path, caplog, strategy, spoil
):
    """Also where the strategy needs its source no more."""
    root = copied(expected, tmp_path)
    shutil.rmtree(root / "runs")
    path = run(root, *transfer(expected, strategy), steps=2) / "source.json"
    whole = path.read_bytes()
    spoil(path)
    directory = run(root, *transfer(expected, strategy))
    assert path.read_bytes() == whole and "put aside as source.json.damaged" in caplog.text
    again = run(root, *transfer(expected, strategy), f"run.root={root}/others")
    assert bits(directory) == bits(again)


@pytest.fixture(scope="module")
def kept_by(expected, tmp_path_factory) -> Callable[[str], Path]:
    """strategy -> the root of a short transfer from the run that nothing disturbed, with its
    caches."""
    made: dict[str, Path] = {}

    def root(strategy: str) -> Path:
        if strategy not in made:
            place = copied(expected, tmp_path_factory.mktemp(strategy))
            shutil.rmtree(place / "runs")
            run(place, *transfer(expected, strategy), steps=2)
            made[strategy] = place
        return made[strategy]

    return root


@pytest.mark.parametrize(
    "strategy, spoil",
    each(["ewc", "ant"], [flipped, cut, emptied, zeros], quick=[("ewc", flipped)]),
)
def test_what_a_strategy_keeps_of_its_source_is_made_anew(
    expected, kept_by, tmp_path, caplog, strategy, spoil
):
    patterns = {
        "ewc": ["fisher-*.safetensors", "generated/*/*.npy"],
        "ant": ["classifier-*.safetensors"],
    }[strategy]
    whole = kept_by(strategy)
    root = copied(whole, tmp_path)
    shutil.rmtree(root / "runs")
    paths = [path for pattern in patterns for path in (root / "cache").glob(pattern)]
    assert len(paths) == len(patterns)
    for path in paths:
        spoil(path)
    assert bits(run(root, *transfer(expected, strategy), steps=2), 2) == bits(
        runs.directory_of(whole), 2
    )
    for path in paths:
        assert (
            str(path) in caplog.text
            and path.read_bytes() == (whole / path.relative_to(root)).read_bytes()
        )
