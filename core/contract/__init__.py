"""The contracts of plugins, as checks that third parties can run on theirs, one a kind.

    from longtake.core.contract import check_compressor

    def test_contract():
        check_compressor(MyCompressor, MySpec())

Each check raises AssertionError with one line that names the plugin, its file, and what was broken
or raised there.
"""

from .backbone import check_backbone
from .codec import check_codec
from .compressor import check_compressor
from .masker import check_masker
from .metric import check_metric
from .retriever import check_retriever
from .text_encoder import check_text_encoder

__all__ = [
    "check_backbone", "check_codec", "check_compressor", "check_masker", "check_metric",
    "check_retriever", "check_text_encoder",
]  # fmt: skip
