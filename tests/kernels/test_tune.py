"""The tuner, with a clock that is told what to say: what it writes, refuses and asks."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from triton.errors import TritonError

from config.overrides import CONF
from kernels import ahead, configs, reference, tune
from kernels.launch import Launch, watched
from kernels.workloads import Work, attentions, norms, workloads
from models.layers import Attention, GroupNorm, output_of
from runtime.config_schema import build
from tests.helpers.tuned_files import read_again

CPU = torch.device("cpu")
FASTEST_IS_WRONG = {1: 3.0, 2: 1.0, 4: 0.5, 8: 2.0}  # ms by tile


class Kernel:
    """Notes which tile was started last."""

    __name__ = "toy_kernel"

    def __init__(self):
        self.tile = 0

    def __getitem__(self, grid):
        return lambda tile, **_: setattr(self, "tile", tile)


KERNEL = Kernel()


def fused(x: Tensor, weight: Tensor, bias: Tensor, **settings) -> Tensor:
    """The reference, with a start that the tile is told to. A tile of 4 is wrong; one of 16 cannot
    be compiled."""
    tile = configs.pick("toy", channels=x.shape[1], pixels=x.shape[2] * x.shape[3])["tile"]
    if tile == 16:
        raise TritonError
    Launch(KERNEL, (1,), {}, {"tile": tile}, {}).start()
    return reference.group_norm_act(x, weight, bias, **settings) * (1.01 if tile == 4 else 1.0)


def bench(run) -> float:
    KERNEL.tile = 0
    run()
    return FASTEST_IS_WRONG[KERNEL.tile]


@pytest.fixture
def toy(tmp_path, monkeypatch) -> list[Work]:
    """Two works of an operation with one file of configs."""
    monkeypatch.setattr(configs, "TUNED", tmp_path)
    monkeypatch.setattr(Work, "fused", lambda self: fused)
    monkeypatch.setitem(tune.CANDIDATES, "toy", {"tile": (1, 2, 4, 8, 16)})
    old = [
        {"shape": {"channels": channels, "pixels": 16}, "config": {"tile": 8}}
        for channels in (32, 1024)
    ]
    (tmp_path / "toy.json").write_text(json.dumps({"entries": old}))
    read_again()
    yield [next(norms(2, size, 32, (), torch.float32)) for size in (4, 8)]
    monkeypatch.undo()
    read_again()


def test_the_fastest_right_candidate_is_written_and_picked(toy):
    entries = tune.tuned("toy", toy, CPU, bench)
    tune.write("toy", {"device": "a clock that is told"}, entries)
    read_again()

    written = json.loads((configs.TUNED / "toy.json").read_text())
    assert written["machine"] == {"device": "a clock that is told"}
    assert {
        (entry["shape"]["channels"], entry["shape"]["pixels"]): entry["config"]["tile"]
        for entry in written["entries"]
    } == {(32, 16): 2, (32, 64): 2, (1024, 16): 8}  # the last no work asked for
    assert configs.pick("toy", channels=32, pixels=64) == {"tile": 2}
    assert configs.pick("toy", channels=64, pixels=256) == {"tile": 2}
    assert configs.pick("toy", channels=512, pixels=16) == {"tile": 8}


@pytest.mark.parametrize(("tile", "rank"), [(2, (1.0,)), (4, None)])
def test_a_candidate_with_wrong_results_has_no_rank(toy, tile, rank):
    assert tune.timed(toy, CPU, bench)("toy", {"tile": tile}) == rank


def test_works_of_a_shape_count_alike(toy):
    """Times of 1 and 4 ms are 2 ms, not 2.5."""
    times = iter([1.0, 4.0])
    rank = tune.timed(toy, CPU, lambda run: next(times))("toy", {"tile": 1})
    assert rank == pytest.approx((2.0,))


def test_each_batch_size_speaks_for_a_shape(toy):
    works = [
        next(norms(batch, size, 32, (), torch.float32))
        for batch in (4, 2)
        for size in (4, 8)
        for _ in range(2)
    ]
    found = tune.shapes("toy", works)
    assert {shape: [work.batch for work in of_shape] for shape, of_shape in found.items()} == {
        (("channels", 32), ("pixels", 16)): [4, 2],
        (("channels", 32), ("pixels", 64)): [4, 2],
    }


@pytest.mark.parametrize(("ours", "torchs", "faster"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_attention_is_held_against_torch(monkeypatch, ours, torchs, faster):
    took = []

    def costs(ms):
        def attention(qkv, heads):
            took.append(ms)
            return reference.attention(qkv, heads)

        return attention

    def bench(run):
        took.clear()
        run()
        return sum(took)

    monkeypatch.setattr(Work, "fused", lambda self: costs(ours))
    monkeypatch.setattr(Work, "judge", lambda self: costs(torchs))
    assert tune.faster_than_torch(attentions(1, 16, 2, 16, torch.float32), {}, CPU, bench) is faster


def test_a_watcher_within_another_ends_first():
    launch = Launch(KERNEL, (1,), {}, {"tile": 1}, {})
    with watched() as outer:
        with watched() as inner:
            launch.start()
        launch.start()
    assert (len(outer), len(inner)) == (2, 1)


def test_results_that_are_no_numbers_are_wrong():
    assert tune.close(torch.ones(3), torch.ones(3))
    assert not tune.close(torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert not tune.close(torch.ones(2), torch.tensor([1.0, 1.01]))


def test_no_usable_candidate_is_an_error(toy, monkeypatch):
    monkeypatch.setitem(tune.CANDIDATES, "toy", {"tile": (4,)})
    monkeypatch.setattr(tune, "candidates", lambda name, now: [{"tile": 4}, {"tile": 16}])
    with pytest.raises(RuntimeError, match="no candidate"):
        tune.tuned("toy", toy, CPU, bench)


def test_a_forced_config_holds_in_its_block_only(toy):
    with configs.using("toy", {"tile": 1}) as asked:
        assert configs.pick("toy", channels=32, pixels=16) == {"tile": 1}
    assert configs.pick("toy", channels=32, pixels=16) == {"tile": 8}
    assert asked == [{"channels": 32, "pixels": 16}]


def test_candidates_begin_with_the_present_config():
    now = {"queries": 48, "keys": 32, "num_warps": 4, "num_stages": 2}
    tried = tune.candidates("attention_forward", now)
    assert tried[0] == now and all(config.keys() == now.keys() for config in tried)
    assert len(tried) == 1 + len({tuple(config.values()) for config in tried[1:]})
    assert tune.candidates("unheard", now) == [now]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("attention_forward", ["attention_forward_kernel"]),
        ("attention_backward_q", ["attention_backward_q_kernel", "attention_backward_kv_kernel"]),
    ],
)
def test_a_config_is_judged_by_the_pass_that_asks_for_it(name, kernels):
    work = attentions(2, 64, 2, 32, torch.bfloat16)
    config = configs.entries(name)[0]["config"]
    for queries in (16, 32):  # what an earlier start of the same shape planned does not stay
        with configs.using(name, config | {"queries": queries}):
            launches = tune.of_pass(name, work.launches())
        assert [launch.kernel.__name__ for launch in launches] == kernels
        assert launches[0].constants["QUERIES"] == queries


@pytest.mark.parametrize("name", tune.names())
def test_every_file_has_the_same_keys_throughout(name):
    entries = configs.entries(name)
    assert len({frozenset(entry["shape"]) for entry in entries}) == 1
    assert len({frozenset(entry["config"]) - {"faster"} for entry in entries}) == 1
    assert len({tuple(entry["shape"].items()) for entry in entries}) == len(entries), (
        "a shape twice"
    )
    for entry in entries:
        picked = configs.pick(name, **entry["shape"])
        assert picked == entry["config"] and all(
            value > 0 for key, value in picked.items() if key != "faster"
        )


def test_another_width_of_the_type_is_no_neighbour(tmp_path, monkeypatch):
    entries = [
        {"shape": {"tokens": 64, "itemsize": 2}, "config": {"tile": 1}},
        {"shape": {"tokens": 1024, "itemsize": 4}, "config": {"tile": 2}},
    ]
    (tmp_path / "toy.json").write_text(json.dumps({"entries": entries}))
    monkeypatch.setattr(configs, "TUNED", tmp_path)
    assert configs.pick("toy", tokens=64, itemsize=4) == {"tile": 2}
    assert configs.pick("toy", tokens=64, itemsize=8) == {"tile": 1}


@pytest.mark.parametrize(
    ("model", "size"),
    [("ddpm_cifar10", 32), ("ddpm_celeba64", 64), ("ddpm_256", 256), ("improved_cifar10", 32)],
)
def test_the_workloads_have_the_shapes_of_the_networks(model, size):
    seen = set()

    def note(module, _, output):
        C, H, W = output_of(output).shape[1:]
        seen.add(
            ("norm", C, H)
            if isinstance(module, GroupNorm)
            else ("attention", H * W, module.heads, C // module.heads)
        )

    with torch.device("meta"), torch.no_grad():
        section = OmegaConf.to_container(
            OmegaConf.load(CONF / "model" / f"{model}.yaml"), resolve=False
        )
        network = build(section | {"in_channels": 3}, ["models"], "model")
        for module in network.modules():
            if isinstance(module, GroupNorm | Attention):
                module.register_forward_hook(note)
        network(torch.empty(1, 3, size, size), torch.zeros(1, dtype=torch.long), {})
    known = set()
    for work in workloads():
        if work.operation == "attention":
            (_, tokens, width), heads = work.tensors["qkv"][0], work.settings["heads"]
            known.add(("attention", tokens, heads, width // (3 * heads)))
        else:
            image = next(iter(work.tensors.values()))[0]
            known.add(("norm", work.tensors["weight"][0][0], image[2]))
    assert {shape for shape in seen if shape[-1] <= 256 or shape[0] == "norm"} <= known


# The model of an H100


def test_bytes_in_flight_by_hand():
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.b16 { %rs1 }, [ %rd2 + 0 ];
    ld.global.L1::evict_first.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8, %r2;
    ld.param.b64 %rd1, [f_param_0];
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r9];
    cp.async.commit_group;
    """
    assert tune.loaded(ptx) == 16 + 2 + 8 + 16 + 8

    def blocks(registers: int, shared: int, threads: int, grid: int) -> float:
        return tune.in_flight(
            ahead.Resources(registers, 0, shared, threads, "ld.global.b32 %r1, [%rd1];\n"), (grid,)
        ) / (4 * threads)

    assert blocks(64, 0, 128, 10**6) == 8  # 65536 / (64 128)
    assert blocks(16, 0, 128, 10**6) == 16  # 2048 / 128
    assert blocks(16, 0, 32, 10**6) == 32  # no SM has more
    assert blocks(16, 100 * 1024, 32, 10**6) == 2  # 227 / 100
    assert blocks(16, 0, 32, 66) == 0.5  # half of the SMs have one


def test_a_spill_ranks_behind_what_has_fewer_bytes_in_flight(monkeypatch):
    def compiled(launch: Launch, capability: int) -> ahead.Resources:
        wide = launch.constants["QUERIES"] == 128
        return ahead.Resources(
            64,
            8 if wide else 0,
            2**20 if launch.constants["QUERIES"] == 32 else 0,
            128,
            "ld.global.b32 %r1, [%rd1];\n" * (100 if wide else 1),
        )

    monkeypatch.setattr(ahead, "compile_for", compiled)
    name = "attention_forward"
    rank = tune.modelled([attentions(2, 64, 2, 32, torch.bfloat16)])
    config = configs.entries(name)[0]["config"]
    assert rank(name, config | {"queries": 64}) < rank(name, config | {"queries": 128})
    assert rank(name, config | {"queries": 32}) is None  # more shared memory than there is


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["attention_forward"], "--ahead"), (["--ahead", "attention"], "attention_forward")],
)
def test_the_command_says_what_is_wrong(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        tune.main(arguments)
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_file_says_that_nothing_was_timed(toy, monkeypatch):
    monkeypatch.setattr(tune, "modelled", lambda works: lambda name, config: (0, -config["tile"]))
    monkeypatch.setattr(tune, "workloads", lambda: toy)
    tune.main(["--ahead", "--write"])
    written = json.loads((configs.TUNED / "toy.json").read_text())
    assert written["machine"]["device"] == "not timed: compiled ahead of time for sm_90"
    assert {"date", "torch", "triton"} < written["machine"].keys()
    assert [
        entry["config"]["tile"] for entry in written["entries"] if entry["shape"]["channels"] == 32
    ] == [16, 16]
