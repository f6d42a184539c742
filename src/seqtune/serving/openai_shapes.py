"""What the OpenAI-compatible endpoints take and give (https://platform.openai.com/docs/api-reference).

Decoding is a search: it finds the likeliest answer and never draws one at random. So what asks for drawing is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from seqtune.serving.refusals import Refusal

# what changes a distribution that answers would be drawn from -> the values that leave it as it is
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 0), "top_p": (None, 1), "frequency_penalty": (None, 0), "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}  # fmt: skip


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class Completing(BaseModel):
    """What both endpoints share; `num_beams` and the four after it are our own, for the client's `extra_body`."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr
    max_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1)
    stop: StrictStr | list[StrictStr] | None = Field(default=None, description="the answer is cut before it; at most four")
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, description="0: the search has no chance in it")
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(default=None, description="changes nothing: equal questions have equal answers")
    user: StrictStr | None = Field(default=None, description="is not looked at")
    num_beams: int | None = None
    length_penalty: float | None = None
    verify: bool | None = None
    abstain: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The texts before which an answer is cut."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    @property
    def num_top(self) -> int | None:
        """Likeliest tokens to tell beside each token's log-probability; `None` if nothing is asked for."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse what a search cannot do.

        Raises:
            Refusal: names the field.
        """
        for name, allowed in NEUTRAL.items():
            if (value := getattr(self, name)) not in allowed:
                raise Refusal(
                    400,
                    f"{name} = {value!r}: answers are searched for, not drawn at random, so leave it out (or send "
                    f"{allowed[1]!r}); several answers come with n and num_beams",
                    "unsupported_value",
                    name,
                )
        if len(self.stops) > 4:
            raise Refusal(400, f"stop may hold 4 texts, and holds {len(self.stops)}", param="stop")

    def search(self, num_beams: int) -> dict[str, Any]:
        """The `decode` settings that are asked for; without `num_beams`, `n` answers get as many beams as they need.

        Args:
            num_beams: of the run itself.
        """
        beams = self.num_beams if self.num_beams is not None else max(num_beams, self.n)
        asked = {"num_beams": beams, "num_return": self.n, "max_new_tokens": self.max_tokens}
        return asked | {"length_penalty": self.length_penalty, "verify": self.verify, "abstain": self.abstain}


class CompletionRequest(Completing):
    """`POST /v1/completions`: the prompt is the run's input, around which its template is put."""

    prompt: StrictStr | list[StrictStr]
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, ge=1, description="the same as num_beams")
    echo: bool = False
    suffix: StrictStr | None = None

    @property
    def num_top(self) -> int | None:
        """See `Completing.num_top`."""
        return self.logprobs

    def check(self) -> None:
        """See `Completing.check`."""
        super().check()
        if self.echo or self.suffix:
            name = "echo" if self.echo else "suffix"
            raise Refusal(400, f"{name}: a run writes the answer to an input and nothing else", "unsupported_value", name)
        if self.best_of is not None:
            self.num_beams = self.num_beams or self.best_of


class Part(BaseModel):
    """A piece of a message's content."""

    type: StrictStr
    text: StrictStr | None = None


class Message(BaseModel):
    """A turn of a conversation."""

    role: StrictStr
    content: StrictStr | list[Part]
    name: StrictStr | None = None

    @property
    def text(self) -> str:
        """The content as one text.

        Raises:
            Refusal: it is not text alone.
        """
        if isinstance(self.content, str):
            return self.content
        odd = next((part.type for part in self.content if part.type != "text"), None)
        if odd is not None:
            raise Refusal(400, f"a message holds {odd!r}; runs read text", "unsupported_value", "messages")
        return "".join(part.text or "" for part in self.content)


class ChatRequest(Completing):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def num_top(self) -> int | None:
        """See `Completing.num_top`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """See `Completing.check`."""
        super().check()
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
