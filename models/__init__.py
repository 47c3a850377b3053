"""The models behind `--model`, by name: a training-step class and the defaults it brings."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field

from models.cut_model import CUTModel
from models.qs_model import QSModel


@dataclass(frozen=True)
class ModelEntry:
    """A model class, and the option defaults that go with its name."""

    build: type[CUTModel]
    defaults: dict[str, object] = field(default_factory=dict)


MODELS: dict[str, ModelEntry] = {
    "qs": ModelEntry(QSModel),
    "cut": ModelEntry(CUTModel),
    "fastcut": ModelEntry(
        CUTModel,
        {
            "lambda_NCE": 10.0,
            "nce_idt": False,
            "flip_equivariance": True,
            "n_epochs": 150,
            "n_epochs_decay": 50,
        },
    ),
}


def create_model(opt: Namespace) -> CUTModel:
    """The model of `--model` with all its networks built on its device."""
    return MODELS[opt.model].build(opt)
