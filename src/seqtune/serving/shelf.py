"""The runs that a server holds, by name: loaded, found, and loaded anew when their files have changed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seqtune import progress, runs
from seqtune.config import Config, load_config
from seqtune.decoding.engines.weights import dtype_of
from seqtune.decoding.predictor import Predictor, decode_settings, is_run, task_of
from seqtune.errors import ConfigError, SeqtuneError, did_you_mean
from seqtune.models import loading
from seqtune.models.adapters import Adapter
from seqtune.models.location import holds_adapter
from seqtune.models.machine import best_device
from seqtune.sections import DecodeConfig, ModelConfig
from seqtune.serving.refusals import Refusal
from seqtune.serving.served import Desk, Served

ENGINE = {"engine": "native"}  # the one whose rows can be taken in and let go at any step
OWN_BASE = ("qlora", "bitfit", "layers")  # they replace or change weights of the base, which others need as they are


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lies, and what its files were like when it was loaded."""

    path: str
    files: tuple[Any, ...]


def named(arguments: Sequence[str]) -> dict[str, str]:
    """Name -> run, of arguments that are runs or NAME=RUN.

    Raises:
        ConfigError: two have one name.

    Example:
        >>> named(["runs/names/", "old=archive/run"])
        {'names': 'runs/names/', 'old': 'archive/run'}
    """
    found: dict[str, str] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or "/" in name:
            name, path = Path(argument).expanduser().resolve().name if Path(argument).exists() else argument, argument
        if name in found:
            raise ConfigError(
                f"{found[name]!r} and {path!r} would both be called {name!r}; give one another name: other={path}"
            )
        found[name] = path
    return found


class Shelf:
    """All runs of a server; `load` them first.

    Args:
        paths: name -> run folder, model folder or hub id.
        desk: does the work for all.
    """

    def __init__(self, paths: Mapping[str, str], desk: Desk):
        self.paths, self.desk = dict(paths), desk
        self.runs: dict[str, Served] = {}
        self._places: dict[str, Place] = {}
        self._bases: dict[tuple[str, str], PreTrainedModel] = {}

    def load(self) -> None:
        """Load every run.

        Raises:
            SeqtuneError: one cannot be loaded or served.
        """
        for name in self.paths:
            self._load(name)

    def find(self, name: str | None) -> Served:
        """The run that a request names; without a name, the first one.

        Raises:
            Refusal: there is none of that name.
        """
        if name is None:
            return next(iter(self.runs.values()))
        if name not in self.runs:
            hint = did_you_mean(name, self.runs)
            raise Refusal(404, f"there is no run {name!r}{hint}; there is: {', '.join(self.runs)}", "model_not_found", "model")
        return self.runs[name]

    def reload(self) -> list[str]:
        """Load anew what has changed on the disk; who is being answered is answered by the weights that were there.

        A run whose training is not complete, or that cannot be loaded, stays as it is, which is said on stderr.

        Returns:
            The names of those loaded anew.
        """
        fresh = []
        for name, place in self._places.items():
            if _files(place.path) == place.files or (is_run(place.path) and not runs.is_complete(Path(place.path))):
                continue
            try:
                self._load(name)
            except (SeqtuneError, OSError) as error:
                progress.console().print(f"{name} stays as it was: {error}", style="yellow", markup=False)
                continue
            fresh.append(name)
            self.desk.measures.reloads.labels(name).inc()
            progress.console().print(f"{name} is loaded anew", markup=False)
        gc.collect()  # models hold circles
        return fresh

    def folder(self, name: str) -> Path | None:
        """The folder of a run, for its scores; `None` if it is no run."""
        path = self._places[name].path
        return Path(path) if is_run(path) else None

    def _load(self, name: str) -> None:
        path = self.paths[name]
        files = _files(path)  # before: what changes while it is read is read again
        served = Served(name, self._predictor(path), self.desk)
        self.runs[name], self._places[name] = served, Place(path, files)

    def _predictor(self, path: str) -> Predictor:
        decode = decode_settings(path, ENGINE)
        if not _shares_base(path):
            return Predictor.of_run(path, ENGINE)
        model = self._base(load_config(Path(path) / "config.yaml"), decode)
        adapter = Adapter.of_run(model, Path(path))
        tokenizer = loading.load_tokenizer(ModelConfig(name=path))
        return Predictor(model, tokenizer, task_of(path), decode, adapter_method=adapter.method)

    def _base(self, settings: Config, decode: DecodeConfig) -> PreTrainedModel:
        """A base that may carry an adapter; its tensors are those of all others that were made of it."""
        dtype = dtype_of(decode)
        key = (settings.model.model_dump_json(), f"{settings.train.seed} {dtype}")
        if key not in self._bases:
            model = loading.load_model(settings.model, settings.train.seed)
            self._bases[key] = model.to(best_device(), dtype)  # type: ignore[arg-type, call-arg]
        base = self._bases[key]
        return copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})


def _shares_base(path: str) -> bool:
    """True for the run of an adapter that leaves its base as it is."""
    run = Path(path)
    if not holds_adapter(run) or runs.read_kept_tokens(run) is not None:
        return False
    settings = load_config(run / "config.yaml")
    return settings.adapter.method not in OWN_BASE and not holds_adapter(Path(settings.model.name).expanduser())


def _files(path: str) -> tuple[Any, ...]:
    """What tells whether a run has changed: its settings' and its model's files."""
    folder = Path(path)
    if not folder.is_dir():
        return ()
    files = sorted(f for pattern in ("*.yaml", "vocabulary.json", "*.safetensors", "model/*") for f in folder.glob(pattern))
    return tuple((str(f), (s := f.stat()).st_mtime_ns, s.st_size, s.st_ino) for f in files)
