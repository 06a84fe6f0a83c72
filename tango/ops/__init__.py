"""The mathematics: pure functions on tensors that know nothing of models or methods, and import torch alone."""
