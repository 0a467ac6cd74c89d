"""From a language model and preferences to an aligned model: SFT, reward model, PPO, on Ray."""

import gc

__version__ = "0.1.0"

# torch, transformers and vLLM make 650,000 objects that stay as they are imported. At Python's own
# threshold the collector looks through them so often that it takes a sixth of a process's start. An
# update leaves no cycles of tensors behind, so looking seldom keeps no memory.
gc.set_threshold(50_000)
