"""Folders as google/ddpm-* were uploaded in 2022."""

from __future__ import annotations

import json

import torch

UNET_KEYS_2022 = (
    "_class_name",
    "_diffusers_version",
    "act_fn",
    "attention_head_dim",
    "block_out_channels",
    "center_input_sample",
    "down_block_types",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "norm_eps",
    "norm_num_groups",
    "out_channels",
    "sample_size",
    "time_embedding_type",
    "up_block_types",
)
SCHEDULER_KEYS_2022 = (
    "_class_name",
    "_diffusers_version",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "num_train_timesteps",
    "trained_betas",
    "variance_type",
)


def flat(folder, pipeline):
    """As google/ddpm-* were uploaded in 2022: no folders, fewer keys, a pickle, attentions under
    their old names."""
    folder.mkdir()
    for source, target, keys in (
        ("model_index.json", "model_index.json", ("_class_name", "scheduler", "unet")),
        ("unet/config.json", "config.json", UNET_KEYS_2022),
        ("scheduler/scheduler_config.json", "scheduler_config.json", SCHEDULER_KEYS_2022),
    ):
        config = json.loads((folder.parent / "new" / source).read_text())
        (folder / target).write_text(json.dumps({key: config[key] for key in keys}))
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in pipeline.unet.state_dict().items():
        for a, b in new.items():
            name = name.replace(a, b)
        old[name] = tensor
    torch.save(old, folder / "diffusion_pytorch_model.bin")
