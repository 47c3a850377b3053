"""Many domains: golden steps, the networks; data, translating, judging, samples, a resume."""

import ast
import json
import shutil

import numpy as np
import pytest
import torch
from golden import load_baseline, under
from textbook import assert_refused, close, images, load_before, model_of, released_steps, run_steps
from trained_run import command_of, draw_set, picture

import test as translation
import train
from data import create_loader
from data.folders import domain_folder, find_domains
from datasets.make_stripes import make_coats
from models import create_model, gan_loss
from models.domain_networks import StarGANDiscriminator, StarGANGenerator
from models.generator import ResnetGenerator
from models.inference import load_generator
from models.samples import Samples
from models.weights import save_tensors, weights_file
from options.train_options import TrainOptions
from scripts import evaluate, judging
from util.errors import UserError
from util.image_files import open_rgb
from util.run.saved_options import write_options
from util.weight_files import read_tensors

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


# ---- data and options ----

PHASES = [(phase, *domain) for phase in ("train", "test") for domain in (("A", 3), ("B", 5), ("C", 2))]


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """Domains A, B, C of 3, 5, 2 images."""
    counts = {f"{phase}/{name}": count for phase, name, count in PHASES}
    return draw_set(tmp_path_factory.mktemp("set"), (30, 30), **counts)


@pytest.mark.parametrize("suffixes", [False, True])
def test_an_epoch_has_each_domain_equally_often(tmp_path, suffixes):
    between = "" if suffixes else "/"
    root = draw_set(tmp_path, (30, 30), **{f"{p}{between}{name}": n for p, name, n in PHASES})
    words = f"--model qs_multi --dataroot {root} {TINY} --load_size 28 --crop_size 24 --num_threads 0"
    opt = TrainOptions().parse([*words.split(), "--batch_size", "3"])
    assert opt.domains == find_domains(root, "train") == ["A", "B", "C"]
    batches = list(create_loader(opt, "cpu").epoch(1))
    sources = torch.cat([batch["A_domain"] for batch in batches])
    targets = torch.cat([batch["B_domain"] for batch in batches])
    assert sources.bincount().tolist() == [5, 5, 5] and (sources != targets).all()
    for domain, numbers in (("A", sources), ("B", targets)):
        paths = [path for batch in batches for path in batch[f"{domain}_paths"]]
        assert ["ABC".index(path[-6]) for path in paths] == numbers.tolist()


@pytest.mark.parametrize(
    "words, told",
    {
        "--nce_layers 0,16": "the last one that works is 14",
        "--netG unet_128 --nce_layers 0,4": "give a resnet",
        "--netD pixel": "give basic or n_layers",
        "--pool_size 5": "--pool_size 0",
        "--direction BtoA": "--direction has no effect",
    }.items(),
)
def test_what_cannot_be_is_refused(words, told):
    assert_refused(f"--model qs_multi --domains A,B --gpu_ids -1 --netG resnet_4blocks {words}", told)


def test_one_domain_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least two domains"):
        find_domains(tmp_path, "train")
    with pytest.raises(SystemExit):
        model_of("--model qs_multi --domains A")


# ---- translating ----

SMALL = "--gpu_ids -1 --ngf 4 --ndf 4 --load_size 32 --crop_size 32"
RUNS = {
    "qs_multi": "--netG resnet_4blocks --netF_nc 8 --num_patches 8 --nce_layers 0,4,8,12",
    "stargan": "--g_repeat_num 1 --d_repeat_num 3",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained runs of `RUNS`, in a folder of runs."""
    root, options = tmp_path_factory.mktemp("checkpoints"), TrainOptions()
    for name, words in RUNS.items():
        words = f"--model {name} --domains A,B,C {SMALL} {words} --name {name} --checkpoints_dir {root}"
        opt = options.parse(words.split())
        write_options(root / name, opt, options.parser.defaults)
        opt.init_gain = 0.5
        torch.manual_seed(0)
        net = create_model(opt).networks["G"]
        for key, parameter in net.named_parameters():
            if name == "stargan" and key != "main.0.weight":
                parameter.data *= 2  # strong enough to tell the domains apart
        save_tensors(net.state_dict(), weights_file(root / name, "latest", "G"))
    return root


@pytest.mark.parametrize("name", RUNS)
def test_a_translator_needs_a_domain(runs, tmp_path, name):
    translate, image = load_generator(name, runs, device="cpu"), picture((24, 32))
    assert translate.domains == ("A", "B", "C")
    found = np.stack([translate(image, domain=domain) for domain in "ABC"])
    assert len({one.tobytes() for one in found}) == 3
    assert np.array_equal(translate.with_domain("B")(image), found[1])
    with pytest.raises(ValueError, match="A, B, C"):
        translate(image)
    with pytest.raises(ValueError, match="to 'D': its domains are A, B, C"):
        translate.with_domain("D")
    # without options the domains are numbers
    bare = tmp_path / "200000-G.pth"
    shutil.copy(runs / name / "latest_net_G.pth", bare)
    bare = load_generator(bare, device="cpu")
    assert bare.domains == ("0", "1", "2") and np.array_equal(bare(image, domain="2"), found[2])


def test_statistics_that_stargan_saved_are_dropped(runs, tmp_path):
    state = read_tensors(runs / "stargan" / "latest_net_G.pth")
    for key in [key for key in state if key.endswith("bias")]:
        for last in ("running_mean", "running_var"):
            state[key.replace("bias", last)] = torch.rand(state[key].shape)
        state[key.replace("bias", "num_batches_tracked")] = torch.tensor(7)
    save_tensors(state, tmp_path / "200000-G.pth")
    found, expected = (
        load_generator(path, runs, device="cpu")(picture(), domain=name)
        for path, name in ((tmp_path / "200000-G.pth", "1"), ("stargan", "B"))
    )
    assert np.array_equal(found, expected)


@pytest.fixture
def command(runs, dataroot, tmp_path):
    return command_of(runs, tmp_path / "results", "--dataroot", dataroot)


@pytest.mark.parametrize("name", RUNS)
def test_each_image_has_a_row_and_each_domain_a_column(command, runs, tmp_path, name):
    assert command("--name", name, "--batch_size", "3") == 0  # batches of mixed domains
    results = tmp_path / "results" / name / "test_latest"
    translate = load_generator(name, runs, device="cpu")
    for image in ("A/A0", "B/B4", "C/C1"):
        source = open_rgb(results / "images" / "real_A" / f"{image}.png")
        for domain in "ABC":
            found = np.asarray(open_rgb(results / "images" / f"to_{domain}" / f"{image}.png"))
            difference = found.astype(int) - np.asarray(translate(source, domain=domain))
            assert np.abs(difference).max() <= 1
    assert len(list(results.glob("images/*/*/*.png"))) == 4 * (3 + 5 + 2)
    assert command("--name", name, "--domain", "C,A", "--num_test", "1") == 0
    files = sorted(path.relative_to(results / "images").as_posix() for path in results.glob("images/*/*/*"))
    assert files == [f"{label}/{d}/{d}0.png" for label in ("real_A", "to_A", "to_C") for d in "ABC"]


def test_a_photograph_to_every_domain_or_to_one(command, tmp_path):
    picture((40, 30)).save(tmp_path / "photo.jpg")
    words = "--name", "qs_multi", "--input", tmp_path / "photo.jpg", "--output"
    out, one = tmp_path / "out", tmp_path / "one.png"
    assert command(*words, out) == command(*words, one, "--domain", "B") == 0
    assert sorted(path.name for path in out.iterdir()) == [f"photo_to_{domain}.png" for domain in "ABC"]
    assert np.array_equal(open_rgb(one), open_rgb(out / "photo_to_B.png"))


@pytest.mark.parametrize(
    "words, told",
    [
        ("--domain D", "--domain D is none of qs_multi: give some of A, B, C"),
        ("--direction BtoA", "say the target with --domain"),
        ("--domains A,B", "--domains of qs_multi are A,B,C"),
        ("--num_styles 2", "has no styles"),
        ("--pretrained horse2zebra_global --domain dog", "--domain has no effect with --model qs"),
    ],
)
def test_wrong_calls_of_test_py(runs, capsys, words, told):
    run = [] if "--pretrained" in words else ["--name", "qs_multi", "--checkpoints_dir", str(runs)]
    with pytest.raises(SystemExit) as caught:
        translation.main([*run, "--gpu_ids", "-1", *words.split()])
    assert caught.value.code == 2 and told in capsys.readouterr().err


# ---- judging, and the page of a training ----


def test_each_pair_is_judged_by_the_images_of_its_target(command, runs, dataroot, tmp_path):
    assert command("--name", "qs_multi") == 0
    words = f"--name qs_multi --checkpoints_dir {runs} --dataroot {dataroot} --gpu_ids -1 --swd_size 32"
    words = f"{words} --metrics swd --results_dir {tmp_path / 'results'}".split()
    assert evaluate.main(words) == 0
    results = tmp_path / "results" / "qs_multi" / "test_latest"
    found = json.loads((results / "evaluation.json").read_text())
    pairs = {(s, t): pair["numbers"]["SWD"] for t, of in found["pairs"].items() for s, pair in of.items()}
    assert set(pairs) == {(s, t) for s in "ABC" for t in "ABC" if s != t}
    opt = evaluate.EvaluateOptions().parse(words)
    opt.real = domain_folder(dataroot, "test", "C")
    one = judging.Judge(opt).evaluate(results / "images" / "to_C" / "A")
    assert one["numbers"]["SWD"] == pairs["A", "C"]
    assert found["numbers"]["SWD"] == pytest.approx(np.mean(list(pairs.values())))
    assert found["targets"]["C"]["SWD"] == pytest.approx((pairs["A", "C"] + pairs["B", "C"]) / 2)


def test_coats_are_judged_on_a_set_with_their_masks(runs, tmp_path):
    make_coats(tmp_path / "set", train=1, test=3)
    options = TrainOptions()
    words = f"--model qs_multi --domains ginger,spotted {SMALL} {RUNS['qs_multi']}"
    opt = options.parse([*words.split(), "--name", "run", "--checkpoints_dir", str(tmp_path)])
    write_options(tmp_path / "run", opt, options.parser.defaults)
    opt = evaluate.EvaluateOptions().parse(
        f"--name run --checkpoints_dir {tmp_path} --dataroot {tmp_path / 'set'} --gpu_ids -1".split()
    )
    assert opt.metrics == ["swd", "coats"]
    for target, source in (("ginger", "spotted"), ("spotted", "ginger")):  # one as if nothing was translated
        place = tmp_path / "images" / f"to_{target}" / source
        shutil.copytree(tmp_path / "set" / "test" / source, place)
    numbers = judging.Judge(opt).evaluate(tmp_path / "images")["numbers"]
    assert (numbers["coats-taken"], numbers["coats-background"]) == (0, 0)


def test_samples_are_of_each_domain_to_another(runs, dataroot):
    words = f"--model qs_multi --dataroot {dataroot} {SMALL} {RUNS['qs_multi']}"
    opt = TrainOptions().parse(words.split())
    samples = Samples(opt, create_model(opt))
    assert [translator.variant.tolist() for _, translator in samples.inputs] == [1, 2, 0]


# ---- a run over its life ----


def test_a_run_keeps_its_domains(dataroot, tmp_path, capsys):
    """Those found at its start, whatever becomes of the folders."""
    data = tmp_path / "set"
    shutil.copytree(dataroot, data)
    place = f"--name run --checkpoints_dir {tmp_path} --gpu_ids -1".split()
    words = f"--dataroot {data} --model qs_multi {SMALL} {RUNS['qs_multi']} --n_iterations 2"
    words += " --n_iterations_decay 0 --num_threads 0 --display_id 0 --no_html"
    assert train.main([*place, *words.split()]) == 0
    assert "3 images A, 5 images B, 2 images C" in capsys.readouterr().out
    again = [*place, "--continue_train", "--n_iterations", "4"]
    with pytest.raises(SystemExit):
        train.main([*again, "--domains", "A,B"])
    assert "--domains is A,B,C in the run" in capsys.readouterr().err
    last = domain_folder(data, "train", "C")
    shutil.copytree(last, last.with_name(last.name.replace("C", "D")))  # a later folder changes nothing
    assert train.main(again) == 0
    capsys.readouterr()
    shutil.rmtree(last)
    assert train.main([*again, "--n_iterations", "6"]) == 2
    assert "train/C" in capsys.readouterr().err
