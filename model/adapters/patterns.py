"""Regular expressions of a foreign file, tried where they can be stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from common.errors import UserError

SECONDS = 5.0  # an honest pattern needs a thousandth; the rest is for starting Python on a busy machine
TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
"""


def try_patterns(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    """Match every name once in another process.

    Nested repetitions can take longer than anyone waits, and nothing stops a match in its own process.

    Raises:
        UserError: it takes longer than `SECONDS`, or cannot be done.
    """
    if all(re.fullmatch(r"[\w.]*", pattern) for pattern in patterns):
        return
    command = [sys.executable, "-I", "-c", TRIAL]
    work = json.dumps([patterns, names])
    try:
        subprocess.run(command, input=work, timeout=SECONDS, check=True, capture_output=True, text=True)
    except subprocess.SubprocessError as error:
        raise UserError(
            f"{where}: a regular expression of target_modules, rank_pattern or alpha_pattern takes too long to match; "
            "list the names instead"
        ) from error
