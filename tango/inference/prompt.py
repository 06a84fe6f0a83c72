"""A conversation as the text and tokens of a prompt: what people write is text, and what is too long is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tango.pruners.base import Pruner

Message = Mapping[str, Any]
Spelled = tuple[int, list[int]]  # a special token that stands for a text in a prompt, and the text's own tokens


class PromptTooLong(ValueError):
    """A prompt of more tokens than the language model has positions for."""


def check_text(text: str) -> None:
    """Turn away text that is no Unicode: bytes of a command line or a file that were not UTF-8.

    Raises:
        ValueError: names the text and the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text {text!r} is not UTF-8 at character {error.start + 1}; write it as UTF-8") from error


def written(messages: Sequence[Message], processor: Any) -> tuple[str, list[Spelled]]:
    """The prompt by the processor's chat template, of messages whose parts have a type and, if that is text, a text.

    What is spelled like a special token in a text (`<video>`, `<|im_end|>`) is text. Such a text is left out, with
    another special token in its place, which spell_out() replaces.

    Raises:
        ValueError: a text is not UTF-8, or the tokenizer has no token to stand for it.
    """
    tokenizer = processor.tokenizer
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    for text in texts:
        check_text(text)
    odd = [text for text in texts if any(token in text for token in special)]
    if not odd:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), []
    for token in special:
        parts = [
            [part | {"text": token} if part.get("text") in odd else part for part in m["content"]] for m in messages
        ]
        shown = [{**message, "content": content} for message, content in zip(messages, parts, strict=True)]
        prompt = processor.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        if prompt.count(token) == len(odd):  # nothing else in the prompt is this token
            number = tokenizer.convert_tokens_to_ids(token)
            return prompt, [(number, spelled(text, tokenizer)) for text in odd]
    raise ValueError(f"the text {odd[0]!r} has a special token in it, and this tokenizer no other to stand for it")


def spelled(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text in which nothing is a special token."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def spell_out(batch: Any, texts: Sequence[Spelled]) -> None:
    """Replace the tokens that stand for texts, in order, in all tensors (1, n) of a prompt with an entry a token."""
    for stand_in, ids in texts:
        row = batch["input_ids"]
        at = int((row[0] == stand_in).nonzero()[0])
        for name, values in batch.items():
            if isinstance(values, torch.Tensor) and values.shape == row.shape:
                own = row.new_tensor([ids]) if name == "input_ids" else values[:, at : at + 1].expand(-1, len(ids))
                batch[name] = torch.cat((values[:, :at], own, values[:, at + 1 :]), 1)


def least_seen(length: int, sizes: Sequence[tuple[int, int]], pruner: Pruner | None) -> int:
    """Tokens of a prompt of a length that the language model will see at least, by what is known before it computes.

    sizes: frames and tokens of each video of it.
    """
    if pruner is None or pruner.retention_ratio == 1:
        return length
    kept = [pruner.budget(1, count) if pruner.exact_budget else 1 for _, count in sizes]
    return length - sum(count for _, count in sizes) + sum(kept)


def check_length(tokens: int, model: Any) -> None:
    """Turn away a prompt of so many tokens if the language model was made for fewer.

    Raises:
        PromptTooLong: says how many it has positions for.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise PromptTooLong(
            f"the prompt is {tokens} tokens long for the language model, which has positions for {most}; use fewer "
            "frames, a lower retention ratio or a shorter text"
        )
