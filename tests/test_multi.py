"""Many domains: golden steps of qs_multi, cut_multi and stargan, properties of the networks."""

from __future__ import annotations

import ast

import pytest
import torch
from golden import load_baseline, under
from textbook import close, images, load_before, model_of, released_steps, run_steps, step

from models import gan_loss
from models.domain_networks import StarGANDiscriminator, StarGANGenerator
from models.generator import ResnetGenerator

TINY = "--gpu_ids -1 --ngf 4 --ndf 4 --netG resnet_4blocks --nce_layers 0,4,8,12 --netF_nc 8 --num_patches 8"


def golden(name):
    """Numbers in float64, labels as int64, and the settings."""
    arrays = load_baseline(name, "multi")
    return arrays, ast.literal_eval(arrays["meta.settings"])


def contrast_words(settings, model):
    names = "ngf ndf n_layers_D nce_layers num_patches netF_nc domain_dim nce_T lambda_GAN lambda_NCE"
    names += " lr netG batch_size"
    names += " qs_layers QS_mode" * (model == "qs_multi")
    names += " qs_window" * (model == "qs_multi" and settings["QS_mode"] != "global")
    text = lambda value: ",".join(map(str, value)) if isinstance(value, list) else value  # noqa: E731
    words = [f"--{name} {text(settings[name])}" for name in names.split()]
    letters = ",".join("abcdef"[: settings["domains"]])
    return f"--model {model} --domains {letters} --gpu_ids -1 --netD n_layers {' '.join(words)}"


@pytest.mark.parametrize("name", ["qs_multi_step", "qs_multi_step_batch1"])
def test_two_steps_of_many_domains(float64, name):
    arrays, settings = golden(name)
    model = model_of(contrast_words(settings, "qs_multi"))
    batches = [{key: arrays[f"step{n}.{key}"] for key in ("A", "B", "A_domain", "B_domain")} for n in (1, 2)]
    drawn = [
        [arrays[f"step{n}.ids_{d}_layer{layer}"] for layer in settings["nce_layers"][:3] for d in "AB"]
        for n in (1, 2)
    ]
    list(released_steps(model, arrays, batches, ("fake_B", "idt_B"), drawn))
    source = arrays["step1.A"][:1].expand(settings["domains"], -1, -1, -1)
    close(model.netG(source, torch.arange(settings["domains"])), arrays["final.to_all_of_step1_A0"])
    close(model.netD(arrays["step1.A"][:1]), arrays["final.D_of_A0_all_heads"])
    for key, value in under(arrays, "after.").items():
        net, _, parameter = key.partition(".")
        close(model.networks[net].state_dict()[parameter], value)


def test_the_same_step_with_random_patches(float64):
    arrays, settings = golden("qs_multi_step")
    model = model_of(contrast_words(settings, "cut_multi"))
    load_before(model, arrays)
    batch = {key: arrays[f"step1.{key}"] for key in ("A", "B", "A_domain", "B_domain")}
    drawn = [[arrays[f"step1.ids_{d}_layer{layer}"] for layer in settings["nce_layers"] for d in "AB"]]
    ((losses, _),) = run_steps(model, model, [batch], drawn)
    expected = {loss: value.item() for loss, value in under(arrays, "cut.step1.loss_").items()}
    assert {loss: losses[loss] for loss in expected} == pytest.approx(expected, rel=1e-6)


def test_the_released_networks_of_stargan(float64):
    arrays, settings = golden("stargan_networks")
    netG = StarGANGenerator(3, 3, settings["c_dim"], settings["g_conv_dim"], settings["g_repeat_num"])
    halvings, side = settings["d_repeat_num"], settings["image_size"]
    netD = StarGANDiscriminator(3, settings["c_dim"], settings["d_conv_dim"], halvings, side)
    netG.load_state_dict(under(arrays, "before.G."))
    netD.load_state_dict(under(arrays, "before.D."))
    close(netG(arrays["x"], arrays["labels"]), arrays["y"])
    close(netG(arrays["x"][:1].expand(3, -1, -1, -1), torch.arange(3)), arrays["to_all"])
    scores, classes = netD(arrays["d.x"])
    close(scores, arrays["d.out_src"])
    close(classes, arrays["d.out_cls"])


def test_four_steps_of_the_released_stargan(float64, monkeypatch):
    arrays, s = golden("stargan_step")
    words = {name: s[name] for name in ("batch_size", "n_critic", "g_repeat_num", "d_repeat_num")}
    words |= {"ngf": s["g_conv_dim"], "ndf": s["d_conv_dim"], "lr": s["g_lr"]}
    words |= dict.fromkeys(("crop_size", "load_size"), s["image_size"])
    words["n_iterations"] = s["num_iters"] - s["num_iters_decay"]
    words["n_iterations_decay"] = s["num_iters_decay"] - 1
    words = " ".join(f"--{name} {value}" for name, value in words.items())
    model = model_of(f"--model stargan --domains a,b,c --gpu_ids -1 {words}")
    load_before(model, arrays)
    for number in range(1, 5):
        given = under(arrays, f"step{number}.")
        monkeypatch.setattr(gan_loss, "random_shares", lambda count, device, given=given: given["alpha"])
        labels = {"A_domain": given["labels"], "B_domain": given["targets"]}
        model.set_input({"A": given["x"], "B": given["x"], **labels})
        assert model.learning_rate == pytest.approx(given["lr_D"].item(), rel=1e-12)
        model.optimize_parameters()
        losses = model.get_current_losses()
        for loss, value in under(given, "loss_").items():
            assert losses[loss] == pytest.approx(value.item(), rel=1e-6), (number, loss)
        if "fake" in given:
            close(model.results["fake_B"], given["fake"])
    fake = model.networks["G"](arrays["step1.x"], torch.full((3,), 2))
    close(fake, arrays["final.fake_of_step1"])
    scores, classes = model.networks["D"](fake)
    close(scores, arrays["final.D_src"])
    close(classes, arrays["final.D_cls"])
    assert model.counter.state_dict()["_extra_state"] == 4


def test_zero_maps_are_the_plain_generator(float64):
    model = model_of(f"--model qs_multi --domains a,b,c {TINY}")
    plain = ResnetGenerator(ngf=4, n_blocks=4)
    state = model.netG.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if "affine" not in k and k[:3] != "dom"})
    for name, parameter in model.netG.named_parameters():
        if "affine" in name:
            torch.nn.init.zeros_(parameter)
    x, domains = torch.rand(3, 3, 16, 24) * 2 - 1, torch.tensor([2, 0, 1])
    close(model.netG(x, domains), plain(x).detach())
    one_by_one = [model.netG(x[i : i + 1], domains[i : i + 1]) for i in range(3)]
    close(model.netG(x, domains), torch.cat(one_by_one).detach())


def test_only_the_targets_of_a_batch_learn(float64):
    model = model_of(f"--model qs_multi --domains a,b,c,d {TINY}")
    batch = images(2, (24, 24))
    batch |= {"A_domain": torch.tensor([1, 3]), "B_domain": torch.tensor([0, 2])}
    ((_, gradients),) = run_steps(model, model, [batch])
    for name in ("G.domains.weight", f"D.model.{len(model.netD.model) - 1}.weight"):
        reached = gradients[name].flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [True, False, True, False], name


def test_renumbered_domains_are_the_same_training(float64):
    order = torch.tensor([2, 0, 1])
    losses = []
    for renumbered in (False, True):
        model = model_of(f"--model qs_multi --domains a,b,c {TINY}")
        batch = images(2, (24, 24))
        batch |= {"A_domain": torch.tensor([1, 0]), "B_domain": torch.tensor([0, 2])}
        if renumbered:
            for weight in (model.netG.domains.weight, model.netD.model[-1].weight, model.netD.model[-1].bias):
                weight.data[order] = weight.data.clone()
            batch |= {name: order[batch[name]] for name in ("A_domain", "B_domain")}
        torch.manual_seed(5)
        losses.append(step(model, batch))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
