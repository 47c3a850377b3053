"""Textbook steps: training straight from the definition, in the released code's order.

They are the oracles of the tests and the baselines of `scripts/benchmark.py`, and share no shortcut with the
steps that train. A model without an entry here is benchmarked alone (`scripts/benchmark.py --no_plain`).
"""

from __future__ import annotations

from models.base_model import BaseModel
from models.textbook.base import TextbookStep
from models.textbook.cut import TextbookCUT
from util.errors import UserError

TEXTBOOKS: dict[str, type[TextbookStep]] = {
    "qs": TextbookCUT,
    "cut": TextbookCUT,
    "fastcut": TextbookCUT,
}


def textbook_step(model: BaseModel) -> TextbookStep:
    """The textbook step on a model's weights. UserError where there is none."""
    name = model.opt.model
    if name not in TEXTBOOKS:
        raise UserError(
            f"--model {name} has no textbook step; those that have one are {', '.join(TEXTBOOKS)}"
        )
    return TEXTBOOKS[name](model)
