"""Data: from text files to token shards to batches.

    inputs -> sources -> documents -> encode -> writer -> shards -> loader        the first five are run by prepare

Only `linscale.data.loader` imports torch; import `Loader` and `validation_batches` from there.
"""

from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.shards import TokenDataset
from linscale.data.tokenizer import Tokenizer, load_tokenizer

__all__ = ["PrepareOptions", "TokenDataset", "Tokenizer", "load_tokenizer", "prepare"]
