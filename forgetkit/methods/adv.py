"""ADV: instance-wise unlearning with adversarial images in place of retained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.adversarial_recipe import AgainstAdversaries
from forgetkit.method import Card, register


@register
@dataclass(frozen=True, kw_only=True)
class Adv(AgainstAdversaries):
    """Climb the loss on D_f while adversarial images made from D_f keep the decision boundaries.

        L = w_f L_UL + w_a CE(z(x'), target)
        w_f, w_a = 1, 1 ("sum"), or n_f / (n_f + n_a), n_a / (n_f + n_a) ("size")
        L_UL = -CE(z, y) over D_f, or CE(z, y*) for a relabel goal

    x' comes from a targeted L2-PGD before the first step: ``adversaries`` times per sample,
    towards a class drawn anew each time. The run stops at the first step after which D_f is
    forgotten (or, for relabel, all of it has its new label).

    The radius is in units of the pixels' range. For images normalised by mean m and deviation s
    that is bounds=((-m_1/s_1, ...), ((1-m_1)/s_1, ...)); without ``bounds`` it is the range found
    in D_f, which is narrower when D_f is.

    Samples that are done rest for as long as they are (``forgotten``), but for a class goal, which
    keeps more: of 16 labels out of 3 000 a ViT learns all either way, and reads 70 % of the
    retained samples instead of 58 %. The history counts in ``at_rest`` how often a sample rested
    in the steps of an epoch. For single samples the two terms are added as they are (``balance``),
    so that a sample weighs more.

    A run may end at the bound of rounds before it is done: with a few samples left that the
    network is very sure of, or with ADV+IMP where labels are corrected (4 of 16 digits).
    ``balance="sum"`` gets there in a fraction of the rounds and mostly keeps less.

    Four single samples and more are normalised by their own batch (``bn``), since with frozen
    statistics a network tells clean images, which are to lose their label, from those with the
    attack's noise, and lets all clean ones end as one class. Of 16 samples out of 3 000 a ResNet
    still read 31 % with batch and 13 % with frozen statistics after 100 rounds, and 70 and 29 % of
    the test images (85 before). Labels, classes and fewer samples keep frozen statistics.

    To forget in portions, run again on the edited model: each request makes its own D_adv.

    Source: Cha, Cho, Hwang, Lee, Moon, "Learning to Unlearn: Instance-Wise Unlearning for
        Pre-Trained Classifiers", AAAI 2024, arXiv:2301.11578, Section 3.2, Eq. 3-6, Algorithm
        1; https://github.com/csm9493/L2UL.

    Differences: radius 4.0 and, for labels and classes, weights by size are those of the code, the
        paper prints 0.4 and a plain sum (``preset="paper"``). The code gives a failed draw the
        class K // 2, which may be the true one; here a target is never the true class nor a
        forgotten one. Algorithm 1 draws one target for all copies of an image, the text and the
        code one for each. The paper bounds the rounds by 100, the code, where an image has 20
        adversaries, by 1 000. Gradients are clipped and samples beyond the loss cap rest, as in
        ``neggrad``; ``forgotten="rest"`` is in neither (``"push"`` is theirs). Normalisation
        statistics are frozen for labels, for classes and for less than four samples; the code
        always trains in train mode. D_adv is shuffled in every epoch, the code keeps the order
        in which it was made. Of several requests in turn each reports its own D_f, not all that
        was asked for so far.
    """

    card: ClassVar[Card] = Card(
        slug="adv",
        title="Instance-wise unlearning with adversarial images (ADV)",
        goals=("instances", "classes", "relabel"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="N_adv n FB over D_f once; 1 FB over D_adv and 1 or 2 F over D_f a step, "
        "100 to 1 000 rounds at most",
        source="Cha, Cho, Hwang, Lee, Moon 2024, AAAI",
        link="https://arxiv.org/abs/2301.11578",
        about="Climbs the loss on the forget set while adversarial images hold the rest in place.",
        keeps=0.30,
        toy={
            "lr": 0.1,
            "attack_steps": 5,
            "attack_radius": 0.5,
            "adversaries": 2,
            "batch_size": 40,
            "forget_batch_size": 20,
            "epochs": 10,
        },
        probe={
            "": {"lr": 0.0005, "max_norm": 0.01},
            "cap": {
                "lr": 0.1,
                "check_every": 1000,
                "batch_size": 8,
                "epochs": 1,
                "forgotten": "push",
                "bn": "frozen",
            },
            "forgotten": {"lr": 0.05, "batch_size": 16, "epochs": 4, "check_every": 1000},
            "check_every": {"lr": 0.05, "batch_size": 16, "epochs": 4, "classes": (3,)},
        },
        presets={
            "paper": {
                "attack_radius": 0.4,
                "balance": "sum",
                "bn": "frozen",
                "epochs": 100,
                "max_norm": None,
                "cap": False,
                "forgotten": "push",
            },
            "code": {
                "attack_radius": 4.0,
                "balance": "size",
                "weight_decay": 1e-4,
                "bn": "train",
                "epochs": 1000,
                "max_norm": None,
                "cap": False,
                "forgotten": "push",
            },
        },
    )
