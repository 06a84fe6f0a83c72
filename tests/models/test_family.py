"""What a family tells of a prompt without encoding it."""

import pytest
import torch
from families import FAMILIES, TOKENS, make_pruner

from tango.models import family_of


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_encoded_videos(name):
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt([5, *family.video(), 6, *family.video(), 7]) | family.pixels(2)
    told = family_of(model).sizes(model.config, inputs)
    with torch.no_grad(), make_pruner("uniform", 0.5)(model) as session:
        model(**inputs)
    assert told == [(record.frames, record.tokens_before) for record in session.videos]
    assert told == [(4, 4 * TOKENS)] * 2
    assert family_of(model).sizes(model.config, family.prompt([5, 6])) == []
