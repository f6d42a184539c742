"""Standard benchmarks through lm-evaluation-harness: its tasks, prompts and scores, with our decoding behind them.

What it asks is how likely answers are, or what a model writes until a stop. Both go through the engines that `predict` uses;
examples that many questions share are read once (`seqtune.decoding.engines.likelihood`). Needs the extra `bench-suites`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from seqtune import progress
from seqtune.decoding.engines import make_engine
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.likelihood import Asked, Likelihood, Tree, likelihoods
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.weights import dtype_of
from seqtune.errors import ConfigError, DataError, did_you_mean
from seqtune.models import loading
from seqtune.models.adapters import load_trained
from seqtune.models.machine import best_device
from seqtune.models.soft_prompts import num_virtual_tokens
from seqtune.sections import DecodeConfig, ModelConfig

NEW_TOKENS = 256  # of what is written until a stop, where a task does not say; the harness's own default


class SeqtuneLM(TemplateLM):
    """A run, or any model, as lm-evaluation-harness asks it.

    Token for token the prompts of its own `hf` model: texts are encoded whole, and cut on the left to the model's length.

    Args:
        run: run folder, model folder or hub id.
        token_budget: tokens held at once.
        trusted: models whose own Python code may run, by name.

    Raises:
        ModelError: the model cannot be loaded.

    Example:
        lm_eval.simple_evaluate(SeqtuneLM("runs/names"), tasks=["arc_easy"])
    """

    def __init__(self, run: str, token_budget: int = DecodeConfig().token_budget, trusted: Sequence[str] = ()):
        super().__init__()
        source = ModelConfig(name=run, trust_remote_code=tuple(trusted))
        self.decode = DecodeConfig(token_budget=int(token_budget))
        model, self.adapter = load_trained(source, seed=0)
        self.model = model.eval()
        self.model.to(best_device(), dtype_of(self.decode))  # type: ignore[arg-type, call-arg]
        self.frozen = FrozenModel(self.model)
        self.tokenizer: Any = loading.load_tokenizer(source)
        self.start = list(range(model.config.vocab_size, model.config.vocab_size + num_virtual_tokens(model)))
        self.max_length = loading.max_length(model.config, source) - len(self.start)
        self.name = run

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's chat template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; with the tokenizer's own start token unless it is told otherwise or the text has one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Log-probability and greediness of (texts, context ids, continuation ids)."""
        contexts: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_texts, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise DataError(f"a continuation of {len(continuation)} tokens exceeds the model's {self.max_length}")
            contexts.setdefault(tuple(context[-room:]), []).append((number, continuation))
        members = list(contexts.values())
        asked = [
            Asked(np.array([*self.start, *context], dtype=np.int32), Tree.of([ids for _, ids in own]))
            for context, own in contexts.items()
        ]
        found: dict[int, Likelihood] = {}
        with progress.show("likelihoods", len(requests)) as tick:
            for index, own in likelihoods(self.frozen, asked, self.decode.token_budget):
                found |= {number: likelihood for (number, _), likelihood in zip(members[index], own, strict=True)}
                tick(len(found))
        return [(found[i].log_probability, found[i].is_greedy) for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's length."""
        windows: list[Any] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += score
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes, greedily, up to the first stop.

        Raises:
            ConfigError: a task asks for sampling.
        """
        sources, limits, stops = [], [], []
        for request in requests:
            arguments: Any = request.args
            context, asked = arguments
            settings: Any = normalize_gen_kwargs(asked, NEW_TOKENS)
            if settings.get("do_sample") or settings.get("temperature"):
                raise ConfigError(f"the task asks for sampling ({settings}); seqtune decodes by search alone")
            limit = min(int(settings["max_gen_toks"]), self.max_length - 1)
            ids = self.tok_encode(context)[-(self.max_length - limit) :]
            sources.append(np.array([*self.start, *ids], dtype=np.int32))
            limits.append(limit)
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
        method = self.adapter.method if self.adapter else "full"
        engine = make_engine(self.frozen, self.eot_token_id, self.decode, adapter_method=method)
        written = [""] * len(requests)
        found = (
            engine.generate(sources, limits, [_Listener(self._text, own) for own in stops])
            if isinstance(engine, NativeEngine)
            else engine.generate(sources, limits)
        )
        with progress.show("answers", len(requests)) as tick:
            for done, (index, candidates) in enumerate(found, start=1):
                written[index] = _until(self._text(candidates[0].ids), stops[index])
                tick(done)
        return written

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


register_model("seqtune")(SeqtuneLM)


class _Listener:
    """Ends an answer at the first of its stops.

    Args:
        text_of: decodes tokens.
        stops: the texts.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str], stops: Sequence[str]):
        self.text_of, self.stops, self.ids = text_of, [stop for stop in stops if stop], list[int]()
        # a stop spans no more tokens than it has bytes; characters of several tokens need those before it
        self.span = max((len(stop.encode()) for stop in self.stops), default=0) + 4

    def __call__(self, token: int) -> bool:
        """True if a stop is written."""
        self.ids.append(token)
        return bool(self.stops) and _until(tail := self.text_of(self.ids[-self.span :]), self.stops) != tail


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """One score of one task or group.

    Attributes:
        task: the harness's name.
        metric: with the filter that it was computed after, as in `exact_match,strict-match`.
        value: as the harness computes it.
        error: standard error, `None` where it has none.
        num_items: items that it was computed from.
        num_shots: examples in each prompt.
    """

    task: str
    metric: str
    value: float
    error: float | None
    num_items: int
    num_shots: int | None


@dataclass(frozen=True, slots=True)
class Suite:
    """What to ask.

    Attributes:
        tasks: names of tasks or groups, such as `mmlu` or `arc_easy`.
        num_shots: examples in each prompt; `None` for what each task says.
        limit: so many items of each task only.
        data: folder with local copies of data sets, each as it lies on the hub: `cais/mmlu/...`.
        include: folder with tasks of your own (YAML).
        chat: put prompts into the tokenizer's chat template.
    """

    tasks: Sequence[str]
    num_shots: int | None = None
    limit: int | None = None
    data: Path | None = None
    include: Path | None = None
    chat: bool = False


def benchmark(run: str, suite: Suite, trusted: Sequence[str] = ()) -> tuple[list[BenchmarkScore], dict[str, Any]]:
    """Score a run on tasks of lm-evaluation-harness.

    Args:
        run: run folder, model folder or hub id.
        suite: the tasks, and how they are asked.
        trusted: models whose own Python code may run, by name.

    Returns:
        Scores, groups included, and all that the harness reports.

    Raises:
        ConfigError: there is no task of that name.
        DataError: a data set is not at hand.
        ModelError: the model cannot be loaded.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=None if suite.include is None else str(suite.include))
    for name in suite.tasks:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"lm-evaluation-harness {lm_eval.__version__} has no task {name!r}{did_you_mean(name, manager.all_tasks)}; "
                "`lm_eval ls tasks` lists them, and --include FOLDER brings your own"
            )
    place = contextlib.nullcontext() if suite.data is None else contextlib.chdir(suite.data)
    model: Any = SeqtuneLM(str(Path(run).resolve()) if Path(run).exists() else run, trusted=trusted)
    if suite.chat and not model.tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {run!r} has no chat template; leave out --chat")
    try:
        with place:  # a data set's name is looked for as a folder first
            found: Any = simple_evaluate(
                model, tasks=list(suite.tasks), num_fewshot=suite.num_shots, limit=suite.limit, task_manager=manager,
                apply_chat_template=suite.chat, log_samples=False,
            )  # fmt: skip
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"a data set of {', '.join(suite.tasks)} is not at hand: {str(error).splitlines()[0]}; fetch it with `hf download "
            "--repo-type dataset OWNER/NAME --local-dir FOLDER/OWNER/NAME`, then --data FOLDER"
        ) from None
    return list(_scores(found)), found


def _scores(found: dict[str, Any]) -> Iterable[BenchmarkScore]:
    """Every number of the harness's results, tasks in its order."""
    for task, values in found["results"].items():
        shots, items = found.get("n-shot", {}).get(task), found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            yield BenchmarkScore(
                task, metric if kind == "none" else key, float(value), float(error) if known else None, int(items), shots
            )
