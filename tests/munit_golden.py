"""MUNIT's golden numbers, and models that start from them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from golden import DATA
from torch import Tensor

from models import create_model, munit_networks
from models.munit_model import MUNITModel
from models.munit_networks import AdaINGenerator, MultiScaleDiscriminator
from options.train_options import TrainOptions


def load_munit_golden(name: str) -> tuple[dict[str, Tensor], dict]:
    """The numeric arrays of tests/data/baselines/NAME.npz in float64, and their settings."""
    with np.load(DATA / "baselines" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    settings = ast.literal_eval(str(arrays["meta.settings"]))
    tensors = {
        key: torch.from_numpy(np.asarray(value)).double()
        for key, value in arrays.items()
        if value.dtype.kind != "U"  # meta.settings and keys.NET are text
    }
    return tensors, settings


def weights_before(golden: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state dict that the network `name` starts from."""
    prefix = f"before.{name}."
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def golden_generator(golden: dict[str, Tensor], settings: dict, name: str) -> AdaINGenerator:
    """A float64 generator with the golden weights of `name`."""
    gen = settings["gen"]
    sizes = {key: gen[key] for key in ("dim", "mlp_dim", "style_dim", "n_downsample", "n_res")}
    net = AdaINGenerator(3, 3, **sizes).double()
    net.load_state_dict(weights_before(golden, name))
    return net


def golden_discriminator(golden: dict[str, Tensor], settings: dict, name: str) -> MultiScaleDiscriminator:
    """A float64 discriminator with the golden weights of `name`."""
    dis = settings["dis"]
    net = MultiScaleDiscriminator(3, dis["dim"], dis["n_layer"], dis["num_scales"]).double()
    net.load_state_dict(weights_before(golden, name))
    return net


def munit_words(settings: dict) -> list[str]:
    """The options of train.py that build and train as the settings of a golden file say."""
    gen, dis = settings["gen"], settings["dis"]
    words = f"--model munit --gpu_ids -1 --ngf {gen['dim']} --ndf {dis['dim']}"
    words += f" --n_layer {dis['n_layer']} --num_scales {dis['num_scales']}"
    words += "".join(f" --{name} {gen[name]}" for name in ("mlp_dim", "style_dim", "n_downsample", "n_res"))
    names = "lr beta1 beta2 weight_decay gan_w recon_x_w recon_s_w recon_c_w recon_x_cyc_w".split()
    words += "".join(f" --{name} {settings[name]}" for name in names)
    return words.split()


def golden_munit_model(golden: dict[str, Tensor], settings: dict) -> MUNITModel:
    """A float64 model with the golden weights."""
    model = create_model(TrainOptions().parse(munit_words(settings)))
    for name, net in model.networks.items():
        net.double().load_state_dict(weights_before(golden, name))
    return model


@contextmanager
def given_styles(*styles: Tensor) -> Iterator[None]:
    """Styles to hand out in place of random ones, in this order."""
    given = iter(styles)
    with patch.object(munit_networks, "random_styles", lambda *_: next(given)):
        yield
    assert next(given, None) is None  # all were drawn
