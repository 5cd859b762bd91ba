"""What our plugin does to a vLLM, on modules of the shape that vLLM's have. That it fits the real ones is told by
tests/vllm."""

import os
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from worker.ocr_models import FLAGS, PLUGIN, Family, family, image_tokens, mode_environment
from worker.vllm_plugin import roundhouse_ocr_mode as plugin
from worker.vllm_plugin.roundhouse_ocr_mode import MODE_VARIABLE, MODES, ModeNotSet, register

PROCESSORS = "vllm.transformers_utils.processors.deepseek_ocr"
MODEL = "vllm.model_executor.models.deepseek_ocr"
SECOND = "vllm.model_executor.models.deepseek_ocr2"


class Processor:
    def __init__(self, tokenizer: str, image_size: int = 640, base_size: int = 1024, max_crops: int = 6) -> None:
        self.image_size, self.base_size = image_size, base_size
        self.image_transform = ModuleType("transform")
        self.image_transform.mean = (0.5, 0.5, 0.5)  # type: ignore[attr-defined]

    def process_one(self, prompt: str, images: list[Any], crop_mode: bool = True) -> Any:
        return self.tokenize_with_images(prompt, images, cropping=crop_mode)

    def __call__(self, *, prompt: str, images: list[Any], crop_mode: bool = True, **more: Any) -> Any:
        return self.process_one(prompt, images, crop_mode)

    def tokenize_with_images(
        self, conversation: str, images: list[Any], bos: bool = True, cropping: bool = True
    ) -> Any:
        return [image if cropping else image.resize((self.image_size, self.image_size)) for image in images]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The modules by name; the first model's was imported before the plugin ran."""
    processor = type("DeepseekOCRProcessor", (), dict(vars(Processor)))
    constants = {"BASE_SIZE": 1024, "IMAGE_SIZE": 640, "CROP_MODE": True}
    contents = {PROCESSORS: constants | {"DeepseekOCRProcessor": processor}, MODEL: constants}
    contents[SECOND] = constants | {"IMAGE_SIZE": 768}
    modules: dict[str, Any] = {}
    for name, content in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
        monkeypatch.setitem(sys.modules, name, modules[name])
    # Defaults are objects of the functions, which the class shares with the one above.
    for method in ("__init__", "process_one", "__call__"):
        function = vars(Processor)[method]
        monkeypatch.setattr(function, "__defaults__", function.__defaults__)
        monkeypatch.setattr(function, "__kwdefaults__", function.__kwdefaults__)
    return modules


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_set_wherever_it_was_taken_over(
    mode: str, vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, mode)
    register()
    register()
    base, image, crops = MODES[mode].base_size, MODES[mode].image_size, MODES[mode].crops
    for name, tile in ((PROCESSORS, image), (MODEL, image), (SECOND, 768)):
        module = vllm[name]
        found = (module.BASE_SIZE, module.IMAGE_SIZE, module.CROP_MODE)
        assert found == (base, tile, crops)
    made = vllm[PROCESSORS].DeepseekOCRProcessor("tokenizer")
    assert (made.base_size, made.image_size) == (base, image)
    picture = Image.new("RGB", (300, 600))
    (seen,) = made(prompt="", images=[picture])
    assert seen.size == (picture.size if crops else (base, base))


@pytest.mark.parametrize(("mode", "stretched"), [("tiny", True), ("small", True), ("base", False), ("large", False)])
def test_large_squares_keep_a_pages_proportions_as_the_model_learned_it(
    mode: str, stretched: bool, vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, mode)
    register()
    made = vllm[PROCESSORS].DeepseekOCRProcessor("tokenizer")
    (seen,) = made(prompt="", images=[Image.new("RGB", (300, 600), "white")])
    assert seen.getpixel((2, 2)) == ((255, 255, 255) if stretched else (127, 127, 127))
    assert seen.getpixel((seen.width // 2, 2)) == (255, 255, 255)


def test_the_second_generations_pages_keep_their_detail_without_tiles(
    vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "base")
    register()
    made = vllm[PROCESSORS].DeepseekOCRProcessor("tokenizer", image_size=768, base_size=1024)
    (seen,) = made(prompt="", images=[Image.new("RGB", (1024, 1024))])
    assert seen.size == (1024, 1024)


def test_without_a_mode_nothing_is_touched(vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    register()
    assert vllm[PROCESSORS].BASE_SIZE == 1024


def test_an_unknown_mode_ends_the_engine_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "huge")
    with pytest.raises(ModeNotSet, match=r"'huge'.*tiny, small, base, large, gundam"):
        register()


@pytest.mark.parametrize(
    ("gone", "named"),
    [("BASE_SIZE", "BASE_SIZE"), ("CROP_MODE", "CROP_MODE"), ("DeepseekOCRProcessor", "DeepseekOCRProcessor")],
)
def test_a_release_that_does_not_fit_ends_the_engine_with_what_is_missing(
    gone: str, named: str, vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "tiny")
    monkeypatch.delattr(vllm[PROCESSORS], gone)
    with pytest.raises(ModeNotSet, match=f"cannot set the resolution mode.*{named}"):
        register()


def test_a_release_without_the_processors_parameters_does_not_fit(
    vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "tiny")

    def process_one(self: Any, prompt: str, images: list[Any]) -> None: ...

    def call(self: Any, **words: Any) -> None: ...

    monkeypatch.setattr(vllm[PROCESSORS].DeepseekOCRProcessor, "process_one", process_one)
    monkeypatch.setattr(vllm[PROCESSORS].DeepseekOCRProcessor, "__call__", call)
    with pytest.raises(ModeNotSet, match="crop_mode"):
        register()


def test_without_vllm_it_fails_when_it_is_called_and_not_when_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "tiny")
    with pytest.raises(ModeNotSet, match="vllm"):
        register()


def test_the_directory_alone_makes_it_known_as_a_plugin() -> None:
    found: list[Distribution] = list(distributions(path=[str(PLUGIN)]))
    (entry,) = [entry for one in found for entry in one.entry_points]
    assert (entry.group, entry.name) == ("vllm.general_plugins", plugin.NAME)
    assert entry.value == f"{Path(plugin.__file__).stem}:register"


def test_the_environment_names_mode_and_directory_beside_what_the_user_has_there() -> None:
    assert mode_environment("tiny", {}) == {MODE_VARIABLE: "tiny", "PYTHONPATH": str(PLUGIN)}
    found = mode_environment("base", {"PYTHONPATH": f"/a{os.pathsep}/b", "VLLM_PLUGINS": "mine"})
    assert found["PYTHONPATH"] == os.pathsep.join([str(PLUGIN), "/a", "/b"])
    assert found["VLLM_PLUGINS"] == f"mine,{plugin.NAME}"
    assert mode_environment("base", {"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == plugin.NAME


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ('{"architectures": ["DeepseekOCRForCausalLM"]}', Family.DEEPSEEK_OCR),
        ('{"architectures": ["DeepseekOCR2ForCausalLM"]}', Family.DEEPSEEK_OCR_2),
        ('{"architectures": ["Qwen3VLForConditionalGeneration"]}', None),
        ("{}", None),
        ("[]", None),
        ('{"architectures": null}', None),
        ("no json", None),
        ("\udcff", None),
    ],
)
def test_the_family_is_told_by_the_models_configuration(config: str, found: Family | None, tmp_path: Path) -> None:
    assert family(tmp_path) is None
    (tmp_path / "config.json").write_text(config, errors="surrogateescape")
    assert family(tmp_path) is found


def test_a_pictures_tokens_are_those_of_the_papers_with_the_ends_of_rows() -> None:
    a4 = (1191, 1684)
    tokens = {mode: image_tokens(Family.DEEPSEEK_OCR, mode, *a4) for mode in MODES}
    assert tokens == {"tiny": 64 + 9, "small": 100 + 11, "base": 256 + 17, "large": 400 + 21, "gundam": 256 + 17 + 630}
    assert image_tokens(Family.DEEPSEEK_OCR, "gundam", 640, 640) == 256 + 17
    assert image_tokens(Family.DEEPSEEK_OCR_2, "base", *a4) == 256 + 1
    assert image_tokens(Family.DEEPSEEK_OCR_2, "gundam", *a4) == 256 + 1 + 6 * 144
    assert image_tokens(Family.DEEPSEEK_OCR_2, "gundam", 768, 768) == 256 + 1


def test_the_flags_name_the_guard() -> None:
    assert FLAGS[0] == "--logits-processors"
    assert FLAGS[1].endswith(":NGramPerReqLogitsProcessor")
