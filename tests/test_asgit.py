"""ASGIT: released, supervised, resumed and captured steps, refusals; runs, directions."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import load_baseline, under
from PIL import Image
from taped_graph import TapedCapture
from textbook import assert_refused, close, images, model_of, released_steps, step
from trained_run import command_of, draw_set, make_run
from training_process import state_of

import train
from models.attention import FUSIONS, resize_map
from models.speed import step_graph

TINY = "--model asgit --gpu_ids -1 --ngf 4 --ndf 4 --netG resnet_6blocks"
V1, V2 = TINY, f"{TINY} --netD trainable_attn --attention_fusion alpha --attention_source discriminator"
GOLDEN = {"asgit_step_v1": V1, "asgit_step_v2": V2}


def golden_batches(golden):
    """The batches of the golden steps, with the paths of the images."""
    for a, b in golden["order"].tolist():
        pair = {"A": golden["images_A"][a : a + 1], "B": golden["images_B"][b : b + 1]}
        yield {**pair, "A_paths": [f"A/{a}.png"], "B_paths": [f"B/{b}.png"]}


def sized(maps):
    return resize_map(maps, (32, 32))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_released_steps(float64, name):
    golden, model = load_baseline(name), model_of(GOLDEN[name])
    for number in released_steps(model, golden, golden_batches(golden), ("fake_B", "fake_A")):
        for domain in "AB":
            close(sized(model.results[f"attn_{domain}"]), golden[f"step{number}.attn_{domain}_used"])
            if model.memory:
                close(sized(model.results[f"next_{domain}"]), golden[f"step{number}.attn_{domain}_stored"])
    assert number == len(golden["order"])
    for key, expected in under(golden, "after.").items():  # running statistics
        net, _, key = key.partition(".")
        close(model.networks[net].state_dict()[key], expected)
    *_, last = golden_batches(golden)
    fake_B = model.translator()(last["A"])
    close(fake_B, golden["test.fake_B"])
    if "test.attn_A_used" in golden:
        close(sized(model.translator().attention(last["A"])), golden["test.attn_A_used"])
    close(model.networks["G_B"](fake_B, model.look("B", fake_B)), golden["test.rec_A"])


def test_discriminators_see_reconstructions_with_use_rec(float64):
    """As fakes, with weight 0.5 beside the halved terms; images are as without."""
    batch = next(golden_batches(load_baseline("asgit_step_v1")))
    plain, model = model_of(V1), model_of(V1, "--use_rec")
    netD = copy.deepcopy(model.networks["D_A"])
    for one in (plain, model):
        step(one, batch)
    seen = netD(model.results["rec_B"]).square().mean()
    close(model.losses["D_A"], (plain.losses["D_A"] + 0.5 * seen).detach())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_identities_and_reconstructions_have_no_map_from_a_memory(float64, fusion):
    model = model_of(V1, f"--attention_fusion {fusion} --lambda_identity 0.5")
    G_A, G_B = (copy.deepcopy(model.networks[name]) for name in ("G_A", "G_B"))
    batch = next(golden_batches(load_baseline("asgit_step_v1")))
    step(model, batch)
    with torch.no_grad():
        close(model.results["fake_B"], G_A(batch["A"], torch.ones(1, 1, 1, 1)))
        close(model.results["rec_A"], G_B(model.results["fake_B"]))
        close(model.results["idt_A"], G_A(batch["B"]))


def test_the_supervised_step(float64):
    """Of the second visit of an image, straight from the definition, with the map of the first one."""
    words = "--gpu_ids -1 --ngf 2 --ndf 4 --crop_size 128 --load_size 128 --no_dropout"
    model, batch = model_of("--model asgit_supervised", words), images(size=(128, 128))
    a, b = batch["A"], batch["B"]
    for _ in range(2):
        model.set_input({**batch, "A_paths": ["a.png"], "B_paths": ["b.png"]})
        netG, netD = (copy.deepcopy(model.networks[name]) for name in "GD")
        maps = model.batch["A_attention"]
        model.optimize_parameters()
    assert 0 <= maps.min() < maps.max() <= 1
    fake = netG(a, maps).detach()
    scores = [netD(torch.cat([a, of], 1)) for of in (fake, b)]
    close(model.results["fake_B"], fake)
    close(model.losses["D_fake"], F.softplus(scores[0]).mean().detach())
    close(model.losses["D_real"], F.softplus(-scores[1]).mean().detach())
    close(model.losses["G_L1"], 100 * (fake - b).abs().mean())
    close(model.losses["G"], model.losses["G_GAN"] + model.losses["G_L1"])


def noise(seed=0, **more):
    return {**images(seed=seed), "A_paths": ["a/0.png"], "B_paths": ["b/0.png"], **more}


@pytest.mark.parametrize("old", [False, True])
def test_maps_are_resumed(old):
    """Also those of runs that were saved with the maps beside the memories."""
    saved, model = model_of(V1), model_of(V1)
    step(saved, noise())
    state = saved.training_state()
    if old:
        maps = {domain: state["memories"].pop(f"attention_{domain}")[0] for domain in "AB"}
        state["attention"] = {domain: of["_extra_state"] for domain, of in maps.items()}
    model.load_training_state(state)
    for one in (saved, model):
        one.set_input(noise(A_windows=torch.tensor([[0.1, 0.2, 0.7, 0.8, 1.0]])))
    assert model.batch["A_attention"].min() < 1
    assert torch.equal(model.batch["A_attention"], saved.batch["A_attention"])


@pytest.mark.parametrize("words", [V1, V2], ids=["v1", "v2"])
def test_a_captured_step_is_the_step(monkeypatch, float64, words):
    """The look-up and the storing of maps stay outside the graph."""
    captured, eager = model_of(words), model_of(words)
    assert captured.capture_obstacle(captured.opt) is None
    graph = TapedCapture()
    monkeypatch.setattr(step_graph, "capture_graph", graph)
    captured.accelerator.captures = True
    for number in (0, 1, 0):
        losses = []
        for model in (captured, eager):
            torch.manual_seed(number)
            windows = torch.tensor([[0.0, 0.1 * number, 0.9, 0.9, number]])
            losses.append(step(model, noise(number, A_windows=windows)))
        assert losses[0] == losses[1]
        visuals = captured.get_current_visuals()
        for name, image in eager.get_current_visuals().items():
            assert torch.equal(visuals[name], image), name
    assert len(graph.tapes) == 1
    for domain, memory in eager.memory.items():
        assert torch.equal(memory.maps, captured.memory[domain].maps)


@pytest.mark.parametrize(
    "words, told",
    {
        "--netD basic": "--netD basic does not say where it looks",
        "--netG unet_128 --crop_size 128 --load_size 128 --attention_stage F1": "this generator has F0$",
        "--crop_size 20 --load_size 20": "the discriminator at least 24 pixels",
    }.items(),
)
def test_what_cannot_be_is_refused(words, told):
    assert_refused(f"{TINY} {words}", told)


BY_D = "--netD trainable_attn --attention_fusion alpha --attention_source discriminator".split()
CONFIGURATIONS = {"v1": [], "v2": BY_D, "v2_post_hoc": [*BY_D[2:], "--attention_fusion", "rmult"]}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_translating_a_test_set_needs_these_networks(tmp_path, name, direction):
    """v1 needs the generator alone, v2 the discriminator of the source too; nothing else is read."""
    trained = "BtoA" if name == "v2_post_hoc" else "AtoB"
    needed = {True: ["G_A", "D_B"], False: ["G_B", "D_A"]}[direction == trained][: 1 if name == "v1" else 2]
    words = ["--model", "asgit", *CONFIGURATIONS[name], "--direction", trained]
    folder = make_run(tmp_path, *words, networks="GD")
    for file in folder.glob("*.pth"):
        if not any(file.name.endswith(f"_net_{network}.pth") for network in needed):
            file.unlink()
    dataroot = draw_set(tmp_path / "data", (40, 36), testA=2, testB=2)
    words = "--name", "run", "--dataroot", dataroot, "--direction", direction
    command = command_of(tmp_path, tmp_path / "results", *words)
    assert command() == 0
    ending = "" if direction == trained else f"_{direction}"
    images = tmp_path / "results" / "run" / f"test_latest{ending}" / "images"
    maps = [] if name == "v1" else ["attn_A"]
    assert sorted(path.name for path in images.iterdir()) == sorted(["real_A", "fake_B", "real_B", *maps])
    assert all(len(list(folder.glob("*.png"))) == 2 for folder in images.iterdir())
    if name != "v1":
        (folder / f"latest_net_{needed[1]}.pth").unlink()
        assert command() == 2


def test_supervised_runs_on_pairs(tmp_path):
    for phase, count in {"train": 2, "test": 1}.items():
        (tmp_path / "pairs" / phase).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((2 * 143, 143), 60).save(tmp_path / "pairs" / phase / f"{number}.png")
    words = (
        f"--dataroot {tmp_path}/pairs --checkpoints_dir {tmp_path} --name run --gpu_ids -1 --num_threads 0"
    )
    more = "--model asgit_supervised --ngf 2 --ndf 2 --n_epochs 1 --n_epochs_decay 0 --display_id 0"
    assert train.main(f"{words} {more}".split()) == 0
    (memory,) = state_of(tmp_path)["model"]["memories"]["attention_A"]
    assert [Path(path).name for path in memory["_extra_state"]["paths"]] == ["0.png", "1.png"]
    assert json.loads((tmp_path / "run" / "train_opt.json").read_text())["eval"] is False
    command, pictures = command_of(tmp_path, tmp_path, "--name", "run", "--dataroot", tmp_path / "pairs"), []
    for _ in range(2):
        assert command() == 0
        pictures.append((tmp_path / "run/test_latest/images/fake_B/0.png").read_bytes())
    assert pictures[0] == pictures[1], "dropout is drawn from --seed"
