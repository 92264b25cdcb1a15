"""Settings of the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import metric_pages
import tables

import forgetkit

tables.write_pages()
metric_pages.write_pages()

project = "forgetkit"
author = "The forgetkit authors"
project_copyright = "the forgetkit authors"
version = release = forgetkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"forgetkit {release}"

# Types of other packages have no page here (an inventory of theirs would need the network), and a
# few of our own are named in signatures without being part of the reference.
nitpick_ignore_regex = [
    ("py:class", r"(pathlib|collections\.abc|torch|nn|typing|accelerate)\..*"),
    ("py:class", r"(Tensor|Accelerator|Run|Loader|Goal|State|Pair|Split|Terms|Example|Entry)"),
    ("py:class", r"(Model|OutputChoice|forgetkit\.method\.(M|Facts))"),
    (
        "py:class",
        r"(Settings|GoalKind|Steps|Scope|Need|DataLoader|Sensitive|Path|forgetkit\.types\.SampleSet)",
    ),
]
