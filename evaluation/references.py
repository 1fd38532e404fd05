"""What predictions are compared with: for every prediction, the list of its own references."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError

References = Sequence[Sequence[str | None]]
"""One list a prediction; lists may differ in length, and None stands for a reference that is missing."""


def check_references(predictions: Sequence[str], references: References) -> list[list[str]]:
    """The references of every prediction, without those that are missing.

    sacrebleu takes the other orientation, one list a reference with an entry a prediction, and reads no further than
    the shorter side: given these lists, it would score the first predictions only. So nothing is guessed here.

    Raises:
        UserError: there is no prediction, the two differ in number, or a prediction has no reference.
    """
    if not predictions:
        raise UserError("there is nothing to score: the list of predictions is empty")
    for number, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise UserError(f"prediction {number} is no text but {type(prediction).__name__}")
    if len(references) != len(predictions):
        turned = {len(one) for one in references if not isinstance(one, str)} == {len(predictions)}
        hint = "they seem to be one list a reference; turn them with list(zip(*references))" if turned else "add them"
        raise UserError(
            f"{len(predictions)} predictions need as many lists of references, one a prediction, not "
            f"{len(references)}: {hint}"
        )
    found = []
    for number, own in enumerate(references):
        if isinstance(own, str):
            raise UserError(f"the references of prediction {number} are one text, not a list; write [text]")
        present = [reference for reference in own if reference is not None]
        if not present:
            raise UserError(f"prediction {number} has no reference; leave it out, or give it one")
        if not all(isinstance(reference, str) for reference in present):
            raise UserError(f"the references of prediction {number} are not all texts")
        found.append(present)
    return found
