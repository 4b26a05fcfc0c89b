"""Do two real processes train as one does? The same pairs, half of them each, over gloo."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_repo import PASSAGES, ROWS, Build, assert_same, build, weights
from tiny import tiny_model

from efface.models import load_model

__all__ = ["build"]  # the fixture

SCRIPT = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_repo import PASSAGES, ROWS
from tiny import tiny_model, tiny_tokenizer
from efface.methods.repo import REPOConfig, REPOTrainer

config = REPOConfig({output!r}, **{settings!r})
assert config.world_size == 2
trainer = REPOTrainer(tiny_model("llama"), config, ROWS, processing_class=tiny_tokenizer(), retain_text=PASSAGES)
trainer.train()
trainer.save_model()
torch.distributed.destroy_process_group()
"""


@pytest.mark.full
@pytest.mark.parametrize("reference", ["on", "off"])
def test_two_processes_train_as_one(reference: str, build: Build, tmp_path: Path) -> None:
    settings = {
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "grl_schedule": "constant",
        "discriminator_width": 16,
        "use_cpu": True,
        "disable_tqdm": True,
        "erase_layers": "all",
        "precompute_reference": reference,
        "retain_text_per_pair": 1.0,
        "report_to": "none",
    }
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent),
            output=str(tmp_path / "two"),
            settings=settings | {"per_device_train_batch_size": 4},
        )
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one = build(retain_text_list=PASSAGES, per_device_train_batch_size=len(ROWS), **settings)
    one.train()
    two, _ = load_model(tmp_path / "two")
    start = weights(tiny_model("llama"))
    trained = weights(one.model)
    assert max((trained[name] - start[name]).abs().max() for name in start) > 1e-3
    assert_same(weights(two), trained, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(torch.cat([tensor.flatten() for tensor in trained.values()])).all()
