"""Names of models in paths."""

from starlette.convertors import Convertor, register_url_convertor


class ModelName(Convertor[str]):
    """Anything, slashes and line breaks included: that it is no model's name is said by who looks for it."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("model", ModelName())
# A parameter of a path.
MODEL = "{model:model}"
