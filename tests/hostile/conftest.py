from tests.unit.ocr.conftest import offspring as offspring
from tests.unit.ocr.conftest import scratch as scratch
