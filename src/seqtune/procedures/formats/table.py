"""The formats, and which family each can hold: looked at before any work starts, and shown by `seqtune export --formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from seqtune import plugins
from seqtune.errors import ConfigError, MissingDependencyError, did_you_mean

FAMILIES = ("bloom", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt", "qwen2")  # those that the tests export
ROOM = "seqtune.procedures.formats"


class Runtime(Protocol):
    """An exported model in the program that its users run."""

    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """What it writes after each prompt, greedily unless the format keeps the run's search.

        Args:
            prompts: texts, tokenized by the runtime itself.
            limits: the most new tokens of each.

        Returns:
            In the order given, the text, and how many tokens the prompt took.
        """
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    `peft` alone is written from the run itself (`to_peft.write`), and is only for runs that trained an adapter.

    Attributes:
        name: what `--to` is given.
        runtime: the program that reads it.
        families: model types that it can hold; `None` for all that transformers reads.
        weights: kinds of weights, the default first.
        module: holds `write(source, folder, weights, adds_start)`, `Runtime(folder, adds_start)`, and perhaps `check`.
        needs: package and extra that writing needs, in order.
        asks: package and extra that the runtime needs.
        searches: the runtime has beam search, and the export keeps the run's.
        lines: Python that asks the exported folder; {prompt}, {limit}, {num_beams} and {adds_start} are filled in.
    """

    name: str
    runtime: str
    families: tuple[str, ...] | None
    weights: tuple[str, ...]
    module: str
    needs: tuple[tuple[str, str], ...]
    asks: tuple[tuple[str, str], ...]
    searches: bool
    lines: str

    def write(self, source: Path, folder: Path, weights: str, *, adds_start: bool) -> None:
        """Write the format from a Hugging Face folder.

        Args:
            source: the folder; its files may be moved away.
            folder: where to write.
            weights: one of `weights`.
            adds_start: the runtime itself puts the tokenizer's start token before a prompt; chat templates bring their own.
        """
        plugins.load(f"{ROOM}.{self.module}:write")(source, folder, weights, adds_start)

    def open(self, folder: Path, *, adds_start: bool, trusted: bool = False) -> Runtime:
        """The runtime on what `write` has written; a model of a family that is not listed may run its own code if trusted."""
        runtime = plugins.load(f"{ROOM}.{self.module}:Runtime")
        return runtime(folder, adds_start, trusted) if self.families is None else runtime(folder, adds_start)

    def check(self, config: Any, tokenizer: Any, weights: str | None, *, asked: bool) -> str:
        """Refuse what this format cannot hold, before any work.

        Args:
            config: the model's configuration.
            tokenizer: its tokenizer.
            weights: what was asked for, `None` for the default.
            asked: the runtime will be used too.

        Returns:
            The kind of weights.

        Raises:
            ConfigError: the family, its tokenizer or the kind of weights does not fit.
            MissingDependencyError: a package is not installed.
        """
        family = config.model_type
        if self.families is not None and family not in self.families:
            others = ", ".join(other.name for other in FORMATS.values() if other.holds(family))
            raise ConfigError(
                f"--to {self.name}: {self.runtime} cannot hold {family!r} (it can: {', '.join(self.families)}); "
                f"{family!r} goes to: {others}"
            )
        if weights is not None and weights not in self.weights:
            raise ConfigError(f"--weights {weights!r}: --to {self.name} has {', '.join(self.weights)}")
        for package, extra in (*self.needs, *(self.asks if asked else ())):
            if find_spec(package) is None:
                raise MissingDependencyError(package, extra, f"--to {self.name}{' --verify' if asked else ''}")
        inspect: Callable[[Any, Any], None] | None = CHECKS.get(self.name)
        if inspect is not None:
            inspect(config, tokenizer)
        return weights or self.weights[0]

    def holds(self, family: str) -> bool:
        """True if a model of this family can be exported to the format."""
        return self.families is None or family in self.families


def _check_gguf(config: Any, tokenizer: Any) -> None:
    plugins.load(f"{ROOM}.to_gguf:check")(config, tokenizer)


CHECKS: dict[str, Callable[[Any, Any], None]] = {"gguf": _check_gguf}

IN_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained("FOLDER") for kind in (AutoTokenizer, AutoModelForCausalLM))
read = tokenizer({prompt!r}, return_tensors="pt", add_special_tokens={adds_start})
written = model.generate(**read, max_new_tokens={limit})[0, read["input_ids"].shape[1] :]
print(tokenizer.decode(written, skip_special_tokens=True))
"""
IN_PEFT = """\
import peft, transformers
tokenizer, search = (kind.from_pretrained("FOLDER") for kind in (transformers.AutoTokenizer, transformers.GenerationConfig))
model, prompt = peft.AutoPeftModelForCausalLM.from_pretrained("FOLDER"), {prompt!r}
read = tokenizer(prompt, return_tensors="pt", add_special_tokens={adds_start})["input_ids"]
print(tokenizer.decode(model.generate(read, search, max_new_tokens={limit})[0, read.shape[1] :], skip_special_tokens=True))
"""
IN_LLAMA_CPP = """\
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_parallel = "FOLDER/model.gguf", 1
asked = {{"prompt": {prompt!r}, "max_tokens": {limit}, "temperature": 0}}
print(xllamacpp.Server(settings).handle_completions(asked)["choices"][0]["text"])
"""
IN_CTRANSLATE2 = """\
import ctranslate2, tokenizers
tokenizer, model = tokenizers.Tokenizer.from_file("FOLDER/tokenizer.json"), ctranslate2.Generator("FOLDER")
prompt = tokenizer.encode({prompt!r}, add_special_tokens={adds_start}).tokens
found = model.generate_batch([prompt], beam_size={num_beams}, max_length={limit}, include_prompt_in_result=False)
print(tokenizer.decode(found[0].sequences_ids[0]))
"""
IN_ONNXRUNTIME = """\
import sys
sys.path.insert(0, "FOLDER")  # for decode.py, which is there to be read
from decode import Decoder
decoder = Decoder("FOLDER", adds_start={adds_start})
print(decoder.answer({prompt!r}, limit={limit}))
"""
IN_MLX = """\
from mlx_lm import generate, load
model, tokenizer = load("FOLDER")
prompt = tokenizer.encode({prompt!r}, add_special_tokens={adds_start})
print(generate(model, tokenizer, prompt, max_tokens={limit}))
"""
FORMATS = {
    entry.name: entry
    for entry in (
        Format("hf", "transformers", None, ("f32",), "to_huggingface", (), (), True, IN_TRANSFORMERS),
        Format("peft", "peft", None, ("f32",), "to_peft", (), (), False, IN_PEFT),
        Format(
            "gguf", "llama.cpp", tuple(f for f in FAMILIES if f not in ("gpt_neo", "opt")), ("f16", "q8_0", "f32"), "to_gguf",
            (("gguf", "gguf"),), (("xllamacpp", "export"),), False, IN_LLAMA_CPP,
        ),
        Format(
            "onnx", "onnxruntime", FAMILIES, ("f32",), "to_onnx",
            (("onnxscript", "export"), ("onnxruntime", "export")), (), False, IN_ONNXRUNTIME,
        ),
        Format("mlx", "mlx-lm", ("llama", "mistral", "qwen2"), ("f32",), "to_mlx", (), (("mlx_lm", "mlx"),), False, IN_MLX),
        Format(
            "ctranslate2", "CTranslate2", tuple(f for f in FAMILIES if not f.startswith("gpt_neo")),
            ("float32", "int8"), "to_ctranslate2", (("ctranslate2", "fast"),), (), True, IN_CTRANSLATE2,
        ),
    )
}  # fmt: skip


def find(name: str) -> Format:
    """A format by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in FORMATS:
        raise ConfigError(f"--to {name!r} is unknown{did_you_mean(name, FORMATS)}; there is: {', '.join(FORMATS)}")
    return FORMATS[name]
