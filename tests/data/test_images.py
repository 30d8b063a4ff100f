"""Items by class: digits, splits that keep groups together, warps, the user's file, the image folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from probcrowd.data.image_sets import load_classes
from probcrowd.data.images import ClassItems, augment_classes, select_classes, split_classes


@pytest.fixture(scope="module")
def digits() -> ClassItems:
    return load_classes("digits")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixel_sums(classes: ClassItems) -> dict[str, int]:
    """The sum of all pixels of each class, by name."""
    per_item = classes.inputs.long().flatten(1).sum(1)
    sums = torch.zeros(len(classes.names), dtype=torch.long).index_add(0, classes.label, per_item)
    return dict(zip(classes.names, sums.tolist(), strict=True))


def saved(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "items.npz"
    np.savez(path, **arrays)
    return str(path)


def test_digits_are_1797_byte_images_of_ten_classes(digits: ClassItems) -> None:
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(return_X_y=True)
    assert digits.inputs.shape == (1797, 1, 8, 8) and digits.inputs.dtype == torch.uint8
    assert digits.input_shape == (1, 8, 8) and digits.scale == 255
    assert digits.names == tuple("0123456789")
    assert torch.equal(digits.label, torch.from_numpy(truth))
    # 0..16 stretched to 0..255, the image kept upright
    assert int(digits.inputs.max()) == 255
    assert float((digits.inputs.flatten(1).double() - torch.from_numpy(pixels) * 255 / 16).abs().max()) < 1


def test_splits_are_disjoint_and_of_the_given_sizes(digits: ClassItems) -> None:
    parts = split_classes(digits, [5, 2, 3], seeded())
    assert [len(part.names) for part in parts] == [5, 2, 3]
    assert sorted(name for part in parts for name in part.names) == list(digits.names)
    sums = pixel_sums(digits)
    for part in parts:
        assert pixel_sums(part) == {name: sums[name] for name in part.names}
    assert sum(len(part.inputs) for part in parts) == 1797


def test_splits_depend_on_the_generator_alone(digits: ClassItems) -> None:
    def names(seed: int) -> list[tuple[str, ...]]:
        return [part.names for part in split_classes(digits, [6, 4], seeded(seed))]

    assert names(3) == names(3)
    assert len({str(names(seed)) for seed in range(20)}) > 10


@pytest.mark.parametrize("sizes", [[6, 2, 2], [5, 5], [8, 1, 1], [4, 3, 3]])
def test_six_and_nine_are_always_in_the_same_part(digits: ClassItems, sizes: list[int]) -> None:
    homes = set()
    for seed in range(100):
        parts = split_classes(digits, sizes, seeded(seed))
        assert [len(part.names) for part in parts] == sizes
        home = [index for index, part in enumerate(parts) if "6" in part.names]
        assert home == [index for index, part in enumerate(parts) if "9" in part.names]
        homes.update(home)
    assert homes == {
        index for index, size in enumerate(sizes) if size >= 2
    }  # chance puts them in any part with room


def test_every_class_lands_in_every_part_of_a_split(digits: ClassItems) -> None:
    seen = [set(), set(), set()]
    for seed in range(100):
        for found, part in zip(seen, split_classes(digits, [4, 3, 3], seeded(seed)), strict=True):
            found.update(part.names)
    assert seen == [set(digits.names)] * 3


@pytest.mark.parametrize(
    ("sizes", "shown"), [([1] * 10, r"\[1, 1, 1, 1, 1, 1, 1, 1, 1, 1\]"), ([8, 3], r"\[8, 3\]")]
)
def test_an_impossible_split_is_refused_with_the_numbers(
    digits: ClassItems, sizes: list[int], shown: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"10 classes in 9 inseparable groups cannot be split into {shown} classes"
    ):
        split_classes(digits, sizes, seeded())


def test_select_keeps_the_images_of_the_chosen_classes_in_the_given_order(digits: ClassItems) -> None:
    chosen = select_classes(digits, [7, 0, 9])
    assert chosen.names == ("7", "0", "9")
    sums = pixel_sums(digits)
    assert pixel_sums(chosen) == {name: sums[name] for name in ("7", "0", "9")}
    for position, label in enumerate([7, 0, 9]):
        assert torch.equal(chosen.inputs[chosen.label == position], digits.inputs[digits.label == label])


def test_select_keeps_families_and_groups_together(digits: ClassItems) -> None:
    grouped = replace(digits, family=torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]))
    chosen = select_classes(grouped, [9, 5, 4, 6, 0])
    family, group = chosen.family, chosen.group
    expected = torch.tensor([4, 0, 4, 1, 0])
    assert torch.equal(family[:, None] == family, expected[:, None] == expected)
    assert torch.equal(
        group[:, None] == group, digits.group[[9, 5, 4, 6, 0]][:, None] == digits.group[[9, 5, 4, 6, 0]]
    )
    assert int(family.max()) == 2 and int(group.max()) == 3  # numbered from 0 without gaps


def test_warped_copies_follow_the_unchanged_originals_as_new_classes(digits: ClassItems) -> None:
    few = select_classes(digits, [6, 9, 3])
    more = augment_classes(few, 2, seeded())
    n = len(few.inputs)
    assert torch.equal(more.inputs[:n], few.inputs) and torch.equal(more.label[:n], few.label)
    assert more.names == ("6", "9", "3", "6~1", "9~1", "3~1", "6~2", "9~2", "3~2")
    assert torch.equal(more.label, torch.cat([few.label, few.label + 3, few.label + 6]))
    assert more.inputs.shape == (3 * n, 1, 8, 8) and more.inputs.dtype == torch.uint8
    assert torch.equal(more.group, few.group.repeat(3))
    assert len(set(more.family.tolist())) == 9
    assert not torch.equal(more.inputs[n : 2 * n], few.inputs)


def test_warps_stay_in_the_part_of_their_class(digits: ClassItems) -> None:
    for part in split_classes(
        augment_classes(select_classes(digits, [1, 6, 9, 3]), 1, seeded()), [4, 2, 2], seeded(1)
    ):
        origins = {name.split("~")[0] for name in part.names}
        assert len(part.names) == 2 * len(origins) and ("6" in origins) == ("9" in origins)


def test_all_images_of_a_copy_are_warped_alike_and_two_copies_differently(digits: ClassItems) -> None:
    one = digits.inputs[:1]
    twins = ClassItems(
        one.expand(6, -1, -1, -1),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.arange(2),
        torch.arange(2),
        ("a", "b"),
    )
    more = augment_classes(twins, 3, seeded())

    def same(left: Tensor, right: Tensor) -> bool:
        return torch.equal(left, right)

    copies = [more.inputs[more.label == label] for label in range(8)]
    for images in copies:
        assert all(same(image, images[0]) for image in images)
    for copy in range(4):
        for other in range(copy):
            assert not same(copies[2 * copy][0], copies[2 * other][0])


def test_warps_depend_on_the_generator_alone(digits: ClassItems) -> None:
    few = select_classes(digits, [0, 1])
    first, again, other = (augment_classes(few, 1, seeded(seed)).inputs for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_warp_of_a_large_image_keeps_it_recognisable() -> None:
    # A bright square on black: under every rotation, shear and shift most of it stays in the image
    image = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    image[..., 16:48, 16:48] = 200
    square = ClassItems(image, torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), ("square",))
    warped = augment_classes(square, 200, seeded()).inputs[1:].double().mean((1, 2, 3))
    assert float((warped > 10).double().mean()) > 0.95  # 50 before the warp
    assert 25 < float(warped.median()) < 100


@pytest.mark.parametrize("inputs", [torch.zeros(4, 3), torch.zeros(4, 1, 8, 8)])
def test_only_images_can_be_warped(inputs: Tensor) -> None:
    items = ClassItems(inputs, torch.tensor([0, 0, 1, 1]), torch.arange(2), torch.arange(2), ("a", "b"))
    with pytest.raises(ValueError, match=r"only images.*the inputs have shape \(.*\): set augment = 0"):
        augment_classes(items, 1, seeded())


def test_a_file_of_byte_images_is_read_as_pixels(tmp_path: Path) -> None:
    images = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    read = load_classes(saved(tmp_path, inputs=images, labels=np.array(["cat", "ant", "cat", "bee"])))
    assert read.inputs.dtype == torch.uint8 and read.scale == 255 and read.input_shape == (3, 2, 2)
    assert torch.equal(read.inputs, torch.from_numpy(images))
    assert read.names == ("ant", "bee", "cat") and read.label.tolist() == [2, 0, 2, 1]
    assert read.family.tolist() == read.group.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_a_file_of_vectors_is_read_as_numbers(tmp_path: Path, dtype: type) -> None:
    vectors = np.array([[0, 1], [1, 1], [1, 0]], dtype=dtype)
    read = load_classes(saved(tmp_path, inputs=vectors, labels=np.array([7, 5, 7])))
    assert read.inputs.dtype == torch.float32 and read.scale == 1 and read.input_shape == (2,)
    assert read.inputs.tolist() == vectors.astype(float).tolist()
    assert read.names == ("5", "7") and read.label.tolist() == [1, 0, 1]


def test_a_file_without_the_arrays_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"items\.npz holds the arrays \['images', 'labels'\], needs 'inputs'"
    ):
        load_classes(saved(tmp_path, images=np.zeros((2, 3)), labels=np.zeros(2)))


@pytest.mark.parametrize(
    ("inputs", "labels", "shown"),
    [
        (np.zeros((3, 2)), np.zeros(2), r"shape \(3, 2\) and labels \(2,\)"),
        (np.zeros((3, 2)), np.zeros((3, 1)), r"shape \(3, 2\) and labels \(3, 1\)"),
        (np.zeros(3), np.zeros(3), r"shape \(3,\) and labels \(3,\)"),
    ],
)
def test_arrays_that_do_not_match_are_refused_with_their_shapes(
    tmp_path: Path, inputs: np.ndarray, labels: np.ndarray, shown: str
) -> None:
    with pytest.raises(ValueError, match=rf"items\.npz: inputs have {shown}; needs \(n, \.\.\.\) and \(n,\)"):
        load_classes(saved(tmp_path, inputs=inputs, labels=labels))


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    inputs = np.zeros((9, 2, 2))
    inputs[[1, 4, 4, 7], [0, 0, 1, 1], 0] = [np.nan, np.inf, -np.inf, np.nan]
    with pytest.raises(
        ValueError, match=r"items\.npz: inputs hold NaN or infinite values, in rows \[1, 4, 7\]"
    ):
        load_classes(saved(tmp_path, inputs=inputs, labels=np.arange(9)))


def test_missing_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label"):
        load_classes(saved(tmp_path, inputs=np.zeros((3, 2)), labels=np.array([0.0, np.nan, 1.0])))


@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    arrays = {"inputs": np.zeros((1, 1)), "labels": np.array([0])}
    trap = np.empty((1, 1) if name == "inputs" else 1, dtype=object)
    trap[0] = Trap()
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_classes(saved(tmp_path, **(arrays | {name: trap})))
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.npz"):
        load_classes(str(tmp_path / "nothing.npz"))


def test_an_unknown_name_is_refused_with_the_choice() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown data set \(or path of a .npz file\) 'mnist': choose one of digits, labelme, ",
    ):
        load_classes("mnist")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("omniglot", "omniglot28"), ("olivetti", "olivetti_faces"), ("tiny-imagenet", "tiny_imagenet_fewshot")],
)
def test_image_sets_say_which_variable_or_folder_they_miss(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PROBCROWD_DATA", raising=False)
    with pytest.raises(ValueError, match=f"{folder}.*: set PROBCROWD_DATA to the folder above it"):
        load_classes(name)
    monkeypatch.setenv("PROBCROWD_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"PROBCROWD_DATA has no folder '{folder}'"):
        load_classes(name)


@pytest.mark.skipif(
    not os.environ.get("PROBCROWD_DATA"), reason="PROBCROWD_DATA is not set: no image folder to read"
)
@pytest.mark.parametrize(
    ("name", "num_classes", "per_class", "shape"),
    [
        ("omniglot", 964, 20, (1, 28, 28)),
        ("olivetti", 40, 10, (1, 64, 64)),
        ("tiny-imagenet", 200, 60, (3, 64, 64)),
    ],
)
def test_image_sets_have_their_published_sizes(
    name: str, num_classes: int, per_class: int, shape: tuple[int, ...]
) -> None:
    images = load_classes(name)
    assert torch.equal(torch.bincount(images.label), torch.full((num_classes,), per_class))
    assert images.input_shape == shape and images.inputs.dtype == torch.uint8
    assert len(set(images.names)) == num_classes
    assert float(images.inputs.float().std()) > 10  # bytes from 0 to 255, not 0 and 1
