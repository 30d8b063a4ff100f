"""A checkpoint is whole or not there, says when it is damaged, and puts training back bit for bit."""

import dataclasses
import errno
import io
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch

from probcrowd.storage import checkpoint
from probcrowd.storage.checkpoint import (
    CURRENT,
    PREVIOUS,
    Checkpoint,
    load_checkpoint,
    load_latest,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
    save_latest,
)
from probcrowd.storage.files import PARTIAL, write_atomically


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


# ---- one file


def test_tensors_and_state_come_back_as_they_were(tmp_path):
    grid = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    tensors = {
        "transposed": grid.T,  # not contiguous
        "shares memory": grid,
        "learned": torch.ones(2, requires_grad=True),
        "nan and -0": torch.tensor([math.nan, -0.0, math.inf]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "counter": torch.tensor(2**62, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
    }
    state = {
        "best": math.inf,
        "low": -math.inf,
        "lost": math.nan,
        "third": 1 / 3,
        "big": 2**100,
        "on": True,
        "text": "é\n'",
        "deep": {"a": [1, None]},
    }
    save_checkpoint(tmp_path / "a", tensors, state)
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.tensors.keys() == tensors.keys()
    assert all(same_bits(loaded.tensors[name], tensors[name].detach().contiguous()) for name in tensors)
    assert repr(loaded.state) == repr(state)
    assert math.isnan(loaded.state["lost"]) and loaded.state["on"] is True


def test_what_was_loaded_does_not_hang_on_the_file(tmp_path):
    save_checkpoint(tmp_path / "a", {"x": torch.ones(4096)}, {})
    loaded = load_checkpoint(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as file:
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert loaded.tensors["x"].eq(1).all()


def test_a_checkpoint_is_read_only(tmp_path):
    save_checkpoint(tmp_path / "a", {}, {"step": 1})
    loaded = load_checkpoint(tmp_path / "a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.state = {"step": 2}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"deep": {"pair": (1, 2)}}, r"use lists.*not tuples"),
        ({"deep": {1: "a"}}, "string keys"),
        ({"rate": torch.ones(1)}, "plain JSON: Object of type Tensor"),
        ({"rate": {1, 2}}, "plain JSON: Object of type set"),
    ],
)
def test_a_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path, state, message):
    save_checkpoint(tmp_path / "a", {}, {"step": 1})
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "a", {}, state)
    assert load_checkpoint(tmp_path / "a").state == {"step": 1}
    assert os.listdir(tmp_path) == ["a"]


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a"
    save_checkpoint(path, {"w": torch.arange(3.0), "n": torch.tensor(7)}, {"step": 3, "best": 0.5})
    good, whole = path.read_bytes(), load_checkpoint(path)
    noticed = 0
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            noticed += 1
        else:  # another spelling of the same content, such as a digit of an escape
            assert loaded.state == whole.state and all(
                same_bits(loaded.tensors[name], whole.tensors[name]) for name in whole.tensors
            )
    assert noticed > 7.9 * len(good)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a"
    save_checkpoint(path, {"w": torch.arange(3.0)}, {"step": 3})
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"/a is damaged.*delete it and use another copy"):
            load_checkpoint(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint .*/nowhere.safetensors: give the path"):
        load_checkpoint(tmp_path / "nowhere.safetensors")


def test_other_formats_and_versions_are_refused(tmp_path, monkeypatch):
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(
        ValueError,
        match=r"/foreign holds \(None, None\), not \('probcrowd checkpoint', '1'\): give a checkpoint",
    ):
        load_checkpoint(tmp_path / "foreign")
    torch.save({"x": 1}, tmp_path / "pickle")  # never unpickled
    with pytest.raises(ValueError, match="/pickle is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "pickle")
    monkeypatch.setattr(checkpoint, "VERSION", "2")
    save_checkpoint(tmp_path / "newer", {}, {})
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"\('probcrowd checkpoint', '2'\), not .*'1'\): .*with the probcrowd that wrote it"
    ):
        load_checkpoint(tmp_path / "newer")


# ---- full disks and folders that cannot be written


def refuse(code: int):
    def fail(*args: object, **kwargs: object):
        raise OSError(code, os.strerror(code))

    return fail


class FullDisk(io.FileIO):
    """Takes half of what it is given, and then there is no space."""

    def write(self, data):
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("save", [save_checkpoint, save_latest])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment, save):
    where = tmp_path if save is save_latest else tmp_path / CURRENT
    save(where, {"x": torch.ones(2)}, {"step": 1})
    old = (tmp_path / CURRENT).read_bytes()
    if moment == "open":
        monkeypatch.setattr(Path, "open", refuse(errno.EROFS))
    elif moment == "write":
        monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    else:
        monkeypatch.setattr(os, moment, refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="Read-only" if moment == "open" else "No space left"):
        save(where, {"x": torch.zeros(2)}, {"step": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [CURRENT]
    assert (tmp_path / CURRENT).read_bytes() == old


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_from_the_keyboard_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*args: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "a", b"x")
    assert events[0].endswith(PARTIAL) and Path(events[0]).parent == tmp_path
    assert events[1:] == ["replace", str(tmp_path)]
    assert (tmp_path / "a").read_bytes() == b"x"


# ---- the current and the previous checkpoint


def save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        save_latest(folder, {"x": torch.full((3,), float(step))}, {"step": step})


def test_the_newest_checkpoint_is_found_and_the_one_before_it_kept(tmp_path):
    assert load_latest(tmp_path) is None
    for step in range(3):
        save_steps(tmp_path, step)
        found = load_latest(tmp_path)
        assert (
            isinstance(found, Checkpoint)
            and found.state == {"step": step}
            and found.tensors["x"].eq(step).all()
        )
    assert load_checkpoint(tmp_path / PREVIOUS).state == {"step": 1}
    assert sorted(os.listdir(tmp_path)) == [PREVIOUS, CURRENT]


def test_a_damaged_checkpoint_gives_way_to_the_previous_one_and_says_so(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / CURRENT).write_bytes(b"damaged")
    with pytest.warns(
        UserWarning, match=rf"going back to the previous checkpoint .*{PREVIOUS}: .*/{CURRENT} is damaged"
    ):
        found = load_latest(tmp_path)
    assert found is not None and found.state == {"step": 1}
    (tmp_path / CURRENT).unlink()  # killed between the two renames: no error and no warning
    found = load_latest(tmp_path)
    assert found is not None and found.state == {"step": 1}


def test_two_damaged_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / CURRENT).write_bytes(b"damaged")
    (tmp_path / PREVIOUS).write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=rf"no usable checkpoint: .*/{CURRENT} is damaged.*; .*/{PREVIOUS} is damaged"
    ):
        load_latest(tmp_path)


def test_a_damaged_checkpoint_does_not_displace_a_good_previous_one(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / CURRENT).write_bytes(b"damaged")
    save_steps(tmp_path, 3)
    assert load_checkpoint(tmp_path / PREVIOUS).state == {"step": 1}
    assert load_checkpoint(tmp_path / CURRENT).state == {"step": 3}


def test_after_every_single_file_operation_some_checkpoint_is_whole(tmp_path, monkeypatch):
    """The deterministic half of the kill test: look at the folder before and after each rename."""
    seen = []
    replace = os.replace

    def watched(a, b):
        seen.append(load_latest(tmp_path).state["step"])  # pyright: ignore[reportOptionalMemberAccess]
        replace(a, b)
        seen.append(load_latest(tmp_path).state["step"])  # pyright: ignore[reportOptionalMemberAccess]

    save_steps(tmp_path, 1, 2)
    monkeypatch.setattr(os, "replace", watched)
    save_steps(tmp_path, 3)
    assert seen == [2, 2, 2, 3]


KILLS = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from probcrowd.storage.checkpoint import load_latest, save_latest

    torch.set_num_threads(1)
    folder, chance, rounds = Path(sys.argv[1]), random.Random(0), []
    for _ in range(10):
        start = load_latest(folder).state["step"] if rounds else 0
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            step = start
            while True:
                step += 1
                tensors = {"x": torch.full((50_000,), step), "y": torch.full((7,), float(step))}
                save_latest(folder, tensors, {"step": step})
                os.write(writer, b"%d\\n" % step)
        os.close(writer)
        acknowledged = int(os.read(reader, 1000).split()[-1])  # killed only after a first save
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := os.read(reader, 100_000):
            acknowledged = int(data.split()[-1])
        os.close(reader)
        found = load_latest(folder)
        agree = len(found.tensors) == 2
        agree &= all(bool(value.eq(found.state["step"]).all()) for value in found.tensors.values())
        rounds.append({"acknowledged": acknowledged, "found": found.state["step"], "agree": agree})
    print(json.dumps(rounds))
"""


def test_a_kill_at_any_moment_loses_no_acknowledged_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(KILLS), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(checkpoint.__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == 10
    for row in rounds:
        assert row["agree"]
        assert row["acknowledged"] <= row["found"] <= row["acknowledged"] + 1
    assert rounds[-1]["found"] > 20  # the kills did interrupt work


# ---- modules


class Net(torch.nn.Module):
    def __init__(self, seed: int, width: int = 4) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            torch.nn.Linear(3, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Linear(width, 2),
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).tanh())


def test_a_module_comes_back_with_its_buffers(tmp_path):
    net, other = Net(0), Net(1)
    net(torch.randn(5, 3, generator=torch.Generator().manual_seed(2)))  # moves the batch statistics
    taken = module_tensors(net, "net")
    assert taken["net/norm.num_batches_tracked"].dtype == torch.int64
    save_checkpoint(tmp_path / "a", {**taken, "network/x": torch.ones(1), "y": torch.ones(1)}, {})
    load_module(other, load_checkpoint(tmp_path / "a").tensors, "net")
    assert all(same_bits(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert other.state_dict()["norm.num_batches_tracked"] == 1
    bare = module_tensors(net, "")
    assert bare.keys() == net.state_dict().keys()
    load_module(Net(3), bare, "")


def test_what_was_taken_from_a_module_does_not_change_with_it():
    net = Net(0)
    taken = module_tensors(net, "net")
    before = {key: value.clone() for key, value in taken.items()}
    with torch.no_grad():
        net.first.weight.zero_()
    assert all(same_bits(taken[key], before[key]) for key in taken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("net/norm.running_mean"),
            r"norm.running_mean: saved None, here torch.float32 \[4\]",
        ),
        (
            lambda tensors: tensors.update({"net/new": torch.ones(2)}),
            r"new: saved torch.float32 \[2\], here None",
        ),
        (
            lambda tensors: tensors.update({"net/last.bias": torch.ones(3)}),
            r"last.bias: saved torch.float32 \[3\], here torch.float32 \[2\]",
        ),
        (
            lambda tensors: tensors.update({"net/last.bias": torch.ones(2).double()}),
            r"last.bias: saved torch.float64 \[2\], here torch.float32",
        ),
    ],
)
def test_a_module_refuses_what_does_not_fit_and_stays_as_it_was(change, message):
    net = Net(0)
    tensors = module_tensors(Net(1), "net")
    change(tensors)
    with pytest.raises(ValueError, match=message):
        load_module(net, tensors, "net")
    assert all(same_bits(value, Net(0).state_dict()[key]) for key, value in net.state_dict().items())


# ---- optimizers


class Slowing(torch.optim.Optimizer):
    """Counts its steps in plain numbers, as optimizers outside torch do."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
            parameter -= 0.1 / self.state[parameter]["count"] * parameter.grad


OPTIMIZERS = {
    "numbers": Slowing,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.03, betas=(0.8, 0.95)),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.03, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.03),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.03),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.03),
}


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(net.parameters()).dtype
    for step in steps:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_saved_and_five_more_are_ten_bit_for_bit(tmp_path, name, before, dtype):
    straight, net, resumed = (Net(seed).to(dtype) for seed in (0, 0, 1))
    optimizers = [OPTIMIZERS[name](module.parameters()) for module in (straight, net, resumed)]
    train(straight, optimizers[0], range(10))
    train(net, optimizers[1], range(before))
    tensors, state = optimizer_tensors(optimizers[1], "optimizer")
    save_checkpoint(tmp_path / "a", {**module_tensors(net, "net"), **tensors}, {"optimizer": state})

    loaded = load_checkpoint(tmp_path / "a")
    kept = {key: value.clone() for key, value in loaded.tensors.items()}
    for group in optimizers[2].param_groups:
        group["lr"] = 9.0  # to be restored
    load_module(resumed, loaded.tensors, "net")
    load_optimizer(optimizers[2], loaded.tensors, loaded.state["optimizer"], "optimizer")
    assert optimizers[2].param_groups[0].get("betas") == optimizers[1].param_groups[0].get(
        "betas"
    )  # a tuple again
    assert "foreach" not in optimizers[1].param_groups[0] or optimizers[2].param_groups[0]["foreach"] is None
    train(resumed, optimizers[2], range(before, 10))

    assert all(same_bits(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())
    again, state_again = optimizer_tensors(optimizers[2], "optimizer")
    expected, state_expected = optimizer_tensors(optimizers[0], "optimizer")
    assert again.keys() == expected.keys() and all(same_bits(again[key], expected[key]) for key in expected)
    assert state_again == state_expected
    assert all(
        same_bits(loaded.tensors[key], kept[key]) for key in kept
    )  # training on left the checkpoint alone


def test_groups_keep_their_own_options():
    def two_groups(net: Net) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [{"params": net.first.parameters(), "lr": 0.5}, {"params": net.last.parameters()}], lr=0.1
        )

    first, second = two_groups(Net(0)), two_groups(Net(1))
    first.param_groups[0]["lr"] = 0.25  # as a schedule would
    tensors, state = optimizer_tensors(first, "optimizer")
    load_optimizer(second, tensors, json.loads(json.dumps(state)), "optimizer")
    assert [group["lr"] for group in second.param_groups] == [0.25, 0.1]
    assert [len(group["params"]) for group in second.param_groups] == [2, 2]


def test_an_optimizer_refuses_what_does_not_fit_and_stays_as_it_was():
    net = Net(0)
    adam = OPTIMIZERS["adam"](net.parameters())
    train(net, adam, range(2))
    tensors, state = optimizer_tensors(adam, "optimizer")
    fresh = OPTIMIZERS["adam"](Net(0).parameters())
    with pytest.raises(ValueError, match="kind: saved Adam, here SGD"):
        load_optimizer(OPTIMIZERS["plain"](Net(0).parameters()), tensors, state, "optimizer")
    with pytest.raises(ValueError, match=r"parameters: saved .*float32 \[4, 3\].*, here .*float32 \[5, 3\]"):
        load_optimizer(OPTIMIZERS["adam"](Net(0, width=5).parameters()), tensors, state, "optimizer")
    with pytest.raises(ValueError, match=r"tensors: saved .*0/exp_avg.*, here \[\]"):
        load_optimizer(fresh, tensors, state, "optimiser")
    assert fresh.state_dict()["state"] == {}


def test_an_optimizer_whose_state_is_no_tensor_or_number_is_refused_when_saved(tmp_path):
    net = Net(0)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=5)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = net(torch.ones(4, 3)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    tensors, state = optimizer_tensors(optimizer, "optimizer")
    with pytest.raises(ValueError, match="plain JSON: Object of type Tensor"):
        save_checkpoint(tmp_path / "a", tensors, {"optimizer": state})
