"""What fails in transformers' own tests with a pruner attached, each by definition, and why."""

from __future__ import annotations

from transformers.modeling_layers import GradientCheckpointingLayer

SHORTER = "hidden states and attention maps are those of the pruned prompt, which is shorter"
ROWS = "a row has as many newlines as rows of its frames have tokens left, so that rows differ in length"
LABELS = "with pruning inside the decoder labels are refused, for their tokens may be dropped there"
ROUTERS = "with pruning inside the decoder router logits are refused: layers route unlike many tokens"
CHECKPOINTS = "gradient checkpointing that computes hooks again is refused with pruning inside the decoder"

CHECKPOINTED = "test_enable_input_require_grads_with_gradient_checkpointing"
LABELLING = (  # of LLaVA-Video's small model there are no labels
    "llava_onevision", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "video_llama_3", "qwen3_omni_moe",
)  # fmt: skip
LABELLED = (
    CHECKPOINTED,
    "test_causal_lm_loss_honors_shift_labels",
    "test_model_outputs_equivalence",
    "test_training",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_false",
    "test_training_gradient_checkpointing_use_reentrant_true",
)
# (modes, or families and modes; tests; reason)
DIFFERENCES = [
    (("half",), ("test_attention_outputs", "test_hidden_states_output"), SHORTER),
    (tuple(f"{family} inside" for family in LABELLING), LABELLED, LABELS),
    (
        ("qwen3_vl_moe inside", "qwen3_omni_moe inside"),
        ("test_capture_outputs_decorator", "test_output_router_logits_from_config"),
        ROUTERS,
    ),
    (("llava_video half",), ("test_batching_equivalence",), ROWS),
]
if "__call__" in vars(GradientCheckpointingLayer):
    DIFFERENCES.append((("llava_video inside",), (CHECKPOINTED,), CHECKPOINTS))


def reason(family: str, mode: str, test: str) -> str | None:
    """Why a test fails with a family in a mode; None: it must pass."""
    names = {mode, f"{family} {mode}"}
    return next((why for modes, tests, why in DIFFERENCES if names & set(modes) and test in tests), None)
