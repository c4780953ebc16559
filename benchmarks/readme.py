"""What is measured, put where it is read."""

from __future__ import annotations

import re
from pathlib import Path


def put_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and the next `<!-- end -->`.

    Raises
    ------
    ValueError
        There is no such place.
    """
    old = path.read_text()
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
    new, n = re.subn(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", old, count=1, flags=re.DOTALL)
    if not n:
        raise ValueError(f"{path} has no place for {name}: two lines, <!-- {name} --> and <!-- end -->")
    path.write_text(new)
