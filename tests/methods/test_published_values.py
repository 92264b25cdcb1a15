"""Defaults and presets against the values that papers and reference code publish."""

from __future__ import annotations

import pytest

from forgetkit.method import Facts, GoalKind, all_cards, build

Settings = dict[str, object]

SGD: Settings = {"optimizer": "sgd", "momentum": 0.9}
RELABELLING: Settings = {**SGD, "lr": 1e-3, "weight_decay": 1e-5, "epochs": 10, "batch_size": 64}
BOUNDARY: Settings = {**SGD, "lr": 1e-5, "epochs": 10, "batch_size": 64, "weight_decay": 0.0}
SINGLE_LAYERS: Settings = {
    **SGD, "k": 3, "unit": "layer", "lr": 0.01, "weight_decay": 5e-4, "batch_size": 64,
}  # fmt: skip
ADVERSARIAL: Settings = {
    **SGD, "lr": 1e-3, "weight_decay": 1e-5, "forget_batch_size": 32, "batch_size": 256,
    "attack_step": 0.1, "attack_steps": 100, "epochs": 100,
}  # fmt: skip
BY_BATCH: Settings = {"importance": "batch", "batch_size": 64}
GUARDED: Settings = {"max_norm": 5.0, "cap": True}  # the library's: ascent is unbounded
UNBOUNDED: Settings = {"max_norm": None, "cap": False}
LIKE_PAPER: Settings = {"lr": 1e-3, "batch_size": 32, "epochs": 100, "weight_decay": 1e-5}
LIKE_CODE: Settings = {"weight_decay": 1e-4, "epochs": 1000, "bn": "train"}

DEFAULTS: list[tuple[str, GoalKind, bool, Settings]] = [
    ("retrain", "classes", False, {
        **SGD, "lr": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "epochs": 160,
        "batch_size": 256,
    }),
    ("retrain", "classes", True, {"optimizer": "adamw", "lr": 5e-5, "epochs": 30}),
    ("finetune", "classes", False, {
        **SGD, "lr": 0.01, "weight_decay": 0.0, "epochs": 10, "batch_size": 64, "anchor": 0.0,
        "bn": "train",
    }),
    ("neggrad", "classes", False, {
        **RELABELLING, **GUARDED, "bn": "frozen",
    }),
    ("neggrad_plus", "instances", False, {
        **GUARDED, "optimizer": "sgd", "momentum": 0.0, "lr": 0.01, "epochs": 10,
        "weight_decay": 0.0, "batch_size": 64,
    }),
    ("random_label", "classes", False, {**RELABELLING, "retain": "none"}),
    ("initial_label", "classes", False, RELABELLING),
    ("fisher", "classes", False, {
        "exponent": 0.5, "strength": 1e-6, "factor": 10.0, "cap": 1e3,
        "averaged": True, "new_rows": True, "labels": "expected", "retain_samples": None,
    }),
    ("ntk", "classes", False, {
        "retain_samples": 1500, "penalty": 10.0, "scale": None, "solver": "auto", "noise": 0.0,
    }),
    ("boundary_shrink", "classes", False, {
        **BOUNDARY, "attack_step": 0.1, "attack_steps": 1, "retry": 0,
    }),
    ("boundary_expand", "classes", False, BOUNDARY),
    ("eu_k", "classes", False, {**SINGLE_LAYERS, "epochs": 30}),
    ("cf_k", "classes", False, {**SINGLE_LAYERS, "epochs": 10}),
    ("scrub", "classes", False, {
        **SGD, "lr": 5e-4, "weight_decay": 5e-4, "label_weight": 0.99, "distill_weight": 0.001,
        "max_epochs": 2, "epochs": 3, "temperature": 4.0, "forget_batch_size": 512,
        "batch_size": 256, "decay": "3-5-9", **GUARDED,
    }),
    ("scrub", "instances", False, {
        "label_weight": 1.0, "distill_weight": 0.5, "max_epochs": 3, "epochs": 5,
        "temperature": 4.0, "forget_batch_size": 16, "batch_size": 32,
    }),
    ("scrub", "depoison", False, {
        "label_weight": 1.0, "distill_weight": 0.01, "max_epochs": 2, "epochs": 10,
        "temperature": 2.0, "forget_batch_size": 32, "batch_size": 32,
    }),
    ("unsir", "classes", False, {
        "noise_size": 256, "noise_steps": 40, "noise_lr": 0.1, "energy_weight": 0.1, "copies": 20,
        "retain_per_class": 1000, "bn": "train", "lr": 0.02, "repair_lr": 0.01, "optimizer": "adam",
        "batch_size": 256, "epochs": 1,
    }),
    ("bad_teaching", "classes", False, {
        "temperature": 1.0, "optimizer": "adam", "lr": 1e-4, "epochs": 1, "batch_size": 256,
        "retain_share": 0.3, "weight_decay": 0.0,
    }),
    ("influence1", "instances", False, {"step_size": 2e-5, "layers": "linear", "repeats": 1}),
    ("influence2", "instances", False, {
        "tolerance": 1e-4, "scale": 2e5, "hessian_samples": 1024, "damping": 1e-4 * 2e5,
        "curvature": "ggn", "layers": "linear", "solver": "cg", "iterations": None,
    }),
    ("linear_filtration", "classes", False, {"form": "normalization", "samples_per_class": 100}),
    ("svd_projection", "classes", False, {
        "samples_per_class": None, "positions": "all", "sequential": False, "retain_scale": None,
        "forget_scale": None,
    }),
    ("delete", "classes", False, {
        **SGD, "lr": 1e-4, "weight_decay": 0.0, "epochs": 20, "batch_size": 128,
        "removed": "auto", "epsilon": 0.0, "temperature": 1.0, "reference": None,
    }),
    ("delete", "classes", True, {"lr": 5e-5}),
    ("ssd", "classes", False, {"threshold": 10.0, "strength": 1.0, "importance": "sample"}),
    ("lfssd", "classes", False, {"threshold": 10.0, "strength": 1.0, "importance": "sample"}),
    ("assd", "classes", False, {"selection": 1.0, "strength": 1.0, "importance": "sample"}),
    ("salun", "classes", False, {
        **SGD, "lr": 0.013, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256, "mask": 0.5,
    }),
    ("spotter", "classes", False, {
        **SGD, "lr": 1e-4, "weight_decay": 5e-4, "epochs": 10, "forget_weight": 0.7,
        "spread_weight": 1.0, "attack_radius": 0.03, "attack_step": 0.01, "attack_steps": 3,
        "least_epochs": 3, "bn": "frozen", "batch_size": 128,
    }),
    ("amun", "instances", False, {
        **SGD, "lr": 0.01, "weight_decay": 5e-4, "epochs": 10, "attack_steps": 50,
        "attack_radius": 0.05, "doublings": 10, "data": "all", "batch_size": 128,
    }),
    ("sfron", "classes", False, {
        **SGD, "lr": 0.01, "weight_decay": 5e-4, "schedule": "cosine", "every": 5, "ascent": 25.0,
        "loss_power": 0.5, "ratio": 1.0, "ascent_norm": 7.0, "iterations": 150, "epochs": 10,
        "batch_size": 128, "fisher": "batch",
    }),
    ("l1_sparse", "classes", False, {
        **SGD, "lr": 0.01, "penalty": 5e-4, "free_epochs": 2, "epochs": 10, "weight_decay": 0.0,
        "one_dimensional": True, "batch_size": 64,
    }),
    ("lau", "classes", False, {
        **SGD, "lr": 0.003, "weight_decay": 0.0, "alpha": 0.5, "temperature": 4.0,
        "double_softmax": True, "batch_size": 128, "epochs": 30, "attack_step": 0.6,
        "attack_steps": 10, "attack_radius": None, "attack_clamp": None, "check_every": 1,
        "kd_direction": "target", "kd_reduction": "batchmean", "edit_bias": True,
    }),
    ("correct", "relabel", False, {
        **SGD, "lr": 1e-3, "weight_decay": 1e-5, "batch_size": 32, "epochs": 100, "max_norm": 5.0,
    }),
    ("gli", "instances", False, {
        "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1e-3, "batch_size": 64,
        "noise_step": 0.01, "noise_steps": 2, "weight_start": 200.0, "weight_end": 1000.0,
        "distance": "l2", "max_batches": 40, "check_every": 1, "patience": 3, "bounds": None,
    }),
    ("su", "classes", False, {
        "optimizer": "adam", "lr": 1e-4, "batch_size": 256, "temperature": 1.0, "epsilon": 0.0,
        "epochs": 30, "removed": "auto",
    }),
    ("su", "instances", False, {"lr": 6e-5}),
    ("suli", "classes", False, {
        "optimizer": "adam", "lr": 1e-4, "layers": 10, "epsilon": 0.0, "teacher": "original",
        "max_steps": 400, "temperature": 1.0, "removed": "auto", "rollback": True,
        "inner_steps": 1, "batch_size": 256,
    }),
    ("suli", "instances", False, {"lr": 8e-5, "layers": 2}),
    ("pgu", "instances", False, {
        "lr": 0.05, "last_lr": 0.01, "epochs": 100, "batch_size": 128, "entropy_weight": 0.2,
        "epsilon": 0.05,
    }),
    ("adv", "instances", False, {
        **ADVERSARIAL, **GUARDED, "attack_radius": 4.0, "adversaries": 20, "balance": "sum",
        "epochs": 1000, "forgotten": "rest", "bn": "train",  # "rest": the library's, it keeps more
    }),
    ("adv", "classes", False, {
        **ADVERSARIAL, **GUARDED, "attack_radius": 4.0, "adversaries": 20, "balance": "size",
        "epochs": 1000, "forgotten": "push", "bn": "frozen",
    }),
    ("adv_imp", "instances", False, {
        **ADVERSARIAL, **GUARDED, "importance_weight": 1.0, "importance": "sample",
        "epochs": 1000, "bn": "train",
    }),
]  # fmt: skip

PRESETS: list[tuple[str, str, Settings]] = [
    ("ntk", "paper", {"penalty": 5e-4, "retain_samples": 1500}),
    ("neggrad_plus", "small", {**UNBOUNDED, "retain_weight": 0.95, "epochs": 10}),
    ("neggrad_plus", "large", {**UNBOUNDED, "retain_weight": 0.9999, "epochs": 5}),
    # CE_r - CE_f at 0.001 is half of each at 0.002
    ("neggrad_plus", "equal", {**UNBOUNDED, "retain_weight": 0.5, "lr": 0.002, "epochs": 2}),
    ("random_label", "mix", {
        "retain": "mix", "optimizer": "adam", "lr": 1e-4, "epochs": 3, "batch_size": 128,
    }),
    ("scrub", "small", {
        "optimizer": "adam", "lr": 5e-4, "weight_decay": 0.1, "label_weight": 1.0,
        "distill_weight": 0.5, "max_epochs": 3, "epochs": 10, "temperature": 2.0,
        "forget_batch_size": 64, "batch_size": 32, "decay": "5-8-9", "max_norm": None,
        "cap": False,
    }),
    ("scrub", "instances", {
        **UNBOUNDED, "label_weight": 1.0, "distill_weight": 0.5, "max_epochs": 3, "epochs": 5,
        "temperature": 4.0, "forget_batch_size": 16, "batch_size": 32, "decay": "3-5-9",
    }),
    ("scrub", "classes", {
        **UNBOUNDED, "label_weight": 0.99, "distill_weight": 0.001, "max_epochs": 2, "epochs": 3,
        "temperature": 4.0, "forget_batch_size": 512, "batch_size": 256, "decay": "3-5-9",
    }),
    ("scrub", "depoison", {
        **UNBOUNDED, "label_weight": 1.0, "distill_weight": 0.01, "max_epochs": 2, "epochs": 10,
        "temperature": 2.0, "forget_batch_size": 32, "batch_size": 32,
    }),
    ("unsir", "ports", {
        "noise_steps": 250, "lr": 1e-4, "repair_lr": 1e-4, "retain_per_class": 500,
        "batch_size": 32, "copies": 80, "noise_size": 32,
    }),
    ("influence1", "code", {"step_size": 2e-5, "repeats": 10}),
    ("influence1", "paper", {"step_size": 2e-5, "repeats": 1}),
    ("influence2", "code", {"solver": "lissa", "curvature": "hessian", "iterations": 10000}),
    ("delete", "code", {
        "lr": None, "epochs": 20, "batch_size": 128, "removed": "label", "all_epochs": True,
    }),
    ("ssd", "paper", {**BY_BATCH, "threshold": 10.0, "strength": 1.0}),
    ("ssd", "paper_vit", {**BY_BATCH, "threshold": 5.0}),
    ("ssd", "paper_vit_subclass", {**BY_BATCH, "threshold": 25.0}),
    ("ssd", "paper_faces", {**BY_BATCH, "threshold": 50.0, "strength": 0.1}),
    ("lfssd", "paper", {**BY_BATCH, "threshold": 10.0}),
    ("lfssd", "paper_cifar20", {**BY_BATCH, "threshold": 5.0}),
    ("lfssd", "paper_instances", {**BY_BATCH, "threshold": 3.5}),
    ("assd", "paper", {**BY_BATCH, "selection": 1.0}),
    ("sfron", "paper_swin", {
        "optimizer": "adamw", "lr": 2e-5, "weight_decay": 0.05, "ascent": 500.0, "every": 1,
        "iterations": 50, "epochs": 10,  # 500 steps
    }),
    ("fisher", "paper", {
        "exponent": 0.25, "cap": None, "averaged": False, "factor": 1.0, "new_rows": False,
        "strength": 1e-9,
    }),
    ("gli", "paper", {
        "noise_steps": 2, "weight_start": 200.0, "weight_end": 1000.0, "bounds": [0.0, 1.0],
    }),
    ("gli", "code", {"noise_steps": 2, "bounds": [0.0, 1.0], "check_every": 1, "patience": 3}),
    ("gli", "mucac", {
        "noise_steps": 5, "weight_start": 200.0, "weight_end": 1000.0, "bounds": [0.0, 1.0],
    }),
    ("gli", "mucac_binary", {
        "noise_steps": 5, "weight_start": 800.0, "weight_end": 12000.0, "bounds": [0.0, 1.0],
    }),
    ("su", "paper", {
        "lr": 1e-4, "temperature": 1.0, "epochs": 10, "batch_size": 256, "removed": "label",
        "check_every": 100000,
    }),
    ("su", "paper_instances", {
        "lr": 6e-5, "temperature": 1.0, "epochs": 30, "batch_size": 256, "removed": "label",
        "check_every": 100000,
    }),
    ("su", "code", {
        "lr": 1e-4, "temperature": 4.0, "epochs": 10, "batch_size": 256, "check_every": 100000,
    }),
    ("su", "code_instances", {
        "lr": 6e-5, "epochs": 30, "batch_size": 256, "check_every": 100000,
    }),
    ("suli", "paper", {
        "lr": 1e-4, "layers": 2, "epochs": 10, "teacher": "original", "rollback": False,
        "removed": "label",
    }),
    ("suli", "paper_instances", {
        "lr": 8e-5, "layers": 2, "epochs": 10, "teacher": "original", "rollback": False,
        "removed": "label",
    }),
    ("suli", "code", {
        "chunk_size": 500, "batch_size": 500, "teacher": "current", "bn": "train", "lr": 1e-4,
        "epochs": 10,
    }),
    ("suli", "code_instances", {
        "lr": 8e-5, "chunk_size": 32, "epochs": 10, "teacher": "current", "bn": "train",
        "removed": "argmax",
    }),
    ("adv", "paper", {
        **ADVERSARIAL, **UNBOUNDED, "attack_radius": 0.4, "balance": "sum", "forgotten": "push",
    }),
    ("adv", "code", {
        **LIKE_CODE, **UNBOUNDED, "attack_radius": 4.0, "balance": "size", "forgotten": "push",
    }),
    ("adv_imp", "paper", {
        **ADVERSARIAL, **UNBOUNDED, "attack_radius": 0.4, "balance": "sum", "forgotten": "push",
        "importance_weight": 2.0,
    }),
    ("adv_imp", "code", {
        **LIKE_CODE, **UNBOUNDED, "attack_radius": 4.0, "balance": "size", "importance": "batch",
        "forgotten": "push",
    }),
    ("neggrad", "paper", {**LIKE_PAPER, **UNBOUNDED}),
    ("neggrad", "code", {**LIKE_CODE, **UNBOUNDED}),
    ("correct", "paper", {**LIKE_PAPER, "max_norm": None}),
    ("correct", "code", {**LIKE_CODE, "max_norm": None}),
    ("pgu", "paper", {
        "spectrum": "sigma", "gamma": 0.9, "positions": "all", "entropy_weight": 0.2, "lr": 0.05,
        "last_lr": 0.01,
    }),
    ("pgu", "code", {
        "spectrum": "sigma", "gamma": 0.9, "lr": 0.1, "last_lr": 0.01, "positions": "all",
        "dense_patches": True, "dropout": True, "entropy_weight": 0.2,
    }),
    ("pgu", "depoison", {
        "lr": 0.1, "last_lr": 0.05, "gamma": 0.95, "spectrum": "sigma", "positions": "all",
        "entropy_weight": 0.2,
    }),
]  # fmt: skip
PRESETS += [("scrub_r", name, values) for slug, name, values in PRESETS if slug == "scrub"]


@pytest.mark.parametrize(
    ("slug", "goal", "transformer", "published"),
    DEFAULTS,
    ids=[f"{slug}-{goal}{'-vit' * vit}" for slug, goal, vit, _ in DEFAULTS],
)
def test_defaults_are_the_published_ones(
    slug: str, goal: GoalKind, transformer: bool, published: Settings
) -> None:
    facts = Facts(goal, 64, 50_000, 10, transformer=transformer)
    found = build(slug, {}).tuned(facts).hyperparameters()
    assert {name: found[name] for name in published} == published


@pytest.mark.parametrize(
    ("slug", "preset", "published"), PRESETS, ids=[f"{slug}-{name}" for slug, name, _ in PRESETS]
)
def test_presets_are_the_published_ones(slug: str, preset: str, published: Settings) -> None:
    found = build(slug, {"preset": preset}).hyperparameters()
    assert {name: found[name] for name in published} == published


def test_dropout_is_on_where_a_method_trains_as_the_user_did_and_nowhere_else() -> None:
    on = {"retrain", "finetune", "l1_sparse", "eu_k", "cf_k", "amnesiac"}
    assert {card.slug for card in all_cards() if card.dropout} == on


def test_every_preset_is_compared() -> None:
    compared = {(slug, name) for slug, name, _ in PRESETS} | {("lau", "paper"), ("lau", "code")}
    offered = {(card.slug, name) for card in all_cards() for name in card.presets}
    # `code` of fisher is the defaults, which are compared above
    assert offered - compared <= {("fisher", "code")}


def test_amnesiac_repairs_in_one_epoch() -> None:
    assert build("amnesiac", {}).hyperparameters()["epochs"] == 1  # published: one to three


NORMALISATION = {  # rule R1: learnt where most samples come from D_r, else as they came in
    "train": {"retrain", "finetune", "l1_sparse", "eu_k", "cf_k", "unsir", "amnesiac"},
    "frozen": {
        "neggrad", "neggrad_plus", "random_label", "initial_label", "salun", "boundary_shrink",
        "boundary_expand", "scrub", "scrub_r", "bad_teaching", "delete", "spotter", "amun",
        "sfron", "su", "suli", "gli", "correct",
    },
    "None": {"adv", "adv_imp"},  # frozen, but for several single samples: see test_adversarial
}  # fmt: skip


def test_statistics_of_normalisation_are_frozen_where_d_f_is_trained_on() -> None:
    found: dict[str, set[str]] = {"train": set(), "frozen": set(), "None": set()}
    for card in all_cards():
        settings = build(card.slug, {}).hyperparameters()
        if "bn" in settings:
            found[str(settings["bn"])].add(card.slug)
    assert found == NORMALISATION
