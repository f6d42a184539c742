"""The sections of a configuration: every setting with its type, its default and what it means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from seqtune.errors import did_you_mean

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Layout = Literal["auto", "pairs", "messages", "sharegpt", "alpaca"]
ENGINES = ("auto", "native", "transformers", "ctranslate2", "vllm")
SOFT_PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class SplitConfig(Section):
    """How rows are divided into training, validation and test rows."""

    method: Literal["hash", "random", "stratified", "grouped", "column"] = Field(
        default="hash",
        description="hash: by a hash of the input, unchanged by new rows; random: exact shares; stratified: by input length; "
        "grouped: rows with the same value in column `key` stay together; column: column `key` names the split",
    )
    key: str | None = Field(default=None, description="column that holds the group (grouped) or the name of the split (column)")
    validation: Share = Field(default=0.05, description="share of rows for validation during training")
    test: Share = Field(default=0.1, description="share of rows held out for the final evaluation")
    seed: Seed = Field(default=0, description="another number deals the rows otherwise")

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.method in ("grouped", "column") and not self.key:
            raise ValueError(f"split method {self.method!r} needs `key`, the name of a column")
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1, or nothing is left to train on")
        return self


class DataConfig(Section):
    """Where the pairs are and which columns matter."""

    path: str | None = Field(
        default=None, description="a table: CSV, JSON, Parquet, Arrow, .xlsx, packed or not, or hf://datasets/..."
    )
    validation_path: str | None = Field(default=None, description="a file of its own for validation")
    test_path: str | None = Field(default=None, description="a file of its own for the final evaluation")
    input: str = Field(default="input", description="column with the input text")
    output: str = Field(default="output", description="column with the output text")
    layout: Layout = Field(
        default="auto",
        description="pairs: columns `input` and `output`; messages: a column `messages` with conversations, lists of {role, "
        "content}; sharegpt: a column `conversations` with lists of {from, value}; alpaca: columns instruction, input (may be "
        "empty) and output; auto: recognised by the table's columns",
    )
    id: str | None = Field(default=None, description="column with row names; default: line numbers")
    encoding: str | None = Field(default=None, description="of text files, such as cp1252; default: UTF-8, or what is found")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description="default: comma for .csv, tab for .tsv, or what parts the header, which is said"
    )
    quote: Annotated[str, Field(max_length=1)] = Field(default='"', description="quote character; '' for none")
    header: bool = Field(
        default=True,
        description="false: the first line of a text or sheet is a row; two columns are input and output, more are 1, 2, ...",
    )
    sheet: str | None = Field(default=None, description="of a workbook; default: the first that is not hidden, which is said")
    num_examples: PositiveInt | None = Field(
        default=None, description="train on this many rows; a smaller number is a subset of a larger one"
    )
    max_input_characters: PositiveInt | None = Field(default=None, description="leave out rows with longer inputs")
    max_output_characters: PositiveInt | None = Field(default=None, description="leave out rows with longer outputs")
    max_cell_characters: PositiveInt = Field(default=100_000, description="a row with a longer cell is rejected")
    max_rejected: Share = Field(default=0.05, description="more than this share of unusable rows is an error")
    split: SplitConfig = Field(default_factory=SplitConfig)

    @model_validator(mode="after")
    def _known_encoding(self) -> DataConfig:
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(f"encoding {self.encoding!r} is unknown; such as utf-8, utf-16, cp1252, shift_jis") from None
        return self


class FormatConfig(Section):
    """How a row becomes the text a model reads and the text it writes."""

    template: str = Field(
        default="plain",
        description="preset `plain` or `paper`, text with {input} and other columns, or `chat`: the model's own chat template",
    )
    system: str | None = Field(
        default=None, description="chat: text of the system turn, for rows that bring none; default: what the template does"
    )
    target: str = Field(default="{output}", description="target text with {output} and other columns")
    separator: str = Field(default="\n", description="between instruction and answer")
    inversion: Share = Field(default=0.0, description="share of training rows in which the model writes the instruction")
    answers: list[str] | Literal["training"] | None = Field(
        default=None,
        description="the only answers there are, or `training`: those of the training rows; the likeliest is given",
    )
    ordered: bool = Field(default=False, description="`answers` is a list from low to high; its neighbours are near misses")

    @model_validator(mode="after")
    def _answers(self) -> FormatConfig:
        if isinstance(self.answers, list) and len({a.strip() for a in self.answers} - {""}) != max(2, len(self.answers)):
            raise ValueError(f"format.answers = {self.answers}: it takes two or more different texts, none of them blank")
        if self.ordered and not isinstance(self.answers, list):
            raise ValueError("format.ordered needs format.answers as a list, from the lowest to the highest")
        return self

    @model_validator(mode="after")
    def _chat_or_text(self) -> FormatConfig:
        if self.template != "chat" and self.system is not None:
            raise ValueError(f"format.system belongs to format.template 'chat', not to {self.template!r}")
        if self.system is not None and not self.system.strip():
            raise ValueError("format.system is blank; leave it out, or write what the model should be told first")
        if self.template == "chat" and self.inversion:
            raise ValueError("format.inversion needs a text template: who asks and who answers cannot be swapped in a chat")
        if self.template == "chat" and self.separator != "\n":
            raise ValueError("format.separator belongs to text templates: a chat template says what stands between turns")
        return self


class MixtureConfig(Section):
    """Many tasks as one table of prompts (docs/mixtures.md): how often each is asked, and in which forms."""

    tasks: list[str] | dict[str, str | dict[str, Any]] = Field(
        min_length=1, description="task bundles by name or file; or name -> one of these, or name -> a bundle's own keys"
    )
    folder: str = Field(default="", description="what names of files are relative to; default: the mixture file's folder")
    held_out: list[str] = Field(default_factory=list, description="tasks and clusters that training never sees")
    only: list[str] | None = Field(default=None, description="train on these tasks alone; nothing else changes")
    max_examples: PositiveInt = Field(default=30_000, description="of a larger task, so many training rows are used")
    max_rate: PositiveInt | None = Field(default=None, description="a task with more rows is drawn as if it had this many")
    temperature: PositiveFloat = Field(default=1.0, description="tasks are drawn in proportion to rate^(1/temperature)")
    weights: dict[str, PositiveFloat] = Field(default_factory=dict, description="task -> weight, instead of rates")
    num_examples: PositiveInt | None = Field(default=None, description="prompts in all; default: the sum of the rates")
    shots: dict[Annotated[int, Field(ge=0, le=32)], Share] = Field(
        default={0: 1.0}, description="number of solved examples before the question -> share of the prompts"
    )
    options: Share = Field(default=0.5, description="share of prompts that list the answers, of tasks that have some")
    chain: Share = Field(default=0.5, description="share of targets with reasoning before the answer, of tasks that have it")
    inversion: Share = Field(default=0.0, description="share of prompts that give the answer and ask for the question")
    max_characters: PositiveInt = Field(default=3000, description="a longer prompt gets fewer solved examples")
    test_examples: PositiveInt = Field(default=200, description="test rows of each task that are asked")

    @model_validator(mode="after")
    def _shares(self) -> MixtureConfig:
        if abs(sum(self.shots.values()) - 1) > 1e-6:
            raise ValueError(f"shots {self.shots}: the shares add up to {sum(self.shots.values()):g}, and must to 1")
        return self


class ModelConfig(Section):
    """Which model to start from."""

    name: str = Field(default="builtin:base", description="hub id, folder, FILE.gguf, package:NAME or builtin:NAME")
    init: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random: the same architecture without what it has learnt, the control of every claim"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model; default: the newest")
    trust_remote_code: tuple[str, ...] = Field(
        default=(),
        exclude=True,
        description="models whose own Python code may run, by name; only the command line (--trust-remote-code NAME) or an "
        "override in Python can say so: in a file it is no permission, and it is never written into one",
    )
    trim_vocabulary: bool | None = Field(
        default=None,
        description="keep only the tokens that the training rows use or that any text may need; default: with method full",
    )
    adapt_vocabulary: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="add this many frequent pieces of the training texts to the vocabulary; default: 1,024 if they shorten the "
        "rows by 40% or more (only in full fine-tuning, below 50 M parameters, with 5,000 rows or more), else 0",
    )
    max_length: PositiveInt | None = Field(default=None, description="token limit of prompt + target; default: the model's")

    @property
    def runs_code(self) -> bool:
        """True if Python code that comes with this model may run: the model is among those that were named as trusted."""
        name, *trusted = (os.path.abspath(os.path.expanduser(each)) for each in (self.name, *self.trust_remote_code))
        return name in trusted

    def trusted_with(self, made: Path) -> tuple[str, ...]:
        """Whose code may run after a folder was made of this model: what runs already may run from there too."""
        return (*self.trust_remote_code, str(made)) if self.trust_remote_code else ()


class AdapterConfig(Section):
    """Which parameters are trained: all of them, or a few that are added or selected."""

    method: Literal[
        "full", "lora", "qlora", "oft", "ia3", "bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning", "bitfit", "layers",
    ] = Field(default="full", description="full: all parameters")  # fmt: skip
    rank: PositiveInt = Field(default=8, description="lora, qlora, bottleneck (its width), oft (its block size)")
    alpha: PositiveFloat = Field(default=16.0, description="lora, qlora: updates are scaled by alpha / rank")
    dropout: Share = Field(default=0.0, description="lora, qlora, oft: dropout before the added part")
    targets: Literal["attention-only", "all-linear"] | list[str] = Field(
        default="all-linear", description="lora, qlora, oft: which linear layers, or endings of their names"
    )
    rslora: bool = Field(
        default=False, description="lora, qlora: scale by alpha / sqrt(rank), https://arxiv.org/abs/2312.03732"
    )
    dora: bool = Field(
        default=False, description="lora, qlora: train magnitude and direction separately, https://arxiv.org/abs/2402.09353"
    )
    num_virtual_tokens: PositiveInt = Field(default=20, description="prompt_tuning, p_tuning, prefix_tuning: how many")
    init_text: str | None = Field(
        default=None, description="prompt_tuning: text whose embeddings the tokens start as; default: random tokens"
    )
    layers: list[str] = Field(default_factory=list, description="layers: patterns of parameter names, such as '*.layers.5.*'")

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        if (self.method == "layers") != bool(self.layers):
            raise ValueError("method 'layers' and the list adapter.layers need each other: name the parameters to train")
        if (self.rslora or self.dora) and self.method not in ("lora", "qlora"):
            raise ValueError(f"rslora and dora belong to the methods lora and qlora, not {self.method!r}")
        if self.init_text and self.method != "prompt_tuning":
            raise ValueError(f"init_text belongs to the method prompt_tuning, not {self.method!r}")
        return self


class TrainConfig(Section):
    """How long, how fast and on what the model is trained."""

    epochs: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="default: 3, or more for a table so small that 3 make fewer than 1,000 steps"
    )
    target_tokens: PositiveInt | None = Field(
        default=None, description="instead of epochs: stop after this many tokens with loss; repeated rows count again"
    )
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many optimizer steps")
    max_minutes: PositiveFloat | None = Field(default=None, description="stop after this much training; the schedule ends then")
    optimizer: Literal["auto", "muon", "adamw", "paged_adamw"] = Field(
        default="auto",
        description="muon: Muon for hidden matrices, AdamW for the rest; paged_adamw: AdamW of bitsandbytes, which moves its "
        "state to CPU memory when the GPU is full; auto: muon below 50 M parameters, paged_adamw with qlora, else adamw",
    )
    learning_rate: PositiveFloat | None = Field(default=None, description="peak of AdamW; default: by model size")
    muon_learning_rate: PositiveFloat = Field(default=0.02, description="peak of Muon")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate falls to zero after the warm-up; constant: it does not"
    )
    warmup: Share | None = Field(
        default=None, description="share of the training in which the rate rises; default: 0.005 with muon, else 0.03"
    )
    average: Share | None = Field(
        default=None,
        description="validate and save a running mean of the weights over this share of the steps so far (less as the "
        "schedule lowers the learning rate); 0: the last weights; default: 0.15 below 50 M parameters, else 0",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="pull of weights towards zero, decoupled")
    token_budget: PositiveInt | None = Field(
        default=None, description="tokens (padding included) per batch; default: 2,048 below 50 M parameters, else 8,192"
    )
    batching: Literal["auto", "bucket", "pack"] = Field(
        default="auto", description="bucket: rows of similar length, padded; pack: several rows in one sequence; auto: bucket"
    )
    batch_size: PositiveInt | None = Field(default=None, description="rows per batch, instead of token_budget")
    gradient_accumulation: PositiveInt = Field(default=1, description="batches per optimizer step")
    clip: PositiveFloat | None = Field(default=1.0, description="gradients with a larger norm are scaled down to this norm")
    seed: Seed = Field(default=0, description="of new weights, of the order of rows, of dropout")
    loss_on: Literal["target", "all"] = Field(default="target", description="target tokens only, or the whole sequence")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware has units for it"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them: less memory, slower steps"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="several processes: ddp, each holds the whole model; fsdp, each holds its share of weights, gradients and "
        "optimizer state (FSDP2); the steps are the same",
    )
    compile: bool = Field(
        default=False, description="torch.compile: faster steps after a minute or more of compiling; for long runs"
    )
    validate_every: PositiveInt | None = Field(default=None, description="steps between validations; default: ten in total")
    validate_examples: PositiveInt = Field(default=200, description="rows per validation, always the same ones")
    validate_max_seconds: PositiveFloat = Field(default=60.0, description="if one takes longer, later ones use fewer rows")
    on_divergence: Literal["stop", "rewind"] = Field(
        default="stop", description="rewind: back to the last checkpoint with half the learning rate, five times at most"
    )
    early_stopping: PositiveInt | None = Field(default=None, description="stop after this many validations without improvement")
    checkpoint_every: PositiveInt | None = Field(default=None, description="steps between checkpoints; default: by minutes")
    checkpoint_minutes: PositiveFloat = Field(default=5.0, description="minutes between checkpoints, unless steps are given")
    trackers: list[str] = Field(default_factory=list, description="accelerate trackers, such as tensorboard")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.target_tokens and self.epochs:
            raise ValueError("train.target_tokens and train.epochs both say how long to train; give one")
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> TrainConfig:
        if self.parallel == "fsdp" and self.optimizer == "paged_adamw":
            raise ValueError("train.optimizer 'paged_adamw' takes no shards, as train.parallel 'fsdp' makes them; use adamw")
        if self.parallel == "fsdp" and self.compile:
            raise ValueError("train.compile does not fit train.parallel 'fsdp'; give one of them")
        return self


class DecodeConfig(Section):
    """How answers are searched for (decoding)."""

    num_beams: Annotated[int, Field(ge=1, le=20)] = Field(
        default=1, description="beams of the search; 1 is greedy, the next likeliest token every time"
    )
    num_return: PositiveInt = Field(default=1, description="hypotheses per input; at most num_beams")
    length_penalty: float = Field(
        default=1.0, description="hypotheses are ranked by log-probability / length^penalty; larger favours longer ones"
    )
    max_new_tokens: PositiveInt | None = Field(default=None, description="default: from the longest training target")
    token_budget: PositiveInt = Field(default=16_384, description="tokens per batch: prompts and answers, once per beam")
    verify: bool = Field(default=False, description="the answer is the best hypothesis that passes the task's verifier")
    abstain: bool = Field(default=False, description="with verify: give no answer if no hypothesis passes")
    normalize_answers: bool = Field(
        default=False, description="format.answers: rank by log-probability per token, not by that of the whole answer"
    )
    engine: str = Field(
        default="auto",
        description="native, transformers, ctranslate2, vllm, or PACK:NAME of an installed package; auto: native for models on "
        "which it gives the answers of transformers, else transformers",
    )
    weights: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description="precision of weights; auto: bfloat16 on GPUs, float32 elsewhere; int8: CPUs only, changes some answers",
    )

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        if engine not in ENGINES and ":" not in engine:
            known = ", ".join(ENGINES)
            raise ValueError(f"it must be {known}, or PACK:NAME of a package{did_you_mean(engine, ENGINES)}")
        return engine

    @model_validator(mode="after")
    def _consistent(self) -> DecodeConfig:
        if self.num_return > self.num_beams:
            raise ValueError(f"num_return {self.num_return} is more than num_beams {self.num_beams}")
        if self.abstain and not self.verify:
            raise ValueError("abstain needs verify: without a verifier there is nothing to abstain on")
        return self
