"""Text to tokens: our own stories or the user's files, a tokenizer, and the batches of every step.

Start at `dataset.py`: it makes a `Dataset` from either source. Imports torch, NumPy and tokenizers only.
"""

from torchane.data.batches import IGNORE, Batch
from torchane.data.dataset import Dataset, corpus_dataset, stories_dataset
from torchane.data.tokenizer import Tokenizer

__all__ = ["IGNORE", "Batch", "Dataset", "Tokenizer", "corpus_dataset", "stories_dataset"]
