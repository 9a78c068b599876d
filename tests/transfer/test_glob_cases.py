"""Words of papers and of other codes, in a rule."""

import pytest

from models.adm import ADMUNet
from runtime.errors import UserError
from transfer.glob_matches import checked_matches


@pytest.fixture(scope="module")
def names():
    network = ADMUNet(8, [1, 2], 1, [1], heads=1, groups=4, classes=2)
    return [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        ("decoder.*", "up.*"),
        ("encoder.*", "down.*"),
        ("Encoder.*", "down.*"),
        ("bottleneck.*", "mid.*"),
        ("middle_block.*", "mid.*"),
        ("*.attn.*", "*.attention.*"),
        ("mid_block.attentions.0.*", "mid.attention.0.*"),
        ("up_blocks.1.resnets.*", "up.1.block.*, where level 0 has the full resolution"),
        ("output_blocks.*", "up.*"),
        ("time_embed.*", "time_mlp.*"),
        ("label_emb.*", "class_embedding.*"),
        ("*.to_q.*", "*.qkv.*"),
        ("head.*", "conv_out.*"),
    ],
)
def test_another_word_for_a_part_is_told_ours(names, pattern, ours):
    with pytest.raises(UserError) as raised:
        checked_matches([pattern], names, "transfer.rules")
    expected = f"transfer.rules: {pattern} matches no parameter; here that is {ours}."
    assert str(raised.value) == expected


def test_a_word_whose_translation_matches_nothing_gets_the_near_names(names):
    with pytest.raises(UserError, match=r"decoder\.9\.\* matches no parameter; (did you|known)"):
        checked_matches(["decoder.9.*"], names, "transfer.rules")
