"""What the server allows its clients, and the names under which it serves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class ServerOptions:
    """Limits of the server. What goes beyond one is answered with the status that stands beside it."""

    slots: int = 16
    """Texts that are written at the same time."""
    max_waiting: int = 64
    """Texts that may wait for a slot; a request with more than fit is answered with 429."""
    max_tokens: int = 4096
    """The longest continuation; a request for more gets this many."""
    request_seconds: float = 600.0
    """How long a request may take, waiting included; then it is answered with 504."""
    body_bytes: int = 4 * 1024 * 1024
    """The largest body of a request; a larger one is answered with 413 and not read."""
    body_seconds: float = 30.0
    """How long the body of a request may take to arrive; then it is answered with 408."""
    header_seconds: float = 10.0
    """How long the header of a request may take to arrive; then the connection is closed."""
    send_seconds: float = 60.0
    """How long a client may read nothing of its answer; then the connection is closed."""
    grace_seconds: float = 30.0
    """How long running requests may go on after SIGTERM or Ctrl-C."""
    connections: int = 1000
    """Connections that may be open at the same time; one more is answered with 503."""

    def __post_init__(self) -> None:
        for name in ServerOptions.__dataclass_fields__:
            value = getattr(self, name)
            least = 0 if name in ("max_waiting", "grace_seconds") else 1 if isinstance(value, int) else 0.001
            if not least <= value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value} is out of range: it must be at least {least}")
