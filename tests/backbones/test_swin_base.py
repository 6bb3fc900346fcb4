"""What the Swin transformers of this wing share."""

import pytest
import torch

from mmextra.backbones.stvit import STViTSwin
from mmextra.engine import checkpoint


@pytest.mark.parametrize('kind', ['Pretrained', 'mmextra.OfficialCheckpoint'])
def test_absolute_positions_of_a_checkpoint_stay(kind, tmp_path, monkeypatch):
    """The host draws them anew after any other initialisation than its own ``Pretrained``."""
    from contracts import tiny

    monkeypatch.setitem(checkpoint._LAYOUTS, 'as it is', lambda state: state)
    options = dict(tiny('MODELS', 'STViTSwin'), use_abs_pos_embed=True)
    source, path = STViTSwin(**options), str(tmp_path / 'weights.pth')
    torch.nn.init.normal_(source.absolute_pos_embed)
    torch.save(source.state_dict(), path)
    layout = {} if kind == 'Pretrained' else dict(layout='as it is')
    model = STViTSwin(**{**options, 'init_cfg': dict(type=kind, checkpoint=path, **layout)})
    model.init_weights()
    assert torch.equal(model.absolute_pos_embed, source.absolute_pos_embed)


def test_absolute_positions_are_drawn_without_a_checkpoint():
    from contracts import tiny

    model = STViTSwin(**tiny('MODELS', 'STViTSwin'), use_abs_pos_embed=True)
    model.init_weights()
    assert model.absolute_pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize('frozen_stages', [-2, 4])
def test_frozen_stages_out_of_range(frozen_stages):
    from contracts import tiny

    with pytest.raises(ValueError, match=rf'frozen_stages.*\[-1, 3\], got {frozen_stages}'):
        STViTSwin(**tiny('MODELS', 'STViTSwin'), frozen_stages=frozen_stages)
