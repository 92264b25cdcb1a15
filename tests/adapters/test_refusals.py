from __future__ import annotations

import warnings

import pytest
import torch
from head_zoo import CLASSES, WIDTH, Net, Outputs, heads, picture
from refused_models import (
    BatchNormAfter,
    BroadcastDistances,
    ChangesItsMind,
    HiddenThenDistances,
    NoHead,
    refused,
)
from torch import Tensor, nn

from forgetkit.adapting import adapt, logits_of
from forgetkit.dryrun.refusals import CODES
from forgetkit.dryrun.sweep.checking import trace
from forgetkit.errors import BadTarget, CannotSplitModel, ModelError

WAYS_OUT = (
    "pass ", "Pass ", "build ", "Build ", "run the model", "use a method", "Load ",
    "untie ", "Switch",
    "Adapt again",
)  # fmt: skip
COVERED = {code for code, _ in refused().values()} | {"classes", "not-reached", "read-only", "tied"}


@pytest.mark.parametrize("name", sorted(refused()))
def test_each_reason_has_its_code_and_a_way_out(name: str) -> None:
    code, model = refused()[name]
    before = trace(model) if code != "lazy" else ()
    with pytest.raises(CannotSplitModel) as caught:
        adapt(model, picture())
    assert caught.value.code == code, str(caught.value)
    assert any(way in str(caught.value) for way in WAYS_OUT), str(caught.value)
    assert code == "lazy" or trace(model) == before


def test_every_code_is_raised_by_a_test() -> None:
    assert set(CODES) == COVERED


def test_wrong_number_of_classes() -> None:
    with pytest.raises(CannotSplitModel, match="has 5; pass") as caught:
        adapt(Net(), picture(), num_classes=7)
    assert caught.value.code == "classes"
    model = Net()
    object.__setattr__(model, "num_classes", 9)
    with pytest.raises(CannotSplitModel, match="says it has 9 classes") as caught:
        adapt(model, picture())
    assert caught.value.code == "classes"


def test_scripted_model_is_opaque() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)))
    with pytest.raises(CannotSplitModel, match="TorchScript") as caught:
        adapt(scripted, picture())
    assert caught.value.code == "opaque"


def test_another_branch_is_not_reached() -> None:
    model = ChangesItsMind()
    view = adapt(model, picture())
    model.other = True
    with pytest.raises(CannotSplitModel, match="Adapt again") as caught:
        view.features(picture())
    assert caught.value.code == "not-reached"
    assert not model.a._forward_pre_hooks


def test_replaced_head_is_not_reached() -> None:
    model = Net()
    view = adapt(model, picture())
    model.last = nn.Linear(WIDTH, CLASSES)
    with pytest.raises(CannotSplitModel) as caught:
        view.features(picture())
    assert caught.value.code == "not-reached"


def test_unknown_head_name_lists_close_ones() -> None:
    with pytest.raises(CannotSplitModel, match="did you mean last") as caught:
        adapt(Net(), picture(), head="lost")
    assert caught.value.code == "not-reached"


def test_weights_that_are_not_loaded_are_read_only() -> None:
    with torch.device("meta"):
        model = Net()
        x = torch.empty(2, 3, 8, 8)
    view = adapt(model, x)
    assert view.head_name == "last"
    with pytest.raises(CannotSplitModel, match="Load the weights") as caught:
        view.rows(0)
    assert caught.value.code == "read-only"


def test_rows_are_found_where_the_head_has_been_moved() -> None:
    with torch.device("meta"):
        model = Net()
    view = adapt(model, picture())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    assert {row.name for row in view.rows(0)} == {"last.weight", "last.bias"}


def test_an_example_goes_to_where_the_model_is() -> None:
    with torch.device("meta"):
        model = Net()
    assert adapt(model, picture()).head_name == "last"


def test_tied_head_is_refused_on_request() -> None:
    model = Net()
    twin = nn.Linear(WIDTH, CLASSES)
    twin.weight = model.get_parameter("last.weight")
    model.twin = twin
    with pytest.raises(CannotSplitModel, match=r"twin\.weight") as caught:
        adapt(model, picture()).require_untied()
    assert caught.value.code == "tied"
    adapt(Net(), picture()).require_untied()


def test_a_class_that_does_not_exist() -> None:
    with pytest.raises(BadTarget, match=r"0\.\.4, found 5"):
        adapt(Net(), picture()).rows(CLASSES)


def test_something_else_than_a_module() -> None:
    with pytest.raises(ModelError, match="found dict"):
        adapt({"weight": 1}, picture())  # type: ignore[arg-type]


def test_head_given_by_name_serves_what_detection_refuses() -> None:
    model = BatchNormAfter().eval()
    view = adapt(model, picture(), head="fc")
    assert view.head_name == "fc"
    assert view.feature_shape == (WIDTH,)
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits, rtol=0, atol=0)


def test_head_given_by_name_may_have_children() -> None:
    model = heads()["mlp"]
    view = adapt(model, picture(), head="last")
    assert (view.head_name, view.feature_shape) == ("last", (WIDTH,))
    assert {"last.1.weight", "last.4.weight"} <= set(view.head_parameters())
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits, rtol=0, atol=0)


def test_named_head_that_paths_go_around() -> None:
    with pytest.raises(CannotSplitModel, match="as a list") as caught:
        adapt(heads()["two_heads"], picture(), head="head")
    assert caught.value.code == "skip-input"
    both = adapt(heads()["two_heads"], picture(), head=["head", "head_dist"])
    assert both.feature_shape == (2, WIDTH)


def test_broadcast_distances_need_the_body_as_a_module() -> None:
    with pytest.raises(CannotSplitModel) as caught:
        adapt(BroadcastDistances(), picture())
    assert any(way in str(caught.value) for way in WAYS_OUT)


def test_distances_after_a_hidden_layer_name_the_weights_and_may_be_split_by_name() -> None:
    model = HiddenThenDistances().eval()
    with pytest.raises(CannotSplitModel, match=r"net\.last, .* rows of points"):
        adapt(model, picture())
    assert adapt(model, picture(), head="net.last").feature_shape == (WIDTH,)


@pytest.mark.parametrize(
    ("kind", "output"),
    [("odd", "scores"), ("features_first", 1), ("two", 0), ("odd", lambda out: out["scores"] * 2)],
)
def test_output_leads_to_the_logits(kind: str, output: str | int) -> None:
    model = Outputs(kind).eval()
    view = adapt(model, picture(), output=output)
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits, rtol=0, atol=0)
    assert view.num_classes == CLASSES


def test_output_for_one_number_a_sample() -> None:
    def column(scores: object) -> Tensor:
        assert isinstance(scores, Tensor)
        return scores[:, None]

    view = adapt(Outputs("one").eval(), picture(), output=column)
    assert view.num_classes == 1


def test_wrong_output_key_says_what_is_there() -> None:
    with pytest.raises(CannotSplitModel, match=r"scores: \(2, 5\)") as caught:
        adapt(Outputs("odd"), picture(), output="logit")
    assert caught.value.code == "not-logits"


def test_several_tensors_are_tried_in_turn() -> None:
    view = adapt(Outputs("features_first").eval(), picture())
    assert view.head_name == "head"
    assert adapt(Outputs("odd").eval(), picture()).head_name == "head"


def test_logits_of_an_output_alone() -> None:
    logits, features = torch.ones(2, CLASSES), torch.ones(2, WIDTH)
    assert logits_of(logits) is logits
    assert logits_of({"logits": logits, "features": features}) is logits
    assert logits_of((logits, torch.ones(2, 3, 4))) is logits
    assert logits_of((features, logits), num_classes=CLASSES) is logits
    assert logits_of((features, logits), 1) is logits
    for output, code in [((logits, features), "ambiguous-output"), ({}, "not-logits")]:
        with pytest.raises(CannotSplitModel) as caught:
            logits_of(output)
        assert caught.value.code == code


def test_a_model_that_raises_half_way_keeps_no_hook() -> None:
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ZeroDivisionError

    model = Breaks().train()
    before = trace(model)
    with pytest.raises(ZeroDivisionError):
        adapt(model, picture())
    assert trace(model) == before
    assert adapt(Net(), picture()).num_classes == CLASSES


def test_a_headless_model_is_not_taken_for_a_classifier_with_verification_off() -> None:
    with pytest.raises(CannotSplitModel) as caught:
        adapt(NoHead(), picture(), verify=False)
    assert caught.value.code == "features-not-logits"
