"""What models are called by those who ask for them."""

from broker.errors import ModelNotFound
from config import Settings


def named(settings: Settings, asked: str) -> str:
    """The model that ``asked`` stands for, a name or an alias. Raises ModelNotFound."""
    name = settings.resolve(asked)
    if name is None:
        raise ModelNotFound(asked)
    return name
