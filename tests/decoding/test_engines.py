"""The native engine decodes what transformers decodes; engines that cannot serve say so."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from conftest import FAMILIES, build_model, build_tokenizer
from seqtune import plugins
from seqtune.decoding.engines import make_choice_engine, make_engine
from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.errors import ConfigError
from seqtune.models import packed
from seqtune.models.attention import use_fast_attention
from seqtune.sections import DecodeConfig
from seqtune.yaml_files import validate

NUM_SOURCES, LIMIT = 40, 24
SEARCHES = [(1, 1, 1.0), (3, 2, 1.1), (5, 5, 0.0), (5, 1, 0.6), (10, 3, 0.8)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(model, model with our attention, prompts, a token that the model writes often, to serve as the end)."""
    tokenizer = build_tokenizer(request.param)
    model, fast = (build_model(request.param, len(tokenizer)) for _ in range(2))
    use_fast_attention(fast)
    rng = random.Random(0)
    sources = [np.array([rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(2, 30))]) for _ in range(NUM_SOURCES)]
    end = 3
    for each in (model, fast):
        _make_end_likely(each, end, sources)
    return model, fast, sources, end


@torch.no_grad()
def _make_end_likely(model, end: int, sources: list[np.ndarray]) -> None:
    """Turn the end token's output row towards the hidden states, until its logit is near the best ones."""
    backbone, head = getattr(model, model.base_model_prefix), model.get_output_embeddings()
    hidden = torch.stack([backbone(input_ids=torch.from_numpy(s)[None]).last_hidden_state[0, -1] for s in sources])
    logits = head(hidden)
    mean = hidden.mean(0)
    head.weight[end] += mean / (hidden @ mean).mean() * (logits.max(1).values - logits[:, end]).mean() * 0.8


@pytest.mark.parametrize(("num_beams", "num_return", "length_penalty"), SEARCHES)
def test_native_equals_transformers(family, num_beams, num_return, length_penalty, monkeypatch):
    """Rows enter and leave at different steps here, because the budget holds only some of them at once."""
    model, fast, sources, end = family
    monkeypatch.setattr(packed, "SMALLEST", 1)  # as in models of a useful size
    config = DecodeConfig(num_beams=num_beams, num_return=num_return, length_penalty=length_penalty, token_budget=1500)
    limits = [LIMIT] * NUM_SOURCES
    theirs = dict(TransformersEngine(model, end, config).generate(sources, limits))
    ours = dict(NativeEngine(FrozenModel(fast), end, config).generate(sources, limits))
    assert sorted(ours) == list(range(NUM_SOURCES))
    lengths = {len(c.ids) for found in ours.values() for c in found}
    assert len(lengths) > 1, "hypotheses must end at different lengths, or little is tested"
    for i in range(NUM_SOURCES):
        assert [c.ids for c in ours[i]] == [c.ids for c in theirs[i]]
        np.testing.assert_allclose([c.score for c in ours[i]], [c.score for c in theirs[i]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_every_input_has_its_own_limit(family, num_beams):
    model, fast, sources, end = family
    limits = [1 + i % 7 for i in range(NUM_SOURCES)]
    config = DecodeConfig(num_beams=num_beams, num_return=num_beams, token_budget=900)
    theirs = dict(TransformersEngine(model, end, config).generate(sources, limits))
    ours = dict(NativeEngine(FrozenModel(fast), end, config).generate(sources, limits))
    assert any(len(ours[i][0].ids) == limits[i] for i in range(NUM_SOURCES))
    for i in range(NUM_SOURCES):
        assert [c.ids for c in ours[i]] == [c.ids for c in theirs[i]]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_a_batch_of_other_limits_gives_what_each_input_gives_alone(engine, num_beams, tmp_path):
    """Reference: transformers' generate, input by input."""
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")
    model, tokenizer = save_for_ctranslate2("opt", tmp_path / "model")
    sources = [np.arange(5, 9), np.arange(30, 39), np.arange(60, 65), np.arange(90, 94)]
    limits = [8, 28, 38, 28]
    config = DecodeConfig(num_beams=num_beams, num_return=num_beams, engine=engine, length_penalty=0.6)
    found = dict(make_engine(FrozenModel(model), tokenizer.eos_token_id, config, tmp_path / "model").generate(sources, limits))
    for i, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        alone = model.generate(
            torch.from_numpy(source)[None], max_new_tokens=limit, do_sample=False, num_beams=num_beams,
            num_return_sequences=num_beams, length_penalty=0.6, early_stopping=False,
        )[:, len(source) :].tolist()  # fmt: skip
        assert [c.ids for c in found[i]] == alone
        assert len(found[i][0].ids) == limit
        for candidate in found[i]:  # its score is that of the tokens it has
            text = torch.tensor([[*source, *candidate.ids]])
            with torch.no_grad():
                log_probs = model(text).logits.log_softmax(-1)[0, len(source) - 1 : -1]
            expected = log_probs.gather(1, text[0, len(source) :, None]).sum().item()
            assert candidate.score == pytest.approx(expected, rel=1e-4)


def test_slots_that_no_beam_needs_are_dropped_and_room_grows(family, monkeypatch):
    """The outcome must not depend on when that happens."""
    from seqtune.decoding.engines import decoder

    _, fast, sources, end = family
    config = DecodeConfig(num_beams=4, token_budget=5000)
    outcomes = []
    for every in (2, 7, 10**6):
        monkeypatch.setattr(decoder, "DROP_EVERY", every)
        outcomes.append(dict(NativeEngine(FrozenModel(fast), end, config).generate(sources[:12], [40] * 12)))
    first, *others = [{i: [c.ids for c in found] for i, found in o.items()} for o in outcomes]
    assert all(first == other for other in others)


def test_gpt_neo_attention_equals_its_own():
    """Reference: transformers' eager GPT-Neo; rows longer than the window of the local layers, padded on the left and not."""
    slow, fast = build_model("gpt_neo", 300), build_model("gpt_neo", 300)
    use_fast_attention(fast)
    ids = torch.randint(0, 300, (3, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with torch.no_grad():
        torch.testing.assert_close(fast(input_ids=ids).logits, slow(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        theirs, ours = (m(input_ids=ids, attention_mask=mask).logits for m in (slow, fast))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-4)
    for model in (slow, fast):
        model(input_ids=ids, labels=ids).loss.backward()
    for (name, a), b in zip(slow.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)


SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip


def small_model(family: str, **settings):
    """A family outside the six, small; weights at the family's own random ones."""
    torch.manual_seed(0)
    settings |= {"head_dim": 8} if family.startswith("Gemma") else {}
    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SMALL, **settings)).eval()


def test_models_that_the_native_engine_does_not_fit_go_to_transformers():
    """Layers of several kinds need several masks; the native engine has one."""
    model = small_model("Mistral", sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    assert not fits(FrozenModel(model))
    assert isinstance(make_engine(FrozenModel(model), 2, DecodeConfig()), TransformersEngine)
    with pytest.raises(ConfigError, match="'native' does not fit MistralForCausalLM"):
        make_engine(FrozenModel(model), 2, DecodeConfig(engine="native"))


@pytest.mark.parametrize("family", ["Mistral", "Phi3", "Starcoder2"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_sliding_window_of_all_layers_is_kept(family, num_beams):
    """Reference: transformers; texts are longer than the window, which the config names without `layer_types`."""
    model = small_model(family, sliding_window=8)
    sources = [np.arange(5, 20), np.arange(40, 44)]
    config = DecodeConfig(num_beams=num_beams, num_return=num_beams)
    frozen = FrozenModel(model)
    assert fits(frozen)
    assert model.config.sliding_window == 8, "probing leaves no trace"
    engines = TransformersEngine(model, 1, config), NativeEngine(frozen, 1, config)  # the very one that was probed
    theirs, ours = (dict(engine.generate(sources, [12, 12])) for engine in engines)
    for i in range(2):
        assert [c.ids for c in ours[i]] == [c.ids for c in theirs[i]]
        np.testing.assert_allclose([c.score for c in ours[i]], [c.score for c in theirs[i]], rtol=1e-4)


def test_a_window_that_the_model_does_not_read_from_its_config_is_noticed():
    model = small_model("Mistral", sliding_window=8)
    model.model.config = copy.deepcopy(model.config)  # where the forward looks; ours looks at the model's
    assert not fits(FrozenModel(model))


@torch.no_grad()
def test_a_soft_cap_of_logits_is_noticed_at_weights_too_small_to_show_it():
    """Gemma 2, made larger afterwards, as training does: then the cap shows, and the answers must be the capped model's."""
    capped = small_model("Gemma2", layer_types=["full_attention"] * 2, final_logit_softcapping=30.0)
    free = small_model("Gemma2", layer_types=["full_attention"] * 2, final_logit_softcapping=None, attn_logit_softcapping=0.5)
    assert fits(FrozenModel(free)), "a cap of attention scores lies within the model's own attention"
    ids = torch.arange(3, 40)[None]
    hidden = capped.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(capped.lm_head(hidden), capped(input_ids=ids).logits, rtol=1e-3, atol=1e-3)  # nothing to see
    assert not fits(FrozenModel(capped))
    engine = make_engine(FrozenModel(capped), 1, DecodeConfig())
    assert isinstance(engine, TransformersEngine)
    capped.lm_head.weight.mul_(300)
    assert not torch.allclose(capped.lm_head(hidden), capped(input_ids=ids).logits, atol=1.0)
    [(_, [found])] = engine.generate([np.arange(5, 10)], [6])
    text = torch.tensor([[*range(5, 10), *found.ids]])
    log_probs = capped(input_ids=text).logits.log_softmax(-1)[0, 4:-1]
    assert found.score == pytest.approx(log_probs.gather(1, text[0, 5:, None]).sum().item(), rel=1e-4)


def test_a_wrong_cache_is_noticed(monkeypatch):
    from seqtune.decoding.engines.slot_cache import TokenPass
    from seqtune.models.attention import by_head

    model = build_model("llama", 300)
    monkeypatch.setattr(TokenPass, "put", lambda self, layer, new: by_head(new))
    assert not fits(FrozenModel(model))


def test_engines_refuse_what_they_cannot_do(tmp_path):
    neo = build_model("gpt_neo", 300)
    with pytest.raises(ConfigError, match="no loader for 'gpt_neo' .* use 'native'"):
        make_engine(FrozenModel(neo), 2, DecodeConfig(engine="ctranslate2"), tmp_path)
    with pytest.raises(ConfigError, match="needs a run or model folder"):
        make_engine(FrozenModel(build_model("opt", 300)), 2, DecodeConfig(engine="ctranslate2"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'vllm' needs a CUDA GPU"):
            make_engine(FrozenModel(neo), 2, DecodeConfig(engine="vllm"), tmp_path)


def test_engines_of_packs_are_found_or_refused_in_time(monkeypatch):
    model = build_model("llama", 300)
    with pytest.raises(ConfigError, match=r"decode.engine = 'natve': it must be auto, .*; did you mean 'native'\?"):
        validate(DecodeConfig, {"engine": "natve"}, "decode.")
    with pytest.raises(ConfigError, match="there is no engine 'mine:own'.*installed: none"):
        make_engine(FrozenModel(model), 2, DecodeConfig(engine="mine:own"))
    monkeypatch.setattr(plugins, "find", lambda kind, name: lambda *given: (kind, name, *given))
    config = DecodeConfig(engine="mine:own", num_beams=3)
    assert make_engine(FrozenModel(model), 2, config) == ("engines", "mine:own", model, 2, config)
    with pytest.raises(ConfigError, match="'int8' needs decode.engine = 'native'"):
        make_engine(FrozenModel(model), 2, DecodeConfig(engine="mine:own", weights="int8"))
    with pytest.raises(ConfigError, match="'mine:own' makes caches of its own"):
        make_engine(FrozenModel(model), 2, config, adapter_method="prefix_tuning")
    with pytest.raises(ConfigError, match="'mine:own' writes texts of its own"):
        make_choice_engine(FrozenModel(model), [[3], [4]], config)


def save_for_ctranslate2(family: str, folder: Path):
    tokenizer = build_tokenizer(family)  # some without an unknown token, which CTranslate2 asks for
    tokenizer.add_tokens([f"<extra{i}>" for i in range(-len(tokenizer) % 8)])
    model = build_model(family, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("family_name", ["opt", "gpt2", "bloom", "llama"])
def test_ctranslate2_decodes_what_transformers_decodes(family_name, tmp_path):
    """It reads the folder; of the model it needs the architecture only."""
    pytest.importorskip("ctranslate2")
    model, tokenizer = save_for_ctranslate2(family_name, tmp_path / "model")
    with torch.device("meta"):
        without_weights = type(model)(model.config)
    sources = [np.array([5, 9, 30, 41]), np.array([7, 50])]
    for beams in (1, 4):
        config = DecodeConfig(num_beams=beams, engine="ctranslate2")
        engine = make_engine(FrozenModel(without_weights), tokenizer.eos_token_id, config, tmp_path / "model")
        ours, theirs = (
            dict(e.generate(sources, [6, 6])) for e in (engine, TransformersEngine(model, tokenizer.eos_token_id, config))
        )
        for i in range(2):
            assert ours[i][0].ids == theirs[i][0].ids
            assert ours[i][0].score == pytest.approx(theirs[i][0].score, rel=1e-3)
    assert (tmp_path / "model-ctranslate2-float32" / "model.bin").exists()


def test_two_that_need_the_same_conversion_convert_once(tmp_path, monkeypatch):
    """The second begins while the first converts; it must neither convert into its files nor replace what it reads."""
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    model, tokenizer = save_for_ctranslate2("opt", tmp_path / "model")
    begun, both, convert = [], threading.Barrier(2), TransformersConverter.convert

    def slow(self, *arguments, **options):
        begun.append(arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=1)
        return convert(self, *arguments, **options)

    monkeypatch.setattr(TransformersConverter, "convert", slow)
    config = DecodeConfig(engine="ctranslate2")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(make_engine, model, tokenizer.eos_token_id, config, tmp_path / "model") for _ in range(2)]
        answers = [dict(job.result().generate([np.arange(5, 9)], [6]))[0][0].ids for job in jobs]
    assert len(begun) == 1
    assert answers[0] == answers[1]
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["model", "model-ctranslate2-float32"]


def test_what_ctranslate2_cannot_convert_is_refused(tmp_path):
    pytest.importorskip("ctranslate2")
    tokenizer = build_tokenizer("gpt2")
    model = build_model("gpt2", len(tokenizer) + 40)  # rows that no token names
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="ctranslate2 cannot serve .* use decode.engine = 'native'"):
        make_engine(FrozenModel(model), 0, DecodeConfig(engine="ctranslate2"), tmp_path / "model")


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_packed_weights_give_the_same_results_and_leave_no_trace(family, monkeypatch):
    model = build_model(family, 120)
    monkeypatch.setattr(packed, "SMALLEST", 1)
    ids = torch.arange(24).view(2, 12)
    layers = [m for m in model.modules() if type(m) in {torch.nn.Linear, Conv1D}]
    with torch.inference_mode():
        expected = model(ids).logits
        with packed.packed(model):
            assert all(isinstance(m.forward, packed.PackedWeight) for m in layers)
            found = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any("forward" in m.__dict__ for m in layers)


def test_packed_weights_leave_hooked_and_small_layers_alone(monkeypatch):
    hooked, small, large = torch.nn.Linear(512, 512), torch.nn.Linear(8, 8), torch.nn.Linear(512, 512)
    hooked.forward = hooked.forward
    model = torch.nn.Sequential(hooked, small, large)
    with torch.inference_mode(), packed.packed(model):
        assert "forward" not in small.__dict__
        assert "forward" in large.__dict__
    assert "forward" in hooked.__dict__
    assert "forward" not in large.__dict__
    monkeypatch.setattr(packed, "available_memory", lambda: 2 * large.weight.nbytes - 1)
    with packed.packed(large):
        assert "forward" not in large.__dict__, "no room for a copy"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_one_long_input_does_not_keep_the_rows_few(num_beams, monkeypatch):
    """A budget of 1,200 tokens holds 4 rows as long as the longest input, and 20 of the others (greedily)."""
    from seqtune.decoding.engines import decoder

    model = build_model("llama", 300)
    use_fast_attention(model)
    rng = random.Random(0)
    sources = [np.array([rng.randrange(3, 300) for _ in range(length)]) for length in (220, *[12] * 60)]
    config = DecodeConfig(num_beams=num_beams, token_budget=1200)
    widest = []
    step = decoder.Decoder.step
    monkeypatch.setattr(decoder.Decoder, "step", lambda self: (widest.append(len(self.rows)), step(self))[1])
    limits = [20] * len(sources)
    together = dict(NativeEngine(FrozenModel(model), 2, config).generate(sources, limits))
    slots = 12 + 20 + num_beams * decoder.DROP_EVERY
    assert widest[0] <= 1200 // (220 + 20 + num_beams * decoder.DROP_EVERY)
    assert max(widest) == 1200 // slots
    for i in (0, 1, 30, 60):
        alone = dict(NativeEngine(FrozenModel(model), 2, config).generate([sources[i]], [20]))
        assert [c.ids for c in together[i]] == [c.ids for c in alone[0]]
