"""How the step runs: what options refuse, rehearsal without a trace, what stays float32, capture."""

import copy

import pytest
import torch
from conftest import on_gpu
from taped_graph import TapedCapture

from models import create_model, qs_attn
from models.gan_loss import GAN_LOSSES
from models.layers import InstanceNorm
from models.speed import accelerator, step_graph
from options.train_options import TrainOptions
from util.run.checkpoint import random_state, set_random_state

SMALL = "--ngf 4 --ndf 4 --netG resnet_4blocks"
CONTRAST = "--netF_nc 16 --num_patches 24 --nce_layers 0,4,8,12"
LSESIM = "--model sesim --learned_attn --vgg_weights random --attn_layers 2,4 --patch_nums 24 --patch_size 3"
TWO_SIDED = {
    "cycle_gan": "--model cycle_gan --pool_size 2",
    "dcl": "--model dcl",
    "qs_dual": "--model qs_dual --QS_mode local_global --pool_size 2",
}


def parse(words, gpu=-1):
    own = "" if "--model sesim" in words or "--model cycle_gan" in words else CONTRAST
    return TrainOptions().parse(f"--gpu_ids {gpu} {SMALL} {own} {words}".split())


def tiny_model(words="", gpu=-1):
    torch.manual_seed(0)
    return create_model(parse(words, gpu))


def batches(count, size=(32, 32)):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 2, 1, 3, *size, generator=generator) * 2 - 1
    return [dict(zip("AB", pair, strict=True)) for pair in images]


def losses_of(model, steps):
    torch.manual_seed(2)
    losses = []
    for batch in steps:
        model.set_input(batch)
        model.optimize_parameters()
        losses.append(model.get_current_losses())
    return losses


def weights(model):
    return [p.detach().clone() for net in model.networks.values() for p in net.parameters()]


# --- options


def test_impossible_combinations_are_refused_with_their_reason(capsys):
    for words, said in {
        "--precision tf32": "--precision tf32 needs an NVIDIA GPU",
        "--cuda_graph": "--cuda_graph needs a CUDA device",
        "--cuda_graph --flip_equivariance": "draws a number on the host",
    }.items():
        with pytest.raises(SystemExit) as exit:
            parse(words)
        assert exit.value.code == 2 and said in capsys.readouterr().err


def test_fast_takes_what_is_fastest_here_but_for_what_is_given(monkeypatch):
    everything = {"precision": "bf16", "channels_last": True, "cuda_graph": True}
    monkeypatch.setattr(accelerator, "fastest", lambda device: everything)
    opt = parse("--fast --channels_last false")
    assert (opt.precision, opt.channels_last) == ("bf16", False)
    assert opt.cuda_graph is False  # what cannot be is left off, since nobody asked for it
    assert parse("").precision == "fp32"


# --- precision


def test_bf16_keeps_selection_losses_and_optimiser_state_in_float32(monkeypatch):
    model = tiny_model("--precision bf16")
    seen = {}

    def spy(name, function):
        def watched(*args):
            result = function(*args)
            seen.setdefault(name, set()).add(getattr(result, "attention", result).dtype)
            return result

        return watched

    rank, attend = qs_attn.MODES["global"]
    watched = qs_attn.Rule(spy("entropy", rank), spy("attention", attend))
    monkeypatch.setitem(qs_attn.MODES, "global", watched)
    monkeypatch.setattr(model.patchnce, "forward", spy("nce", model.patchnce.forward))
    monkeypatch.setitem(GAN_LOSSES, "lsgan", spy("gan", GAN_LOSSES["lsgan"]))
    model.netG.model[1].register_forward_hook(spy("convolution", lambda *args: args[2]))
    losses_of(model, batches(1))
    assert seen.pop("convolution") == {torch.bfloat16}  # else nothing was tested
    assert seen == dict.fromkeys(("entropy", "attention", "nce", "gan"), {torch.float32})
    assert all(loss.dtype == torch.float32 for loss in model.losses.values())
    for net in model.networks.values():
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    for optimizer in model.optimizers.values():
        assert all(t.dtype == torch.float32 for state in optimizer.state.values() for t in state.values())


def test_instance_norm_of_bfloat16_has_float32_statistics():
    x = (torch.randn(2, 3, 64, 64) + 30).bfloat16()  # a mean that bfloat16 sums would get wrong
    exact = torch.nn.functional.instance_norm(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = InstanceNorm()(x)
    # the rounding of the result and no more
    assert (y.double() - exact).abs().max() < 2**-8 * exact.abs().max()


@pytest.mark.parametrize("name", ["qs", *TWO_SIDED])
def test_models_in_bf16_and_channels_last(name):
    words, steps = TWO_SIDED.get(name, ""), batches(3)
    ways = ("", "--channels_last", "--precision bf16 --channels_last")
    found = [losses_of(tiny_model(f"{words} {way}"), steps) for way in ways]
    for plain, relaid, rounded in zip(*found, strict=True):
        assert plain == pytest.approx(relaid, rel=1e-3)
        assert plain == pytest.approx(rounded, rel=0.1, abs=0.05) and plain != rounded


def test_a_run_on_the_cpu_asks_no_gpu_for_anything(monkeypatch):
    """Adam asks for the current stream where CUDA is available, and saved states held its random numbers."""

    def initialise(*_, **__):
        pytest.fail("CUDA is initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialise)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", initialise)
    if hasattr(torch, "accelerator"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "current_stream", initialise)
    losses_of(tiny_model(), batches(1))
    set_random_state(random_state())


# --- capture, with a tape in place of the graph


@pytest.fixture
def captured_model(monkeypatch, float64):
    """build(words) -> model that captures on a tape, and the capture. In float64, as are then its rates."""

    def build(words=""):
        model = tiny_model(words)
        graph = TapedCapture()
        monkeypatch.setattr(step_graph, "capture_graph", graph)
        model.accelerator.captures = True
        return model, graph

    return build


@pytest.mark.parametrize("words", ["", LSESIM, *TWO_SIDED.values(), "--precision bf16"])
def test_captured_training_equals_eager_training(captured_model, words):
    """Also the random numbers drawn, the pictures, and the learning rate as the schedule lowers it."""
    words += " --n_epochs 0 --n_epochs_decay 3"
    model, graph = captured_model(words)
    eager = tiny_model(words)
    other_sizes = [] if model.opt.pool_size else batches(2, (32, 48))  # a pool keeps images of one size
    steps = [*batches(3), *other_sizes, *batches(1)]
    for number, batch in enumerate(steps):
        drawn = []
        for one in (model, eager):
            torch.manual_seed(number)
            one.set_input(batch)
            one.optimize_parameters()
            drawn.append(torch.get_rng_state())
            if number < 2:
                one.update_learning_rate(1.0)
        assert torch.equal(*drawn)  # as many random numbers, so the same positions
        assert model.get_current_losses() == eager.get_current_losses()
        visuals, expected = model.get_current_visuals(), eager.get_current_visuals()
        assert all(torch.equal(visuals[name], expected[name]) for name in expected)
    assert len(graph.tapes) == len({batch["A"].shape for batch in steps})
    assert all(map(torch.equal, weights(model), weights(eager)))
    assert model.guard.report[0] == len(steps)
    group = next(iter(model.optimizers.values())).param_groups[0]
    assert isinstance(group["lr"], float) and group["lr"] < model.opt.lr


def test_saved_states_pass_between_captured_and_plain_runs(captured_model):
    model, graph = captured_model()
    plain = tiny_model()
    first, second = batches(2)
    losses_of(model, [first])
    plain.load_training_state(copy.deepcopy(model.training_state()))
    assert losses_of(model, [second]) == losses_of(plain, [second])
    model.load_training_state(copy.deepcopy(plain.training_state()))
    assert losses_of(model, [first]) == losses_of(plain, [first])
    assert len(graph.tapes) == 2  # loading replaced the state that the first graph wrote to


def test_no_more_shapes_are_captured_than_memory_is_kept_for(captured_model, monkeypatch):
    """cuDNN searches for algorithms before a capture, and not for shapes that are not captured."""
    monkeypatch.setattr(accelerator, "MOST_SHAPES", 1)
    model, graph = captured_model()
    searches = []
    monkeypatch.setattr(model.accelerator, "set_switches", lambda search=False: searches.append(search))
    losses_of(model, [*batches(1), *batches(2, (32, 48)), *batches(1)])
    assert len(graph.tapes) == 1
    assert searches == [True, False, False, False, False]


def test_a_failed_capture_warns_once_and_trains_on_from_the_same_state(captured_model, monkeypatch):
    model, _ = captured_model()

    def broken(step, side):
        step()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step_graph, "capture_graph", broken)
    steps = [*batches(2), *batches(1, (32, 48))]
    with pytest.warns(RuntimeWarning, match="--cuda_graph failed.*not permitted") as caught:
        losses = losses_of(model, steps)
    assert len(caught) == 1
    plain = tiny_model()
    assert losses == losses_of(plain, steps)
    assert all(map(torch.equal, weights(model), weights(plain)))


# --- on a GPU


@on_gpu
@pytest.mark.parametrize(
    "words",
    ["", "--QS_mode local", "--model cut", "--channels_last", "--no_dropout false --normG batch", LSESIM],
)
def test_gpu_a_captured_run_follows_the_eager_one(words):
    steps = batches(6)
    losses = {}
    for option in ("", "--cuda_graph"):
        model = tiny_model(f"{words} {option}", gpu=0)
        torch.manual_seed(2)
        losses[option] = losses_of(model, steps)
        state = torch.cuda.get_rng_state(model.device)
        losses[option].append({"random": state.double().sum().item()})
        if option:
            assert model.accelerator.recordings  # nothing was given up
        assert model.guard.report[0] == len(steps) and model.guard.failure(wait=True) is None
    for one, other in zip(losses[""], losses["--cuda_graph"], strict=True):
        assert one == pytest.approx(other, rel=2e-2, abs=1e-4)
    first, captured = losses[""][0], losses["--cuda_graph"][0]
    assert first == pytest.approx(captured, rel=1e-4)  # the same positions; later steps grow rounding apart


@on_gpu
def test_gpu_a_capture_that_breaks_off_leaves_a_machine_that_trains():
    model = tiny_model("--cuda_graph", gpu=0)
    step = model.training_step

    def synchronising():
        step()
        if torch.cuda.is_current_stream_capturing():
            model.losses["G"].item()

    model.training_step = synchronising
    steps = batches(3)
    with pytest.warns(RuntimeWarning, match="--cuda_graph failed"):
        losses = losses_of(model, steps)
    plain = losses_of(tiny_model(gpu=0), steps)
    for one, other in zip(losses, plain, strict=True):
        assert one == pytest.approx(other, rel=2e-2, abs=1e-4)
