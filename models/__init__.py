"""The models behind `--model`, by name."""

from argparse import Namespace

from models import build
from models.asgit_model import ASGITModel, ASGITSupervisedModel
from models.base_model import BaseModel
from models.cut_model import CUTModel, FastCUTModel
from models.cycle_gan_model import CycleGANModel
from models.dcl_model import DCLModel
from models.multi_model import CUTMultiModel, QSMultiModel
from models.munit_model import MUNITModel
from models.qs_model import QSDualModel, QSModel
from models.sesim_model import SeSimModel
from models.stargan_model import StarGANModel
from util.arguments import Option
from util.errors import UserError

MODELS: dict[str, type[BaseModel]] = {
    "qs": QSModel,
    "cut": CUTModel,
    "fastcut": FastCUTModel,
    "cycle_gan": CycleGANModel,
    "dcl": DCLModel,
    "qs_dual": QSDualModel,
    "sesim": SeSimModel,
    "asgit": ASGITModel,
    "asgit_supervised": ASGITSupervisedModel,
    "munit": MUNITModel,
    "qs_multi": QSMultiModel,
    "cut_multi": CUTMultiModel,
    "stargan": StarGANModel,
}


def create_model(opt: Namespace) -> BaseModel:
    """The model of `--model` with all its networks built on its device."""
    return MODELS[opt.model](opt)


def require_model(name: object, source: object) -> None:
    """UserError unless `name`, which the options of `source` have, is one of `MODELS`."""
    if not isinstance(name, str) or name not in MODELS:
        known = f"known are {', '.join(MODELS)}"
        raise UserError(f"the options of {source} name --model {name}, which is not known here: {known}")


def option_rows(model: str) -> dict[str, Option]:
    """The options of a model and of its networks, by name."""
    rows: dict[str, Option] = {}

    def add(flag: str, default: object, help: str, **row) -> None:
        name = flag.removeprefix("--")
        rows[name] = Option(name, default, help, **row)

    build.add_options(add)
    MODELS[model].add_options(add)
    return rows


def option_defaults(model: str) -> dict[str, object]:
    """The defaults of these options, and of others where the model has its own."""
    return {**{name: row.default for name, row in option_rows(model).items()}, **MODELS[model].defaults}
