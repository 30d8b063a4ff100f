"""Settings: defaults, then the file, then --set; every fault is named, none is ignored."""

import errno
import math
import os
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from probcrowd.storage.settings import Settings, differences, read_settings, read_written, write_settings


class Network(Settings):
    width: int = Field(64, gt=0)
    rates: tuple[float, ...] = (0.1,)


class Train(Settings):
    steps: int = 100
    shots: tuple[int, ...] = (1,)
    out: Path = Path("runs/x")
    name: str = "run"
    best: float = math.inf
    kind: Literal["em", "nuts"] = "em"
    shuffle: bool = True
    seed: int | None = None
    network: Network = Network()

    @model_validator(mode="after")
    def _short(self):
        if self.steps > 10_000 and self.network.width > 100:
            raise ValueError("10000 steps are too many for this width")
        return self


class Data(Settings):
    path: Path


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_later_source_wins(tmp_path):
    path = written(tmp_path, 'steps = 7\nname = "file"\n[network]\nwidth = 8\n')
    assert read_settings(Train, None) == Train()
    assert read_settings(Train, path) == Train(steps=7, name="file", network=Network(width=8))
    both = read_settings(Train, path, ["steps=9", "network.rates=[1, 0.5]", "steps=10"])
    assert both == Train(steps=10, name="file", network=Network(width=8, rates=(1.0, 0.5)))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("out=runs/a", "out", Path("runs/a")),
        ("steps=100", "steps", 100),
        ("steps = 1_000 ", "steps", 1000),
        ("shots=[1,3]", "shots", (1, 3)),
        ('name="5"', "name", "5"),
        ("name=a = b", "name", "a = b"),
        ("name=", "name", ""),
        ("name=a\nsteps = 1", "name", "a\nsteps = 1"),
        ('name="a"\nsteps = 1', "name", '"a"\nsteps = 1'),
        ("best=-inf", "best", -math.inf),
        ("shuffle=false", "shuffle", False),
        ("seed=3", "seed", 3),
        ("name=2026-01-31", "name", "2026-01-31"),
        ("name=" + "[" * 5000, "name", "[" * 5000),
    ],
)
def test_an_override_is_a_toml_value_or_else_plain_text(override, key, value):
    got = read_settings(Train, None, [override])
    assert getattr(got, key) == value and type(getattr(got, key)) is type(value)
    assert got.model_copy(update={key: getattr(Train(), key)}) == Train()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps='5'", r"steps: got '5', needs a valid integer \(in --set\)"),
        ("steps=true", "steps: got True, needs a valid integer"),
        ("steps=2.5", "steps: got 2.5, needs a valid integer"),
        ("shuffle=1", "shuffle: got 1, needs a valid boolean"),
        ("name=5", "name: got 5, needs a valid string"),
        ("kind=vb", "kind: got 'vb', needs 'em' or 'nuts'"),
        ("shots=[1,'a']", r"shots\.1: got 'a', needs a valid integer \(in --set\)"),
        ("network.width=0", r"network\.width: got 0, needs greater than 0"),
        ("network=3", "network: got 3, needs an object"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_needed(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(Train, None, [override])
    assert type(caught.value) is ValueError


def test_all_faults_are_listed_at_once_with_their_sources(tmp_path):
    path = written(tmp_path, 'stepps = 1\nshuffle = "yes"\n[network]\nwidht = 8\n')
    with pytest.raises(ValueError) as caught:
        read_settings(
            Train, path, ["best=low", "sede=1", "shots=[1, 'a']", "network.rate=[1]", "network.zzzzzz=1"]
        )
    known = "best, kind, name, network, network.rates, network.width, out, seed, shots, shuffle, steps"
    assert sorted(str(caught.value).splitlines()[1:]) == sorted(
        [
            f"  stepps: unknown key; did you mean 'steps'? (in {path})",
            f"  shuffle: got 'yes', needs a valid boolean (in {path})",
            f"  network.widht: unknown key; did you mean 'network.width'? (in {path})",
            "  shots.1: got 'a', needs a valid integer (in --set)",
            "  best: got 'low', needs a valid number (in --set)",
            "  sede: unknown key; did you mean 'seed'? (in --set)",
            "  network.rate: unknown key; did you mean 'network.rates'? (in --set)",
            f"  network.zzzzzz: unknown key; known: {known} (in --set)",
        ]
    )


def test_a_key_in_the_wrong_section_is_found_by_its_last_part():
    with pytest.raises(ValueError, match=r"widht: unknown key; did you mean 'network\.width'\?"):
        read_settings(Train, None, ["widht=3"])
    with pytest.raises(ValueError, match=r"sectoin: unknown key; known: .* \(in --set\)"):
        read_settings(Train, None, ["sectoin.width=3"])


def test_of_two_keys_with_one_name_the_one_in_the_same_section_is_proposed():
    class Two(Settings):
        first: Network = Network()
        second: Network = Network()

    for section in ("first", "second"):
        with pytest.raises(
            ValueError, match=rf"{section}\.widht: unknown key; did you mean '{section}\.width'\?"
        ):
            read_settings(Two, None, [f"{section}.widht=3"])


def test_a_rule_over_several_values_is_reported_as_it_is_written():
    with pytest.raises(ValueError, match="10000 steps are too many for this width"):
        read_settings(Train, None, ["steps=10001", "network.width=101"])


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"path: got nothing, needs a value \(in --set\)"):
        read_settings(Data, None)


@pytest.mark.parametrize("override", ["steps", "=3", ".steps=3", "network.=3", "network..width=3", ""])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(ValueError, match=rf"--set '{override}': needs key=value or section\.key=value"):
        read_settings(Train, None, [override])


def test_a_value_cannot_hold_keys(tmp_path):
    with pytest.raises(ValueError, match=r"--set 'steps\.x=1': 'steps' is 5, not a table"):
        read_settings(Train, written(tmp_path, "steps = 5"), ["steps.x=1"])
    with pytest.raises(ValueError, match=r"steps: got {'x': 1}, needs a valid integer \(in --set\)"):
        read_settings(Train, None, ["steps.x=1"])


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read the settings file .*/none.toml: No such file"):
        read_settings(Train, tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot read the settings file .*: Is a directory"):
        read_settings(Train, tmp_path)
    with pytest.raises(ValueError, match=r"/run.toml is not valid TOML: .*at line 2, column 8"):
        read_settings(Train, written(tmp_path, "steps = 1\nname = a\n"))
    with pytest.raises(ValueError, match=r"/run.toml is not valid TOML: .*recursion"):
        read_settings(Train, written(tmp_path, "shots = " + "[" * 5000))
    (tmp_path / "run.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ValueError, match=r"/run.toml is not valid TOML: .*decode byte 0xff"):
        read_settings(Train, tmp_path / "run.toml")


def test_records_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Train().steps = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Train(stepps=3)  # pyright: ignore[reportCallIssue]


def test_written_settings_come_back(tmp_path):
    settings = Train(
        best=-math.inf, shots=(1, 5), out=Path("a b/é"), network=Network(rates=(0.1, 1 / 3)), seed=2
    )
    write_settings(settings, tmp_path / "config.json")
    assert read_written(Train, tmp_path / "config.json") == settings
    assert '\n  "steps": 100,\n' in (tmp_path / "config.json").read_text()
    assert os.listdir(tmp_path) == ["config.json"]


def test_writing_fails_whole(tmp_path, monkeypatch):
    write_settings(Train(), tmp_path / "config.json")

    def full(*args: object):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_settings(Train(steps=1), tmp_path / "config.json")
    assert read_written(Train, tmp_path / "config.json") == Train()
    assert os.listdir(tmp_path) == ["config.json"]


def test_written_settings_of_another_kind_or_damaged_are_refused(tmp_path):
    write_settings(Train(), tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"width: got nothing|steps: unknown key.*config.json"):
        read_written(Network, tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"steps": 1')
    with pytest.raises(
        ValueError, match=r"settings: .*Invalid JSON: EOF while parsing an object.*config.json"
    ):
        read_written(Train, tmp_path / "config.json")


def test_differences_are_lines_old_to_new():
    old = Train(steps=1, best=math.nan)
    assert differences(old, Train(steps=1, best=math.nan)) == []
    assert differences(
        old, Train(steps=2, best=math.nan, shots=(1, 3), seed=4, network=Network(width=2))
    ) == [
        "steps: 1 -> 2",
        "shots: [1] -> [1, 3]",
        "seed: null -> 4",
        "network.width: 64 -> 2",
    ]
