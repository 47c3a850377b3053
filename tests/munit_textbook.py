"""MUNIT's training step written plainly, in the released order, and its golden numbers."""

from __future__ import annotations

import ast

import numpy as np
import torch
from golden import DATA
from torch import Tensor, nn

from models.munit_networks import AdaINGenerator, MultiScaleDiscriminator, discriminator_loss, generator_loss


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


def plain_munit_optimizers(nets: dict[str, nn.Module], settings: dict) -> dict[str, torch.optim.Adam]:
    """One Adam for both discriminators, one for both generators; L2 weight decay on all parameters."""
    return {
        kind: torch.optim.Adam(
            [*nets[f"{kind}_a"].parameters(), *nets[f"{kind}_b"].parameters()],
            lr=settings["lr"],
            betas=(settings["beta1"], settings["beta2"]),
            weight_decay=settings["weight_decay"],
        )
        for kind in ("dis", "gen")
    }


def plain_munit_step(
    nets: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Adam],
    x_a: Tensor,
    x_b: Tensor,
    styles: dict[str, Tensor],
    settings: dict,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One iteration: the discriminators, then the generators.

    Args:
        nets: "gen_a", "gen_b", "dis_a", "dis_b".
        optimizers: as `plain_munit_optimizers` makes them.
        x_a, x_b: images of the two domains, (B, 3, H, W).
        styles: the draws "dis_s_a", "dis_s_b", "gen_s_a", "gen_s_b", (B, style_dim, 1, 1).
        settings: the weights "gan_w", "recon_x_w", "recon_s_w", "recon_c_w", "recon_x_cyc_w".

    Returns:
        Losses by released names; images of gen_b; gradients by "NET.KEY", as each optimizer used them.
    """
    gen_a, gen_b, dis_a, dis_b = (nets[name] for name in ("gen_a", "gen_b", "dis_a", "dis_b"))
    losses: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    # Discriminators
    with torch.no_grad():
        x_ba = gen_a.decode(gen_b.encode(x_b)[0], styles["dis_s_a"])
        x_ab = gen_b.decode(gen_a.encode(x_a)[0], styles["dis_s_b"])
    losses["dis_a"] = discriminator_loss(fake=dis_a(x_ba), real=dis_a(x_a))
    losses["dis_b"] = discriminator_loss(fake=dis_b(x_ab), real=dis_b(x_b))
    losses["dis_total"] = settings["gan_w"] * (losses["dis_a"] + losses["dis_b"])
    optimizers["dis"].zero_grad()
    losses["dis_total"].backward()
    gradients |= _gradients(nets, "dis_a", "dis_b")
    optimizers["dis"].step()

    # Generators
    s_a, s_b = styles["gen_s_a"], styles["gen_s_b"]
    c_a, own_s_a = gen_a.encode(x_a)
    c_b, own_s_b = gen_b.encode(x_b)
    x_a_recon, x_b_recon = gen_a.decode(c_a, own_s_a), gen_b.decode(c_b, own_s_b)
    x_ba, x_ab = gen_a.decode(c_b, s_a), gen_b.decode(c_a, s_b)
    c_b_recon, s_a_recon = gen_a.encode(x_ba)
    c_a_recon, s_b_recon = gen_b.encode(x_ab)
    x_aba, x_bab = gen_a.decode(c_a_recon, own_s_a), gen_b.decode(c_b_recon, own_s_b)
    losses["gen_recon_x_a"] = (x_a_recon - x_a).abs().mean()
    losses["gen_recon_x_b"] = (x_b_recon - x_b).abs().mean()
    losses["gen_recon_s_a"] = (s_a_recon - s_a).abs().mean()
    losses["gen_recon_s_b"] = (s_b_recon - s_b).abs().mean()
    losses["gen_recon_c_a"] = (c_a_recon - c_a).abs().mean()
    losses["gen_recon_c_b"] = (c_b_recon - c_b).abs().mean()
    losses["gen_cycrecon_x_a"] = (x_aba - x_a).abs().mean()
    losses["gen_cycrecon_x_b"] = (x_bab - x_b).abs().mean()
    losses["gen_adv_a"] = generator_loss(dis_a(x_ba))
    losses["gen_adv_b"] = generator_loss(dis_b(x_ab))
    weights = {
        "gen_adv": "gan_w",
        "gen_recon_x": "recon_x_w",
        "gen_recon_s": "recon_s_w",
        "gen_recon_c": "recon_c_w",
        "gen_cycrecon_x": "recon_x_cyc_w",
    }
    losses["gen_total"] = sum(
        settings[weight] * (losses[f"{term}_a"] + losses[f"{term}_b"]) for term, weight in weights.items()
    )
    optimizers["gen"].zero_grad()
    losses["gen_total"].backward()  # leaves gradients in the discriminators too, which their zero_grad clears
    gradients |= _gradients(nets, "gen_a", "gen_b")
    optimizers["gen"].step()

    images = {"x_b_recon": x_b_recon, "x_ab": x_ab, "x_bab": x_bab}
    return (
        {name: loss.detach() for name, loss in losses.items()},
        {name: image.detach() for name, image in images.items()},
        gradients,
    )


def _gradients(nets: dict[str, nn.Module], *names: str) -> dict[str, Tensor]:
    return {f"{net}.{key}": p.grad.clone() for net in names for key, p in nets[net].named_parameters()}
