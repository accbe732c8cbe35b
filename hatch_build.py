"""README.md as a package index shows it: there, nothing lies beside it for links to lead to."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!\w+:)[^)]*\)\n\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:)[^)]*\)")


def for_an_index(readme: str) -> str:
    r"""Leave out pictures of the repository, and of links into it all but the text.

    The project has no address yet that they could be made absolute with.

    >>> for_an_index("See [runs](docs/runs.md), [PyPI](https://pypi.org).\n\n![x](docs/x.png)\n")
    'See runs, [PyPI](https://pypi.org).\n\n'
    """
    return LINK.sub(r"\1", PICTURE.sub("", readme))


class ReadmeForAnIndex(MetadataHookInterface):
    """Hatchling's hook for ``dynamic = ["readme"]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description of the package."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(text)}
