"""The directive ``{drawn} FILE ALT``: commands, and the picture that they leave in FILE.

On the page stand the commands and the picture; elsewhere, the Markdown shows the commands. They
are carried out in one folder under ``_build``, which is named by a hash of the package: what was
drawn by the same code is not drawn again.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

DOCS = Path(__file__).parent.parent
LOGGER = getLogger(__name__)


def _workplace() -> Path:
    # Named by the state of the package.
    root = DOCS.parent
    files = sorted([*(root / "condexp").rglob("*.py"), *(root / "conf").rglob("*.yaml")])
    state = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    return DOCS / "_build" / "drawn" / state


class Drawn(SphinxDirective):
    """A block of commands, and the picture they draw."""

    has_content = True
    required_arguments = 2
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Carry the commands out, where the picture is not there yet.

        Returns:
            The commands and the picture.

        Raises:
            RuntimeError: If a command fails.
        """
        file, alt = self.arguments
        place, script = _workplace(), "\n".join(self.content)
        if not (place / file).is_file():
            LOGGER.info("drawing %s", file)
            place.mkdir(parents=True, exist_ok=True)
            paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
            done = subprocess.run(
                ["bash", "-ec", script],
                cwd=place,
                env={**os.environ, "PATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not (place / file).is_file():
                raise RuntimeError(f"{script}\n{done.stdout}{done.stderr}\n{file} was not drawn")
        commands = nodes.literal_block(script, script, language="sh")
        picture = nodes.image(uri=f"/{(place / file).relative_to(DOCS)}", alt=alt)
        return [commands, picture]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive.

    Args:
        app: Sphinx.

    Returns:
        That pages may be written in parallel; they are read one after another, as they share runs.
    """
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
