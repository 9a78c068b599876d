"""Images from a checkpoint: python sample.py --help"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

from typing import Any

from config.overrides import run_script
from runtime.config_schema import parse
from sampling.sample_to_folder import SampleSettings, sample_to_folder


def main(config: dict[str, Any]) -> None:
    del config["spacing"]  # it stands in the sampler
    sample_to_folder(parse(SampleSettings, config, ["diffusion"], ""), config["sampler"])


if __name__ == "__main__":
    run_script("sample", main)
