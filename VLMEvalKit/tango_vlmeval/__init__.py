"""Plugin for VLMEvalKit: models that can be pruned, the benchmark MotionQA, and a run.py that knows both."""

__version__ = "0.2.0"
