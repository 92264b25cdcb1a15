"""Evidence about toy models that forgot class 3, shared by the tests of attacks and audits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit import forget
from forgetkit.auditing.evidence import Evidence, Outputs, Role, Subject, collect
from forgetkit.auditing.inputs import view_of
from forgetkit.data.sets import StoredSet
from forgetkit.fingerprint import TensorBits
from forgetkit.testing import TOYS, toy
from forgetkit.types import SampleSet

GONE = 3


def stored(images: Tensor, labels: Tensor, rows: Tensor) -> StoredSet:
    return StoredSet(images[rows], labels[rows], torch.nonzero(rows)[:, 0])


@functools.cache
def sets() -> dict[str, SampleSet]:
    some = toy("cnn")
    (images, labels), (unseen, unseen_labels) = some.train.tensors, some.test.tensors
    return {
        "forget": stored(images, labels, labels == GONE),
        "retain": stored(images, labels, labels != GONE),
        "test_forget": stored(unseen, unseen_labels, unseen_labels == GONE),
        "test_retain": stored(unseen, unseen_labels, unseen_labels != GONE),
    }


def trained_without(seed: int, kind: str = "cnn") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TOYS[kind]()
        images, labels = toy(kind).train.tensors
        images, labels = images[labels != GONE], labels[labels != GONE]
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(8):
            for rows in torch.randperm(len(labels)).split(32):
                loss = functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model


def subject(model: nn.Module) -> Subject:
    view = view_of(model, sets()["retain"], torch.device("cpu"), None)
    return Subject(model, collect(model, sets(), view=view), view)


@functools.cache
def retrained(kind: str = "cnn") -> tuple[Subject, ...]:
    return tuple(subject(trained_without(seed, kind)) for seed in (1, 2, 3, 4))


@functools.cache
def original(kind: str = "cnn") -> Subject:
    return subject(toy(kind).model)


@functools.cache
def patched(kind: str = "cnn") -> Subject:
    """A model on which only the head was changed, by LAU."""
    some = toy(kind)
    forget(some.model).classes([GONE]).using("lau").seed(0).run(some.loader())
    return subject(some.model)


@functools.cache
def untrained(kind: str = "cnn") -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return subject(TOYS[kind]())


@functools.cache
def masked(kind: str = "cnn") -> Subject:
    model = toy(kind).model
    with torch.no_grad():
        dict(model.named_parameters())["fc.bias" if kind == "cnn" else "head.bias"][GONE] = -50.0
    return subject(model)


def evidence(
    unlearned: Subject | None = None, *, roles: Iterable[Role] = ("original", "retrained"),
    references: int = 1, kind: str = "cnn", head_masked: bool = False,
) -> Evidence:  # fmt: skip
    makers: dict[Role, Callable[[], Subject]] = {
        "original": lambda: original(kind), "retrained": lambda: retrained(kind)[0],
        "untrained": lambda: untrained(kind),
    }  # fmt: skip
    subjects: dict[Role, Subject] = {"unlearned": patched(kind) if unlearned is None else unlearned}
    subjects |= {role: makers[role]() for role in roles}
    more = retrained(kind)[:references] if "retrained" in subjects else ()
    return Evidence(
        subjects, sets(), "classes", (GONE,), 4, references=more, head_masked=head_masked,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip


def without(found: Evidence, split: str) -> Evidence:
    """The same evidence without one set."""
    subjects = {
        role: replace(one, outputs={n: o for n, o in one.outputs.items() if n != split})
        for role, one in found.subjects.items()
    }
    return replace(
        found, subjects=subjects, references=(),
        sets={name: samples for name, samples in found.sets.items() if name != split},
    )  # fmt: skip


def outputs(logits: Tensor, labels: Tensor, features: Tensor | None = None) -> Outputs:
    return Outputs(logits.float(), labels, features, torch.arange(len(labels)))


def state(model: nn.Module) -> tuple[object, ...]:
    """Everything about a model that an audit must leave as it was."""
    bits = {name: TensorBits.of(tensor).fingerprint for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return bits, flags, grads, copy.deepcopy(torch.get_rng_state().tolist())
