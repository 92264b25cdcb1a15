"""Cards of methods that exist for one test."""

from __future__ import annotations

from forgetkit.method import Card, Scope


def bare_card(slug: str, edits: Scope, about: str) -> Card:
    """Return the card of a closed-form edit for classes that reads the forget set alone."""
    return Card(
        slug=slug,
        title=slug.capitalize(),
        goals=("classes",),
        needs=("forget",),
        edits=edits,
        steps="none",
        cost="none",
        source="none",
        link="https://example.org",
        about=about,
    )
