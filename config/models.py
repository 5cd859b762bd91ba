"""The models' entries in ``config.yaml``, one class for each engine."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from config.cache import ModelCacheSettings
from config.section import Name, Section
from config.upstreams import UpstreamSettings
from config.values import Bytes, Seconds, Word

Task: TypeAlias = Literal["chat", "ocr", "embedding"]
Resolution: TypeAlias = Literal["tiny", "small", "base", "large", "gundam"]

# Each one becomes part of a command line and of a file name.
Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)?$")]


class ModelSettings(Section):
    """What every model entry has, whatever its engine."""

    task: Task
    """What the model does."""
    engine: str
    """What runs it."""
    model: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Hub id or path of the weights, or the upstream's name for the model; unset: the entry's own name."""
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Jobs that run at once, over all workers."""
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Jobs that may wait beyond those; a request over both is answered 503."""
    timeout: Seconds = 300.0
    """Longest run of one attempt (of one page, for documents)."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Further attempts after a crash, a timeout or a passing error."""
    aliases: list[Name] = Field(default=[])
    """Other names that requests may use."""
    fallbacks: list[Name] = Field(default=[])
    """Models that take over, in this order, what this one cannot do: it has no place free, or its attempts fail."""
    description: str = ""
    """Shown in the list of models."""
    cache: ModelCacheSettings | None = None
    """Set, be it to {}: what was asked before is answered by the answer of then, where the temperature is 0 or it is
    an embedding."""
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    """What becomes of a job whose client waits for its answer, or follows it, and goes away. One that came with an
    Idempotency-Key goes on always: its client comes back."""

    @property
    def adapters(self) -> frozenset[str]:
        """Names of LoRA adapters, which requests give in place of the model's."""
        return frozenset()

    @property
    def has_modes(self) -> bool:
        """Whether it may read documents in several resolution modes."""
        return False

    @property
    def other_names(self) -> frozenset[str]:
        return self.adapters.union(self.aliases)


class ReaderSettings(ModelSettings):
    """Of models that can read documents."""

    dpi: int = Field(default=300, ge=70, le=1200)
    """Resolution at which PDF pages are drawn."""
    max_pages: int = Field(default=500, ge=1, le=100_000)
    """Longest document; of a longer one some pages may be asked for."""
    page_retries: int = Field(default=3, ge=0, le=20)
    """Further tries of a page that could not be read, each in another way where the model has several."""
    max_page_error_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of pages that may fail: a document with more of them has failed, one with fewer is completed in part."""


class TesseractSettings(ReaderSettings):
    """OCR on the CPU by Tesseract."""

    engine: Literal["tesseract"]
    """What runs it."""
    task: Literal["ocr"]
    """Tesseract does OCR only."""
    languages: Annotated[list[Language], Field(min_length=1)] | None = None
    """Tesseract's language codes (eng, deu, chi_sim); unset: found out from the page."""


class RapidocrSettings(ReaderSettings):
    """OCR on the CPU by RapidOCR: English and Chinese. Installed by the extra `rapidocr`."""

    engine: Literal["rapidocr"]
    """What runs it."""
    task: Literal["ocr"]
    """RapidOCR does OCR only."""


class OpenaiSettings(UpstreamSettings, ReaderSettings):
    """Any server that speaks the OpenAI API, or several of them."""

    engine: Literal["openai"]
    """What runs it."""
    dpi: int = Field(default=144, ge=70, le=1200)
    """Resolution at which PDF pages are drawn: vision models reduce them further."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.read_timeout is not None and self.read_timeout > self.timeout:
            told = "read_timeout may not be longer than timeout ({timeout} s)"
            raise PydanticCustomError("order", told, {"timeout": f"{self.timeout:g}"})
        return self


class SimulatorSettings(ModelSettings):
    """Deterministic tokens at a set speed, for tests and demonstrations. No model is behind it."""

    engine: Literal["simulator"]
    """What runs it."""
    tokens_per_second: float = Field(default=50.0, gt=0, le=1_000_000)
    """Speed."""
    tokens: int = Field(default=64, ge=1, le=1_000_000)
    """Length of an answer."""
    faults: bool = False
    """Whether a request may ask for a fault (crash, hang, slow, garbage)."""
    memory: Bytes | None = None
    """Memory that it pretends to take while it is loaded; set: it is loaded and unloaded as a real model is."""
    load_time: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Seconds that loading takes; waking takes a tenth."""


class VllmSettings(ReaderSettings):
    """A `vllm serve` process that the worker starts and looks after."""

    engine: Literal["vllm"]
    """What runs it."""
    dpi: int = Field(default=144, ge=70, le=1200)
    """Resolution at which PDF pages are drawn: vision models reduce them further."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of the GPU's memory; unset: vLLM's default."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest context in tokens; unset: the model's."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=1024)
    """GPUs that share the model."""
    pipeline_parallel_size: int = Field(default=1, ge=1, le=1024)
    """Groups of such GPUs, each with a part of the model's layers."""
    resolution: Resolution = "gundam"
    """The mode in which DeepSeek-OCR starts, until operators or jobs ask for another one."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = None
    """Type of the weights; unset: vLLM's default."""
    quantization: Annotated[str, StringConstraints(min_length=1)] | None = None
    """vLLM's name of the quantization; unset: the model's."""
    memory: Bytes | None = None
    """Memory that the engine takes on each of its GPUs, or of the machine where there is none; unset: measured when it
    is first loaded."""
    sleep: bool = True
    """Whether it may sleep on a GPU: its weights wait in main memory and are back in seconds."""
    lora: dict[Name, Annotated[str, StringConstraints(min_length=1)]] = Field(default={})
    """LoRA adapters: paths of their weights by name. A request that names one in `model` runs with it."""
    python: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Interpreter of the virtual environment that vLLM is installed in; unset: Roundhouse's own."""
    start_timeout: Seconds = 1800.0
    """Longest start: reading the weights and compiling."""
    stall_timeout: Seconds = 60.0
    """An engine from which no token comes for this long hangs: it is killed and started again."""
    # Both may carry tokens.
    args: list[Word] = Field(default=[], repr=False)
    """Further arguments for `vllm serve`."""
    env: dict[str, Word] = Field(default={}, repr=False)
    """Further environment variables for `vllm serve`."""

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self.lora)

    @property
    def has_modes(self) -> bool:
        return self.task == "ocr"


ModelEntry: TypeAlias = Annotated[
    TesseractSettings | RapidocrSettings | OpenaiSettings | SimulatorSettings | VllmSettings,
    Field(discriminator="engine"),
]
