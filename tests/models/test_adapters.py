"""Every method of parameter-efficient training in every family: what changes, what is saved, merged, decoded, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import seqtune.cli
from conftest import FAMILIES, build_model, build_tokenizer, pairs, write_csv
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.decoding.engines import make_engine
from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.errors import ConfigError, MissingDependencyError, ModelError, RunError
from seqtune.models import soft_prompts
from seqtune.models.adapters import Adapter, load_merged
from seqtune.models.attention import use_fast_attention
from seqtune.models.loading import load_model
from seqtune.models.loss import TargetLoss
from seqtune.records import Encoded
from seqtune.runs import read_kept_tokens
from seqtune.sections import SOFT_PROMPTS, AdapterConfig, DecodeConfig, ModelConfig, TrainConfig
from seqtune.tokens.batching import collate
from seqtune.training.loop import Trainer

VOCABULARY = 330
METHODS = (
    "lora", "dora", "rslora", "qlora", "oft", "ia3", "bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning", "bitfit", "layers",
)  # fmt: skip
REFUSED = {("oft", "gpt2"): "peft has none for Conv1D", ("bitfit", "llama"): "has no biases to train"}


def settings(method: str) -> AdapterConfig:
    options = {"rank": 4, "num_virtual_tokens": 3, "layers": ["*.1.*"] if method == "layers" else []}
    if method in ("dora", "rslora"):
        return AdapterConfig(method="lora", **{method: True}, **options)
    return AdapterConfig(method=method, **options)


def base(family: str, method: str):
    model = build_model(family, VOCABULARY, width=64 if method == "qlora" else 32)
    use_fast_attention(model)
    return model


def rows(num_virtual: int) -> list[Encoded]:
    generator = np.random.default_rng(0)
    virtual = VOCABULARY + np.arange(num_virtual)
    return [
        Encoded(np.concatenate([virtual, generator.integers(5, 300, n)]).astype(np.int32), num_virtual + 3) for n in (9, 12, 7)
    ]


def digest(parameter: torch.Tensor) -> str:
    return hashlib.sha256(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def trainable(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model, steps: int = 8) -> list[float]:
    loss = TargetLoss(model)
    batch = collate(rows(soft_prompts.num_virtual_tokens(model)), 0)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=5e-3)
    values = []
    for _ in range(steps):
        value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    return values


def logits(model) -> torch.Tensor:
    model.eval()
    virtual = VOCABULARY + torch.arange(soft_prompts.num_virtual_tokens(model))
    with torch.no_grad():
        return model(input_ids=torch.cat([virtual, torch.arange(10, 20)])[None], use_cache=False).logits[:, len(virtual) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_trains_saves_loads_and_merges(method, family, tmp_path):
    config, model = settings(method), base(family, method)
    if (method, family) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[method, family]):
            Adapter.attach(model, config)
        return
    plain = copy.deepcopy(model)
    torch.manual_seed(0)
    adapter = Adapter.attach(model, config)
    trained = set(trainable(model))
    frozen = {name: digest(p) for name, p in model.named_parameters() if name not in trained}
    count = sum(p.numel() for p in trainable(model).values())
    assert 0 < count < sum(p.numel() for p in plain.parameters())
    values = train(model)
    assert values[-1] < values[0]
    assert frozen == {name: digest(p) for name, p in model.named_parameters() if name not in trained}
    adapter.save(tmp_path)
    again = copy.deepcopy(plain)
    loaded = Adapter.load(again, tmp_path)
    assert loaded.config == config
    assert not trainable(again)
    again.eval()
    assert torch.equal(logits(again), logits(model))
    assert not torch.allclose(logits(again), logits(plain), atol=1e-4)
    loaded.save(tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = logits(again)
    if method == "qlora":
        with pytest.raises(ConfigError, match="cannot be merged into 4-bit"):
            loaded.merge()
    elif method in (*SOFT_PROMPTS, "bottleneck"):
        with pytest.raises(ConfigError, match="cannot be merged: the base has no weights"):
            loaded.merge()
    else:
        loaded.merge()
        assert [n for n, _ in again.named_parameters()] == [n for n, _ in plain.named_parameters()]
        assert set(trainable(again)) == set(trainable(plain))
        assert torch.allclose(logits(again), expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "qlora"])
def test_detached_the_base_is_what_it_was(method, family, tmp_path):
    """Weights, names, hooks and attributes; then the next adapter goes on, and is the first one in nothing but its values."""
    if (method, family) in REFUSED:
        return
    plain, model = base(family, method), base(family, method)
    attributes = set(vars(model))
    for seed in (0, 1):
        torch.manual_seed(seed)
        trained = base(family, method)
        adapter = Adapter.attach(trained, settings(method))
        train(trained, steps=2)
        adapter.save(tmp_path / str(seed))
        loaded = Adapter.load(model, tmp_path / str(seed))
        assert torch.equal(logits(model), logits(trained))
        loaded.detach()
        assert soft_prompts.num_virtual_tokens(model) == 0
        assert torch.equal(logits(model), logits(plain))
        assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
        assert {n: digest(p) for n, p in model.named_parameters()} == {n: digest(p) for n, p in plain.named_parameters()}
        assert not any(m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
        assert set(vars(model)) == attributes


@pytest.mark.parametrize("method", [*SOFT_PROMPTS, "lora", "bottleneck"])
def test_a_copy_of_a_model_stands_alone(method):
    """int8 decoding quantises a copy: it must not answer with the layers or the prompt of the model that it was copied from."""
    model = base("llama", method)
    Adapter.attach(model, settings(method))
    train(model)
    expected = logits(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied), expected)


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_uninterrupted_to_the_bit(method, family, tmp_path):
    if (method, family) in REFUSED:
        return
    train_settings = TrainConfig(
        batch_size=2,
        epochs=4,
        precision="fp32",
        optimizer="paged_adamw" if method == "qlora" else "adamw",
        learning_rate=1e-3,
        checkpoint_every=3,
    )

    def trainer(folder) -> Trainer:
        model = base(family, method)
        torch.manual_seed(0)
        Adapter.attach(model, settings(method))
        folder.mkdir(exist_ok=True)
        return Trainer(model, rows(soft_prompts.num_virtual_tokens(model)), train_settings, folder)

    whole = trainer(tmp_path / "whole")
    whole.run(quiet=True)
    first = trainer(tmp_path / "broken")
    steps = first.plan.steps_from

    def stop_early(done, *place):
        for number, step in enumerate(steps(done, *place), start=done):
            if number == 5:
                raise KeyboardInterrupt
            yield step

    first.plan.steps_from = stop_early
    with pytest.raises(KeyboardInterrupt):
        first.run(quiet=True)
    second = trainer(tmp_path / "broken")
    assert second.restore()
    assert second.state.step == 3
    second.run(quiet=True)
    expected = trainable(whole.model)
    assert expected
    for name, parameter in trainable(second.model).items():
        assert torch.equal(parameter, expected[name]), name
    checkpoint = sorted((tmp_path / "broken" / "checkpoints").glob("step-*"))[-1]
    assert set(load_file(checkpoint / "model.safetensors")) == set(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "ia3", *SOFT_PROMPTS, "bottleneck"])
def test_batched_beams_equal_single_ones(method, family):
    config, model = settings(method), base(family, method)
    torch.manual_seed(1)
    Adapter.attach(model, config)
    train(model)
    model.eval()
    virtual = VOCABULARY + np.arange(soft_prompts.num_virtual_tokens(model))
    generator = np.random.default_rng(2)
    sources = [np.concatenate([virtual, generator.integers(5, 300, n)]).astype(np.int32) for n in (3, 11, 6, 8)]
    for beams in (1, 4):
        engine = make_engine(FrozenModel(model), 1, DecodeConfig(num_beams=beams, num_return=beams))
        assert isinstance(engine, NativeEngine)
        together = dict(engine.generate(sources, [8] * 4))
        for index, source in enumerate(sources):
            alone = dict(engine.generate([source], [8]))[0]
            assert [c.ids for c in together[index]] == [c.ids for c in alone]
            assert [c.score for c in together[index]] == pytest.approx([c.score for c in alone], abs=1e-4)


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neo", "bloom", "llama"])
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "lora"])
def test_transformers_with_left_padding_finds_the_same(method, family):
    """The reference engine pads sources of different lengths on the left; virtual tokens are padded like any other."""
    config, model = settings(method), base(family, method)
    Adapter.attach(model, config)
    train(model)
    model.eval()
    virtual = VOCABULARY + np.arange(soft_prompts.num_virtual_tokens(model))
    generator = np.random.default_rng(3)
    sources = [np.concatenate([virtual, generator.integers(5, 300, n)]).astype(np.int32) for n in (3, 9, 6)]
    decode = DecodeConfig(num_beams=3, num_return=3)
    found = dict(make_engine(FrozenModel(model), 1, decode).generate(sources, [6] * 3))
    reference = dict(
        make_engine(FrozenModel(model), 1, decode.model_copy(update={"engine": "transformers"})).generate(sources, [6] * 3)
    )
    for index in range(3):
        assert [c.ids for c in found[index]] == [c.ids for c in reference[index]]


def test_engines_that_would_leave_the_adapter_out_are_refused():
    model = base("opt", "prefix_tuning")
    Adapter.attach(model, settings("prefix_tuning"))
    with pytest.raises(ConfigError, match="know no tuned prefix"):
        make_engine(FrozenModel(model), 1, DecodeConfig(engine="transformers"), adapter_method="prefix_tuning")
    with pytest.raises(ConfigError, match=r"this is an adapter \(prefix_tuning\) on its base: export it first"):
        make_engine(FrozenModel(model), 1, DecodeConfig(engine="ctranslate2"), adapter_method="prefix_tuning")


def test_a_prefix_is_never_left_out_in_silence():
    """A family that the native engine does not fit is decoded through transformers, whose caches would drop the prefix."""
    model = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    assert not fits(FrozenModel(model))
    Adapter.attach(model, settings("prefix_tuning"))
    with pytest.raises(ConfigError, match="needs the native engine, which does not fit MistralForCausalLM"):
        make_engine(FrozenModel(model), 1, DecodeConfig(), adapter_method="prefix_tuning")
    with pytest.raises(AssertionError, match="DynamicCache would leave the prefix out"):
        model(torch.arange(5, 9)[None], past_key_values=transformers.DynamicCache())


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("method", SOFT_PROMPTS)
def test_soft_prompts_are_what_peft_makes_of_the_saved_folder(method, family, tmp_path):
    """peft loads what we saved; its logits for an unpadded text are ours."""
    config, model = settings(method), base(family, method)
    plain = copy.deepcopy(model)
    adapter = Adapter.attach(model, config)
    train(model)
    adapter.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -10:]
    assert torch.allclose(logits(model), expected, atol=1e-4)


def test_injected_methods_are_what_peft_makes_of_the_saved_folder(tmp_path):
    for method in ("lora", "oft", "ia3"):
        config, model = settings(method), base("llama", method)
        plain = copy.deepcopy(model)
        adapter = Adapter.attach(model, config)
        train(model)
        adapter.save(tmp_path / method)
        theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / method)).eval()
        with torch.no_grad():
            expected = theirs(input_ids=torch.arange(10, 20)[None], use_cache=False).logits
        assert torch.allclose(logits(model), expected, atol=1e-5)


COUNTS = {  # of a width of 32, two layers, rank 4: by hand from the shapes of the targets
    "opt": (4 * 2 * 32 * 4 * 2, (32 + 64) * 4 * 2 * 2),
    "llama": ((32 + 32 + 32 + 16 + 32 + 16 + 32 + 32) * 4 * 2, (32 + 64) * 4 * 3 * 2),
    "gpt2": ((32 + 96 + 32 + 32) * 4 * 2, (32 + 128) * 4 * 2 * 2),
    "gpt_neox": ((32 + 96 + 32 + 32) * 4 * 2, (32 + 64) * 4 * 2 * 2),
    "bloom": ((32 + 96 + 32 + 32) * 4 * 2, (32 + 128) * 4 * 2 * 2),
    "gpt_neo": (4 * 2 * 32 * 4 * 2, (32 + 128) * 4 * 2 * 2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_give_the_parameters_that_their_shapes_say(family):
    for targets, expected in (("attention-only", COUNTS[family][0]), ("all-linear", sum(COUNTS[family]))):
        model = build_model(family, VOCABULARY)
        Adapter.attach(model, AdapterConfig(method="lora", rank=4, targets=targets))
        assert sum(p.numel() for p in trainable(model).values()) == expected


# width 32, 2 layers, rank and block size 4, 3 virtual tokens; from the shapes, in the order of FAMILIES
TRAINED = {
    "ia3": [2 * (32 + 32 + 64), 2 * (32 + 32 + 128), 2 * (96 + 128), 2 * (96 + 64), 2 * (96 + 128), 2 * (16 + 16 + 64)],
    "oft": [2 * 6 * (5 * 8 + 16), 2 * 6 * (5 * 8 + 32), None, 2 * 6 * (3 * 8 + 16), 2 * 6 * (3 * 8 + 32), 2 * 6 * (6 * 8 + 16)],
    "bottleneck": [2 * (32 * 4 + 4 + 4 * 32 + 32)] * 6,
    "prompt_tuning": [3 * 16] + [3 * 32] * 5,  # this OPT embeds in 16
    "p_tuning": [3 * 16 + 3 * (16 * 16 + 16)] + [3 * 32 + 3 * (32 * 32 + 32)] * 5,
    "prefix_tuning": [3 * 2 * 2 * 32] * 5 + [3 * 2 * 2 * 16],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [*TRAINED, "dora", "bitfit", "layers"])
def test_the_number_of_trained_parameters(method, family):
    if (method, family) in REFUSED:
        return
    model = build_model(family, VOCABULARY)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    magnitudes = sum(
        m.weight.shape[1 if family == "gpt2" else 0]
        for n, m in model.named_modules()
        if hasattr(m, "weight") and ".1." in n and m.weight.ndim == 2
    )
    expected = {
        "bitfit": sum(n for name, n in sizes.items() if name.endswith("bias")),
        "layers": sum(n for name, n in sizes.items() if ".1." in name),
        "dora": sum(COUNTS[family]) + 2 * magnitudes,  # a magnitude per output of each target
    }
    Adapter.attach(model, settings(method))
    count = sum(p.numel() for p in trainable(model).values())
    assert count == (expected[method] if method in expected else TRAINED[method][FAMILIES.index(family)])


def test_what_matches_nothing_is_refused_with_near_names():
    model = build_model("opt", VOCABULARY)
    with pytest.raises(ConfigError, match="'q_prj' matches no linear layer; near names: q_proj"):
        Adapter.attach(model, AdapterConfig(method="lora", targets=["v_proj", "q_prj"]))
    with pytest.raises(ConfigError, match=r"'\*\.layer\.7\.\*' matches no parameter; near names: "):
        Adapter.attach(model, AdapterConfig(method="layers", layers=["*.layer.7.*"]))
    with pytest.raises(ConfigError, match="must divide the input width"):
        Adapter.attach(build_model("opt", VOCABULARY), AdapterConfig(method="oft", rank=5))
    with pytest.raises(ConfigError, match="blocks of 64"):
        Adapter.attach(build_model("opt", VOCABULARY), AdapterConfig(method="qlora"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"adapter.method": "prefix_tuning", "train.batching": "pack"}, "packed rows would need a soft prompt each"),
        ({"adapter.method": "p_tuning", "model.trim_vocabulary": True}, "virtual tokens follow the vocabulary"),
        ({"adapter.method": "lora", "model.adapt_vocabulary": 64}, "must be 0"),
        ({"adapter.method": "lora", "train.optimizer": "muon"}, "is for full fine-tuning"),
        ({"adapter.method": "layers"}, "need each other"),
        ({"adapter.method": "ia3", "adapter.dora": True}, "belong to the methods lora and qlora"),
        ({"adapter.method": "lora", "adapter.init_text": "x"}, "belongs to the method prompt_tuning"),
        ({"adapter.method": "lorra"}, "adapter.method = 'lorra'"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.fixture
def seqtune(capsys):
    """The command line in this process: arguments -> what it wrote."""

    def run(*arguments: str, expect: int = 0):
        code = run_app(arguments)
        written = capsys.readouterr()
        assert code == expect, written.err
        return written

    return run


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neox")
    tokenizer = build_tokenizer("gpt_neox")
    build_model("gpt_neox", len(tokenizer), width=64).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_csv(folder / "pairs.csv", pairs(120))
    return folder


def command(folder, method: str, out: str, *more: str) -> list[str]:
    return [
        "fit", "--data", str(folder / "pairs.csv"), "--model", str(folder / "base"), "--out", str(folder / out),
        "--set", f"adapter.method={method}", "--set", "adapter.rank=4", "--set", "adapter.num_virtual_tokens=4",
        "--set", "train.max_steps=12", "--set", "train.checkpoint_every=4", "--set", "train.validate_every=6",
        "--set", "decode.max_new_tokens=8", "--set", "decode.num_beams=2", *more,
    ]  # fmt: skip


def stored_predictions(run) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize("method", ["lora", "qlora", "prefix_tuning", "layers"])
def test_from_fit_to_export_through_the_command_line(neox, seqtune, method):
    more = ["--set", "adapter.layers=['*.1.*']"] if method == "layers" else []
    done = seqtune(*command(neox, method, method, *more))
    assert "of them trained" in done.err
    run = neox / method
    for name in ("adapter.json", "adapter_model.safetensors", "tokenizer.json", "config.json"):
        assert (run / "model" / name).exists(), name
    assert not (run / "model" / "model.safetensors").exists()
    stored = stored_predictions(run)
    answers = seqtune(
        "predict", str(run), *[s["input"] for s in stored], "--num-beams", "2", "--set", "decode.max_new_tokens=8"
    )
    assert answers.out.splitlines() == [s["prediction"] for s in stored]
    out = neox / (method + "-export")
    if method in ("lora", "layers"):
        exported = seqtune("export", str(run), "--to", "hf", "--out", str(out), "--verify", "10")
        assert "0 of" in exported.out or "10" in exported.out
        assert (out / "model.safetensors").exists()
    else:
        assert "cannot be merged" in seqtune("export", str(run), "--to", "hf", "--out", str(out), expect=1).err


def test_lora_with_trimming_packing_and_buckets(neox, seqtune):
    for batching in ("pack", "bucket"):
        out = f"trimmed-{batching}"
        more = ["--set", "model.trim_vocabulary=true", "--set", f"train.batching={batching}"]
        done = seqtune(*command(neox, "lora", out, *more))
        assert "tokens are kept" in done.err
        run = neox / out
        stored = stored_predictions(run)[:5]
        answers = seqtune(
            "predict", str(run), *[s["input"] for s in stored], "--num-beams", "2", "--set", "decode.max_new_tokens=8"
        )
        assert answers.out.splitlines() == [s["prediction"] for s in stored]


def test_several_adapters_over_one_base(neox, seqtune):
    for method in ("ia3", "prompt_tuning", "bitfit"):
        seqtune(*command(neox, method, "side-" + method))
    names = [str(neox / f"side-{m}") for m in ("ia3", "prompt_tuning", "bitfit", "ia3")]
    flags = [flag for name in names for flag in ("--adapter", name)]
    lines = seqtune("predict", str(neox / "base"), "123", "145", *flags).out.splitlines()
    alone = {name: seqtune("predict", name, "123", "145").out.splitlines() for name in set(names)}
    assert lines == [f"{name}\t{text}" for name in names for text in alone[name]]
    record = json.loads(seqtune("predict", str(neox / "base"), "123", *flags[:2], "--json").out)
    assert (record["adapter"], record["prediction"]) == (names[0], alone[names[0]][0])
    wrong = seqtune("predict", "builtin:base", "123", "--adapter", names[0], expect=1)
    assert "was trained on" in wrong.err


def test_an_adapter_that_spoils_the_base_for_others_is_not_put_over_it(neox, seqtune):
    """QLoRA's base is in 4 bits for good; the next adapter would answer on a base that it was not trained on."""
    seqtune(*command(neox, "qlora", "spoils"))
    refused = seqtune("predict", str(neox / "base"), "123", "--adapter", str(neox / "spoils"), expect=1).err
    assert "(qlora) needs its base in 4-bit weights; predict with the run itself" in " ".join(refused.split())


def test_an_adapter_goes_on_from_a_run(neox, seqtune):
    seqtune(*command(neox, "full", "first"))
    seqtune(*command(neox, "lora", "second", "--model", str(neox / "first")))
    seqtune(*command(neox, "bitfit", "third", "--model", str(neox / "second")))
    assert seqtune("predict", str(neox / "third"), "123").out
    assert (neox / "third" / "metrics.json").exists()


def test_full_fine_tuning_goes_on_from_an_adapter(neox, seqtune):
    """All of the merged base is trained; its whole vocabulary comes back from the merged base too."""
    seqtune(*command(neox, "lora", "before"))
    done = seqtune(*command(neox, "full", "after", "--model", str(neox / "before")))
    assert "of them trained" not in done.err
    assert "tokens are kept" in done.err
    whole = neox / "whole"
    seqtune("export", str(neox / "after"), "--to", "hf", "--out", str(whole), "--full-vocabulary")
    begun = load_merged(ModelConfig(name=str(neox / "before")), 0)
    exported, kept = load_model(ModelConfig(name=str(whole)), 0), read_kept_tokens(neox / "after")
    changed = (exported.gpt_neox.embed_in.weight != begun.gpt_neox.embed_in.weight).any(1).nonzero().flatten().tolist()
    assert set(changed) <= set(kept)
    assert len(kept) < begun.config.vocab_size
    weight = "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"
    assert not torch.equal(exported.get_parameter(weight), begun.get_parameter(weight))


@pytest.mark.parametrize(("method", "engine"), [("lora", "ctranslate2"), ("prefix_tuning", "transformers")])
def test_an_engine_that_cannot_decode_the_adapter_is_refused_before_training(neox, seqtune, method, engine):
    refused = seqtune(*command(neox, method, f"never-{method}", "--set", f"decode.engine={engine}"), expect=1).err
    assert f"decode.engine = '{engine}'" in refused
    assert not (neox / f"never-{method}").exists()


def test_peft_is_imported_for_adapters_only(neox, seqtune):
    """It takes seconds; in a process of its own, because this one has imported it."""
    seqtune(*command(neox, "ia3", "small"))
    code = (
        "import sys\n"
        "from seqtune.decoding.predictor import Predictor\n"
        "import seqtune.learner, seqtune.procedures.fit, seqtune.procedures.export\n"
        f"for name in ('base', 'small'):\n    Predictor.of_run({str(neox)!r} + '/' + name)\n"
        "    print(name, 'peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["base", "False", "small", "True"]


@pytest.mark.parametrize("method", ["lora", "bottleneck", "prompt_tuning", "prefix_tuning", "layers"])
def test_an_adapter_on_another_base_is_refused(method, tmp_path):
    """One of another width, and one of another family, which has no layer of these names."""
    Adapter.attach(base("llama", method), settings(method)).save(tmp_path)
    for other in (build_model("llama", VOCABULARY, width=64), build_model("gpt_neox", VOCABULARY, width=64)):
        with pytest.raises(ModelError, match=r"the adapter in '.*' does not fit this base: "):
            Adapter.load(other, tmp_path)


def test_torn_weights_are_named(tmp_path):
    Adapter.attach(base("llama", "lora"), settings("lora")).save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="the adapter's weights in '.*' cannot be read"):
        Adapter.load(base("llama", "lora"), tmp_path)


def test_torn_settings_are_named(tmp_path):
    Adapter.attach(base("llama", "lora"), settings("lora")).save(tmp_path)
    (tmp_path / "adapter.json").write_text('{"method": "lo')
    with pytest.raises(RunError, match="adapter.json' is damaged"):
        Adapter.load(base("llama", "lora"), tmp_path)


@pytest.mark.parametrize("method", SOFT_PROMPTS)
def test_a_loaded_prompt_lies_where_its_base_does(method, tmp_path):
    """The meta device stands for a GPU: several adapters over one base are loaded onto a model that was moved there before."""
    Adapter.attach(base("llama", method), settings(method)).save(tmp_path)
    model = base("llama", method).to("meta")
    Adapter.load(model, tmp_path)
    prompt = soft_prompts.soft_prompt(model)
    assert prompt.table().device == model.device


def test_a_missing_peft_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "seqtune.models.adapter_methods", raising=False)
    monkeypatch.delattr("seqtune.models.adapter_methods", raising=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"^an adapter needs the package 'peft': pip install peft$"):
        Adapter.attach(build_model("llama", VOCABULARY), settings("lora"))
