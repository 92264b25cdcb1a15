"""Long work tells how far it is where no terminal shows a bar."""

from __future__ import annotations

import threading

import pytest

from forgetkit.cli import output
from forgetkit.engine.clock import Clock
from forgetkit.progress import progress, under_way


def test_what_is_under_way_is_told_from_the_outside_in() -> None:
    assert under_way() == ""
    with Clock()("train"), progress("adv") as bar:
        assert under_way() == "train, adv"
        bar.expect(30)
        bar.advance()
        bar.advance()
        assert under_way() == "train, adv 2 of 30"
    with pytest.raises(ValueError, match="broken"), progress("adv"):
        raise ValueError("broken")
    assert under_way() == ""


def test_a_command_says_that_it_is_still_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()

    def told(line: str) -> None:
        tell(line)
        if "adv" in line:  # it may begin before the command does
            said.set()

    tell = output.say
    monkeypatch.setattr(output, "say", told)
    monkeypatch.setattr(output, "EVERY", 0.01)

    @output.reports_errors
    def command() -> None:
        with progress("adv"):
            assert said.wait(10)

    command()
    heard = capsys.readouterr()
    assert "still at work after 0 s: adv" in heard.err
    assert heard.out == ""
    assert not any(thread.name == "signs of life" for thread in threading.enumerate())
