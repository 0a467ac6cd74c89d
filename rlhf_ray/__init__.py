"""From a language model and preferences to an aligned model: SFT, reward model, PPO, on Ray."""

__version__ = "0.1.0"
