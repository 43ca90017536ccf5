"""Models rebuilt from checkpoints: equal to loading the weights, right about ties, names and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ckpt_tools import Activations, Analyzer, Family, Out, RoleTable, Rule, open_checkpoint, open_trajectory
from ckpt_tools.data import DataSource, ProbeSource
from ckpt_tools.errors import OptionError, PluginError, SourceError
from ckpt_tools.host import ModelHost
from ckpt_tools.model import Model
from ckpt_tools.registry import load_registry
from ckpt_tools.roles import assign
from ckpt_tools.view import View
from ckpt_tools.weights import Weights

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """Embedding, LayerNorm, BatchNorm, a fused linear map, a head that may be tied, and buffers of every kind."""

    def __init__(self, tied: bool, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.norm = nn.LayerNorm(width)
        self.batch = nn.BatchNorm1d(width)
        self.fused = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 7, bias=False)
        self.frozen = nn.Parameter(torch.randn(width), requires_grad=False)
        self.register_buffer("mask", torch.ones(width, dtype=torch.bool))
        self.register_buffer("rates", torch.arange(width) / 3, persistent=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens)) @ self.rates.diag() + self.frozen * self.mask
        x = self.batch(x.transpose(1, 2)).transpose(1, 2)
        a, b = self.fused(x).chunk(2, dim=-1)
        logits: Tensor = self.head(x + a.tanh() * b)
        return logits


class Tiny(Family):
    """The family of `Net`."""

    name = "tiny"
    table = RoleTable(
        rules=(
            Rule("embed.weight", ("embed",)),
            Rule("head.weight", ("unembed",)),
            Rule("fused.weight", ("layers.0.attn.q", "layers.0.attn.k")),
            Rule("norm.weight", ("norm",)),
        ),
        tied=(("head.weight", "embed.weight"),),
        prefix="net.",
    )

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        return Net(config.get("tied", False), config.get("width", 4))

    @classmethod
    def forward(cls, module: Any, batch: Mapping[str, Tensor], *, record: bool = False) -> Activations:
        # Submodules are called too: inside, they must hold the checkpoint's weights.
        hidden = (module.norm(module.embed(batch["tokens"])),) if record else ()
        return Activations(module(batch["tokens"]), hidden)

    @classmethod
    def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits = cls.forward(module, batch).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())


TOKENS = torch.tensor([[0, 3, 6, 1], [2, 2, 5, 4]])
BATCH = {"tokens": TOKENS}


class Fixed:
    """A batch source that gives one batch."""

    identity = "fixed"

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return BATCH


def net(seed: int = 0, tied: bool = False, width: int = 4) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net(tied, width)
        for p in made.parameters():
            p.data = torch.randn_like(p)
        made.batch.running_mean.normal_()
        made.batch.running_var.uniform_(0.5, 2)
    return made.eval()


def save(folder: Path, module: nn.Module, *, prefix: str = "", drop: tuple[str, ...] = ()) -> Path:
    kept: dict[int, str] = {}
    tensors = {}
    for name, t in module.state_dict(keep_vars=True).items():
        if kept.setdefault(id(t), name) == name and name not in drop:
            tensors[prefix + name] = t.detach().clone()
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def model_of(path: Path, config: Mapping[str, Any] | None = None, dtype: str | None = None) -> Model:
    host = ModelHost(Tiny, config or {}, Fixed())
    with open_checkpoint(path) as checkpoint:
        layout = assign(checkpoint.tensors, checkpoint.aliases, Tiny.table, config or {})
        return host.model(checkpoint, layout, dtype)


def assert_same(model: Model, source: Net) -> None:
    with torch.no_grad():
        expected = source(TOKENS)
    assert torch.equal(model.forward(BATCH).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "net.", "module.", "_orig_mod.net.", "module._orig_mod."])
def test_logits_equal_those_after_loading_bit_for_bit(tmp_path: Path, tied: bool, prefix: str) -> None:
    source = net(1, tied)
    model = model_of(save(tmp_path / "c", source, prefix=prefix), {"tied": tied})
    assert_same(model, source)
    with torch.no_grad():
        assert torch.equal(model.loss(BATCH), Tiny.loss(source, BATCH))
        hidden = model.forward(BATCH, record=True).hidden[0]
        assert torch.equal(hidden, source.norm(source.embed(TOKENS)))


def test_one_skeleton_serves_checkpoints_in_any_order(tmp_path: Path) -> None:
    host = ModelHost(Tiny, {"ckpt_family": "tiny"}, Fixed())
    sources = [net(seed) for seed in range(3)]
    checkpoints = [open_checkpoint(save(tmp_path / f"c{i}", s)) for i, s in enumerate(sources)]
    models = [host.model(c, assign(c.tensors, c.aliases, Tiny.table, {})) for c in checkpoints]
    assert len({id(m.skeleton) for m in models}) == 1
    for i in (2, 0, 1, 0):
        assert_same(models[i], sources[i])


def test_gradients_reach_replaced_tensors_and_equal_those_of_the_module(tmp_path: Path) -> None:
    source = net(1, tied=True)
    model = model_of(save(tmp_path / "c", source), {"tied": True})
    params = requiring(model)
    grads = torch.autograd.grad(model.loss(BATCH, tensors=params), list(params.values()))
    Tiny.loss(source, BATCH).backward()
    expected = dict(source.named_parameters())
    assert list(params) == [n for n, p in expected.items() if p.requires_grad]
    for name, g in zip(params, grads, strict=True):
        assert torch.equal(g, expected[name].grad)


def test_a_tied_tensor_is_replaced_under_both_names(tmp_path: Path) -> None:
    model = model_of(save(tmp_path / "c", net(1, tied=True)), {"tied": True})
    assert "head.weight" not in model.tensors and model.tied["head.weight"] == "embed.weight"
    by_one = model.forward(BATCH, tensors={"embed.weight": torch.ones(7, 4)}).logits
    by_other = model.forward(BATCH, tensors={"head.weight": torch.ones(7, 4)}).logits
    assert torch.equal(by_one, by_other) and (by_one == by_one[..., :1]).all()


def test_a_name_stored_nowhere_is_tied_as_the_table_says(tmp_path: Path) -> None:
    path = save(tmp_path / "c", net(1), prefix="net.", drop=("head.weight",))
    model = model_of(path)
    assert model.tied["head.weight"] == "embed.weight" and "head.weight" not in model.parameters()
    assert torch.equal(model.forward(BATCH).logits, model_of(path, {"tied": True}).forward(BATCH).logits)
    with pytest.raises(SourceError, match=r"nothing for 1 of .*: head\.weight"):
        model_of(path, {"tie_word_embeddings": False})


def test_a_tie_that_the_checkpoint_contradicts_is_dissolved(tmp_path: Path) -> None:
    source = net(1, tied=True)
    state = {name: t.clone() for name, t in source.state_dict().items()}
    (tmp_path / "c").mkdir()
    save_file(state, tmp_path / "c" / "model.safetensors")
    tied = model_of(tmp_path / "c", {"tied": True})
    assert_same(tied, source)
    assert "head.weight" not in tied.parameters()
    state["head.weight"][0, 0] += 1
    save_file(state, tmp_path / "c" / "model.safetensors")
    model = model_of(tmp_path / "c", {"tied": True})
    untied = net(1)
    untied.load_state_dict(state)
    assert_same(model, untied)
    assert list(model.parameters()) == list(model_of(tmp_path / "c").parameters())


def test_float64_casts_everything_the_model_computes_with(tmp_path: Path) -> None:
    source = net(1)
    path = save(tmp_path / "c", source)
    narrow, wide = model_of(path), model_of(path, dtype="float64")
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    source = source.double()
    source.rates = source.rates.double()
    assert_same(wide, source)
    assert model_of(save(tmp_path / "d", source)).dtype == torch.float64
    assert wide.forward({"tokens": TOKENS, "x": torch.ones(1)}).logits.dtype == torch.float64


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "c", net(1))
    before = torch.get_rng_state()
    model_of(path).forward(BATCH)
    assert torch.equal(before, torch.get_rng_state())


def test_the_skeleton_holds_no_weights(tmp_path: Path) -> None:
    model = model_of(save(tmp_path / "c", net(1)))
    assert all(p.untyped_storage().nbytes() <= 8 for p in model.skeleton.module.parameters())
    # What escapes the call has no weights to compute with, and says so.
    assert model.skeleton.module(TOKENS).isnan().all()


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "c", net(1), drop=("fused.bias", "batch.running_var"))
    with pytest.raises(SourceError, match=r"nothing for 2 of the model's 11 tensors: fused\.bias, batch\.running_var"):
        model_of(path)
    with pytest.raises(SourceError, match=r"tensor 'frozen' is \[4\], but the configuration makes it \[6\]"):
        model_of(save(tmp_path / "d", net(1)), {"width": 6})


def test_masks_may_be_missing_and_surplus_is_listed(tmp_path: Path) -> None:
    source = net(1)
    source.mask[0] = False
    stored = model_of(save(tmp_path / "c", source))
    assert_same(stored, source)
    source.register_buffer("extra", torch.zeros(2))
    model = model_of(save(tmp_path / "d", source, drop=("mask", "batch.num_batches_tracked")))
    assert model.unused == ("extra",)


def test_parameters_are_chosen_by_role_or_name(tmp_path: Path) -> None:
    model = model_of(save(tmp_path / "c", net(1), prefix="net."))
    assert model.roles["fused.weight"] == ("layers.0.attn.q", "layers.0.attn.k")
    assert model.select(["layers.0.*"]) == ["fused.weight"]
    assert model.select(["fused.*", "embed"]) == ["embed.weight", "fused.weight", "fused.bias"]
    assert model.select() == list(model.parameters())
    with pytest.raises(OptionError, match=r"'layers\.0\.attn\.q', which is stored fused with 'layers\.0\.attn\.k'"):
        model.select(["*.q"])
    with pytest.raises(OptionError, match=r"No parameter .* 'unembd'\. Did you mean 'unembed'"):
        model.select(["unembd"])
    with pytest.raises(OptionError, match="frozen"):
        model.select(["frozen"])


def test_unknown_replacement_is_refused(tmp_path: Path) -> None:
    model = model_of(save(tmp_path / "c", net(1)))
    with pytest.raises(PluginError, match=r"no tensor 'embed\.wieght'\. Did you mean 'embed\.weight'"):
        model.loss(BATCH, tensors={"embed.wieght": torch.ones(7, 4)})


def test_loss_and_logits_share_one_graph(tmp_path: Path) -> None:
    model = model_of(save(tmp_path / "c", net(1)))
    params = requiring(model)
    loss, logits = model.loss_and_logits(BATCH, tensors=params)
    assert torch.equal(loss, model.loss(BATCH))
    torch.testing.assert_close(logits, model.forward(BATCH).logits)
    assert not model.forward(BATCH).logits.requires_grad
    slope = torch.autograd.grad(loss, logits)[0]
    # Cross entropy's slope at a position sums to zero over the vocabulary, and the last position is not scored.
    assert slope.sum(-1).abs().max() < 1e-6 and not slope[:, -1].any() and slope[:, 0].any()


def requiring(model: Model) -> dict[str, Tensor]:
    return {name: p.clone().requires_grad_() for name, p in model.parameters().items()}


def test_loss_that_bypasses_the_module_has_no_known_logits(tmp_path: Path) -> None:
    class Direct(Tiny):
        name = "direct"

        @classmethod
        def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
            out: Tensor = module.embed(batch["tokens"]).square().mean()
            return out

    with open_checkpoint(save(tmp_path / "c", net(1))) as checkpoint:
        layout = assign(checkpoint.tensors, checkpoint.aliases, Tiny.table, {})
        model = ModelHost(Direct, {}, Fixed()).model(checkpoint, layout)
    with pytest.raises(PluginError, match="called its module 0 times"):
        model.loss_and_logits(BATCH)


def test_a_family_may_convert_what_names_do_not_match(tmp_path: Path) -> None:
    class Halves(Tiny):
        name = "halves"

        @classmethod
        def module_tensors(cls, module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            fused = torch.cat([tensors["fused.weight.0"], tensors["fused.weight.1"]])
            return {**tensors, "fused.weight": fused}

    source = net(1)
    state = {name: t.clone() for name, t in source.state_dict().items()}
    for i, half in enumerate(state.pop("fused.weight").chunk(2)):
        state[f"fused.weight.{i}"] = half.clone()
    (tmp_path / "c").mkdir()
    save_file(state, tmp_path / "c" / "model.safetensors")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        layout = assign(checkpoint.tensors, checkpoint.aliases, Tiny.table, {})
        model = ModelHost(Halves, {}, Fixed()).model(checkpoint, layout)
        assert_same(model, source)
        assert model.roles["fused.weight"] == ("layers.0.attn.q", "layers.0.attn.k")
        with pytest.raises(SourceError, match=r"fused\.weight"):
            ModelHost(Tiny, {}, Fixed()).model(checkpoint, layout)


class Probe(Analyzer):
    """Whatever needs are set."""

    name = "probe"
    outputs: ClassVar[Mapping[str, Out]] = {"x": Out()}


def view_of(path: Path, needs: str, host: ModelHost | None) -> View:
    checkpoint = open_checkpoint(path)
    analyzer = type("Needy", (Probe,), {"needs": needs})()
    weights = Weights(checkpoint, assign(checkpoint.tensors, checkpoint.aliases, Tiny.table, {}), [])
    return View(weights, analyzer, step=0, config={}, seed="0", host=host)


def test_the_view_hands_out_what_was_declared(tmp_path: Path) -> None:
    path, host = save(tmp_path / "c", net(1)), ModelHost(Tiny, {}, Fixed())
    with pytest.raises(PluginError, match="declares needs='weights' but used the forward"):
        view_of(path, "weights", host).model()
    with pytest.raises(PluginError, match="declares needs='weights' but used the forward"):
        view_of(path, "weights", host).batch()
    view = view_of(path, "forward", host)
    assert view.model().forward(view.batch()).logits.shape == (2, 4, 7)
    for use in (Model.loss, Model.loss_and_logits):
        with pytest.raises(PluginError, match="declares needs='forward' but used the loss"):
            use(view.model(), view.batch())
    assert view_of(path, "loss", host).model().loss(BATCH) > 0
    with pytest.raises(SourceError, match="made for weights only"):
        view_of(path, "loss", None).model()


def test_models_are_shared_until_somebody_writes_to_them(tmp_path: Path) -> None:
    view = view_of(save(tmp_path / "c", net(1)), "forward", ModelHost(Tiny, {}, Fixed()))
    model = view.model()
    assert view.model().tensors is model.tensors and model.changed() == []
    expected = model.forward(BATCH).logits
    model.tensors["embed.weight"].zero_()
    assert model.changed() == ["embed.weight"]
    assert torch.equal(view.model().forward(BATCH).logits, expected)
    batch = view.batch()
    assert batch is not view.batch() and view.model(dtype="float64").dtype == torch.float64


def test_refusals_say_why_before_any_work(tmp_path: Path) -> None:
    assert ModelHost(Tiny, {}, Fixed()).refusal("loss") == ""
    assert "no family" in ModelHost(None, {}, Fixed()).refusal("forward")
    assert "--data FILE" in ModelHost(Tiny, {}, None).refusal("forward")
    mute = type("Mute", (Tiny,), {"loss": Family.loss})
    # Inherited methods of the contract count as absent.
    assert ModelHost(mute, {}, Fixed()).refusal("forward") == ""
    assert "defines no loss()" in ModelHost(mute, {}, Fixed()).refusal("loss")
    assert "defines no build()" in ModelHost(Family, {}, Fixed()).refusal("forward")
    for host in (ModelHost(None, {}, Fixed()), ModelHost(Tiny, {}, None)):
        with pytest.raises(SourceError, match="The model cannot be run"):
            host.batch() if host.family else host.skeleton


def hosted(path: Path, source: Any = None) -> tuple[Model, ModelHost]:
    """Return the model of a checkpoint of any installed family."""
    with open_checkpoint(path) as checkpoint:
        family = load_registry().recognise(checkpoint.config, checkpoint.tensors)
        if family is None:
            pytest.skip(f"no family for {path.parent.name}")
        layout = assign(checkpoint.tensors, checkpoint.aliases, family.table, checkpoint.config)
        host = ModelHost(family, checkpoint.config, source)
        return host.model(checkpoint, layout), host


def transformers_loss(path: Path, tokens: Tensor) -> float:
    transformers = pytest.importorskip("transformers")
    module = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        return float(module(input_ids=tokens, labels=tokens).loss)


def test_published_model_has_its_published_loss(shared_data: Path) -> None:
    pytest.importorskip("transformers")
    folder = shared_data / "models" / "stories260k"
    model, host = hosted(folder / "hf_fp32", DataSource(folder / "tinystories_sample_tok512.npy"))
    batch = host.batch()
    assert batch["tokens"].shape == (1, 512)
    loss = float(model.loss(batch))
    assert loss == pytest.approx(1.339, abs=5e-4)
    assert loss == pytest.approx(transformers_loss(folder / "hf_fp32", batch["tokens"]), abs=1e-6)
    # The text itself, through the vocabulary of the model, gives the same tokens.
    text = DataSource(shared_data / "text" / "tinystories-sample.txt", tokenizer=folder / "tok512.json").batch({})
    assert text["tokens"].shape == (1, 512) and text["tokens"][0, 0] == 1


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "mamba", "mixtral_moe"])
def test_published_layouts_have_the_loss_transformers_gives(shared_data: Path, kind: str) -> None:
    pytest.importorskip("transformers")
    trajectory = open_trajectory(shared_data / "trajectories" / "hf-layouts" / kind)
    path = trajectory.entries[-1].local
    model, _ = hosted(path)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 128, (2, 24)))
    assert float(model.loss({"tokens": tokens})) == pytest.approx(transformers_loss(path, tokens), abs=1e-6)


def test_run_of_a_trainer_has_the_loss_that_it_logged(tmp_path: Path) -> None:
    family = load_registry().family("transformer")
    family.train("markov", {"steps": "3", "save": "every:1", "d_model": "8", "lr": "0.1"}, tmp_path / "run")
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.run is not None
    host = ModelHost(family, {**trajectory.run["config"], "ckpt_family": "transformer"}, ProbeSource(tmp_path / "run"))
    for step, logged in zip(trajectory.steps, trajectory.metrics()["loss"], strict=True):
        checkpoint = trajectory.checkpoint(step)
        model = host.model(checkpoint, assign(checkpoint.tensors, checkpoint.aliases, family.table, host.config))
        assert float(model.loss(host.batch())) == logged
        loss, logits = model.loss_and_logits(host.batch(), tensors=requiring(model))
        assert torch.equal(
            torch.autograd.grad(loss, logits)[0].sum(-1).abs() < 1e-6, torch.ones(1, 4, dtype=torch.bool)
        )
    assert len(trajectory) == 4 and model.roles["layers.0.attn.q.weight"] == ("layers.0.attn.q",)
