"""Heads that tensor parallelism splits over ranks, joined before a saliency is computed. No second rank is run here."""

import pytest
import torch
from tango_vllm import heads

from tango.models.attention import from_attention, parts_of_attention


@pytest.mark.parametrize("saliency", ["global_query", "received_attention"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_saliency_and_keys_of_split_heads(monkeypatch, ranks, saliency):
    frames, patches, count, width = 3, 16, 8, 32
    queries, keys, values = torch.randn(3, frames, patches, count * width, generator=torch.Generator().manual_seed(0))
    # What a linear layer whose heads are split gives each rank: its own heads' queries, then keys, then values.
    shares = [torch.cat(own, -1) for own in zip(*(x.chunk(ranks, -1) for x in (queries, keys, values)), strict=True)]

    def gather(part):
        """All ranks' columns in their order, as the collective gives them to every rank."""
        own = next(i for i, share in enumerate(shares) for x in share.chunk(3, -1)[:2] if torch.equal(x, part))
        which = [torch.equal(x, part) for x in shares[own].chunk(3, -1)].index(True)
        return torch.cat([share.chunk(3, -1)[which] for share in shares], -1)

    monkeypatch.setattr(heads, "tensor_model_parallel_all_gather", gather)
    monkeypatch.setattr(heads, "is_vit_use_data_parallel", lambda: False)
    parts = parts_of_attention({"saliency", "keys"}, saliency)
    whole = from_attention(parts, queries, keys, count, width**-0.5, 4)
    for share in shares:
        found = from_attention(parts, *heads.all_heads(share), count, width**-0.5, 4)
        assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert ranks == 1 or not torch.allclose(
        from_attention(parts, *shares[0].chunk(3, -1)[:2], count // ranks, width**-0.5, 4)["saliency"],
        whole["saliency"],
    )
