"""The command line of run.py: VLMEvalKit's, and flags for the settings of pruning methods."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tango.inference.names import CheckpointError, calling
from tango.runs.hooks import mask_output
from tango.runs.screen import visible
from tango.runs.settings import ARGS, VANILLA, SettingsError, from_environment

# Flag of the command line: field of the method.
FIELDS = {
    "pre-retain-ratio": ("pre_retention_ratio", "share of the video tokens kept before the language model"),
    "retain-ratio": ("retention_ratio", "share of the video tokens kept; with --pruned-layer the mean over layers"),
    "pruned-layer": ("pruned_layer", "prune again inside the language model, before this layer"),
    "similarity-threshold": ("similarity_threshold", "similarity that counts as the same between frames"),
    "context-ratio": ("context_ratio", "share of the budget for merged tokens"),
    "alpha": ("expansion", "salient candidates for each salient token to select"),
    "base-time": ("time_base", "frequency base of ST-RoPE in time"),
    "base-space": ("space_base", "frequency base of ST-RoPE in space"),
    "num-neighbors": ("num_neighbors", "neighbours for the density"),
    "segment-type": ("segmentation", "how a video is cut into segments: holitom or fastvid"),
}
# How the models of --model are loaded, and what is said of it.
HOW = {
    "revision": "branch or commit of a hub id",
    "dtype": "auto, float32, float16 or bfloat16",
    "attn-implementation": "sdpa, eager or flash_attention_2",
    "server": "http://host:port of a server of vLLM with tango-vllm, which answers in the model's place",
}
BY_RULE = "exact_matching"


def own_parser() -> argparse.ArgumentParser:
    """The flags that upstream does not know; the rest of the command line is upstream's."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="run.py [settings of WRAPPER's method] [flags of vlmeval.run]",
    )
    group = parser.add_argument_group(
        "settings of the method that WRAPPER names (they win over TANGO_ARGS, and that over TANGO_CONFIG)"
    )
    for flag, (field, meaning) in FIELDS.items():
        group.add_argument(f"--{flag}", dest=field, metavar=field.upper(), help=meaning)
    return parser


def show_help(parser: argparse.ArgumentParser) -> None:
    """Print the help of our flags; upstream's follows."""
    group = parser.add_argument_group("how the models of --model are loaded")
    for flag, meaning in HOW.items():
        group.add_argument(f"--{flag}", help=meaning)
    parser.print_help()
    print("\nand of vlmeval.run:\n")
    sys.stdout.flush()


def merge(settings: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """TANGO_ARGS with flags put in, which win.

    Raises:
        SettingsError: flags without a method that has settings, or a comma in one, which would begin another field.
    """
    method = environ.get("WRAPPER", "").strip() or VANILLA
    args = environ.get("TANGO_ARGS", "")
    if not settings:
        return args
    if method == VANILLA:
        flags = ", ".join(f"--{flag}" for flag, (field, _) in FIELDS.items() if field in settings)
        raise SettingsError(f"{flags} with WRAPPER={environ.get('WRAPPER', '')!r}: no method is attached to use it")
    for flag, (field, _) in FIELDS.items():
        if "," in settings.get(field, ""):
            raise SettingsError(f"--{flag} = {settings[field]!r}: a value has no comma in it")
    parts = [part for part in args.split(",") if part.strip()]
    others = [part for part in parts if part.partition("=")[0].strip() not in settings]
    return ",".join([*others, *(f"{field}={value}" for field, value in settings.items())])


def as_typed(settings: Mapping[str, str], before: str, merged: str) -> dict[str, str]:
    """What messages call TANGO_ARGS with flags put in, `merged`, and its fields; `before`: it without them."""
    typed = {field: f"--{flag}" for flag, (field, _) in FIELDS.items() if field in settings}
    words = [f"{flag} {settings[field]}" for field, flag in typed.items()]
    words += [f"TANGO_ARGS={before.strip()!r}"] if before.strip() else []
    return {f"TANGO_ARGS={merged.strip()!r}": " ".join(words)} | {ARGS + field: flag for field, flag in typed.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if anything failed, 2 for a mistake in settings."""
    mask_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = own_parser()
    if {"-h", "--help"} & set(words):
        show_help(own_parser())
    own, rest = parser.parse_known_args(words)
    before = os.environ.get("TANGO_ARGS", "")
    try:
        os.environ["TANGO_ARGS"] = merged = merge(vars(own), os.environ)
        with calling(as_typed(vars(own), before, merged)):
            from_environment()  # a mistake in the settings is found before VLMEvalKit is even imported
        return hand_over(rest)
    except (SettingsError, CheckpointError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2


def hand_over(words: Sequence[str]) -> int:
    """Register what this plugin has, and run vlmeval's command line."""
    # Else upstream takes data sets from ModelScope, which need not be installed, and never looks at those of the hub.
    os.environ.setdefault("VLMEVALKIT_USE_MODELSCOPE", "0")
    import vlmeval.run as upstream

    from tango_vlmeval import datasets, hooks, models

    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--model", nargs="+", default=[])
    shared.add_argument("--data", nargs="+", default=[])
    shared.add_argument("--limit", type=int)
    shared.add_argument("--judge")
    shared.add_argument("--work-dir", default="./outputs")
    shared.add_argument("--api-mode", action="store_true")
    shared.add_argument("--base-url")
    for name in HOW:
        shared.add_argument(f"--{name}", dest=name.replace("-", "_"), default=argparse.SUPPRESS)
    known, rest = shared.parse_known_args(list(words))
    if known.limit is not None and known.limit < 1:
        raise SettingsError(f"--limit {known.limit}: ask at least one question")
    datasets.register()
    datasets.check(known.data)
    how = {name: getattr(known, name) for name in (name.replace("-", "_") for name in HOW) if name in known}
    served = known.api_mode or known.base_url is not None  # then names are a server's
    with calling({"pretrained=": "--model ", "dtype=": "--dtype "}):
        names = {name: name for name in known.model} if served else models.register(known.model, **how)
    # Upstream hands the group of its processes, and what it starts by name, to others by these words.
    words = [*rest, "--judge", known.judge or BY_RULE, "--work-dir", known.work_dir]
    words += ["--model", *(names[name] for name in known.model)] if known.model else []
    words += ["--data", *known.data] if known.data else []
    words += ["--limit", str(known.limit)] if known.limit is not None else []
    words += ["--api-mode"] if known.api_mode else []
    words += ["--base-url", known.base_url] if known.base_url is not None else []
    hooks.install(known.limit)
    Path(known.work_dir).mkdir(parents=True, exist_ok=True)
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        upstream.main()
    finally:
        sys.argv = before
    for problem in hooks.RUN.problems:
        print(visible(f"tango_vlmeval: {problem}"), file=sys.stderr)
    return hooks.RUN.status()
