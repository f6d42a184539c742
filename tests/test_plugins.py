"""What optional packages are said to come with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from seqtune.plugins import EXTRAS


def test_each_optional_package_is_in_the_extra_that_an_error_would_name():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {
        name: {re.split(r"[\[>=<~]", text)[0] for text in texts} for name, texts in project["optional-dependencies"].items()
    }
    assert {package for package, extra in EXTRAS.items() if package not in extras[extra]} == set()
