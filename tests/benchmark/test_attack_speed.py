from __future__ import annotations

import torch

from forgetkit.benchmark.attack_speed import attack_speed
from forgetkit.testing import toy


def test_both_ways_make_the_same_images_and_are_timed() -> None:
    some = toy("cnn")
    before = {name: value.clone() for name, value in some.model.state_dict().items()}
    images, labels = (tensor[:6] for tensor in some.train.tensors)
    unit = (images - images.min()) / (images.max() - images.min())
    found = attack_speed(some.model, unit, labels, classes=4, per_sample=3, steps=2, repeats=1)
    assert found.difference < 1e-5
    assert found.same_targets
    assert found.together > 0.0
    assert found.gain == found.one_by_one / found.together
    assert some.model.training
    assert all(torch.equal(v, before[name]) for name, v in some.model.state_dict().items())
