"""Image folders: preprocessing read from the model, labels read from the folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from forgetkit.data.sources import first_inputs
from forgetkit.errors import DataError
from forgetkit.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    example_input,
    preprocessing_of,
    read_folder,
)

PLAIN = Preprocessing((4, 4), (0.5,) * 3, (0.25,) * 3, 1.0, "the test")


def grey_images(root: Path, *names: str, count: int = 2, value: int = 255) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (8, 6), value).save(root / name / f"{number}.png")


def test_an_image_is_resized_and_normalised(tmp_path: Path) -> None:
    grey_images(tmp_path, "0", "1")
    image, label = read_folder(tmp_path, PLAIN, 2).train[2]
    assert image.shape == (3, 4, 4)
    assert torch.allclose(image, torch.full((3, 4, 4), 2.0))
    assert label == 1


def test_one_channel_stays_one_channel(tmp_path: Path) -> None:
    grey_images(tmp_path, "0", value=51)
    one = Preprocessing((4, 4), (0.1,), (0.1,), 1.0, "the test")
    image, _ = read_folder(tmp_path, one, 1).train[0]
    assert image.shape == (1, 4, 4)
    assert torch.allclose(image, torch.ones(1, 4, 4))


def test_a_crop_keeps_the_middle(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (2, 2, 6, 6))
    image.save(tmp_path / "0" / "a.png")
    cropped = Preprocessing((4, 4), (0.0,), (1.0,), 0.5, "the test")
    whole = Preprocessing((4, 4), (0.0,), (1.0,), 1.0, "the test")
    assert read_folder(tmp_path, cropped, 1).train[0][0].mean() == 1
    assert 0.1 < read_folder(tmp_path, whole, 1).train[0][0].mean() < 0.5


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_train_and_test_are_told_apart(tmp_path: Path, test_name: str) -> None:
    grey_images(tmp_path / "train", "cat", "dog", count=3)
    grey_images(tmp_path / test_name, "dog", count=1)
    found = read_folder(tmp_path, PLAIN, 2)
    assert len(found.train) == 6
    assert found.test is not None
    assert found.test.targets == [1]
    assert found.classes == ["cat", "dog"]


def test_a_plain_folder_has_no_test_images(tmp_path: Path) -> None:
    grey_images(tmp_path, "cat", "dog")
    assert read_folder(tmp_path, PLAIN, 2).test is None


def test_numbers_are_labels_not_places(tmp_path: Path) -> None:
    grey_images(tmp_path, "2", "10")
    found = read_folder(tmp_path, PLAIN, 12)
    assert sorted(set(found.train.targets)) == [2, 10]
    assert found.classes[10] == "10"


def test_the_models_own_names_are_labels(tmp_path: Path) -> None:
    grey_images(tmp_path, "Cat", "dog")
    found = read_folder(tmp_path, PLAIN, 3, {0: "dog", 1: "fox", 2: "cat"})
    assert found.train.targets == [2, 2, 0, 0]


def test_labels_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    grey_images(tmp_path, "cat", "dog")
    with pytest.raises(DataError, match="expected 10 class folders"):
        read_folder(tmp_path, PLAIN, 10)


def test_a_number_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    grey_images(tmp_path, "0", "5")
    with pytest.raises(DataError, match="expected 3 class folders"):
        read_folder(tmp_path, PLAIN, 3)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing there"):
        read_folder(tmp_path / "nowhere", PLAIN, 2)
    with pytest.raises(DataError, match="found no folders"):
        read_folder(tmp_path, PLAIN, 2)
    (tmp_path / "0").mkdir()
    with pytest.raises(DataError, match="without any"):
        read_folder(tmp_path, PLAIN, 2)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    grey_images(tmp_path, "0", count=1)
    (tmp_path / "0" / "broken.png").write_text("hello", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_folder(tmp_path, PLAIN, 1).train[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_no_image_is_named_in_one_sentence(tmp_path: Path, workers: int) -> None:
    grey_images(tmp_path, "0", "1")
    (tmp_path / "0" / "1.png").write_text("no image")
    loader = DataLoader(read_folder(tmp_path, PLAIN, 2).train, batch_size=2, num_workers=workers)
    with pytest.raises(DataError) as caught:
        first_inputs(loader, "loader")
    assert re.match(r"--data: expected an image in .*1.png, found [^;]*; remove", str(caught.value))


def test_transformers_settings_come_from_the_folder(tmp_path: Path) -> None:
    settings = {
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 48, "width": 48},
        "do_center_crop": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
    }
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    found = preprocessing_of(nn.Conv2d(3, 1, 1), tmp_path)
    assert found.size == (48, 48)
    assert found.crop == 0.75
    assert (found.mean, found.std) == ((0.5,) * 3, (0.2,) * 3)
    file.write_text("{nonsense", encoding="utf-8")
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        preprocessing_of(nn.Conv2d(3, 1, 1), tmp_path)


def test_timm_settings_come_from_the_model() -> None:
    import timm

    found = preprocessing_of(timm.create_model("test_vit", img_size=64))
    assert found.size == (64, 64)
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.source == "the model's pretrained_cfg"
    grey = preprocessing_of(timm.create_model("test_resnet", in_chans=1), size=40)
    assert len(grey.mean) == 1
    assert example_input(grey).shape == (1, 1, 40, 40)


def test_everything_else_gets_imagenets_numbers() -> None:
    found = preprocessing_of(nn.Linear(3, 2))
    assert found.size == (224, 224)
    assert (found.mean, found.std, found.crop) == (IMAGENET_MEAN, IMAGENET_STD, 0.875)
